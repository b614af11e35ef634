//! JSON text → msgpack values, as CPython's `json.loads` reads it.

use std::borrow::Cow;

use super::INT_TOO_LONG;
use super::pack::Packer;
use crate::codec::bigint::{self, MAX_DIGITS};
use crate::codec::value::{ext, nested};
use crate::codec::{Limits, check_elements, write, wtf8};
use crate::error::{Error, Result};

/// Text that was read.
#[derive(Debug)]
pub(super) enum Text<'a> {
    /// UTF-8.
    Plain(Cow<'a, str>),
    /// WTF-8 with lone surrogates.
    Surrogates(Vec<u8>),
}

/// Reads a message from front to back.
#[derive(Debug)]
pub(super) struct Parser<'a> {
    text: &'a str,
    at: usize,
    elements: usize,
    depth: usize,
    max_elements: usize,
}

impl<'a> Parser<'a> {
    pub(super) fn new(bytes: &'a [u8], limits: &Limits) -> Result<Self> {
        let text = std::str::from_utf8(bytes).map_err(|error| Error::Decode {
            what: "JSON message",
            reason: format!("not UTF-8 at byte {}", error.valid_up_to()),
        })?;
        let (depth, max_elements) = (limits.depth(), limits.max_elements);
        Ok(Self { text, at: 0, elements: 0, depth, max_elements })
    }

    #[cold]
    pub(super) fn malformed(&self, reason: impl std::fmt::Display) -> Error {
        Error::Decode { what: "JSON message", reason: format!("{reason} at byte {}", self.at) }
    }

    /// Skips white space and returns the next byte without taking it.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.text.as_bytes().get(self.at).copied() {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                next => return next,
            }
        }
    }

    /// Skips white space and takes the next byte if it is `wanted`.
    pub(super) fn accept(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, wanted: u8) -> Result<()> {
        match self.accept(wanted) {
            true => Ok(()),
            false => Err(self.malformed(format_args!("expected '{}'", char::from(wanted)))),
        }
    }

    /// Takes `{` or `[`'s content item by item: `item` reads one; returns how many there were.
    pub(super) fn items(
        &mut self,
        close: u8,
        mut item: impl FnMut(&mut Self) -> Result<()>,
    ) -> Result<usize> {
        let mut count = 0;
        if self.accept(close) {
            return Ok(0);
        }
        loop {
            count += 1;
            self.elements += 1;
            check_elements(self.elements, self.max_elements)?;
            item(self)?;
            if self.accept(close) {
                return Ok(count);
            }
            self.expect(b',')?;
        }
    }

    /// Reads one value.
    pub(super) fn value(&mut self, packer: &mut Packer) -> Result<()> {
        self.value_at(packer, self.depth)
    }

    fn value_at(&mut self, packer: &mut Packer, left: usize) -> Result<()> {
        match self.peek() {
            Some(b'"') => write_text(&mut packer.out, &self.string()?),
            Some(b'{') => {
                let left = nested(left, self.depth)?;
                self.at += 1;
                let open = packer.open(true);
                let count = self.items(b'}', |parser| {
                    write_text(&mut packer.out, &parser.key()?);
                    parser.value_at(packer, left)
                })?;
                packer.close(&open, count);
            }
            Some(b'[') => {
                let left = nested(left, self.depth)?;
                self.at += 1;
                let open = packer.open(false);
                let count = self.items(b']', |parser| parser.value_at(packer, left))?;
                packer.close(&open, count);
            }
            Some(_) => self.scalar(&mut packer.out)?,
            None => return Err(self.malformed("cut off")),
        }
        Ok(())
    }

    /// Reads a key and the colon after it.
    pub(super) fn key(&mut self) -> Result<Text<'a>> {
        if self.peek() != Some(b'"') {
            return Err(self.malformed("expected a key in double quotes"));
        }
        let key = self.string()?;
        self.expect(b':')?;
        Ok(key)
    }

    fn scalar(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        let (word, bytes): (&[u8], &[u8]) = match rest {
            [b'n', ..] => (b"null", b"\xc0"),
            [b't', ..] => (b"true", b"\xc3"),
            [b'f', ..] => (b"false", b"\xc2"),
            [b'N', ..] => (b"NaN", b"\xcb\x7f\xf8\0\0\0\0\0\0"),
            [b'I', ..] => (b"Infinity", b"\xcb\x7f\xf0\0\0\0\0\0\0"),
            [b'-', b'I', ..] => (b"-Infinity", b"\xcb\xff\xf0\0\0\0\0\0\0"),
            _ => return self.number(out),
        };
        if !rest.starts_with(word) {
            return Err(self.malformed("expected a value"));
        }
        self.at += word.len();
        out.extend_from_slice(bytes);
        Ok(())
    }

    fn number(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let bytes = rest.as_bytes();
        let digits =
            |from: usize| bytes.iter().skip(from).take_while(|c| c.is_ascii_digit()).count();
        let sign = usize::from(bytes.first() == Some(&b'-'));
        let whole = match bytes.get(sign) {
            Some(b'0') => 1,
            Some(b'1'..=b'9') => digits(sign),
            _ => return Err(self.malformed("expected a value")),
        };
        let mut end = sign + whole;
        if bytes.get(end) == Some(&b'.') && digits(end + 1) > 0 {
            end += 1 + digits(end + 1);
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let signed = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            let exponent = digits(end + 1 + signed);
            if exponent > 0 {
                end += 1 + signed + exponent;
            }
        }
        let text = rest.get(..end).unwrap_or_default();
        if end > sign + whole {
            // Rust reads every text of this form, correctly rounded; too large is infinite.
            write::float(out, text.parse().map_err(|_| self.malformed("expected a number"))?);
        } else {
            self.integer(out, text, sign == 1)?;
        }
        self.at += end;
        Ok(())
    }

    fn integer(&self, out: &mut Vec<u8>, text: &str, negative: bool) -> Result<()> {
        if let Ok(value) = text.parse() {
            write::int(out, value);
        } else if let Ok(value) = text.parse() {
            write::uint(out, value);
        } else {
            let digits = text.trim_start_matches('-').as_bytes();
            if digits.len() > MAX_DIGITS {
                let found = digits.len();
                return Err(self.malformed(format_args!("{INT_TOO_LONG}: {found} digits")));
            }
            let body = bigint::from_decimal(negative, digits);
            write::ext(out, ext::BIG_INT, body.len());
            out.extend_from_slice(&body);
        }
        Ok(())
    }

    /// Reads text; the opening quotation mark is next.
    pub(super) fn string(&mut self) -> Result<Text<'a>> {
        self.at += 1;
        let plain = self.plain_run()?;
        if self.text.as_bytes().get(self.at) == Some(&b'"') {
            self.at += 1;
            return Ok(Text::Plain(Cow::Borrowed(plain)));
        }
        let mut text = plain.as_bytes().to_vec();
        let mut has_surrogates = false;
        loop {
            // After a plain run there is a quotation mark or a backslash.
            self.at += 1;
            if self.text.as_bytes().get(self.at - 1) == Some(&b'"') {
                break;
            }
            has_surrogates |= self.escape(&mut text)?;
            text.extend_from_slice(self.plain_run()?.as_bytes());
        }
        if has_surrogates {
            return Ok(Text::Surrogates(text));
        }
        let text = String::from_utf8(text).map_err(|_| self.malformed("text is not UTF-8"))?;
        Ok(Text::Plain(Cow::Owned(text)))
    }

    /// Takes text up to a quotation mark or a backslash.
    fn plain_run(&mut self) -> Result<&'a str> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let end = rest.bytes().position(|c| c < 0x20 || c == b'"' || c == b'\\');
        let Some(end) = end else { return Err(self.malformed("unterminated text: it begins")) };
        self.at += end;
        if rest.as_bytes().get(end).is_some_and(|c| *c < 0x20) {
            return Err(self.malformed("a control character in text"));
        }
        Ok(rest.get(..end).unwrap_or_default())
    }

    /// Reads what follows a backslash; returns whether it was a lone surrogate.
    fn escape(&mut self, text: &mut Vec<u8>) -> Result<bool> {
        let kind = self.text.as_bytes().get(self.at).copied();
        let plain = match kind {
            Some(b'u') => return self.unicode_escape(text),
            Some(c @ (b'"' | b'\\' | b'/')) => c,
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            _ => return Err(self.malformed("an unknown escape")),
        };
        self.at += 1;
        text.push(plain);
        Ok(false)
    }

    /// Reads `uXXXX`, and with it the second half of a pair.
    fn unicode_escape(&mut self, text: &mut Vec<u8>) -> Result<bool> {
        let unit = self.hex_unit()?;
        let is_high = (0xd800..0xdc00).contains(&unit);
        if is_high && self.text.as_bytes().get(self.at..self.at + 2) == Some(b"\\u") {
            let before = self.at;
            self.at += 1;
            let second = self.hex_unit()?;
            if (0xdc00..0xe000).contains(&second) {
                let pair = char::decode_utf16([unit, second]).next();
                wtf8::push_char(text, pair.and_then(|c| c.ok()).unwrap_or_default());
                return Ok(false);
            }
            self.at = before;
        }
        wtf8::push_unit(text, unit);
        Ok((0xd800..0xe000).contains(&unit))
    }

    fn hex_unit(&mut self) -> Result<u16> {
        let digits = self.text.get(self.at + 1..self.at + 5);
        let digits = digits.filter(|digits| digits.bytes().all(|c| c.is_ascii_hexdigit()));
        match digits.and_then(|digits| u16::from_str_radix(digits, 16).ok()) {
            Some(unit) => {
                self.at += 5;
                Ok(unit)
            }
            None => Err(self.malformed("an escape without four hexadecimal digits")),
        }
    }
}

/// Appends text as a msgpack value.
pub(super) fn write_text(out: &mut Vec<u8>, text: &Text<'_>) {
    match text {
        Text::Plain(text) => write::str(out, text),
        Text::Surrogates(text) => {
            write::ext(out, ext::SURROGATE_TEXT, text.len());
            out.extend_from_slice(text);
        }
    }
}
