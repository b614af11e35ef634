//! The stored form of a message, which is also its broadcast frame: msgpack
//! `[id, topic, key, priority, ttl, unique, body]`, texts and bytes as msgpack strings.

use std::sync::Arc;

use bytes::Bytes;
use rmp::{Marker, decode, encode};

use crate::backend::{Message, MessageId};

/// Bytes that a script puts before a stored message: times, queue and kind.
pub(super) const HEAD: usize = 21;

/// A message read back.
#[derive(Debug)]
pub(super) struct Stored {
    #[cfg_attr(not(test), expect(dead_code, reason = "checked while reading; scripts read it"))]
    pub(super) id: MessageId,
    pub(super) topic: Arc<str>,
    pub(super) key: Option<Box<str>>,
    pub(super) priority: i16,
    pub(super) body: Bytes,
}

/// Appends bytes as a msgpack string: the server's decoder knows no other kind everywhere.
pub(super) fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    // Writing to a vector cannot fail.
    let _ = encode::write_str_len(out, u32::try_from(text.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(text);
}

pub(super) fn write_nil_or(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => write_text(out, text.as_bytes()),
        None => drop(encode::write_nil(out)),
    }
}

/// Returns the stored form of a message.
pub(super) fn write(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    append(&mut out, message);
    out
}

/// Appends the stored form of a message.
pub(super) fn append(out: &mut Vec<u8>, message: &Message) {
    out.reserve(message.body.len() + message.topic.len() + 48);
    drop(encode::write_array_len(out, 7));
    write_text(out, &message.id);
    write_text(out, message.topic.as_bytes());
    write_nil_or(out, message.key.as_deref());
    drop(encode::write_sint(out, i64::from(message.priority)));
    match message.expires_after {
        Some(ttl) => drop(encode::write_uint(out, super::micros(ttl))),
        None => drop(encode::write_nil(out)),
    }
    write_nil_or(out, message.unique.as_deref());
    write_text(out, &message.body);
}

/// Reads one stored message at the start of `bytes`; returns it and what follows it.
pub(super) fn read(bytes: &Bytes) -> Option<(Stored, Bytes)> {
    let mut rest = bytes.as_ref();
    if decode::read_array_len(&mut rest).ok()? != 7 {
        return None;
    }
    let id = MessageId::try_from(read_text(&mut rest)?).ok()?;
    let topic = std::str::from_utf8(read_text(&mut rest)?).ok()?.into();
    let key = read_optional(&mut rest)?;
    let priority = decode::read_int(&mut rest).ok()?;
    if rest.first() == Some(&0xc0) {
        rest = rest.get(1..)?;
    } else {
        let _: u64 = decode::read_int(&mut rest).ok()?;
    }
    let _: Option<Box<str>> = read_optional(&mut rest)?;
    let body = read_text(&mut rest)?;
    let body = bytes.slice_ref(body);
    Some((Stored { id, topic, key, priority, body }, bytes.slice_ref(rest)))
}

fn read_text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = decode::read_str_len(rest).ok()? as usize;
    let (text, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(text)
}

/// Reads a text or nil.
#[allow(clippy::option_option)] // malformed, absent, there
fn read_optional(rest: &mut &[u8]) -> Option<Option<Box<str>>> {
    if rmp::Marker::from_u8(*rest.first()?) == Marker::Null {
        *rest = rest.get(1..)?;
        return Some(None);
    }
    Some(Some(std::str::from_utf8(read_text(rest)?).ok()?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Due;
    use std::time::Duration;

    fn message() -> Message {
        Message {
            id: [7; 16],
            topic: "orders:ü".into(),
            body: Bytes::from_static(b"\x00body"),
            key: Some("k".into()),
            priority: -3,
            due: Due::Now,
            expires_after: Some(Duration::from_secs(5)),
            dedup_id: None,
            unique: Some("u".into()),
            broadcast: true,
            event: [0; 16],
        }
    }

    #[test]
    fn what_is_written_is_read_back_one_after_the_other() {
        let mut bytes = write(&message());
        bytes.extend(write(&Message { key: None, unique: None, expires_after: None, ..message() }));
        let bytes = Bytes::from(bytes);
        let (first, rest) = read(&bytes).unwrap_or_else(|| unreachable!());
        assert_eq!((first.id, &*first.topic, first.priority), ([7; 16], "orders:ü", -3));
        assert_eq!((first.key.as_deref(), &first.body[..]), (Some("k"), &b"\x00body"[..]));
        let (second, rest) = read(&rest).unwrap_or_else(|| unreachable!());
        assert!(second.key.is_none() && rest.is_empty());
    }

    #[test]
    fn cut_and_foreign_bytes_are_refused() {
        let whole = Bytes::from(write(&message()));
        for end in 0..whole.len() {
            assert!(read(&whole.slice(..end)).is_none(), "{end}");
        }
        for foreign in [&b"{}"[..], b"", b"\x97", b"\x97\xdb\xff\xff\xff\xff"] {
            assert!(read(&Bytes::copy_from_slice(foreign)).is_none());
        }
    }
}
