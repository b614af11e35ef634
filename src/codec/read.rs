//! A bounds-checked reader of msgpack tokens; it allocates nothing and trusts no declared length.

use crate::error::{Error, Result};

use super::Limits;

/// One token: a whole scalar, or the header of a container.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Token<'a> {
    /// `None`.
    Nil,
    /// A truth value.
    Bool(bool),
    /// A negative integer.
    Int(i64),
    /// An integer from zero up.
    Uint(u64),
    /// A number with fraction.
    Float(f64),
    /// Text.
    Str(&'a str),
    /// Bytes.
    Bin(&'a [u8]),
    /// The header of this many items.
    Array(usize),
    /// The header of this many entries, key then value.
    Map(usize),
    /// The header of an extension: its code and the length of the body that follows.
    Ext(i8, usize),
}

/// Reads tokens one after the other; counts elements against the limit.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    elements: usize,
    max_elements: usize,
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`; errors name them `what`.
    #[must_use]
    pub fn new(what: &'static str, bytes: &'a [u8], limits: &Limits) -> Self {
        Self { bytes, at: 0, elements: 0, max_elements: limits.max_elements, what }
    }

    /// Returns how many bytes were read.
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }

    /// Whether everything was read.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// Makes the error for malformed bytes at the current offset.
    pub(crate) fn malformed(&self, reason: impl std::fmt::Display) -> Error {
        let reason = format!("{reason} at byte {}", self.at);
        Error::Decode { what: self.what, reason }
    }

    /// Reads the next token.
    ///
    /// # Errors
    /// `Decode` when it is cut off or malformed, `TooLarge` for too many elements.
    #[inline(always)]
    pub fn token(&mut self) -> Result<Token<'a>> {
        let marker = self.u8()?;
        Ok(match marker {
            0x00..=0x7f => Token::Uint(marker.into()),
            0x80..=0x8f => Token::Map(self.entries(usize::from(marker & 0x0f), 2)?),
            0x90..=0x9f => Token::Array(self.entries(usize::from(marker & 0x0f), 1)?),
            0xa0..=0xbf => Token::Str(self.text(usize::from(marker & 0x1f))?),
            0xc0 => Token::Nil,
            0xc2 => Token::Bool(false),
            0xc3 => Token::Bool(true),
            0xe0..=0xff => Token::Int(i8::from_be_bytes([marker]).into()),
            _ => return self.long_token(marker),
        })
    }

    fn long_token(&mut self, marker: u8) -> Result<Token<'a>> {
        Ok(match marker {
            0xc4..=0xc6 => {
                let length = self.length(marker - 0xc4)?;
                Token::Bin(self.take(length)?)
            }
            0xc7..=0xc9 => {
                let length = self.length(marker - 0xc7)?;
                Token::Ext(self.i8()?, self.body(length)?)
            }
            0xca => Token::Float(f32::from_be_bytes(self.array()?).into()),
            0xcb => Token::Float(f64::from_be_bytes(self.array()?)),
            0xcc => Token::Uint(self.u8()?.into()),
            0xcd => Token::Uint(u16::from_be_bytes(self.array()?).into()),
            0xce => Token::Uint(u32::from_be_bytes(self.array()?).into()),
            0xcf => Token::Uint(u64::from_be_bytes(self.array()?)),
            0xd0 => signed(self.i8()?.into()),
            0xd1 => signed(i16::from_be_bytes(self.array()?).into()),
            0xd2 => signed(i32::from_be_bytes(self.array()?).into()),
            0xd3 => signed(i64::from_be_bytes(self.array()?)),
            0xd4..=0xd8 => Token::Ext(self.i8()?, self.body(1 << (marker - 0xd4))?),
            0xd9..=0xdb => {
                let length = self.length(marker - 0xd9)?;
                Token::Str(self.text(length)?)
            }
            0xdc | 0xdd => {
                let count = self.length(marker - 0xdb)?;
                Token::Array(self.entries(count, 1)?)
            }
            0xde | 0xdf => {
                let count = self.length(marker - 0xdd)?;
                Token::Map(self.entries(count, 2)?)
            }
            _ => return Err(self.malformed(format_args!("the unused marker 0x{marker:02x}"))),
        })
    }

    /// Takes the next bytes as they are.
    ///
    /// # Errors
    /// `Decode` when there are fewer.
    #[inline]
    pub fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        match rest.get(..length) {
            Some(taken) => {
                self.at += length;
                Ok(taken)
            }
            None => Err(self.cut_off(length)),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| self.cut_off(N))
    }

    #[inline(always)]
    fn u8(&mut self) -> Result<u8> {
        match self.bytes.get(self.at) {
            Some(byte) => {
                self.at += 1;
                Ok(*byte)
            }
            None => Err(self.cut_off(1)),
        }
    }

    fn i8(&mut self) -> Result<i8> {
        self.u8().map(|byte| i8::from_be_bytes([byte]))
    }

    /// Reads a length of 1, 2 or 4 bytes.
    fn length(&mut self, size: u8) -> Result<usize> {
        Ok(match size {
            0 => self.u8()?.into(),
            1 => u16::from_be_bytes(self.array()?).into(),
            // Lengths beyond the address space are cut off anyway.
            _ => usize::try_from(u32::from_be_bytes(self.array()?)).unwrap_or(usize::MAX),
        })
    }

    #[inline(always)]
    fn text(&mut self, length: usize) -> Result<&'a str> {
        let start = self.at;
        let taken = self.take(length)?;
        std::str::from_utf8(taken).map_err(|error| {
            self.at = start + error.valid_up_to();
            self.malformed("text is not UTF-8")
        })
    }

    fn body(&self, length: usize) -> Result<usize> {
        if length > self.bytes.len() - self.at {
            return Err(self.cut_off(length));
        }
        Ok(length)
    }

    /// Checks a declared count against what is left (`least` bytes each) and against the limit.
    #[inline]
    fn entries(&mut self, count: usize, least: usize) -> Result<usize> {
        if count > (self.bytes.len() - self.at) / least {
            return Err(self.malformed(format_args!(
                "a container of {count} elements in {} bytes",
                self.bytes.len() - self.at
            )));
        }
        self.elements += count;
        super::check_elements(self.elements, self.max_elements)?;
        Ok(count)
    }

    #[cold]
    fn cut_off(&self, wanted: usize) -> Error {
        let left = self.bytes.len() - self.at;
        self.malformed(format_args!("cut off: {wanted} bytes expected, {left} left"))
    }
}

fn signed(value: i64) -> Token<'static> {
    u64::try_from(value).map_or(Token::Int(value), Token::Uint)
}
