//! JSON text → event, as `Event.from_dict(json.loads(text))` reads it.

use bytes::Bytes;

use super::pack::Packer;
use super::parse::{Parser, Text, write_text};
use super::{Defaults, Extras, Message};
use crate::codec::Limits;
use crate::codec::read::{Reader, Token};
use crate::codec::time::parse_iso;
use crate::codec::value::{check_size, ext};
use crate::error::{Error, Result};
use crate::event::{Event, EventId, EventType, Field, Timestamp};

/// An empty map.
const EMPTY: Bytes = Bytes::from_static(b"\x80");

/// Decodes an event; what is missing comes from `defaults`, called only then.
pub(super) fn event(
    bytes: &[u8],
    limits: &Limits,
    defaults: impl Fn() -> Defaults,
) -> Result<Event> {
    read(bytes, limits)?.into_event(&defaults)
}

/// Decodes a message that may only say where the event is stored.
pub(super) fn message(
    bytes: &[u8],
    limits: &Limits,
    defaults: impl Fn() -> Defaults,
) -> Result<Message> {
    let mut found = read(bytes, limits)?;
    let bus_topic = match found.bus_topic.take() {
        None | Some(Field::Null) => None,
        Some(Field::Text(text)) => Some(text),
        Some(Field::Value(_)) => return Err(malformed("bus_topic is not a string")),
    };
    let extras = Extras { bus_topic, stored: found.stored.take().unwrap_or_default() };
    let is_reference = found.kind.is_none() && extras.stored != Field::Null;
    let event = if is_reference { None } else { Some(found.into_event(&defaults)?) };
    Ok(Message { event, extras })
}

/// The entries of the message; of duplicates the last.
#[derive(Default)]
struct Entries {
    kind: Option<Field>,
    topic: Option<Field>,
    payload: Option<Bytes>,
    timestamp: Option<Field>,
    event_id: Option<Field>,
    source: Field,
    correlation_id: Field,
    metadata: Option<Bytes>,
    bus_topic: Option<Field>,
    stored: Option<Field>,
}

fn read(bytes: &[u8], limits: &Limits) -> Result<Entries> {
    check_size(bytes.len(), limits)?;
    let mut parser = Parser::new(bytes, limits)?;
    let mut found = Entries::default();
    if !parser.accept(b'{') {
        return Err(parser.malformed("a message must be an object"));
    }
    parser.items(b'}', |parser| {
        let key = parser.key()?;
        let Text::Plain(key) = key else { return value(parser).map(|_| ()) };
        match &*key {
            "type" => found.kind = Some(field(parser)?),
            "topic" => found.topic = Some(field(parser)?),
            "payload" => found.payload = Some(value(parser)?),
            "timestamp" => found.timestamp = Some(field(parser)?),
            "event_id" => found.event_id = Some(field(parser)?),
            "source" => found.source = field(parser)?,
            "correlation_id" => found.correlation_id = field(parser)?,
            "metadata" => found.metadata = Some(value(parser)?),
            "bus_topic" => found.bus_topic = Some(field(parser)?),
            "stored" => found.stored = Some(field(parser)?),
            _ => drop(value(parser)?),
        }
        Ok(())
    })?;
    if parser.peek().is_some() {
        return Err(parser.malformed("trailing data"));
    }
    Ok(found)
}

fn value(parser: &mut Parser<'_>) -> Result<Bytes> {
    let mut packer = Packer::default();
    packer.out.reserve(64);
    parser.value(&mut packer)?;
    Ok(Bytes::from(packer.finish()))
}

fn field(parser: &mut Parser<'_>) -> Result<Field> {
    if parser.peek() != Some(b'"') {
        let value = value(parser)?;
        return Ok(if *value == *b"\xc0" { Field::Null } else { Field::Value(value) });
    }
    Ok(match parser.string()? {
        Text::Plain(text) => Field::Text(text.into()),
        text @ Text::Surrogates(_) => {
            let mut out = Vec::new();
            write_text(&mut out, &text);
            Field::Value(out.into())
        }
    })
}

impl Entries {
    fn into_event(self, defaults: &impl Fn() -> Defaults) -> Result<Event> {
        let (kind, topic) = match (self.kind, self.topic) {
            (Some(kind), Some(topic)) => (kind, topic),
            (None, Some(_)) => return Err(malformed("missing 'type'")),
            (Some(_), None) => return Err(malformed("missing 'topic'")),
            (None, None) => return Err(malformed("missing 'type' and 'topic'")),
        };
        let kind = match kind {
            Field::Text(name) => EventType::from_name(&name)
                .ok_or_else(|| malformed(&format!("{} is not a valid EventType", quoted(&name))))?,
            _ => return Err(malformed("type is not a string")),
        };
        let Field::Text(topic) = topic else {
            return Err(malformed("topic is not a string of Unicode characters"));
        };
        let mut generated = None;
        let mut missing = || *generated.get_or_insert_with(defaults);
        let timestamp = match self.timestamp {
            None => Timestamp::Time(missing().now),
            Some(field) => timestamp(field)?,
        };
        let event_id = match self.event_id {
            None => EventId::Uuid(missing().event_id),
            Some(field) => EventId::of(field),
        };
        let metadata = self.metadata.filter(|metadata| *metadata != EMPTY);
        Ok(Event {
            kind,
            topic: topic.into(),
            payload: self.payload.unwrap_or(EMPTY),
            timestamp,
            event_id,
            source: self.source,
            correlation_id: self.correlation_id,
            metadata: metadata.unwrap_or_default(),
        })
    }
}

/// Reads text as `datetime.fromisoformat` does; anything else is kept.
fn timestamp(field: Field) -> Result<Timestamp> {
    let invalid = |text: &str| malformed(&format!("Invalid isoformat string: {}", quoted(text)));
    let time = match &field {
        Field::Text(text) => parse_iso(text.as_bytes()).ok_or_else(|| invalid(text))?,
        Field::Value(value) => match surrogate_text(value) {
            Some(text) => parse_iso(text).ok_or_else(|| invalid(&String::from_utf8_lossy(text)))?,
            None => return Ok(Timestamp::Other(field)),
        },
        Field::Null => return Ok(Timestamp::Other(field)),
    };
    Ok(Timestamp::Time(time))
}

fn surrogate_text(value: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader::new("timestamp", value, &Limits::default());
    match reader.token() {
        Ok(Token::Ext(ext::SURROGATE_TEXT, length)) => reader.take(length).ok(),
        _ => None,
    }
}

/// Quotes text from the wire, shortened.
fn quoted(text: &str) -> String {
    let text: String = text.chars().take(80).flat_map(char::escape_default).collect();
    format!("'{text}'")
}

fn malformed(reason: &str) -> Error {
    Error::Decode { what: "JSON message", reason: reason.into() }
}
