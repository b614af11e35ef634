//! One payload value in msgpack: extension codes, structural validation, limits.
//!
//! | Python value | msgpack |
//! |---|---|
//! | `None`, `bool`, `float`, `bytes`, `list`, `dict` (any scalar key) | nil, bool, float 64, bin, array, map |
//! | `int` in −2⁶³ … 2⁶⁴−1 | int |
//! | `str` | str (UTF-8) |
//! | everything below | ext with the code in [`ext`] |
//!
//! Extension bodies: `BIG_INT` two's complement, little endian, shortest form · `TUPLE`, `SET`
//! (`FROZEN_SET`) one msgpack array · `DATETIME` i64 wall-clock microseconds since 1970 then, for an
//! aware time, i64 offset microseconds (both big endian) · `DATE` i32 days since 1970-01-01 ·
//! `TIMEDELTA` i64 days, i32 seconds, i32 microseconds · `UUID` 16 bytes · `DECIMAL` ASCII text ·
//! `SURROGATE_TEXT` text with lone surrogates as WTF-8.
//!
//! Depth counts containers: a list, tuple, set or map in which nothing is nested has depth 1; the
//! array inside an extension is part of its container. Elements are items of arrays and entries of
//! maps. Map keys are scalars, tuples or frozensets.

use super::Limits;
use super::read::{Reader, Token};
use super::time::{DATE_DAYS, is_valid_time};
use crate::error::{Error, Result};
use crate::event::WallTime;

/// Extension type codes; stable, part of the wire format.
pub mod ext {
    /// An integer beyond 64 bits.
    pub const BIG_INT: i8 = 1;
    /// A tuple.
    pub const TUPLE: i8 = 2;
    /// A set.
    pub const SET: i8 = 3;
    /// A frozenset.
    pub const FROZEN_SET: i8 = 4;
    /// A `datetime`, naive or aware.
    pub const DATETIME: i8 = 5;
    /// A `date`.
    pub const DATE: i8 = 6;
    /// A `timedelta`.
    pub const TIMEDELTA: i8 = 7;
    /// A `UUID`.
    pub const UUID: i8 = 8;
    /// A `Decimal`.
    pub const DECIMAL: i8 = 9;
    /// Text that holds lone surrogates.
    pub const SURROGATE_TEXT: i8 = 10;
}

/// Checks that `bytes` are exactly one value within the limits, without allocating.
///
/// The work is linear in the number of bytes, however values are nested.
///
/// # Errors
/// `TooLarge` over a limit, `Decode` for anything malformed.
pub fn validate(bytes: &[u8], limits: &Limits) -> Result<()> {
    check_size(bytes.len(), limits)?;
    let mut reader = Reader::new("payload", bytes, limits);
    skip(&mut reader, limits)?;
    if !reader.is_at_end() {
        return Err(reader.malformed("trailing bytes"));
    }
    Ok(())
}

/// Reads past one value, checking it.
///
/// # Errors
/// `TooLarge` over a limit, `Decode` for anything malformed.
pub fn skip(reader: &mut Reader<'_>, limits: &Limits) -> Result<()> {
    skip_value(reader, limits.depth()).map(|_| ())
}

/// Checks a number of bytes against the limit.
pub(crate) fn check_size(size: usize, limits: &Limits) -> Result<()> {
    if size > limits.max_bytes {
        return Err(Error::TooLarge {
            what: "message bytes",
            size: size as u64,
            limit: limits.max_bytes as u64,
            remedy: "send less, store the data elsewhere and send a reference, or raise \
                     max_message_bytes (of codec.decode max_bytes)",
        });
    }
    Ok(())
}

/// Takes one level of nesting off.
pub(crate) fn nested(left: usize, limit: usize) -> Result<usize> {
    left.checked_sub(1).ok_or(Error::TooLarge {
        what: "nesting depth",
        size: limit as u64 + 1,
        limit: limit as u64,
        remedy: "flatten the value or raise max_depth",
    })
}

/// Depth still allowed, and the limit for the message.
#[derive(Clone, Copy)]
struct Depth {
    left: usize,
    limit: usize,
}

impl Depth {
    fn down(self) -> Result<Self> {
        Ok(Self { left: nested(self.left, self.limit)?, ..self })
    }
}

fn skip_value(reader: &mut Reader<'_>, limit: usize) -> Result<bool> {
    skip_at(reader, Depth { left: limit, limit })
}

/// Reads past one value; returns whether it may be a map key.
fn skip_at(reader: &mut Reader<'_>, depth: Depth) -> Result<bool> {
    match reader.token()? {
        Token::Array(count) => {
            let depth = depth.down()?;
            for _ in 0..count {
                skip_at(reader, depth)?;
            }
            Ok(false)
        }
        Token::Map(count) => {
            let depth = depth.down()?;
            for _ in 0..count {
                if !skip_at(reader, depth)? {
                    return Err(reader.malformed("a list, map or set as map key"));
                }
                skip_at(reader, depth)?;
            }
            Ok(false)
        }
        Token::Ext(code @ (ext::TUPLE | ext::SET | ext::FROZEN_SET), length) => {
            let end = reader.position() + length;
            skip_at_array(reader, depth)?;
            if reader.position() != end {
                return Err(reader.malformed("an extension that is not exactly one array"));
            }
            Ok(code != ext::SET)
        }
        Token::Ext(code, length) => {
            let body = reader.take(length)?;
            check_ext(code, body).map_err(|reason| reader.malformed(reason))?;
            Ok(true)
        }
        _ => Ok(true),
    }
}

/// Reads past the array in an extension, whose length is checked by the caller.
fn skip_at_array(reader: &mut Reader<'_>, depth: Depth) -> Result<()> {
    let Token::Array(count) = reader.token()? else {
        return Err(reader.malformed("an extension that is not exactly one array"));
    };
    let depth = depth.down()?;
    for _ in 0..count {
        skip_at(reader, depth)?;
    }
    Ok(())
}

/// Checks the body of an extension that holds no other values.
fn check_ext(code: i8, body: &[u8]) -> std::result::Result<(), &'static str> {
    let (valid, rule) = match code {
        ext::BIG_INT => (!body.is_empty(), "an empty integer"),
        ext::DATETIME => (
            read_datetime(body).is_some_and(|time| is_valid_time(&time)),
            "a datetime that is not 8 or 16 bytes or out of range",
        ),
        ext::DATE => (
            read_date(body).is_some_and(|days| DATE_DAYS.contains(&days.into())),
            "a date that is not 4 bytes or out of range",
        ),
        ext::TIMEDELTA => (is_timedelta(body), "a timedelta that is not 16 bytes or out of range"),
        ext::UUID => (body.len() == 16, "a UUID that is not 16 bytes"),
        ext::DECIMAL => (is_decimal(body), "a decimal that is not a number"),
        ext::SURROGATE_TEXT => (super::wtf8::is_valid(body), "surrogate text that is not WTF-8"),
        _ => (false, "an unknown extension type"),
    };
    if valid { Ok(()) } else { Err(rule) }
}

/// Reads the body of a `DATETIME`.
#[must_use]
pub fn read_datetime(body: &[u8]) -> Option<WallTime> {
    let (micros, offset) = body.split_first_chunk::<8>()?;
    let offset_micros = match offset {
        [] => None,
        _ => Some(i64::from_be_bytes(offset.try_into().ok()?)),
    };
    Some(WallTime { micros: i64::from_be_bytes(*micros), offset_micros })
}

/// Appends a `DATETIME`.
pub fn write_datetime(out: &mut Vec<u8>, time: &WallTime) {
    super::write::ext(out, ext::DATETIME, if time.offset_micros.is_some() { 16 } else { 8 });
    out.extend_from_slice(&time.micros.to_be_bytes());
    if let Some(offset) = time.offset_micros {
        out.extend_from_slice(&offset.to_be_bytes());
    }
}

/// Reads the body of a `DATE`: days since 1970-01-01.
#[must_use]
pub fn read_date(body: &[u8]) -> Option<i32> {
    body.try_into().ok().map(i32::from_be_bytes)
}

fn is_timedelta(body: &[u8]) -> bool {
    let Some((days, rest)) = body.split_first_chunk::<8>() else { return false };
    let Some((seconds, micros)) = rest.split_first_chunk::<4>() else { return false };
    let Ok(micros) = <[u8; 4]>::try_from(micros) else { return false };
    (-999_999_999..=999_999_999).contains(&i64::from_be_bytes(*days))
        && (0..86_400).contains(&i32::from_be_bytes(*seconds))
        && (0..1_000_000).contains(&i32::from_be_bytes(micros))
}

/// Whether it is a number as Python writes a `Decimal`: digits with point and exponent, an infinity
/// or a NaN with digits.
fn is_decimal(text: &[u8]) -> bool {
    let text = text.strip_prefix(b"-").unwrap_or(text);
    if text == b"Infinity" {
        return true;
    }
    let nan = text.strip_prefix(b"s").unwrap_or(text);
    if let Some(digits) = nan.strip_prefix(b"NaN") {
        return digits.iter().all(u8::is_ascii_digit);
    }
    let (mantissa, exponent) = match text.iter().position(|&c| c == b'E') {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let points = mantissa.iter().filter(|&&c| c == b'.').count();
    let digits = mantissa.iter().filter(|c| c.is_ascii_digit()).count();
    let exponent_is_valid = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(b"+").or(exponent.strip_prefix(b"-"));
        let digits = digits.unwrap_or(exponent);
        !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
    });
    digits > 0 && points <= 1 && points + digits == mantissa.len() && exponent_is_valid
}

#[cfg(test)]
#[path = "value_tests.rs"]
mod tests;
