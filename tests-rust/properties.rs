//! Properties of the codecs: round trips, and decoders that neither panic nor balloon.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use bytes::Bytes;
use eventbus::Error;
use eventbus::codec::json::{self, Defaults};
use eventbus::codec::time::{is_valid_time, parse_iso, write_iso};
use eventbus::codec::value::{self, ext};
use eventbus::codec::{self, Limits, Wire, envelope, write};
use eventbus::event::{Event, EventId, EventType, Field, Timestamp, WallTime};
use proptest::prelude::*;

const DEFAULTS: Defaults =
    Defaults { now: WallTime { micros: 0, offset_micros: None }, event_id: [0; 16] };

/// A msgpack value, and whether it survives JSON unchanged.
fn packed(json_only: bool) -> BoxedStrategy<Vec<u8>> {
    let scalar = prop_oneof![
        Just(vec![0xc0]),
        any::<bool>().prop_map(|value| make(|out| write::bool(out, value))),
        any::<i64>().prop_map(|value| make(|out| write::int(out, value))),
        any::<u64>().prop_map(|value| make(|out| write::uint(out, value))),
        (-200_i64..200).prop_map(|value| make(|out| write::int(out, value))),
        any::<f64>().prop_map(|value| make(|out| write::float(
            out,
            if value.is_nan() { 0.5 } else { value }
        ))),
        any::<String>().prop_map(|value| make(|out| write::str(out, &value))),
        prop::sample::select(vec![
            &b"\xed\xa0\x80"[..],
            b"a\xed\xbf\xbf",
            b"\xed\xb0\x80\xed\xa0\x80"
        ])
        .prop_map(|text| make_ext(ext::SURROGATE_TEXT, text)),
        prop::collection::vec(any::<u8>(), 9..40).prop_map(|mut body| {
            *body.last_mut().unwrap() = 5;
            make_ext(ext::BIG_INT, &body)
        }),
    ];
    let native = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300)
            .prop_map(|value| make(|out| write::bin(out, &value))),
        any::<[u8; 16]>().prop_map(|value| make_ext(ext::UUID, &value)),
        Just(make_ext(ext::DECIMAL, b"-1.50E+3")),
        Just(make_ext(ext::DATE, &[0, 0, 1, 1])),
        Just(make_ext(ext::TUPLE, &[0x92, 1, 2])),
    ];
    let leaf = if json_only { scalar.boxed() } else { prop_oneof![scalar, native].boxed() };
    leaf.prop_recursive(5, 60, 20, move |inner| {
        let key = any::<String>().prop_map(|key| make(|out| write::str(out, &key)));
        let array = prop::collection::vec(inner.clone(), 0..20).prop_map(|items| {
            make(|out| {
                write::array(out, items.len());
                items.iter().for_each(|item| out.extend_from_slice(item));
            })
        });
        let map = prop::collection::vec((key, inner), 0..20).prop_map(|entries| {
            make(|out| {
                write::map(out, entries.len());
                for (key, item) in &entries {
                    out.extend_from_slice(key);
                    out.extend_from_slice(item);
                }
            })
        });
        prop_oneof![
            array.clone(),
            map,
            array.prop_map(move |array| match json_only {
                true => array,
                false => make_ext(ext::SET, &array),
            })
        ]
    })
    .boxed()
}

fn make(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

fn make_ext(code: i8, body: &[u8]) -> Vec<u8> {
    make(|out| {
        write::ext(out, code, body.len());
        out.extend_from_slice(body);
    })
}

fn field() -> impl Strategy<Value = Field> {
    prop_oneof![
        Just(Field::Null),
        any::<String>().prop_map(|text| Field::Text(text.into())),
        Just(Field::Value(Bytes::from_static(b"\x93\x01\xa1x\xc2"))),
        Just(Field::Value(make_ext(ext::SURROGATE_TEXT, b"\xed\xa0\x80").into())),
    ]
}

fn time() -> impl Strategy<Value = WallTime> {
    let micros = -62_135_596_800_000_000_i64..=253_402_300_799_999_999;
    let seconds = prop::option::of(-86_399_i64..86_400);
    (micros, seconds).prop_map(|(micros, offset)| WallTime {
        micros,
        offset_micros: offset.map(|seconds| seconds * 1_000_000),
    })
}

fn event(json_only: bool) -> impl Strategy<Value = Event> {
    let id =
        prop_oneof![any::<[u8; 16]>().prop_map(EventId::Uuid), field().prop_map(EventId::Other)];
    let metadata = prop_oneof![Just(Vec::new()), packed(json_only)];
    (0..7_u8, any::<String>(), packed(json_only), time(), id, field(), field(), metadata).prop_map(
        |(kind, topic, payload, time, event_id, source, correlation_id, metadata)| Event {
            kind: EventType::from_index(kind).unwrap(),
            topic: topic.into(),
            payload: payload.into(),
            timestamp: Timestamp::Time(time),
            event_id,
            source,
            correlation_id,
            // An empty map is written as empty bytes.
            metadata: if metadata == [0x80] { Bytes::new() } else { metadata.into() },
        },
    )
}

/// Decodes as a receiver does: the frame, then what it carries; nothing may panic.
fn receive(bytes: &[u8], limits: &Limits) -> eventbus::Result<Event> {
    let event = codec::decode(&Bytes::copy_from_slice(bytes), limits, || DEFAULTS)?;
    assert!(event.payload.len() + event.metadata.len() <= 5 * bytes.len() + 16, "it balloons");
    let _ = value::validate(&event.payload, limits);
    let _ = codec::encode(&event, Wire::DataKnobs, limits);
    Ok(event)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn the_native_frame_keeps_everything(event in event(false)) {
        let limits = Limits::default();
        value::validate(&event.payload, &limits).unwrap();
        let frame = envelope::encode(&event, &limits).unwrap();
        prop_assert_eq!(frame.len(), envelope::encoded_len(&event));
        prop_assert_eq!(codec::decode(&frame, &limits, || DEFAULTS).unwrap(), event);
    }

    #[test]
    fn the_json_frame_keeps_what_json_can_carry(event in event(true)) {
        let limits = Limits::default();
        let text = json::encode(&event, &limits).unwrap();
        prop_assert!(text.is_ascii());
        let again = json::decode(&text, &limits, || DEFAULTS).unwrap();
        prop_assert_eq!(&json::encode(&again, &limits).unwrap(), &text);
        prop_assert_eq!(again, event);
    }

    #[test]
    fn times_survive_their_text(time in time()) {
        prop_assert!(is_valid_time(&time));
        let mut text = Vec::new();
        write_iso(&mut text, &time);
        prop_assert_eq!(parse_iso(&text), Some(time));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let limits = Limits::default();
        let _ = receive(&bytes, &limits);
        let _ = value::validate(&bytes, &limits);
        let _ = json::decode_message(&bytes, &limits, || DEFAULTS);
        let _ = parse_iso(&bytes);
        let payload = Event { payload: bytes.into(), ..plain() };
        let _ = json::encode(&payload, &limits);
    }

    #[test]
    fn arbitrary_json_like_text_never_panics(text in r#"\{"(type|topic|payload)": ?[\[\]{}",:\\u0-9dD.eE+tfnNI-]{0,40}\}"#) {
        let _ = receive(text.as_bytes(), &Limits::default());
    }

    #[test]
    fn mutated_frames_never_panic(
        event in event(true),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let limits = Limits::default();
        for wire in [Wire::Native, Wire::DataKnobs] {
            let mut frame = codec::encode(&event, wire, &limits).unwrap().to_vec();
            for (at, byte) in &changes {
                let at = at.index(frame.len());
                frame[at] = *byte;
            }
            let _ = receive(&frame, &limits);
            frame.truncate(cut.index(frame.len()));
            let _ = receive(&frame, &limits);
        }
    }
}

fn plain() -> Event {
    Event {
        kind: EventType::Custom,
        topic: "t".into(),
        payload: Bytes::from_static(b"\xc0"),
        timestamp: Timestamp::Time(DEFAULTS.now),
        event_id: EventId::Uuid([1; 16]),
        source: Field::Null,
        correlation_id: Field::Null,
        metadata: Bytes::new(),
    }
}

#[test]
fn bombs_are_refused_with_typed_errors() {
    let limits = Limits::default();
    let message = |payload: &str| {
        let text = format!(r#"{{"type":"custom","topic":"t","payload":{payload}}}"#);
        receive(text.as_bytes(), &limits)
    };
    let nested = [
        "[".repeat(5_000) + &"]".repeat(5_000),
        r#"{"a":"#.repeat(5_000) + "1" + &"}".repeat(5_000),
    ];
    for payload in &nested {
        let error = message(payload).unwrap_err();
        assert!(matches!(error, Error::TooLarge { what: "nesting depth", .. }), "{error}");
    }
    let error = message(&"9".repeat(1_000_000)).unwrap_err();
    assert!(error.to_string().contains(json::INT_TOO_LONG), "{error}");
    let error = message(&format!("[{}0]", "0,".repeat(200_000))).unwrap_err();
    assert!(matches!(error, Error::TooLarge { what: "elements", .. }), "{error}");
    let error = message(&format!("\"{}\"", "x".repeat(1 << 20))).unwrap_err();
    assert!(matches!(error, Error::TooLarge { what: "message bytes", .. }), "{error}");

    let lengths: [&[u8]; 7] = [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x02",
        b"\x82\x00\x01\x05\xc6\xff\xff\xff\xff",
        b"\x82\x00\x01\x20\xdd\xff\xff\xff\xff",
    ];
    for bytes in lengths {
        assert!(matches!(value::validate(bytes, &limits), Err(Error::Decode { .. })));
        assert!(matches!(receive(bytes, &limits), Err(Error::Decode { .. })), "{bytes:02x?}");
    }
    let mut deep = vec![0x90];
    while deep.len() < 5_000 {
        deep = make_ext(ext::TUPLE, &[&[0x91][..], &deep].concat());
    }
    for payload in [deep, vec![0x91; 5_000]] {
        let error = value::validate(&payload, &limits).unwrap_err();
        assert!(matches!(error, Error::TooLarge { what: "nesting depth", .. }), "{error}");
        let event = Event { payload: payload.into(), ..plain() };
        let error = json::encode(&event, &limits).unwrap_err();
        assert!(matches!(error, Error::TooLarge { what: "nesting depth", .. }), "{error}");
    }
}
