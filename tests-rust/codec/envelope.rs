//! The native frame: stored bytes of version 1, and everything that must be refused.

use bytes::Bytes;
use eventbus::Error;
use eventbus::codec::{Limits, envelope};
use eventbus::event::{Event, EventId, EventType, Field, Timestamp, WallTime};

use super::support::event;

const VERSION_1: [(&str, &[u8]); 4] = [
    ("usual", include_bytes!("../golden/envelope-v1/usual.bin")),
    ("least", include_bytes!("../golden/envelope-v1/least.bin")),
    ("values", include_bytes!("../golden/envelope-v1/values.bin")),
    ("texts", include_bytes!("../golden/envelope-v1/texts.bin")),
];

fn expected(name: &str) -> Event {
    let value = |bytes: &'static [u8]| Field::Value(Bytes::from_static(bytes));
    match name {
        "usual" => event(),
        "least" => Event {
            kind: EventType::Created,
            topic: "".into(),
            payload: Bytes::from_static(b"\xc0"),
            timestamp: Timestamp::Other(Field::Null),
            event_id: EventId::Other(Field::Null),
            source: Field::Null,
            correlation_id: Field::Null,
            metadata: Bytes::new(),
        },
        "values" => Event {
            kind: EventType::Custom,
            topic: "日本:é".into(),
            timestamp: Timestamp::Other(value(b"\x05")),
            event_id: EventId::Other(value(b"\x93\x01\xc0\xa1x")),
            source: value(b"\xc7\x03\x0a\xed\xa0\x80"),
            correlation_id: value(b"\xc3"),
            payload: vec![0xc4, 0x00].into(),
            metadata: Bytes::from_static(b"\x80"),
        },
        "texts" => Event {
            timestamp: Timestamp::Time(WallTime { micros: -1, offset_micros: None }),
            event_id: EventId::Other(Field::Text("id-1".into())),
            source: Field::Text("".into()),
            topic: "t".repeat(300).into(),
            payload: [&[0xc5, 0x01, 0x2c][..], &[7; 300]].concat().into(),
            ..event()
        },
        _ => unreachable!(),
    }
}

fn decode(bytes: &[u8]) -> eventbus::Result<Event> {
    envelope::decode(&Bytes::copy_from_slice(bytes), &Limits::default())
}

#[test]
fn version_1_frames_are_read_and_written_for_ever() {
    for (name, bytes) in VERSION_1 {
        let event = expected(name);
        let encoded = envelope::encode(&event, &Limits::default()).unwrap();
        if std::env::var_os("WRITE_GOLDEN").is_some() {
            let path = format!("tests-rust/golden/envelope-v1/{name}.bin");
            std::fs::write(path, &encoded).unwrap();
            continue;
        }
        assert_eq!(decode(bytes).unwrap(), event, "{name}");
        assert_eq!(encoded, bytes, "{name}");
        assert_eq!(envelope::encoded_len(&event), bytes.len(), "{name}");
    }
}

#[test]
fn payload_and_metadata_are_slices_of_the_frame() {
    let frame = envelope::encode(&event(), &Limits::default()).unwrap();
    let range = frame.as_ptr_range();
    let decoded = envelope::decode(&frame, &Limits::default()).unwrap();
    assert!(range.contains(&decoded.payload.as_ptr()));
    assert!(range.contains(&decoded.metadata.as_ptr()));
}

#[test]
fn a_newer_version_is_told_apart_from_rubbish() {
    let newer = b"\x82\x00\xcc\xc8\xa1k\xc1";
    let error = decode(newer).unwrap_err();
    assert!(matches!(error, Error::UnknownVersion { version: 200, supported: 1 }), "{error}");
}

#[test]
fn unknown_keys_are_skipped_and_duplicates_refused() {
    let frame = b"\x86\x00\x01\x0d\x92\x80\xa1x\x01\x06\x02\xa1t\x05\xc4\x01\xc0\xcd\x10\x00\xc3";
    assert_eq!(&*decode(frame).unwrap().topic, "t");
    let twice = b"\x85\x00\x01\x01\x06\x02\xa1t\x05\xc4\x01\xc0\x02\xa1t";
    let error = decode(twice).unwrap_err().to_string();
    assert!(error.contains("key 2 occurs twice"), "{error}");
}

#[test]
fn malformed_frames_are_refused_with_the_reason() {
    let cases: [(&[u8], &str); 12] = [
        (b"", "cut off"),
        (b"\x90", "must be a map"),
        (b"\x80", "first entry"),
        (b"\x81\x01\x06", "first entry"),
        (b"\x81\x00\xa0", "unsigned integer"),
        (b"\x81\x00\x00", "version 0"),
        (b"\x81\x00\x01", "missing type, topic, payload"),
        (b"\x83\x00\x01\x01\x06\x02\xa1t", "missing payload"),
        (b"\x82\x00\x01\x01\x07", "unknown type 7"),
        (b"\x82\x00\x01\x02\x05", "key 2 has no valid value"),
        (b"\x82\x00\x01\x03\xc4\x01x", "key 3 has no valid value"),
        (b"\x84\x00\x01\x01\x06\x02\xa1t\x05\xc4\x01\xc0\xc0", "trailing bytes"),
    ];
    for (bytes, reason) in cases {
        let error = decode(bytes).unwrap_err().to_string();
        assert!(error.contains(reason), "{bytes:02x?}: {error}");
    }
    assert!(matches!(decode(b"\xdf\xff\xff\xff\xff"), Err(Error::Decode { .. })));
    assert!(matches!(decode(&[0; (1 << 20) + 1]), Err(Error::TooLarge { .. })));
}

#[test]
fn a_frame_over_the_limit_is_not_written() {
    let event = Event { payload: vec![0xc0; 2_000].into(), ..event() };
    let limits = Limits { max_bytes: 1_000, ..Limits::default() };
    let mut out = vec![1, 2, 3];
    let error = envelope::encode_into(&mut out, &event, &limits).unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 1_000, .. }));
    assert_eq!(out, [1, 2, 3]);
}
