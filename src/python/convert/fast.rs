//! Short cuts into CPython for the payload walkers, each a few lines with its reason to be safe.
#![allow(unsafe_code)]

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};

/// Returns the bytes of an ASCII str without asking the interpreter; `None` for any other str.
#[inline]
pub(super) fn ascii<'a>(text: &'a Bound<'_, PyString>) -> Option<&'a [u8]> {
    let raw = text.as_ptr();
    // SAFETY: `raw` is a str, alive and immutable as long as `text` is borrowed, whoever else runs.
    // A compact ASCII str keeps its characters, one byte each, behind its header.
    unsafe {
        if ffi::PyUnicode_IS_COMPACT_ASCII(raw) == 0 {
            return None;
        }
        let len = usize::try_from(ffi::PyUnicode_GET_LENGTH(raw)).ok()?;
        Some(std::slice::from_raw_parts(ffi::PyUnicode_DATA(raw).cast::<u8>(), len))
    }
}

/// Builds a str from ASCII bytes (checked by the caller): one copy, no decoder.
#[inline]
pub(super) fn str_of_ascii<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyString>> {
    debug_assert!(bytes.is_ascii());
    let len = bytes.len().cast_signed();
    // SAFETY: PyUnicode_New returns a new str of `len` one-byte characters that nobody else has
    // seen (the empty str is shared, and nothing is written into it), or null with an error set.
    // The collector does not know texts, and no Python code runs before it is written.
    unsafe {
        let raw = ffi::PyUnicode_New(len, 127);
        let text = Bound::from_owned_ptr_or_err(py, raw)?.cast_into_unchecked::<PyString>();
        if len > 0 {
            let data = ffi::PyUnicode_DATA(raw).cast::<u8>();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), data, bytes.len());
        }
        Ok(text)
    }
}

/// Builds a list whose items are made one after the other.
#[inline]
pub(super) fn list_of<'py>(
    py: Python<'py>,
    len: usize,
    mut item: impl FnMut() -> PyResult<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyList>> {
    // SAFETY: a new list of `len` empty slots; each is filled once with a reference it takes over.
    // Making an item can run Python code (a UUID, a callback of the collector), and other threads
    // with it, to which `gc.get_objects()` would show the empty slots: so the collector does not
    // know the list before it is full. When an item fails, or panics, the list is dropped: that
    // skips empty slots, and takes a list that is not tracked.
    unsafe {
        let raw = ffi::PyList_New(len.cast_signed());
        let list = Bound::from_owned_ptr_or_err(py, raw)?.cast_into_unchecked::<PyList>();
        ffi::PyObject_GC_UnTrack(raw.cast());
        for index in 0..len {
            ffi::PyList_SET_ITEM(raw, index.cast_signed(), item()?.into_ptr());
        }
        ffi::PyObject_GC_Track(raw.cast());
        Ok(list)
    }
}

/// Calls `visit` for each entry of a dict; stops when its size changes underneath.
#[inline]
pub(super) fn for_each_entry<'py, E>(
    dict: &Bound<'py, PyDict>,
    mut visit: impl FnMut(Bound<'py, PyAny>, Bound<'py, PyAny>) -> Result<(), E>,
) -> Result<usize, E> {
    let py = dict.py();
    let (mut position, mut seen) = (0, 0);
    let (mut key, mut value) = (std::ptr::null_mut(), std::ptr::null_mut());
    let len = dict.len();
    while dict.len() == len
        // SAFETY: the dict is alive, and the GIL is held, so nobody changes it during the call,
        // which stays within the table whatever `visit` or another thread changed before. Without
        // a GIL this needs a critical section: the module says that it uses the GIL.
        && unsafe {
            ffi::PyDict_Next(dict.as_ptr(), &raw mut position, &raw mut key, &raw mut value)
        } != 0
    {
        let (key, value) =
            // SAFETY: the call gave two references that the dict owns; they become ours before
            // anything can run that drops the dict's.
            unsafe { (Bound::from_borrowed_ptr(py, key), Bound::from_borrowed_ptr(py, value)) };
        visit(key, value)?;
        seen += 1;
    }
    Ok(seen)
}
