//! The DataKnobs frame: the golden message, the stored answers of CPython, and what is refused.

use bytes::Bytes;
use eventbus::Error;
use eventbus::bus::fresh_defaults;
use eventbus::codec::json::{self, Defaults};
use eventbus::codec::{self, Limits, value};
use eventbus::event::{Event, EventId, EventType, Field, Timestamp, WallTime};

use super::support::{event, unescape, unhex};

const GOLDEN: &str = include_str!("../golden/dataknobs-message.json");

const DEFAULTS: Defaults =
    Defaults { now: WallTime { micros: 5, offset_micros: Some(0) }, event_id: [9; 16] };

fn decode(text: &str) -> eventbus::Result<Event> {
    json::decode(text.as_bytes(), &Limits::default(), || DEFAULTS)
}

fn encode(event: &Event) -> eventbus::Result<String> {
    json::encode(event, &Limits::default()).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
}

/// The event of the golden message; the key 5 is an int here and text after the wire.
fn golden(key: &[u8]) -> Event {
    let mut payload = b"\x86\xa6bot_id\xa2b1\xa2\xc3\xbc\xa6\xc3\xa9\xf0\x9f\x98\x80".to_vec();
    payload.extend_from_slice(b"\xa1n\x94\x01\xcb\x40\x04\0\0\0\0\0\0\xc0\xc3");
    payload.extend_from_slice(b"\xa3nan\xcb\x7f\xf8\0\0\0\0\0\0");
    payload.extend_from_slice(b"\xa3big\xc7\x09\x01\0\0\0\0\0\0\0\0\x40");
    payload.extend_from_slice(key);
    payload.extend_from_slice(b"\xa6intkey");
    Event {
        payload: payload.into(),
        event_id: EventId::Other(Field::Text("id-1".into())),
        correlation_id: Field::Null,
        metadata: Bytes::from_static(b"\x81\xa1k\x81\xa1x\x90"),
        ..event()
    }
}

#[test]
fn the_golden_message_is_written_and_read() {
    assert_eq!(GOLDEN.len(), 346);
    assert_eq!(encode(&golden(b"\x05")).unwrap(), GOLDEN);
    assert_eq!(decode(GOLDEN).unwrap(), golden(b"\xa15"));
    let frame = Bytes::from_static(GOLDEN.as_bytes());
    assert_eq!(codec::decode(&frame, &Limits::default(), || DEFAULTS).unwrap(), golden(b"\xa15"));
}

#[test]
fn values_are_written_as_cpython_does() {
    for line in include_str!("../golden/json_encode.tsv").lines() {
        let (payload, wanted) = line.split_once('\t').unwrap();
        let payload = Bytes::from(unhex(payload));
        value::validate(&payload, &Limits::default()).unwrap();
        match (encode(&Event { payload, ..event() }), wanted.strip_prefix('!')) {
            (Ok(text), None) => {
                let start = text.find("\"payload\": ").unwrap() + "\"payload\": ".len();
                let end = text.find(", \"timestamp\": \"2026").unwrap();
                assert_eq!(text[start..end], unescape(wanted), "{line}");
            }
            (Err(Error::Encode { path, reason }), Some(message)) => {
                assert!(reason.starts_with(&unescape(message)), "{line}: {reason}");
                let paths = ["$.payload", "$.payload.a[1][\"b c\"][1]"];
                assert!(paths.contains(&path.as_str()), "{line}: {path}");
            }
            (other, _) => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn texts_are_read_as_cpython_does() {
    for line in include_str!("../golden/json_decode.tsv").lines() {
        let (text, wanted) = line.split_once('\t').unwrap();
        let mut message = br#"{"type":"custom","topic":"t","payload":"#.to_vec();
        message.extend_from_slice(&unhex(text));
        message.push(b'}');
        match json::decode(&message, &Limits::default(), || DEFAULTS) {
            Ok(event) => {
                value::validate(&event.payload, &Limits::default()).unwrap();
                let found: String = event.payload.iter().map(|b| format!("{b:02x}")).collect();
                let text = String::from_utf8_lossy(&message);
                assert_eq!(found, wanted, "{text}");
            }
            Err(Error::Decode { .. }) if wanted == "!" => {}
            Err(error) => panic!("{}: {error}", String::from_utf8_lossy(&message)),
        }
    }
}

#[test]
fn only_type_and_topic_are_required() {
    let event = decode(r#"{"type":"created","topic":"t"}"#).unwrap();
    let wanted = Event {
        kind: EventType::Created,
        topic: "t".into(),
        payload: Bytes::from_static(b"\x80"),
        timestamp: Timestamp::Time(DEFAULTS.now),
        event_id: EventId::Uuid(DEFAULTS.event_id),
        source: Field::Null,
        correlation_id: Field::Null,
        metadata: Bytes::new(),
    };
    assert_eq!(event, wanted);
    assert_ne!(fresh_defaults().event_id, fresh_defaults().event_id);
    assert!(decode("{}").unwrap_err().to_string().contains("'type' and 'topic'"));
}

#[test]
fn values_that_are_present_are_kept() {
    let text = r#"{"x": [{}], "topic": 5, "topic": "a\u0074", "type": "no", "type": "error",
        "payload": null, "timestamp": null, "event_id": 7, "source": ["s"], "metadata": null,
        "correlation_id": "\ud800"}"#;
    let event = decode(text).unwrap();
    let value = |bytes: &'static [u8]| Field::Value(Bytes::from_static(bytes));
    assert_eq!((event.kind, &*event.topic), (EventType::Error, "at"));
    assert_eq!((&*event.payload, &*event.metadata), (&b"\xc0"[..], &b"\xc0"[..]));
    assert_eq!(event.timestamp, Timestamp::Other(Field::Null));
    assert_eq!(event.event_id, EventId::Other(value(b"\x07")));
    assert_eq!(event.source, value(b"\x91\xa1s"));
    assert_eq!(event.correlation_id, value(b"\xc7\x03\x0a\xed\xa0\x80"));
    let number = decode(r#"{"type":"error","topic":"t","timestamp":1.5}"#).unwrap();
    assert_eq!(number.timestamp, Timestamp::Other(value(b"\xcb\x3f\xf8\0\0\0\0\0\0")));
}

#[test]
fn only_canonical_uuids_become_uuids() {
    let id = |id: &str| {
        let text = format!(r#"{{"type":"error","topic":"t","event_id":"{id}"}}"#);
        let event = decode(&text).unwrap();
        assert!(encode(&event).unwrap().contains(&format!(r#""event_id": "{id}", "#)), "{id}");
        matches!(event.event_id, EventId::Uuid(_))
    };
    assert!(id("019b1234-5678-7abc-8def-001122334455"));
    assert!(!id("019B1234-5678-7abc-8def-001122334455"));
    assert!(!id("019b123456787abc8def001122334455"));
    assert!(!id("{019b1234-5678-7abc-8def-00112233445"));
}

#[test]
fn malformed_messages_are_refused_with_the_reason() {
    let cases = [
        ("[]", "must be an object"),
        ("\u{feff}{}", "must be an object"),
        (r#"{"type":"created","topic":"t"} x"#, "trailing data"),
        (r#"{"type":"created"}"#, "missing 'topic'"),
        (r#"{"topic":"t"}"#, "missing 'type'"),
        (r#"{"type":"X","topic":"t"}"#, "'X' is not a valid EventType"),
        (r#"{"type":null,"topic":"t"}"#, "type is not a string"),
        (r#"{"type":"created","topic":5}"#, "topic is not a string"),
        (r#"{"type":"created","topic":"\ud800"}"#, "topic is not a string"),
        (r#"{"type":"error","topic":"t","timestamp":"soon"}"#, "Invalid isoformat string: 'soon'"),
        (r#"{"type":"error","topic":"t","timestamp":"\ud800"}"#, "Invalid isoformat string"),
    ];
    for (text, reason) in cases {
        let error = decode(text).unwrap_err().to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
}

#[test]
fn a_timestamp_must_have_isoformat_to_be_written() {
    let write = |timestamp| encode(&Event { timestamp, ..event() });
    let other = |bytes: &'static [u8]| Timestamp::Other(Field::Value(Bytes::from_static(bytes)));
    let cases = [
        (Timestamp::Other(Field::Null), "'NoneType' object has no attribute 'isoformat'"),
        (Timestamp::Other(Field::Text("x".into())), "'str' object has no attribute 'isoformat'"),
        (other(b"\x05"), "'int' object has no attribute 'isoformat'"),
        (other(b"\x90"), "'list' object has no attribute 'isoformat'"),
        (
            Timestamp::Time(WallTime { micros: i64::MAX, offset_micros: None }),
            "the time is out of range",
        ),
    ];
    for (timestamp, reason) in cases {
        let error = write(timestamp).unwrap_err().to_string();
        assert_eq!(error, format!("{reason} (at $.timestamp)"));
    }
    assert!(write(other(b"\xd6\x06\0\0\0\0")).unwrap().contains(r#": "1970-01-01", "#));
}

#[test]
fn limits_hold_for_bytes_depth_and_elements() {
    let limits = Limits { max_bytes: 400, max_depth: 3, max_elements: 12 };
    let read = |payload: &str| {
        let text = format!(r#"{{"type":"error","topic":"t","payload":{payload}}}"#);
        json::decode(text.as_bytes(), &limits, || DEFAULTS)
    };
    assert!(read("[[{}]]").is_ok() && read("[0,0,0,0,0,0,0,0,0]").is_ok());
    let long = format!("\"{}\"", "x".repeat(400));
    for payload in ["[[{\"a\":[]}]]", "[0,0,0,0,0,0,0,0,0,0]", &long] {
        assert!(matches!(read(payload), Err(Error::TooLarge { .. })), "{payload}");
    }
    let write = |payload: &[u8]| {
        json::encode(&Event { payload: Bytes::copy_from_slice(payload), ..event() }, &limits)
    };
    assert!(write(b"\x91\x91\x90").is_ok());
    let payloads: [&[u8]; 3] =
        [b"\x91\x91\x91\x90", &[&[0x9d][..], &[0; 13]].concat(), &[0xbf; 300]];
    for payload in &payloads[..2] {
        assert!(matches!(write(payload), Err(Error::TooLarge { .. })), "{payload:02x?}");
    }
    for payload in [payloads[2], b"\xd4\x0a\xff", b"\xc0\xc0", b"", b"\xd4\x02\xc0"] {
        assert!(matches!(write(payload), Err(Error::Decode { .. })), "{payload:02x?}");
    }
}

#[test]
fn a_stored_message_is_told_apart_from_an_event() {
    let read = |text: &str| json::decode_message(text.as_bytes(), &Limits::default(), || DEFAULTS);
    let message = read(r#"{"bus_topic": "a:b", "stored": 17}"#).unwrap();
    assert_eq!(message.event, None);
    assert_eq!(message.extras.bus_topic.as_deref(), Some("a:b"));
    assert_eq!(message.extras.stored, Field::Value(Bytes::from_static(b"\x11")));
    let text = GOLDEN.strip_suffix('}').unwrap().to_owned() + r#", "bus_topic": "registry:bots"}"#;
    let message = read(&text).unwrap();
    assert_eq!(message.event, Some(golden(b"\xa15")));
    assert_eq!(message.extras.bus_topic.as_deref(), Some("registry:bots"));
    assert!(read("{}").is_err() && read(r#"{"bus_topic": 5, "stored": 1}"#).is_err());
}
