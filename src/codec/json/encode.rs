//! Event → JSON text, exactly as CPython's `json.dumps` writes it.

use uuid::Uuid;

use super::INT_TOO_LONG;
use super::number::{write_float, write_int, write_uint};
use crate::codec::read::{Reader, Token};
use crate::codec::time::{is_valid_time, write_iso, write_iso_date};
use crate::codec::value::{check_size, ext, nested, read_date, read_datetime};
use crate::codec::wtf8::{self, Part};
use crate::codec::{Limits, bigint};
use crate::error::{Error, Result};
use crate::event::{Event, EventId, Field, Timestamp};

/// Appends the eight keys of an event in their order.
pub(super) fn event(out: &mut Vec<u8>, event: &Event, limits: &Limits) -> Result<()> {
    let start = out.len();
    out.reserve(240 + event.payload.len() * 3 / 2 + event.metadata.len() * 3 / 2);
    out.extend_from_slice(b"{\"type\": \"");
    out.extend_from_slice(event.kind.as_str().as_bytes());
    out.extend_from_slice(b"\", \"topic\": ");
    write_string(out, &event.topic);
    out.extend_from_slice(b", \"payload\": ");
    root(out, "payload", &event.payload, limits)?;
    out.extend_from_slice(b", \"timestamp\": ");
    timestamp(out, &event.timestamp, limits)?;
    out.extend_from_slice(b", \"event_id\": ");
    match &event.event_id {
        EventId::Uuid(id) => {
            let mut text = [0; 36];
            let text = Uuid::from_bytes(*id).hyphenated().encode_lower(&mut text);
            write_string(out, text);
        }
        EventId::Other(id) => field(out, "event_id", id, limits)?,
    }
    out.extend_from_slice(b", \"source\": ");
    field(out, "source", &event.source, limits)?;
    out.extend_from_slice(b", \"correlation_id\": ");
    field(out, "correlation_id", &event.correlation_id, limits)?;
    out.extend_from_slice(b", \"metadata\": ");
    match event.metadata.is_empty() {
        true => out.extend_from_slice(b"{}"),
        false => root(out, "metadata", &event.metadata, limits)?,
    }
    out.push(b'}');
    check_size(out.len() - start, limits)
}

/// Appends text in quotation marks, in ASCII.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    write_escaped(out, text);
    out.push(b'"');
}

fn write_escaped(out: &mut Vec<u8>, text: &str) {
    let mut rest = text;
    loop {
        let plain = rest.bytes().position(|c| !is_plain(c)).unwrap_or(rest.len());
        let (before, after) = rest.split_at(plain);
        out.extend_from_slice(before.as_bytes());
        let mut chars = after.chars();
        let Some(c) = chars.next() else { return };
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            _ => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| write_unit(out, *unit)),
        }
        rest = chars.as_str();
    }
}

const fn is_plain(c: u8) -> bool {
    matches!(c, 0x20..=0x7e) && c != b'"' && c != b'\\'
}

fn write_unit(out: &mut Vec<u8>, unit: u16) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let digit = |shift: u16| HEX[usize::from(unit >> shift & 15)];
    out.extend_from_slice(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
}

/// Appends one of the two values of an event.
fn root(out: &mut Vec<u8>, name: &'static str, bytes: &[u8], limits: &Limits) -> Result<()> {
    let mut reader = Reader::new(name, bytes, limits);
    let depth = limits.depth();
    let written = value(out, &mut reader, depth, depth);
    written.map_err(|error| within(error, || format!("$.{name}")))?;
    match reader.is_at_end() {
        true => Ok(()),
        false => Err(reader.malformed("trailing bytes")),
    }
}

fn field(out: &mut Vec<u8>, name: &'static str, field: &Field, limits: &Limits) -> Result<()> {
    match field {
        Field::Null => out.extend_from_slice(b"null"),
        Field::Text(text) => write_string(out, text),
        Field::Value(bytes) => root(out, name, bytes, limits)?,
    }
    Ok(())
}

/// Appends what `isoformat()` returns, as `Event.to_dict` does.
fn timestamp(out: &mut Vec<u8>, timestamp: &Timestamp, limits: &Limits) -> Result<()> {
    let path = || "$.timestamp".to_owned();
    let without = |kind: &str| {
        let reason = format!("'{kind}' object has no attribute 'isoformat'");
        Error::Encode { path: path(), reason }
    };
    let time = match timestamp {
        Timestamp::Time(time) => *time,
        Timestamp::Other(Field::Null) => return Err(without("NoneType")),
        Timestamp::Other(Field::Text(_)) => return Err(without("str")),
        Timestamp::Other(Field::Value(bytes)) => {
            let mut reader = Reader::new("timestamp", bytes, limits);
            let token = reader.token()?;
            match (token, reader.take(bytes.len() - reader.position())?) {
                (Token::Ext(ext::DATE, _), body) if let Some(days) = read_date(body) => {
                    out.push(b'"');
                    write_iso_date(out, days.into());
                    out.push(b'"');
                    return Ok(());
                }
                (Token::Ext(ext::DATETIME, _), body) if let Some(time) = read_datetime(body) => {
                    time
                }
                _ => return Err(without(full_type_name(&token))),
            }
        }
    };
    if !is_valid_time(&time) {
        return Err(Error::Encode { path: path(), reason: "the time is out of range".into() });
    }
    out.push(b'"');
    write_iso(out, &time);
    out.push(b'"');
    Ok(())
}

fn value(out: &mut Vec<u8>, reader: &mut Reader<'_>, left: usize, limit: usize) -> Result<()> {
    match reader.token()? {
        Token::Nil => out.extend_from_slice(b"null"),
        Token::Bool(true) => out.extend_from_slice(b"true"),
        Token::Bool(false) => out.extend_from_slice(b"false"),
        Token::Int(number) => write_int(out, number),
        Token::Uint(number) => write_uint(out, number),
        Token::Float(number) => write_float(out, number),
        Token::Str(text) => write_string(out, text),
        Token::Array(count) => array(out, reader, count, nested(left, limit)?, limit)?,
        Token::Map(count) => map(out, reader, count, nested(left, limit)?, limit)?,
        Token::Ext(ext::TUPLE, length) => {
            let end = reader.position() + length;
            let Token::Array(count) = reader.token()? else {
                return Err(reader.malformed("an extension that is not exactly one array"));
            };
            array(out, reader, count, nested(left, limit)?, limit)?;
            if reader.position() != end {
                return Err(reader.malformed("an extension that is not exactly one array"));
            }
        }
        Token::Ext(ext::BIG_INT, length) => big_int(out, reader.take(length)?)?,
        Token::Ext(ext::SURROGATE_TEXT, length) => surrogate_text(out, reader, length)?,
        token => return Err(not_serializable(&token)),
    }
    Ok(())
}

fn array(
    out: &mut Vec<u8>,
    reader: &mut Reader<'_>,
    count: usize,
    left: usize,
    limit: usize,
) -> Result<()> {
    out.push(b'[');
    for index in 0..count {
        if index > 0 {
            out.extend_from_slice(b", ");
        }
        value(out, reader, left, limit).map_err(|error| within(error, || format!("[{index}]")))?;
    }
    out.push(b']');
    Ok(())
}

fn map(
    out: &mut Vec<u8>,
    reader: &mut Reader<'_>,
    count: usize,
    left: usize,
    limit: usize,
) -> Result<()> {
    out.push(b'{');
    for index in 0..count {
        if index > 0 {
            out.extend_from_slice(b", ");
        }
        let start = out.len();
        key(out, reader)?;
        let key = start..out.len();
        out.extend_from_slice(b": ");
        if let Err(error) = value(out, reader, left, limit) {
            let key = out.get(key).map(String::from_utf8_lossy).unwrap_or_default();
            return Err(within(error, || step(&key)));
        }
    }
    out.push(b'}');
    Ok(())
}

/// Appends a key as text: numbers, truth values and null become their own text in quotation marks.
fn key(out: &mut Vec<u8>, reader: &mut Reader<'_>) -> Result<()> {
    let quoted = |out: &mut Vec<u8>, text: &[u8]| {
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
    };
    let mut text = Vec::new();
    match reader.token()? {
        Token::Str(text) => {
            write_string(out, text);
            return Ok(());
        }
        Token::Ext(ext::SURROGATE_TEXT, length) => {
            surrogate_text(out, reader, length)?;
            return Ok(());
        }
        Token::Nil => text.extend_from_slice(b"null"),
        Token::Bool(true) => text.extend_from_slice(b"true"),
        Token::Bool(false) => text.extend_from_slice(b"false"),
        Token::Int(number) => write_int(&mut text, number),
        Token::Uint(number) => write_uint(&mut text, number),
        Token::Float(number) => write_float(&mut text, number),
        Token::Ext(ext::BIG_INT, length) => big_int(&mut text, reader.take(length)?)?,
        token => {
            let kind = full_type_name(&token);
            let reason = format!("keys must be str, int, float, bool or None, not {kind}");
            return Err(Error::Encode { path: String::new(), reason });
        }
    }
    quoted(out, &text);
    Ok(())
}

fn big_int(out: &mut Vec<u8>, body: &[u8]) -> Result<()> {
    let Some(text) = bigint::to_decimal(body) else {
        return Err(Error::Encode { path: String::new(), reason: INT_TOO_LONG.into() });
    };
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

fn surrogate_text(out: &mut Vec<u8>, reader: &mut Reader<'_>, length: usize) -> Result<()> {
    let body = reader.take(length)?;
    if !wtf8::is_valid(body) {
        return Err(reader.malformed("surrogate text that is not WTF-8"));
    }
    out.push(b'"');
    wtf8::for_each_part(body, |part| match part {
        Part::Text(text) => write_escaped(out, text),
        Part::Surrogate(unit) => write_unit(out, unit),
    });
    out.push(b'"');
    Ok(())
}

fn not_serializable(token: &Token<'_>) -> Error {
    let reason = format!("Object of type {} is not JSON serializable", type_name(token));
    Error::Encode { path: String::new(), reason }
}

/// Returns the name of the Python class of a value.
fn type_name(token: &Token<'_>) -> &'static str {
    match token {
        Token::Nil => "NoneType",
        Token::Bool(_) => "bool",
        Token::Int(_) | Token::Uint(_) | Token::Ext(ext::BIG_INT, _) => "int",
        Token::Float(_) => "float",
        Token::Str(_) | Token::Ext(ext::SURROGATE_TEXT, _) => "str",
        Token::Bin(_) => "bytes",
        Token::Array(_) => "list",
        Token::Map(_) => "dict",
        Token::Ext(ext::TUPLE, _) => "tuple",
        Token::Ext(ext::SET, _) => "set",
        Token::Ext(ext::FROZEN_SET, _) => "frozenset",
        Token::Ext(ext::DATETIME, _) => "datetime",
        Token::Ext(ext::DATE, _) => "date",
        Token::Ext(ext::TIMEDELTA, _) => "timedelta",
        Token::Ext(ext::UUID, _) => "UUID",
        Token::Ext(ext::DECIMAL, _) => "Decimal",
        Token::Ext(..) => "object",
    }
}

/// Returns the name that CPython's C code gives: with the module for classes written in C.
fn full_type_name(token: &Token<'_>) -> &'static str {
    match token {
        Token::Ext(ext::DATETIME, _) => "datetime.datetime",
        Token::Ext(ext::DATE, _) => "datetime.date",
        Token::Ext(ext::TIMEDELTA, _) => "datetime.timedelta",
        Token::Ext(ext::DECIMAL, _) => "decimal.Decimal",
        token => type_name(token),
    }
}

/// Puts a step in front of the path of an error.
fn within(error: Error, step: impl FnOnce() -> String) -> Error {
    match error {
        Error::Encode { path, reason } => Error::Encode { path: step() + &path, reason },
        other => other,
    }
}

/// Makes the step to a key, given as JSON text.
fn step(key: &str) -> String {
    let name = key.trim_matches('"');
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if is_name { format!(".{name}") } else { format!("[{key}]") }
}
