//! The warning about an awaitable of ours that was dropped before its first step, as CPython gives
//! it for its own coroutines.

use std::ffi::CString;

use pyo3::exceptions::PyRuntimeWarning;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::exit;

/// Says that what `name` returned was never awaited. Silent while the interpreter ends.
///
/// Runs in destructors: nothing is raised, and an exception that is on its way stays so.
#[cold]
pub(crate) fn warn(name: impl FnOnce(Python<'_>) -> PyResult<String>) {
    if exit::is_ending() {
        return;
    }
    Python::attach(|py| {
        let raised = PyErr::take(py);
        if let Ok(name) = name(py)
            && let Err(error) = warn_of(py, &name)
        {
            // Warnings are errors here.
            error.write_unraisable(py, Some(&PyString::new(py, &name)));
        }
        if let Some(raised) = raised {
            raised.restore(py);
        }
    });
}

fn warn_of(py: Python<'_>, name: &str) -> PyResult<()> {
    let text = CString::new(format!("coroutine '{name}' was never awaited"))?;
    PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &text, 1)
}
