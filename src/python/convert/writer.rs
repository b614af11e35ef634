//! A Python object → one msgpack value, walking the object directly.

use std::cell::RefCell;

use bytes::Bytes;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{
    PyBool, PyBytes, PyDate, PyDateTime, PyDelta, PyDict, PyFloat, PyFrozenSet, PyInt, PyList,
    PySet, PyString, PyTuple,
};
use rmp::encode as msgpack;

use super::{fast, time};
use crate::codec::value::ext;
use crate::codec::{Limits, Wire};
use crate::error::Error;

/// A scratch buffer that once held a huge value is not kept.
const KEEP: usize = 1 << 20;

/// Encodes one value for a wire; `path` names it in errors.
pub(crate) fn encode_value(
    value: &Bound<'_, PyAny>,
    limits: &Limits,
    wire: Wire,
    path: &str,
) -> PyResult<Bytes> {
    with_scratch(value, limits, wire, path, Bytes::copy_from_slice)
}

/// Encodes one value into a Python `bytes`, through a buffer that is used again.
pub(super) fn encode_to_python<'py>(
    value: &Bound<'py, PyAny>,
    limits: &Limits,
) -> PyResult<Bound<'py, PyBytes>> {
    with_scratch(value, limits, Wire::Native, "$", |encoded| PyBytes::new(value.py(), encoded))
}

/// Encodes into this thread's buffer and hands out the result.
fn with_scratch<T>(
    value: &Bound<'_, PyAny>,
    limits: &Limits,
    wire: Wire,
    path: &str,
    finish: impl FnOnce(&[u8]) -> T,
) -> PyResult<T> {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    // Taken out, as encoding may run Python code that encodes too.
    let mut out = BUFFER.take();
    out.clear();
    let mut encoder = Encoder::new(out, limits, wire);
    // The last room() did not know the headers after it.
    encoder.value(value).and_then(|()| encoder.room(0)).map_err(|fail| fail.into_error(path))?;
    let finished = finish(&encoder.out);
    if encoder.out.capacity() <= KEEP {
        BUFFER.set(encoder.out);
    }
    Ok(finished)
}

/// A failure on its way up; each container adds its part of the path.
struct Fail(Box<(PyErr, Option<String>, Vec<String>)>);

type Done = Result<(), Fail>;

impl Fail {
    /// A value that cannot be encoded.
    fn reason(reason: String) -> Self {
        Self(Box::new((Error::Internal { reason: String::new() }.into(), Some(reason), Vec::new())))
    }

    fn under(mut self, part: impl FnOnce() -> String) -> Self {
        // The innermost parts say enough; a deep structure must not build a huge text.
        if self.0.2.len() < 16 {
            self.0.2.push(part());
        }
        self
    }

    fn into_error(self, root: &str) -> PyErr {
        let (error, reason, parts) = *self.0;
        match reason {
            None => error,
            Some(reason) => {
                let mut path = root.to_owned();
                path.extend(parts.into_iter().rev());
                Error::Encode { path, reason }.into()
            }
        }
    }
}

impl<E: Into<PyErr>> From<E> for Fail {
    fn from(error: E) -> Self {
        Self(Box::new((error.into(), None, Vec::new())))
    }
}

struct Encoder<'a> {
    out: Vec<u8>,
    limits: &'a Limits,
    /// What the value is for: the JSON wire has the errors of `json.dumps` (contract D56).
    wire: Wire,
    elements: usize,
    /// The containers around the current value, to tell a circle from mere depth.
    parents: Vec<*mut pyo3::ffi::PyObject>,
    /// The objects of data classes around the current value.
    objects: Vec<*mut pyo3::ffi::PyObject>,
}

impl<'a> Encoder<'a> {
    fn new(out: Vec<u8>, limits: &'a Limits, wire: Wire) -> Self {
        Self { out, limits, wire, elements: 0, parents: Vec::new(), objects: Vec::new() }
    }

    fn value(&mut self, value: &Bound<'_, PyAny>) -> Done {
        if let Ok(text) = value.cast_exact::<PyString>() {
            return self.text(text);
        }
        if let Ok(number) = value.cast_exact::<PyInt>() {
            return self.int(number);
        }
        if let Ok(float) = value.cast_exact::<PyFloat>() {
            return self.float(float.value());
        }
        if value.is_none() {
            self.out.push(0xc0);
            return Ok(());
        }
        if let Ok(dict) = value.cast_exact::<PyDict>() {
            return self.dict(dict);
        }
        if let Ok(list) = value.cast_exact::<PyList>() {
            return self.list(list);
        }
        if let Ok(flag) = value.cast_exact::<PyBool>() {
            self.out.push(if flag.is_true() { 0xc3 } else { 0xc2 });
            return Ok(());
        }
        self.rarer(value)
    }

    #[inline(never)]
    fn rarer(&mut self, value: &Bound<'_, PyAny>) -> Done {
        if let Ok(bytes) = value.cast::<PyBytes>() {
            return self.bytes(bytes.as_bytes());
        }
        if let Ok(tuple) = value.cast_exact::<PyTuple>() {
            return self.tuple(tuple);
        }
        // Subclasses travel as their base, as json.dumps does; a bool has no subclasses.
        if let Ok(text) = value.cast::<PyString>() {
            return self.text(text);
        }
        if let Ok(number) = value.cast::<PyInt>() {
            return self.int(number);
        }
        if let Ok(float) = value.cast::<PyFloat>() {
            return self.float(float.value());
        }
        if let Ok(dict) = value.cast::<PyDict>() {
            return self.dict(dict);
        }
        if let Ok(list) = value.cast::<PyList>() {
            return self.list(list);
        }
        if let Ok(tuple) = value.cast::<PyTuple>() {
            return self.tuple(tuple);
        }
        if let Ok(set) = value.cast::<PySet>() {
            // Copied: encoding an item can run Python code, which may change the set.
            let items: Vec<_> = set.iter().collect();
            return self.nested(value, ext::SET, items.len(), items.into_iter());
        }
        if let Ok(set) = value.cast::<PyFrozenSet>() {
            return self.nested(value, ext::FROZEN_SET, set.len(), set.iter());
        }
        if let Ok(time) = value.cast::<PyDateTime>() {
            return self.datetime(time);
        }
        if let Ok(date) = value.cast::<PyDate>() {
            return self.ext(ext::DATE, &time::days(date).to_be_bytes());
        }
        if let Ok(delta) = value.cast::<PyDelta>() {
            return self.ext(ext::TIMEDELTA, &time::delta_bytes(delta));
        }
        self.by_class(value)
    }

    fn by_class(&mut self, value: &Bound<'_, PyAny>) -> Done {
        static UUID: PyOnceLock<Py<pyo3::types::PyType>> = PyOnceLock::new();
        static DECIMAL: PyOnceLock<Py<pyo3::types::PyType>> = PyOnceLock::new();
        let py = value.py();
        if value.is_instance(UUID.import(py, "uuid", "UUID")?)? {
            let bytes = value.getattr(intern!(py, "bytes"))?;
            let bytes = bytes.cast::<PyBytes>().map_err(PyErr::from)?;
            return self.ext(ext::UUID, bytes.as_bytes());
        }
        if value.is_instance(DECIMAL.import(py, "decimal", "Decimal")?)? {
            let text = value.str()?;
            return self.ext(ext::DECIMAL, text.to_str()?.as_bytes());
        }
        self.object(value)
    }

    /// Encodes what an object of a data class holds.
    fn object(&mut self, value: &Bound<'_, PyAny>) -> Done {
        static PLAIN: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = value.py();
        if self.wire == Wire::DataKnobs {
            // Its receivers read what `json.dumps` writes, and nothing else.
            let class = value.get_type().name()?;
            return Err(Fail::reason(format!("Object of type {class} is not JSON serializable")));
        }
        let plain = PLAIN.import(py, "eventbus.payloads", "plain")?.call1((value,))?;
        if plain.is(py.NotImplemented()) {
            let class = value.get_type().name()?;
            return Err(Fail::reason(format!(
                "{class} cannot be encoded; use None, bool, int, float, str, bytes, list, tuple, \
                 dict, set, datetime, date, timedelta, UUID, Decimal, an Enum, or an object of a \
                 dataclass, msgspec.Struct, attrs class or pydantic model"
            )));
        }
        // The data is made anew each time: a circle shows in the objects only.
        if self.objects.contains(&value.as_ptr()) {
            return Err(Fail::reason("Circular reference detected".into()));
        }
        self.objects.push(value.as_ptr());
        self.value(&plain)?;
        self.objects.pop();
        Ok(())
    }

    /// Refuses what would exceed the byte limit, before it is copied.
    fn room(&self, more: usize) -> Done {
        let size = self.out.len().saturating_add(more);
        if size <= self.limits.max_bytes {
            return Ok(());
        }
        Err(Error::TooLarge {
            what: "message bytes",
            size: size as u64,
            limit: self.limits.max_bytes as u64,
            remedy: "send a reference to the data, or raise max_message_bytes (of codec.encode max_bytes)",
        }
        .into())
    }

    fn count(&mut self, more: usize) -> Done {
        self.elements = self.elements.saturating_add(more);
        if self.elements <= self.limits.max_elements {
            return Ok(());
        }
        Err(Error::TooLarge {
            what: "elements",
            size: self.elements as u64,
            limit: self.limits.max_elements as u64,
            remedy: "split the message, or raise max_elements",
        }
        .into())
    }

    fn enter(&mut self, container: &Bound<'_, PyAny>, items: usize) -> Done {
        if self.parents.len() >= self.limits.max_depth {
            if self.parents.contains(&container.as_ptr()) {
                return Err(Fail::reason("Circular reference detected".into()));
            }
            return Err(Error::TooLarge {
                what: "nesting depth",
                size: self.parents.len() as u64 + 1,
                limit: self.limits.max_depth as u64,
                remedy: "flatten the value, or raise max_depth",
            }
            .into());
        }
        self.count(items)?;
        self.room(items)?;
        self.parents.push(container.as_ptr());
        Ok(())
    }

    fn leave(&mut self) {
        self.parents.pop();
    }

    fn text(&mut self, text: &Bound<'_, PyString>) -> Done {
        if let Some(ascii) = fast::ascii(text) {
            return self.utf8(ascii);
        }
        let Ok(utf8) = text.to_str() else {
            let wtf8 = text.call_method1(
                intern!(text.py(), "encode"),
                (intern!(text.py(), "utf-8"), intern!(text.py(), "surrogatepass")),
            )?;
            let wtf8 = wtf8.cast::<PyBytes>().map_err(PyErr::from)?;
            return self.ext(ext::SURROGATE_TEXT, wtf8.as_bytes());
        };
        self.utf8(utf8.as_bytes())
    }

    #[inline]
    fn utf8(&mut self, utf8: &[u8]) -> Done {
        self.room(utf8.len())?;
        self.out.reserve(utf8.len() + 5);
        if let Ok(len @ 0..=31) = u8::try_from(utf8.len()) {
            self.out.push(0xa0 | len);
        } else if let Ok(len) = u8::try_from(utf8.len()) {
            self.out.extend_from_slice(&[0xd9, len]);
        } else {
            msgpack::write_str_len(&mut self.out, length(utf8.len())?).map_err(internal)?;
        }
        self.out.extend_from_slice(utf8);
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Done {
        self.room(bytes.len())?;
        msgpack::write_bin(&mut self.out, bytes).map_err(internal)?;
        Ok(())
    }

    fn float(&mut self, value: f64) -> Done {
        self.out.push(0xcb);
        self.out.extend_from_slice(&value.to_be_bytes());
        Ok(())
    }

    fn int(&mut self, value: &Bound<'_, PyInt>) -> Done {
        if let Ok(number) = value.extract::<i64>() {
            if let Ok(small @ 0..=127) = u8::try_from(number) {
                self.out.push(small);
            } else {
                msgpack::write_sint(&mut self.out, number).map_err(internal)?;
            }
            return Ok(());
        }
        if let Ok(number) = value.extract::<u64>() {
            msgpack::write_u64(&mut self.out, number).map_err(internal)?;
            return Ok(());
        }
        let py = value.py();
        let bits: usize = value.call_method0(intern!(py, "bit_length"))?.extract()?;
        let size = bits / 8 + 1;
        self.room(size)?;
        let kwargs = PyDict::new(py);
        kwargs.set_item(intern!(py, "signed"), true)?;
        let arguments = (size, intern!(py, "little"));
        let body = value.call_method(intern!(py, "to_bytes"), arguments, Some(&kwargs))?;
        self.ext(ext::BIG_INT, body.cast::<PyBytes>().map_err(PyErr::from)?.as_bytes())
    }

    fn datetime(&mut self, value: &Bound<'_, PyDateTime>) -> Done {
        let Some(wall) = time::wall_time(value.as_any())? else {
            return Err(Fail::reason("datetime is out of range".into()));
        };
        let micros = wall.micros.to_be_bytes();
        match wall.offset_micros {
            None => self.ext(ext::DATETIME, &micros),
            Some(offset) => {
                let mut body = [0; 16];
                body[..8].copy_from_slice(&micros);
                body[8..].copy_from_slice(&offset.to_be_bytes());
                self.ext(ext::DATETIME, &body)
            }
        }
    }

    fn ext(&mut self, code: i8, body: &[u8]) -> Done {
        self.room(body.len())?;
        msgpack::write_ext_meta(&mut self.out, length(body.len())?, code).map_err(internal)?;
        self.out.extend_from_slice(body);
        Ok(())
    }

    fn dict(&mut self, dict: &Bound<'_, PyDict>) -> Done {
        self.enter(dict, dict.len())?;
        if let Ok(len @ 0..=15) = u8::try_from(dict.len()) {
            self.out.push(0x80 | len);
        } else {
            msgpack::write_map_len(&mut self.out, length(dict.len())?).map_err(internal)?;
        }
        let seen = fast::for_each_entry(dict, |key, value| {
            if let Ok(text) = key.cast_exact::<PyString>() {
                self.text(text)?;
            } else {
                self.key(&key)?;
            }
            self.value(&value).map_err(|fail| fail.under(|| part(&key)))
        })?;
        if seen != dict.len() {
            return Err(Fail::reason("dict changed size while it was encoded".into()));
        }
        self.leave();
        Ok(())
    }

    /// Writes a key that is not a plain str; any scalar will do.
    fn key(&mut self, key: &Bound<'_, PyAny>) -> Done {
        if self.wire == Wire::DataKnobs && !is_json_key(key) {
            let class = key_class(key)?;
            let reason = format!("keys must be str, int, float, bool or None, not {class}");
            return Err(Fail::reason(reason));
        }
        if key.is_instance_of::<PyTuple>() || key.is_instance_of::<PyFrozenSet>() {
            let class = key.get_type().name()?;
            return Err(Fail::reason(format!("keys must be scalars, not {class}")));
        }
        self.value(key).map_err(|fail| fail.under(|| part(key)))
    }

    fn list(&mut self, list: &Bound<'_, PyList>) -> Done {
        self.enter(list, list.len())?;
        self.array_len(list.len())?;
        let (len, mut seen) = (list.len(), 0);
        for item in list.iter() {
            self.value(&item).map_err(|fail| fail.under(|| format!("[{seen}]")))?;
            seen += 1;
        }
        if seen != len {
            return Err(Fail::reason("list changed size while it was encoded".into()));
        }
        self.leave();
        Ok(())
    }

    fn array_len(&mut self, len: usize) -> Done {
        if let Ok(len @ 0..=15) = u8::try_from(len) {
            self.out.push(0x90 | len);
        } else {
            msgpack::write_array_len(&mut self.out, length(len)?).map_err(internal)?;
        }
        Ok(())
    }

    fn tuple(&mut self, tuple: &Bound<'_, PyTuple>) -> Done {
        self.nested(tuple, ext::TUPLE, tuple.len(), tuple.iter())
    }

    /// Writes an extension whose body is one array; its length is filled in afterwards.
    fn nested<'py>(
        &mut self,
        container: &Bound<'py, PyAny>,
        code: i8,
        len: usize,
        items: impl Iterator<Item = Bound<'py, PyAny>>,
    ) -> Done {
        self.enter(container, len)?;
        self.out.extend_from_slice(&[0xc9, 0, 0, 0, 0]);
        self.out.extend_from_slice(&code.to_be_bytes());
        let start = self.out.len();
        self.array_len(len)?;
        for (index, item) in items.enumerate() {
            self.value(&item).map_err(|fail| fail.under(|| format!("[{index}]")))?;
        }
        let size = length(self.out.len() - start)?;
        self.out[start - 5..start - 1].copy_from_slice(&size.to_be_bytes());
        self.leave();
        Ok(())
    }
}

fn is_json_key(key: &Bound<'_, PyAny>) -> bool {
    key.is_none()
        || key.is_instance_of::<PyString>()
        || key.is_instance_of::<PyInt>()
        || key.is_instance_of::<PyFloat>()
}

/// Returns the name of a key's class as `json.dumps` says it: with the module where the class is
/// written in C.
fn key_class(key: &Bound<'_, PyAny>) -> PyResult<String> {
    const HEAP_TYPE: u64 = 1 << 9;
    let class = key.get_type();
    let name = class.name()?.to_string();
    let module = class.module()?.to_string();
    let in_python =
        class.getattr(intern!(key.py(), "__flags__"))?.extract::<u64>()? & HEAP_TYPE != 0;
    Ok(if in_python || module == "builtins" { name } else { format!("{module}.{name}") })
}

fn part(key: &Bound<'_, PyAny>) -> String {
    match key.cast::<PyString>().map(|text| text.to_string_lossy().into_owned()) {
        Ok(name) if name.chars().all(|c| c.is_alphanumeric() || c == '_') => {
            format!(".{}", name.chars().take(40).collect::<String>())
        }
        _ => {
            let text = key.repr().map_or_else(|_| "?".into(), |text| text.to_string());
            format!("[{}]", text.chars().take(40).collect::<String>())
        }
    }
}

fn length(len: usize) -> Result<u32, Fail> {
    u32::try_from(len).map_err(|_| Fail::reason(format!("{len} items exceed msgpack's 2³²−1")))
}

/// Writing to a `Vec` cannot fail.
fn internal(error: impl std::fmt::Display) -> PyErr {
    Error::Internal { reason: error.to_string() }.into()
}
