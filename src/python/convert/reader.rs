//! One msgpack value → Python objects; lengths are believed only as far as bytes are there.

use parking_lot::{Mutex, MutexGuard};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{
    PyBool, PyBytes, PyDelta, PyDict, PyFloat, PyFrozenSet, PyInt, PyList, PySet, PyString,
    PyTuple, PyType,
};

use super::{fast, time};
use crate::codec::Limits;
use crate::codec::collisions::{Budget, Frozen, Kind, LONG, MOST_EQUAL, Member, Table};
use crate::codec::value::ext;
use crate::error::{Error, Result};
use crate::event::WallTime;

/// Longest map key that is kept for the next message.
const CACHED_KEY: usize = 32;
const CACHE_SLOTS: usize = 512;

/// Keys of earlier messages. One for the process: a thread's own would have to be dropped when the
/// thread ends, where Python cannot be called. Only ever tried, so it cannot be waited for.
static KEYS: Mutex<Vec<Option<Py<PyString>>>> = Mutex::new(Vec::new());

pub(super) struct Decoder<'py, 'a> {
    py: Python<'py>,
    bytes: &'a [u8],
    at: usize,
    limits: &'a Limits,
    depth: usize,
    elements: usize,
    keys: Option<MutexGuard<'static, Vec<Option<Py<PyString>>>>>,
    /// The frozensets in what was read since this was emptied.
    frozen: Frozen,
    decimals: usize,
    has_long_ints: bool,
    budget: Budget,
}

impl<'py, 'a> Decoder<'py, 'a> {
    pub(super) fn new(py: Python<'py>, bytes: &'a [u8], limits: &'a Limits) -> Self {
        Self {
            py,
            bytes,
            at: 0,
            limits,
            depth: 0,
            elements: 0,
            keys: KEYS.try_lock(),
            frozen: Frozen::default(),
            decimals: 0,
            has_long_ints: false,
            budget: Budget::new(bytes.len()),
        }
    }

    /// Decodes exactly one value and nothing after it.
    pub(super) fn document(mut self) -> PyResult<Bound<'py, PyAny>> {
        if self.bytes.len() > self.limits.max_bytes {
            return Err(Error::TooLarge {
                what: "message bytes",
                size: self.bytes.len() as u64,
                limit: self.limits.max_bytes as u64,
                remedy: "raise max_message_bytes (of codec.decode max_bytes)",
            }
            .into());
        }
        let value = self.value()?;
        if self.at == self.bytes.len() {
            return Ok(value);
        }
        Err(self.malformed("trailing bytes").into())
    }

    fn malformed(&self, what: impl std::fmt::Display) -> Error {
        Error::Decode { what: "payload", reason: format!("{what} at byte {}", self.at) }
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else { return Err(self.malformed("unexpected end")) };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn length(&mut self, width: u8) -> Result<usize> {
        Ok(match width {
            1 => usize::from(self.array::<1>()?[0]),
            2 => usize::from(u16::from_be_bytes(self.array()?)),
            _ => u32::from_be_bytes(self.array()?) as usize,
        })
    }

    fn value(&mut self) -> PyResult<Bound<'py, PyAny>> {
        let marker = self.take(1)?[0];
        let py = self.py;
        Ok(match marker {
            0x00..=0x7f => PyInt::new(py, marker).into_any(),
            0xe0..=0xff => PyInt::new(py, marker.cast_signed()).into_any(),
            0xa0..=0xbf => self.text(usize::from(marker & 0x1f))?.into_any(),
            0x80..=0x8f => self.map(usize::from(marker & 0x0f))?.into_any(),
            0x90..=0x9f => self.list(usize::from(marker & 0x0f))?.into_any(),
            0xc0 => py.None().into_bound(py),
            0xc2 => PyBool::new(py, false).to_owned().into_any(),
            0xc3 => PyBool::new(py, true).to_owned().into_any(),
            0xcb => PyFloat::new(py, f64::from_be_bytes(self.array()?)).into_any(),
            0xca => PyFloat::new(py, f64::from(f32::from_be_bytes(self.array()?))).into_any(),
            0xcc => PyInt::new(py, self.array::<1>()?[0]).into_any(),
            0xcd => PyInt::new(py, u16::from_be_bytes(self.array()?)).into_any(),
            0xce => PyInt::new(py, u32::from_be_bytes(self.array()?)).into_any(),
            0xcf => PyInt::new(py, u64::from_be_bytes(self.array()?)).into_any(),
            0xd0 => PyInt::new(py, i8::from_be_bytes(self.array()?)).into_any(),
            0xd1 => PyInt::new(py, i16::from_be_bytes(self.array()?)).into_any(),
            0xd2 => PyInt::new(py, i32::from_be_bytes(self.array()?)).into_any(),
            0xd3 => PyInt::new(py, i64::from_be_bytes(self.array()?)).into_any(),
            0xd9..=0xdb => {
                let len = self.length(1 << (marker - 0xd9))?;
                self.text(len)?.into_any()
            }
            0xc4..=0xc6 => {
                let len = self.length(1 << (marker - 0xc4))?;
                PyBytes::new(py, self.take(len)?).into_any()
            }
            0xdc | 0xdd => {
                let len = self.length(if marker == 0xdc { 2 } else { 4 })?;
                self.list(len)?.into_any()
            }
            0xde | 0xdf => {
                let len = self.length(if marker == 0xde { 2 } else { 4 })?;
                self.map(len)?.into_any()
            }
            0xd4..=0xd8 => self.ext(1 << (marker - 0xd4))?,
            0xc7..=0xc9 => {
                let len = self.length(1 << (marker - 0xc7))?;
                self.ext(len)?
            }
            0xc1 => return Err(self.malformed("the reserved marker c1").into()),
        })
    }

    #[inline]
    fn text(&mut self, len: usize) -> PyResult<Bound<'py, PyString>> {
        let bytes = self.take(len)?;
        self.str_of(bytes)
    }

    #[inline]
    fn str_of(&self, bytes: &[u8]) -> PyResult<Bound<'py, PyString>> {
        if bytes.is_ascii() {
            return fast::str_of_ascii(self.py, bytes);
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|_| self.malformed("text that is not UTF-8, ending"))?;
        Ok(PyString::new(self.py, text))
    }

    /// Counts the items of a container and refuses more than there are bytes for.
    fn enter(&mut self, len: usize, bytes_each: usize) -> Result<()> {
        if self.depth >= self.limits.max_depth {
            return Err(Error::TooLarge {
                what: "nesting depth",
                size: self.depth as u64 + 1,
                limit: self.limits.max_depth as u64,
                remedy: "raise max_depth",
            });
        }
        self.elements = self.elements.saturating_add(len);
        if self.elements > self.limits.max_elements {
            return Err(Error::TooLarge {
                what: "elements",
                size: self.elements as u64,
                limit: self.limits.max_elements as u64,
                remedy: "raise max_elements",
            });
        }
        if len.saturating_mul(bytes_each) > self.bytes.len() - self.at {
            return Err(self.malformed(format_args!("a container of {len} items")));
        }
        self.depth += 1;
        Ok(())
    }

    fn list(&mut self, len: usize) -> PyResult<Bound<'py, PyList>> {
        self.enter(len, 1)?;
        let list = fast::list_of(self.py, len, || self.value())?;
        self.depth -= 1;
        Ok(list)
    }

    fn items(&mut self, len: usize) -> PyResult<Vec<Bound<'py, PyAny>>> {
        self.enter(len, 1)?;
        let mut items = Vec::with_capacity(len);
        for _ in 0..len {
            items.push(self.value()?);
        }
        self.depth -= 1;
        Ok(items)
    }

    fn map(&mut self, len: usize) -> PyResult<Bound<'py, PyDict>> {
        self.enter(len, 2)?;
        let dict = PyDict::new(self.py);
        let mut table = None;
        let mut others = 0;
        let (mut has_long, mut has_decimal) = (false, false);
        for index in 0..len {
            let (start, decimals) = (self.at, self.decimals);
            let key = self.key()?;
            if !is_text(&key) {
                has_long |= self.at - start > LONG;
                has_decimal |= self.decimals > decimals;
                if has_long && has_decimal {
                    let reason = "a long integer beside a decimal as map keys, ending";
                    return Err(self.malformed(reason).into());
                }
                if len > MOST_EQUAL {
                    let table = table.get_or_insert_with(|| Table::new(Kind::Map));
                    table.set_texts(index - others);
                    let member = self.member(start, Frozen::default());
                    table.add(key.hash()?.cast_unsigned() as u64, member, &mut self.budget)?;
                }
                others += 1;
            }
            let value = self.value()?;
            dict.set_item(key, value)?;
        }
        self.depth -= 1;
        Ok(dict)
    }

    /// Describes a member that began at `start`.
    fn member(&self, start: usize, frozen: Frozen) -> Member {
        Member {
            bytes: u32::try_from(self.at - start).unwrap_or(u32::MAX),
            frozen,
            is_mixed: self.decimals > 0 && self.has_long_ints,
        }
    }

    fn key(&mut self) -> PyResult<Bound<'py, PyAny>> {
        let marker = self.bytes.get(self.at).copied().unwrap_or(0xc1);
        let (0xa1..=0xbf, Some(bytes)) =
            (marker, self.bytes.get(self.at + 1..self.at + 1 + usize::from(marker & 0x1f)))
        else {
            let key = self.value()?;
            let is_container =
                key.is_instance_of::<PyTuple>() || key.is_instance_of::<PyFrozenSet>();
            if is_container || key.hash().is_err() {
                return Err(self.malformed("a map key that is not a scalar, ending").into());
            }
            return Ok(key);
        };
        self.at += 1 + bytes.len();
        self.cached(bytes).map(Bound::into_any)
    }

    /// Returns the str of a short key, the same object for the same key.
    fn cached(&mut self, bytes: &[u8]) -> PyResult<Bound<'py, PyString>> {
        if bytes.len() > CACHED_KEY {
            return self.str_of(bytes);
        }
        let Some(keys) = self.keys.as_mut() else { return self.str_of(bytes) };
        if keys.is_empty() {
            keys.resize_with(CACHE_SLOTS, || None);
        }
        // FNV-1a: a handful of bytes, no secret to protect, one slot to lose.
        let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
        let slot = (hash ^ (hash >> 15)) as usize % CACHE_SLOTS;
        if let Some(known) = &keys[slot] {
            let known = known.bind(self.py);
            if fast::ascii(known) == Some(bytes) {
                return Ok(known.clone());
            }
        }
        let key = self.str_of(bytes)?;
        if let Some(keys) = self.keys.as_mut().filter(|_| bytes.is_ascii()) {
            keys[slot] = Some(key.clone().unbind());
        }
        Ok(key)
    }

    fn ext(&mut self, len: usize) -> PyResult<Bound<'py, PyAny>> {
        let code = i8::from_be_bytes(self.array()?);
        let py = self.py;
        if matches!(code, ext::TUPLE | ext::SET | ext::FROZEN_SET) {
            return self.nested(code, len);
        }
        let body = self.take(len)?;
        match code {
            ext::BIG_INT => self.has_long_ints |= len > LONG,
            ext::DECIMAL => self.decimals += 1,
            _ => {}
        }
        let wrong = || self.malformed(format_args!("extension {code} of {len} bytes, ending"));
        Ok(match (code, len) {
            (ext::BIG_INT, 1..) => {
                let kwargs = PyDict::new(py);
                kwargs.set_item(intern!(py, "signed"), true)?;
                let arguments = (PyBytes::new(py, body), intern!(py, "little"));
                py.get_type::<PyInt>().call_method(
                    intern!(py, "from_bytes"),
                    arguments,
                    Some(&kwargs),
                )?
            }
            (ext::DATETIME, 8 | 16) => {
                let micros = i64::from_be_bytes(fixed(&body[..8]));
                let offset_micros = body.get(8..).filter(|rest| rest.len() == 8);
                let offset_micros = offset_micros.map(|rest| i64::from_be_bytes(fixed(rest)));
                let wall = WallTime { micros, offset_micros };
                time::datetime(py, &wall).map_err(|_| wrong())?
            }
            (ext::DATE, 4) => {
                let days = i32::from_be_bytes(fixed(body));
                time::date(py, days).map_err(|_| wrong())?.into_any()
            }
            (ext::TIMEDELTA, 16) => {
                let days =
                    i32::try_from(i64::from_be_bytes(fixed(&body[..8]))).map_err(|_| wrong())?;
                let seconds = i32::from_be_bytes(fixed(&body[8..12]));
                let micros = i32::from_be_bytes(fixed(&body[12..]));
                PyDelta::new(py, days, seconds, micros, true).map_err(|_| wrong())?.into_any()
            }
            (ext::UUID, 16) => {
                static UUID: PyOnceLock<Py<PyType>> = PyOnceLock::new();
                let kwargs = PyDict::new(py);
                kwargs.set_item(intern!(py, "bytes"), PyBytes::new(py, body))?;
                UUID.import(py, "uuid", "UUID")?.call((), Some(&kwargs))?
            }
            (ext::DECIMAL, 1..) => {
                static DECIMAL: PyOnceLock<Py<PyType>> = PyOnceLock::new();
                let text = std::str::from_utf8(body).map_err(|_| wrong())?;
                DECIMAL.import(py, "decimal", "Decimal")?.call1((text,)).map_err(|_| wrong())?
            }
            (ext::SURROGATE_TEXT, _) => PyBytes::new(py, body)
                .call_method1(
                    intern!(py, "decode"),
                    (intern!(py, "utf-8"), intern!(py, "surrogatepass")),
                )
                .map_err(|_| wrong())?,
            _ => return Err(wrong().into()),
        })
    }

    /// Decodes an extension whose body is exactly one array.
    fn nested(&mut self, code: i8, len: usize) -> PyResult<Bound<'py, PyAny>> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else { return Err(self.malformed("unexpected end").into()) };
        let marker = self.take(1)?[0];
        let count = match marker {
            0x90..=0x9f => usize::from(marker & 0x0f),
            0xdc => self.length(2)?,
            0xdd => self.length(4)?,
            _ => return Err(self.malformed("an extension that holds no array, ending").into()),
        };
        let items =
            if code == ext::TUPLE { self.items(count)? } else { self.members(count, code)? };
        if self.at != end {
            return Err(self.malformed("an extension of another length, ending").into());
        }
        if code == ext::TUPLE {
            return Ok(PyTuple::new(self.py, items)?.into_any());
        }
        let set = PySet::new(self.py, items)
            .map_err(|_| self.malformed("a set with an unhashable item, ending"))?;
        if code == ext::SET {
            return Ok(set.into_any());
        }
        // Not filled item by item: the hash of an item can run Python code, and a frozenset that
        // somebody else holds meanwhile, by way of the collector, takes no further items.
        self.py.get_type::<PyFrozenSet>().call1((set,))
    }

    /// Decodes the members of a set, and refuses those that would collide.
    fn members(&mut self, len: usize, code: i8) -> PyResult<Vec<Bound<'py, PyAny>>> {
        self.enter(len, 1)?;
        let before = std::mem::take(&mut self.frozen);
        let mut inside = Frozen::default();
        let mut is_suspect = len > MOST_EQUAL;
        let (mut items, mut members) = (Vec::with_capacity(len), Vec::with_capacity(len));
        for _ in 0..len {
            let start = self.at;
            self.frozen = Frozen::default();
            let item = self.value()?;
            let member = self.member(start, self.frozen);
            inside = inside.max(self.frozen);
            is_suspect |= self.at - start > LONG
                || item.is_instance_of::<PyTuple>()
                || item.is_instance_of::<PyFrozenSet>();
            items.push(item);
            members.push(member);
        }
        if code == ext::FROZEN_SET {
            inside = inside.around(len);
        }
        self.frozen = before.max(inside);
        self.depth -= 1;
        if is_suspect {
            self.check_members(&items, members)?;
        }
        Ok(items)
    }

    fn check_members(&mut self, items: &[Bound<'py, PyAny>], members: Vec<Member>) -> PyResult<()> {
        let is_mixed = self.decimals > 0 && self.has_long_ints;
        let mut table = Table::new(Kind::Set);
        let mut texts = 0;
        for (item, member) in items.iter().zip(members) {
            if is_text(item) {
                texts += 1;
                table.set_texts(texts);
                continue;
            }
            let hash = item
                .hash()
                .map_err(|_| self.malformed("a set with an unhashable item, ending"))?
                .cast_unsigned();
            table.add(hash as u64, Member { is_mixed, ..member }, &mut self.budget)?;
        }
        Ok(())
    }
}

/// Whether its hash is made with a key of the process.
fn is_text(value: &Bound<'_, PyAny>) -> bool {
    value.is_instance_of::<PyString>() || value.is_instance_of::<PyBytes>()
}

/// Copies a slice whose length was checked.
fn fixed<const N: usize>(slice: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(slice);
    bytes
}
