//! The native frame: a versioned msgpack map with small integers as keys.
//!
//! | key | field | value |
//! |---|---|---|
//! | 0 | version | uint, always the first entry; this build writes and reads 1 |
//! | 1 | type | uint, the index in [`EventType::ALL`] |
//! | 2 | topic | str |
//! | 3 | event id | bin of 16 bytes = UUID, or a *field* |
//! | 4 | timestamp | ext `DATETIME`, or a *field* |
//! | 5 | payload | bin that holds one value of [`super::value`] |
//! | 6 | source | *field* |
//! | 7 | correlation id | *field* |
//! | 8 | metadata | bin that holds one value of [`super::value`] |
//! | 9 – 11, 13 | reserved | traceparent, payload schema version, codec id, position |
//! | 12 | signature | bin of 20 bytes, always the last entry; see [`crate::signing`] |
//!
//! A *field* is str, or an array with one item: the value as it is. Null fields and empty metadata
//! are left out; 0, 1, 2 and 5 must be there. Readers skip keys they do not know, so a key may be
//! added without a new version. No frame begins with `{` or white space, as JSON does: the first
//! byte is the header of a map. Payload and metadata are cut out without a copy and without a look
//! inside: [`super::value::validate`] checks them when they are decoded.

use std::sync::Arc;

use bytes::Bytes;

use super::read::{Reader, Token};
use super::time::is_valid_time;
use super::value::{self, check_size, ext};
use super::{Limits, write};
use crate::error::{Error, Result};
use crate::event::{Event, EventId, EventType, Field, Timestamp};

/// The version this build writes, and the newest it reads.
pub const VERSION: u64 = 1;

mod key {
    pub(super) const VERSION: u64 = 0;
    pub(super) const TYPE: u64 = 1;
    pub(super) const TOPIC: u64 = 2;
    pub(super) const EVENT_ID: u64 = 3;
    pub(super) const TIMESTAMP: u64 = 4;
    pub(super) const PAYLOAD: u64 = 5;
    pub(super) const SOURCE: u64 = 6;
    pub(super) const CORRELATION_ID: u64 = 7;
    pub(super) const METADATA: u64 = 8;
}

/// Encodes an event as a native frame.
///
/// # Errors
/// `TooLarge` for a frame of more than `max_bytes`. What is in the payload is not looked at.
pub fn encode(event: &Event, limits: &Limits) -> Result<Bytes> {
    let mut out = Vec::new();
    encode_into(&mut out, event, limits)?;
    Ok(Bytes::from(out))
}

/// Appends an event as a native frame; nothing is appended when it fails.
///
/// # Errors
/// As [`encode`].
pub fn encode_into(out: &mut Vec<u8>, event: &Event, limits: &Limits) -> Result<()> {
    let size = encoded_len(event);
    check_size(size, limits)?;
    out.reserve_exact(size);
    let fields = [field_of_id(&event.event_id), field_of_time(&event.timestamp)];
    let texts = [Some(&event.source), Some(&event.correlation_id)];
    let present = fields.iter().chain(&texts).filter(|field| !is_absent(**field)).count();
    write::map(out, 4 + present + usize::from(!event.metadata.is_empty()));
    // Small numbers are their own msgpack encoding.
    out.extend_from_slice(&[0, 1, 1, event.kind as u8, 2]);
    write::str(out, &event.topic);
    match &event.event_id {
        EventId::Uuid(id) => {
            out.push(3);
            write::bin(out, id);
        }
        EventId::Other(field) => write_field(out, 3, field),
    }
    match &event.timestamp {
        Timestamp::Time(time) => {
            out.push(4);
            value::write_datetime(out, time);
        }
        Timestamp::Other(field) => write_field(out, 4, field),
    }
    out.push(5);
    write::bin(out, &event.payload);
    write_field(out, 6, &event.source);
    write_field(out, 7, &event.correlation_id);
    if !event.metadata.is_empty() {
        out.push(8);
        write::bin(out, &event.metadata);
    }
    Ok(())
}

/// Returns exactly how many bytes [`encode`] makes of an event.
#[must_use]
pub fn encoded_len(event: &Event) -> usize {
    let id = match &event.event_id {
        EventId::Uuid(_) => 19,
        EventId::Other(field) => field_len(field),
    };
    let timestamp = match &event.timestamp {
        Timestamp::Time(time) if time.offset_micros.is_some() => 19,
        Timestamp::Time(_) => 11,
        Timestamp::Other(field) => field_len(field),
    };
    let metadata = match event.metadata.len() {
        0 => 0,
        length => 1 + bin_header(length) + length,
    };
    let topic = str_header(event.topic.len()) + event.topic.len();
    let payload = bin_header(event.payload.len()) + event.payload.len();
    let fields = field_len(&event.source) + field_len(&event.correlation_id);
    1 + 5 + topic + id + timestamp + 1 + payload + fields + metadata
}

/// Decodes a native frame.
///
/// # Errors
/// `TooLarge` over a limit, `UnknownVersion` for a newer frame, `Decode` for anything malformed.
pub fn decode(frame: &Bytes, limits: &Limits) -> Result<Event> {
    check_size(frame.len(), limits)?;
    let mut reader = Reader::new("envelope", frame, limits);
    let Token::Map(entries) = reader.token()? else {
        return Err(reader.malformed("a frame must be a map"));
    };
    read_version(&mut reader, entries)?;
    let mut parts = Parts::default();
    for _ in 1..entries {
        let Token::Uint(key) = reader.token()? else {
            return Err(reader.malformed("a key must be an unsigned integer"));
        };
        parts.read(key, &mut reader, frame, limits)?;
    }
    if !reader.is_at_end() {
        return Err(reader.malformed("trailing bytes"));
    }
    parts.into_event()
}

fn read_version(reader: &mut Reader<'_>, entries: usize) -> Result<()> {
    if entries == 0 || reader.token()? != Token::Uint(key::VERSION) {
        return Err(reader.malformed("the version (key 0) must be the first entry"));
    }
    match reader.token()? {
        Token::Uint(VERSION) => Ok(()),
        Token::Uint(0) => Err(reader.malformed("version 0 does not exist")),
        Token::Uint(version) => Err(Error::UnknownVersion { version, supported: VERSION }),
        _ => Err(reader.malformed("the version must be an unsigned integer")),
    }
}

/// What was read so far.
#[derive(Default)]
struct Parts {
    /// One bit per key.
    seen: u16,
    kind: Option<EventType>,
    topic: Option<Arc<str>>,
    payload: Option<Bytes>,
    event_id: Option<EventId>,
    timestamp: Option<Timestamp>,
    source: Field,
    correlation_id: Field,
    metadata: Bytes,
}

impl Parts {
    fn read(
        &mut self,
        key: u64,
        reader: &mut Reader<'_>,
        frame: &Bytes,
        limits: &Limits,
    ) -> Result<()> {
        if key > key::METADATA {
            return value::skip(reader, limits);
        }
        if self.seen & (1 << key) != 0 || key == key::VERSION {
            return Err(reader.malformed(format_args!("key {key} occurs twice")));
        }
        self.seen |= 1 << key;
        let start = reader.position();
        match (key, reader.token()?) {
            (key::TYPE, Token::Uint(index)) => {
                self.kind = u8::try_from(index).ok().and_then(EventType::from_index);
                if self.kind.is_none() {
                    return Err(reader.malformed(format_args!("unknown type {index}")));
                }
            }
            (key::TOPIC, Token::Str(text)) => self.topic = Some(text.into()),
            (key::PAYLOAD, Token::Bin(bytes)) => self.payload = Some(slice(frame, reader, bytes)),
            (key::METADATA, Token::Bin(bytes)) => self.metadata = slice(frame, reader, bytes),
            (key::EVENT_ID, Token::Bin(bytes)) => {
                let id = bytes.try_into().map_err(|_| wrong(reader, key, start))?;
                self.event_id = Some(EventId::Uuid(id));
            }
            (key::TIMESTAMP, Token::Ext(ext::DATETIME, length)) => {
                let time = value::read_datetime(reader.take(length)?).filter(is_valid_time);
                let time = time.ok_or_else(|| wrong(reader, key, start))?;
                self.timestamp = Some(Timestamp::Time(time));
            }
            (key::EVENT_ID, token) => {
                self.event_id = Some(EventId::Other(field(token, key, reader, frame, limits)?));
            }
            (key::TIMESTAMP, token) => {
                self.timestamp = Some(Timestamp::Other(field(token, key, reader, frame, limits)?));
            }
            (key::SOURCE, token) => self.source = field(token, key, reader, frame, limits)?,
            (key::CORRELATION_ID, token) => {
                self.correlation_id = field(token, key, reader, frame, limits)?;
            }
            _ => return Err(wrong(reader, key, start)),
        }
        Ok(())
    }

    fn into_event(self) -> Result<Event> {
        let (Some(kind), Some(topic), Some(payload)) = (self.kind, self.topic, self.payload) else {
            let missing: Vec<&str> = [(key::TYPE, "type"), (key::TOPIC, "topic")]
                .into_iter()
                .chain([(key::PAYLOAD, "payload")])
                .filter(|(key, _)| self.seen & (1 << key) == 0)
                .map(|(_, name)| name)
                .collect();
            let reason = format!("missing {}", missing.join(", "));
            return Err(Error::Decode { what: "envelope", reason });
        };
        Ok(Event {
            kind,
            topic,
            payload,
            timestamp: self.timestamp.unwrap_or(Timestamp::Other(Field::Null)),
            event_id: self.event_id.unwrap_or(EventId::Other(Field::Null)),
            source: self.source,
            correlation_id: self.correlation_id,
            metadata: self.metadata,
        })
    }
}

/// Reads a field whose first token is already read.
fn field(
    token: Token<'_>,
    key: u64,
    reader: &mut Reader<'_>,
    frame: &Bytes,
    limits: &Limits,
) -> Result<Field> {
    match token {
        Token::Str(text) => Ok(Field::Text(text.into())),
        Token::Array(1) => {
            let start = reader.position();
            value::skip(reader, limits)?;
            Ok(Field::Value(frame.slice(start..reader.position())))
        }
        _ => Err(wrong(reader, key, reader.position())),
    }
}

fn slice(frame: &Bytes, reader: &Reader<'_>, taken: &[u8]) -> Bytes {
    frame.slice(reader.position() - taken.len()..reader.position())
}

fn wrong(reader: &Reader<'_>, key: u64, start: usize) -> Error {
    reader.malformed(format_args!("key {key} has no valid value (it begins at {start})"))
}

fn field_of_id(id: &EventId) -> Option<&Field> {
    match id {
        EventId::Uuid(_) => None,
        EventId::Other(field) => Some(field),
    }
}

fn field_of_time(timestamp: &Timestamp) -> Option<&Field> {
    match timestamp {
        Timestamp::Time(_) => None,
        Timestamp::Other(field) => Some(field),
    }
}

/// Whether it is left out; `None` stands for a value of its own form.
fn is_absent(field: Option<&Field>) -> bool {
    matches!(field, Some(Field::Null))
}

fn write_field(out: &mut Vec<u8>, key: u8, field: &Field) {
    match field {
        Field::Null => {}
        Field::Text(text) => {
            out.push(key);
            write::str(out, text);
        }
        Field::Value(value) => {
            out.extend_from_slice(&[key, 0x91]);
            out.extend_from_slice(value);
        }
    }
}

fn field_len(field: &Field) -> usize {
    match field {
        Field::Null => 0,
        Field::Text(text) => 1 + str_header(text.len()) + text.len(),
        Field::Value(value) => 2 + value.len(),
    }
}

const fn str_header(length: usize) -> usize {
    if length < 32 { 1 } else { bin_header(length) }
}

const fn bin_header(length: usize) -> usize {
    match length {
        0..=0xff => 2,
        0x100..=0xffff => 3,
        _ => 5,
    }
}
