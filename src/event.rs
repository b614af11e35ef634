//! The immutable event: a plain value that carries its payload as encoded bytes.

use std::sync::Arc;

use bytes::Bytes;

/// The category of an event; the wire carries the lower-case name (DataKnobs contract D2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EventType {
    /// A resource was created.
    Created = 0,
    /// A resource was changed.
    Updated = 1,
    /// A resource was removed.
    Deleted = 2,
    /// A resource was enabled.
    Activated = 3,
    /// A resource was disabled.
    Deactivated = 4,
    /// An error is reported.
    Error = 5,
    /// Anything else; the type of events made from a plain payload.
    Custom = 6,
}

impl EventType {
    /// All types, in the order of the contract and of their wire numbers.
    pub const ALL: [Self; 7] = [
        Self::Created,
        Self::Updated,
        Self::Deleted,
        Self::Activated,
        Self::Deactivated,
        Self::Error,
        Self::Custom,
    ];

    /// Returns the lower-case name used on the JSON wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
            Self::Activated => "activated",
            Self::Deactivated => "deactivated",
            Self::Error => "error",
            Self::Custom => "custom",
        }
    }

    /// Returns the type of a lower-case name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Returns the type of a wire number.
    #[must_use]
    pub fn from_index(index: u8) -> Option<Self> {
        Self::ALL.get(usize::from(index)).copied()
    }
}

/// A point in time as Python's `datetime` keeps it: wall-clock microseconds and an optional offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WallTime {
    /// Wall-clock microseconds since 1970-01-01T00:00:00 of the same wall clock.
    pub micros: i64,
    /// Offset from UTC in microseconds; `None` is a naive time.
    pub offset_micros: Option<i64>,
}

/// A field that is usually text but, by the DataKnobs contract, may hold any encodable value.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Field {
    /// JSON null, Python `None`.
    #[default]
    Null,
    /// Plain text.
    Text(Box<str>),
    /// Any other value (text with lone surrogates too), as one msgpack value of [`crate::codec`].
    Value(Bytes),
}

/// The identity of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventId {
    /// The usual case; its text form is the hyphenated lower-case UUID.
    Uuid([u8; 16]),
    /// A text that is not the canonical form of a UUID, or another value.
    Other(Field),
}

impl EventId {
    /// Returns the 16 bytes that name it among kept broadcasts: of the UUID, or of one made from
    /// what it is instead.
    #[must_use]
    pub fn key(&self) -> [u8; 16] {
        let made =
            |bytes: &[u8]| uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, bytes).into_bytes();
        match self {
            Self::Uuid(bytes) => *bytes,
            Self::Other(Field::Null) => [0; 16],
            Self::Other(Field::Text(text)) => made(text.as_bytes()),
            Self::Other(Field::Value(value)) => made(value),
        }
    }

    /// Returns the identity that a field is: the canonical text of a UUID is one.
    #[must_use]
    pub fn of(field: Field) -> Self {
        if let Field::Text(text) = &field
            && text.len() == 36
            && let Ok(id) = uuid::Uuid::try_parse(text)
            && *id.hyphenated().encode_lower(&mut [0; 36]) == **text
        {
            return Self::Uuid(id.into_bytes());
        }
        Self::Other(field)
    }
}

/// When the event happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Timestamp {
    /// The usual case.
    Time(WallTime),
    /// What a foreign message carried instead (null, a number), kept as it is.
    Other(Field),
}

/// An immutable event. `payload` and `metadata` are one msgpack value each, decoded when needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The category.
    pub kind: EventType,
    /// The event's own topic; may differ from the topic it is published on (contract D27).
    pub topic: Arc<str>,
    /// The payload: one msgpack value in the encoding of [`crate::codec::value`].
    pub payload: Bytes,
    /// When it happened.
    pub timestamp: Timestamp,
    /// Its identity.
    pub event_id: EventId,
    /// Who sent it.
    pub source: Field,
    /// Relates events to each other.
    pub correlation_id: Field,
    /// Additional data: one msgpack value; empty bytes stand for an empty map.
    pub metadata: Bytes,
}
