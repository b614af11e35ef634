//! The DataKnobs frame: the JSON text of `json.dumps(event.to_dict())`, byte for byte.
//!
//! - `encode`: event → text, through the values of [`super::value`]
//! - `decode`: text → event, as `json.loads` and `Event.from_dict` read it
//! - `parse`, `pack`: JSON text → msgpack values
//! - `number`: numbers as CPython writes them

mod decode;
mod encode;
mod number;
mod pack;
mod parse;

use bytes::Bytes;

use super::Limits;
use crate::error::Result;
use crate::event::{Event, Field, WallTime};

pub use encode::write_string;

/// The beginning of the reason when an integer has too many digits; a `ValueError` in Python.
pub const INT_TOO_LONG: &str = "Exceeds the limit (4300 digits) for integer string conversion";

/// What a message without `timestamp` or `event_id` gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// The time of decoding.
    pub now: WallTime,
    /// A new identity.
    pub event_id: [u8; 16],
}

/// Keys of a message beside those of the event, used on Postgres channels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extras {
    /// The topic it was published on.
    pub bus_topic: Option<Box<str>>,
    /// Where a large message is stored; `Null` when it is not there.
    pub stored: Field,
}

/// A decoded message with everything a receiver may need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The event; `None` when the message only says where it is stored (it has `stored` and no
    /// `type`).
    pub event: Option<Event>,
    /// Further keys.
    pub extras: Extras,
}

/// Encodes an event as a JSON frame.
///
/// # Errors
/// `TooLarge` over a limit. `Encode`, with the path, for what JSON cannot carry: its reason begins
/// as the text of CPython's exception does. `Decode` when the payload is not one msgpack value.
pub fn encode(event: &Event, limits: &Limits) -> Result<Bytes> {
    let mut out = Vec::new();
    encode_into(&mut out, event, limits)?;
    Ok(Bytes::from(out))
}

/// Appends an event as a JSON frame; nothing is appended when it fails.
///
/// # Errors
/// As [`encode()`].
pub fn encode_into(out: &mut Vec<u8>, event: &Event, limits: &Limits) -> Result<()> {
    let start = out.len();
    encode::event(out, event, limits).inspect_err(|_| out.truncate(start))
}

/// Decodes a JSON frame; a missing timestamp or event id is asked for from `defaults`, as clock and
/// randomness are not the codec's.
///
/// # Errors
/// `TooLarge` over a limit, `Decode` for anything malformed.
pub fn decode(frame: &[u8], limits: &Limits, defaults: impl Fn() -> Defaults) -> Result<Event> {
    decode::event(frame, limits, defaults)
}

/// Decodes a JSON frame with the further keys of Postgres channels.
///
/// # Errors
/// As [`decode()`].
pub fn decode_message(
    frame: &[u8],
    limits: &Limits,
    defaults: impl Fn() -> Defaults,
) -> Result<Message> {
    decode::message(frame, limits, defaults)
}
