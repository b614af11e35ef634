//! A field of a Python object that is made when first read: one pointer, no lock.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::PyTraverseError;
use pyo3::ffi::PyObject;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use super::exit;

/// Null until the value is there; then it owns one reference and never changes again.
///
/// pyo3's `PyOnceLock` does the same with a `Once` of its own: seven of them were a third of the
/// making of an event. Lives inside Python objects only, so it is dropped while attached.
pub(crate) struct Lazy(AtomicPtr<PyObject>);

impl Lazy {
    /// Begins without a value.
    pub(crate) const fn empty() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Begins with a value, if one is given.
    pub(crate) fn filled(value: Option<Bound<'_, PyAny>>) -> Self {
        Self(AtomicPtr::new(value.map_or(ptr::null_mut(), Bound::into_ptr)))
    }

    /// Returns the value, if it is there.
    #[inline]
    pub(crate) fn get<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let raw = self.0.load(Ordering::Acquire);
        // SAFETY: null or a pointer to which this cell owns a reference until it is dropped, or
        // cleared by the collector: neither happens between the load and the new reference, as the
        // GIL is held.
        #[allow(unsafe_code)]
        unsafe {
            Bound::from_borrowed_ptr_or_opt(py, raw)
        }
    }

    /// Stores a value when there is none; whether the cell now has this very one.
    pub(crate) fn fill(&self, value: Bound<'_, PyAny>) -> bool {
        let (py, wanted) = (value.py(), value.as_ptr());
        // Fails only when another thread makes it at this moment; then that one stays.
        self.get_or_make(py, || Ok(value)).is_ok_and(|stored| stored.as_ptr() == wanted)
    }

    /// Returns the value, making it when it is not there. When two threads make it at once, both
    /// get the one that was stored first.
    #[inline]
    pub(crate) fn get_or_make<'py>(
        &self,
        py: Python<'py>,
        make: impl FnOnce() -> PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if let Some(value) = self.get(py) {
            return Ok(value);
        }
        exit::register_thread();
        let made = make()?;
        let stored = self.0.compare_exchange(
            ptr::null_mut(),
            made.as_ptr(),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if stored.is_ok() {
            // The cell owns a reference of its own from here on.
            std::mem::forget(made.clone());
            return Ok(made);
        }
        Ok(self.get(py).unwrap_or(made))
    }
}

impl Lazy {
    /// Shows the value to the garbage collector.
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        // SAFETY: a pointer that is null or owns a reference is laid out as an `Option<Py<_>>`; the
        // collector runs alone, with the GIL, so the value does not change while it looks.
        #[allow(unsafe_code)]
        let value = unsafe { &*self.0.as_ptr().cast::<Option<Py<PyAny>>>() };
        visit.call(value.as_ref())
    }

    /// Drops the value, to break a cycle.
    pub(crate) fn clear(&self) {
        drop(Self(AtomicPtr::new(self.0.swap(ptr::null_mut(), Ordering::AcqRel))));
    }
}

impl Drop for Lazy {
    fn drop(&mut self) {
        let raw = *self.0.get_mut();
        if !raw.is_null() {
            // SAFETY: the cell owns one reference, and cells die with their Python object, which is
            // deallocated while attached. What the reference's end runs does not see this cell:
            // nothing refers to its object any more, and `clear` empties it first.
            #[allow(unsafe_code)]
            unsafe {
                pyo3::ffi::Py_DECREF(raw);
            }
        }
    }
}
