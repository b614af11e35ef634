//! Event ⇄ bytes: the native msgpack envelope and the DataKnobs JSON wire, with limits.
//!
//! - [`value`]: the extension codes and the checks of one msgpack value
//! - [`read`], [`mod@write`]: msgpack tokens
//! - [`envelope`]: the native frame
//! - [`json`]: the DataKnobs frame
//! - [`collisions`]: members of sets and maps whose hashes a sender has chosen
//! - [`time`]: wall-clock times ⇄ ISO 8601 text; `wtf8`, `bigint`: text and integers beyond Rust's
//!
//! The first byte tells the two apart: `{` or JSON white space is JSON, no native frame begins so.

mod bigint;
pub mod collisions;
pub mod envelope;
pub mod json;
pub mod read;
pub mod time;
pub mod value;
pub mod write;
mod wtf8;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::event::Event;
use crate::signing::{self, Keys};

/// Limits checked before anything is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest message in bytes (default 1 MiB).
    pub max_bytes: usize,
    /// Deepest nesting of containers (default 64, at most [`Limits::DEEPEST`]).
    pub max_depth: usize,
    /// Most elements (items of lists, tuples, sets; entries of maps) in one message (default 100 000).
    pub max_elements: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes: 1 << 20, max_depth: 64, max_elements: 100_000 }
    }
}

impl Limits {
    /// Nesting never goes deeper than this, whatever the limits say: values are read by recursion.
    pub const DEEPEST: usize = 256;

    /// Returns the nesting allowed: `max_depth`, at most [`Self::DEEPEST`].
    #[must_use]
    pub fn depth(&self) -> usize {
        self.max_depth.min(Self::DEEPEST)
    }
}

fn check_elements(count: usize, limit: usize) -> Result<()> {
    if count > limit {
        return Err(Error::TooLarge {
            what: "elements",
            size: count as u64,
            limit: limit as u64,
            remedy: "split the message or raise max_elements",
        });
    }
    Ok(())
}

/// Which frame a publisher writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wire {
    /// The msgpack envelope of [`envelope`].
    #[default]
    Native,
    /// The JSON text of [`json`].
    DataKnobs,
}

/// Encodes an event for the wire.
///
/// # Errors
/// `Encode` for a value the wire cannot carry, `TooLarge` over a limit.
pub fn encode(event: &Event, wire: Wire, limits: &Limits) -> Result<Bytes> {
    match wire {
        Wire::Native => envelope::encode(event, limits),
        Wire::DataKnobs => json::encode(event, limits),
    }
}

/// Encodes an event as a native frame that is signed for the topic it is published on.
///
/// # Errors
/// As [`encode`].
pub fn encode_signed(event: &Event, topic: &str, keys: &Keys, limits: &Limits) -> Result<Bytes> {
    let size = envelope::encoded_len(event) + signing::FRAME_BYTES;
    value::check_size(size, limits)?;
    let mut out = Vec::with_capacity(size);
    envelope::encode_into(&mut out, event, limits)?;
    keys.sign(topic, &mut out);
    Ok(Bytes::from(out))
}

/// Decodes a received frame of either wire.
///
/// # Errors
/// `TooLarge` before decoding, `UnknownVersion` for a newer envelope, `Decode` for anything malformed.
pub fn decode(
    frame: &Bytes,
    limits: &Limits,
    defaults: impl Fn() -> json::Defaults,
) -> Result<Event> {
    match frame.first() {
        Some(b'{' | b' ' | b'\t' | b'\n' | b'\r') => json::decode(frame, limits, defaults),
        _ => envelope::decode(frame, limits),
    }
}
