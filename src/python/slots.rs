//! Type slots of CPython that pyo3 cannot fill: `Event(...)` by vectorcall, without a tuple and a dict
//! per event, and awaitables that are their own iterator.
#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::PyTypeInfo;
use pyo3::ffi::{self, PyObject};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::event::PyEvent;

static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Lets calls of the class `Event` go through [`call`]; building by `type.__call__` (a subclass, an
/// unusual caller) still goes through `Event.__new__`.
pub(crate) fn install(py: Python<'_>) {
    let class = py.get_type::<PyEvent>().as_type_ptr();
    if !INSTALLED.swap(true, Ordering::AcqRel) {
        // SAFETY: the class object lives as long as the interpreter, and is not in use yet: the
        // module that holds it is being initialised. `type` itself looks this slot up.
        unsafe { (*class).tp_vectorcall = Some(call) };
    }
}

/// Lets `await` and `iter` of a class that is its own iterator skip the border: they only return it.
pub(crate) fn is_own_iterator<T: PyTypeInfo>(py: Python<'_>) {
    let class = py.get_type::<T>().as_type_ptr();
    // SAFETY: as for `install`; pyo3 filled both slots with functions that return their argument,
    // which is what PyObject_SelfIter does.
    unsafe {
        (*class).tp_iter = Some(ffi::PyObject_SelfIter);
        if let Some(slots) = (*class).tp_as_async.as_mut() {
            slots.am_await = Some(ffi::PyObject_SelfIter);
        }
    }
}

/// Called by the interpreter for `Event(...)`.
unsafe extern "C" fn call(
    class: *mut PyObject,
    arguments: *const *mut PyObject,
    flags: libc::size_t,
    names: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: the interpreter calls this while attached, and no panic leaves it.
    let py = unsafe { Python::assume_attached() };
    let made = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: takes one bit out of a number.
        let positional = unsafe { ffi::PyVectorcall_NARGS(flags) }.cast_unsigned();
        // SAFETY: vectorcall's contract: null or a tuple of texts, which the caller keeps.
        let names: Option<Bound<'_, PyTuple>> = unsafe {
            Bound::from_borrowed_ptr_or_opt(py, names).map(|names| names.cast_into_unchecked())
        };
        let named = names.as_ref().map_or(0, |names| names.len());
        let values = match positional + named {
            0 => &[],
            // SAFETY: vectorcall's contract: the positional arguments, then one value per name, all
            // kept by the caller, in an array that nobody writes, until the call returns.
            count => unsafe { std::slice::from_raw_parts(arguments, count) },
        };
        // SAFETY: as above: an object that is alive; the reference made here is our own.
        let value = |index: usize| unsafe { Bound::from_borrowed_ptr(py, values[index]) };
        match slots(py, positional, names.as_ref()) {
            Some(slots) => event(py, slots.map(|index| index.map(value))),
            None => {
                // Something is wrong with the arguments: the constructor says what.
                let args = PyTuple::new(py, (0..positional).map(value))?;
                let kwargs = PyDict::new(py);
                for (offset, name) in names.iter().flatten().enumerate() {
                    kwargs.set_item(name, value(positional + offset))?;
                }
                generic(py, class, &args, &kwargs)
            }
        }
    }));
    match made {
        Ok(Ok(event)) => event.into_ptr(),
        Ok(Err(error)) => {
            error.restore(py);
            std::ptr::null_mut()
        }
        Err(_) => {
            PyErr::from(crate::Error::Internal { reason: "panic in Event()".into() }).restore(py);
            std::ptr::null_mut()
        }
    }
}

/// Returns which argument fills which field; `None` when they do not fit.
#[inline]
fn slots(
    py: Python<'_>,
    positional: usize,
    names: Option<&Bound<'_, PyTuple>>,
) -> Option<[Option<usize>; 8]> {
    let mut slots = [None; 8];
    if positional > slots.len() {
        return None;
    }
    for (index, slot) in slots.iter_mut().enumerate().take(positional) {
        *slot = Some(index);
    }
    let known: [&Bound<'_, PyString>; 8] = [
        intern!(py, "type"),
        intern!(py, "topic"),
        intern!(py, "payload"),
        intern!(py, "timestamp"),
        intern!(py, "event_id"),
        intern!(py, "source"),
        intern!(py, "correlation_id"),
        intern!(py, "metadata"),
    ];
    for (offset, name) in names.into_iter().flat_map(|names| names.iter_borrowed()).enumerate() {
        // Names in source code are interned, so the same text is the same object.
        let field = known.iter().position(|known| name.is(*known))?;
        if slots[field].replace(positional + offset).is_some() {
            return None;
        }
    }
    Some(slots)
}

#[inline]
fn event<'py>(
    py: Python<'py>,
    fields: [Option<Bound<'py, PyAny>>; 8],
) -> PyResult<Bound<'py, PyAny>> {
    let [Some(kind), Some(topic), given @ ..] = fields else {
        let missing =
            pyo3::exceptions::PyTypeError::new_err("Event() needs at least 'type' and 'topic'");
        return Err(missing);
    };
    Ok(Bound::new(py, PyEvent::made(kind, topic, given))?.into_any())
}

fn generic<'py>(
    py: Python<'py>,
    class: *mut PyObject,
    args: &Bound<'py, PyTuple>,
    kwargs: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    let class = class.cast::<ffi::PyTypeObject>();
    // SAFETY: the caller of `call` keeps the class. pyo3 fills tp_new of a class with a constructor;
    // it returns a new reference or null with an exception set.
    unsafe {
        let Some(new) = (*class).tp_new else {
            return Err(pyo3::exceptions::PyTypeError::new_err("Event cannot be made"));
        };
        Bound::from_owned_ptr_or_err(py, new(class, args.as_ptr(), kwargs.as_ptr()))
    }
}
