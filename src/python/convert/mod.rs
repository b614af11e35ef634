//! Python objects ⇄ the msgpack values of `crate::codec::value`.

mod fast;
mod reader;
pub(crate) mod time;
mod writer;

use bytes::Bytes;
use pyo3::exceptions::PyException;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::errors::is_own;
use super::exit;
use crate::codec::Limits;
use crate::error::Error;

pub(crate) use writer::encode_value;

/// Returns an empty map, the payload of an event that was given none.
pub(crate) fn empty_map() -> Bytes {
    Bytes::from_static(&[0x80])
}

/// Decodes one value.
pub(crate) fn decode_value<'py>(
    py: Python<'py>,
    bytes: &[u8],
    limits: &Limits,
) -> PyResult<Bound<'py, PyAny>> {
    reader::Decoder::new(py, bytes, limits).document().map_err(|error| undecodable(py, error))
}

/// Decodes a value of an event, when somebody asks for it: what fails then is marked, so that not
/// the handler is blamed.
pub(crate) fn decode_of_message<'py>(
    py: Python<'py>,
    bytes: &[u8],
    limits: &Limits,
) -> PyResult<Bound<'py, PyAny>> {
    decode_value(py, bytes, limits).inspect_err(|error| {
        if is_own(py, error) {
            // An exception takes any attribute.
            let _ = error.value(py).setattr(intern!(py, "_of_message"), true);
        }
    })
}

/// Makes whatever a message made Python raise the error of a message that cannot be decoded; what
/// ends the process, or is our own, stays what it is.
fn undecodable(py: Python<'_>, error: PyErr) -> PyErr {
    if !error.is_instance_of::<PyException>(py) || is_own(py, &error) {
        return error;
    }
    let reason = format!("Python refused it: {error}");
    let new: PyErr = Error::Decode { what: "payload", reason }.into();
    new.set_cause(py, Some(error));
    new
}

/// Encode a value.
///
/// Args:
///     value: Plain data; see the module.
///     max_bytes: Largest result; 1 MiB by default.
///     max_depth: Deepest nesting; 64 by default, at most 512.
///     max_elements: Most elements in all; 100,000 by default.
///
/// Raises:
///     EncodeError: A value of another type, or one that contains itself; the message holds the
///         path to it. Also a ``TypeError`` or a ``ValueError``.
///     PayloadTooLarge: A limit is exceeded.
#[pyfunction]
#[pyo3(signature = (value, *, max_bytes=None, max_depth=None, max_elements=None))]
pub(crate) fn encode<'py>(
    value: &Bound<'py, PyAny>,
    max_bytes: Option<Limit>,
    max_depth: Option<Limit>,
    max_elements: Option<Limit>,
) -> PyResult<Bound<'py, PyBytes>> {
    exit::register_thread();
    writer::encode_to_python(value, &limits(max_bytes, max_depth, max_elements))
}

/// Decode what ``encode`` made.
///
/// Args:
///     data: The bytes of one value.
///     max_bytes: Largest input; 1 MiB by default.
///     max_depth: Deepest nesting; 64 by default, at most 512.
///     max_elements: Most elements in all; 100,000 by default.
///
/// Raises:
///     DecodeError: The bytes are not one valid value.
///     PayloadTooLarge: A limit is exceeded.
#[pyfunction]
#[pyo3(signature = (data, *, max_bytes=None, max_depth=None, max_elements=None))]
pub(crate) fn decode<'py>(
    py: Python<'py>,
    data: &[u8],
    max_bytes: Option<Limit>,
    max_depth: Option<Limit>,
    max_elements: Option<Limit>,
) -> PyResult<Bound<'py, PyAny>> {
    exit::register_thread();
    decode_value(py, data, &limits(max_bytes, max_depth, max_elements))
}

/// A limit that the caller sets. Reading it may run Python code, before the body of a function does.
pub(crate) struct Limit(usize);

impl<'py> FromPyObject<'_, 'py> for Limit {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        exit::register_thread();
        value.extract().map(Self)
    }
}

fn limits(
    max_bytes: Option<Limit>,
    max_depth: Option<Limit>,
    max_elements: Option<Limit>,
) -> Limits {
    let default = Limits::default();
    Limits {
        max_bytes: max_bytes.map_or(default.max_bytes, |limit| limit.0),
        // Both walkers recurse: deeper nesting than this could exhaust a small thread's stack.
        max_depth: max_depth.map_or(default.max_depth, |limit| limit.0).min(512),
        max_elements: max_elements.map_or(default.max_elements, |limit| limit.0),
    }
}
