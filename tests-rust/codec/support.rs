//! What several tests need: escapes of the golden files, and an ordinary event.

use bytes::Bytes;
use eventbus::event::{Event, EventId, EventType, Field, Timestamp, WallTime};

/// Undoes the `\u{hex}` escapes of the golden files.
pub(crate) fn unescape(text: &str) -> String {
    let mut pieces = text.split("\\u{");
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (code, rest) = piece.split_once('}').expect("closed escape");
        let code = u32::from_str_radix(code, 16).expect("hex");
        plain.push(char::from_u32(code).expect("scalar value"));
        plain.push_str(rest);
    }
    plain
}

/// Reads hexadecimal digits.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// An event with every usual field.
pub(crate) fn event() -> Event {
    Event {
        kind: EventType::Updated,
        topic: "registry:bots:b1".into(),
        payload: Bytes::from_static(b"\x81\xa6bot_id\xa2b1"),
        timestamp: Timestamp::Time(WallTime {
            micros: 1_767_323_045_678_901,
            offset_micros: Some(0),
        }),
        event_id: EventId::Uuid(
            *b"\x01\x9b\x12\x34\x56\x78\x7a\xbc\x8d\xef\x00\x11\x22\x33\x44\x55",
        ),
        source: Field::Text("caching_manager".into()),
        correlation_id: Field::Text("c-1".into()),
        metadata: Bytes::from_static(b"\x81\xa1k\x90"),
    }
}
