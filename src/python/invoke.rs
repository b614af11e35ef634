//! One handler call: the result decides whether to await, and a context of its own holds what the
//! handler sets.

use pyo3::exceptions::{PyGeneratorExit, PyRuntimeError, PyStopIteration};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyIterator, PySendResult, PyType};

use super::exit;
use super::mailbox::thrown;

/// What one step of a coroutine gave.
pub(crate) enum Stepped {
    /// It waits: yield this to the loop.
    Yield(Py<PyAny>),
    /// It returned.
    Done,
}

/// Returns whether a handler's result is to be awaited: exactly what `asyncio.iscoroutine` says
/// (contract D24).
#[inline]
pub(crate) fn is_coroutine(result: &Bound<'_, PyAny>) -> PyResult<bool> {
    static COROUTINE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    static ISCOROUTINE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = result.py();
    if result.is_none() {
        return Ok(false);
    }
    if result.get_type().is(COROUTINE.import(py, "types", "CoroutineType")?) {
        return Ok(true);
    }
    let iscoroutine = ISCOROUTINE
        .get_or_try_init(py, || py.import("asyncio")?.getattr("iscoroutine").map(Bound::unbind))?;
    iscoroutine.bind(py).call1((result,))?.is_truthy()
}

/// Sends `None` into a coroutine.
#[inline]
pub(crate) fn step(coroutine: &Bound<'_, PyAny>) -> PyResult<Stepped> {
    static COROUTINE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let py = coroutine.py();
    if coroutine.get_type().is(COROUTINE.import(py, "types", "CoroutineType")?) {
        // SAFETY: `send` only hands the pointer to PyIter_Send, which takes any object with the
        // am_send slot; a native coroutine has it, and refuses to be resumed by two at once.
        #[allow(unsafe_code)]
        let iterator = unsafe { coroutine.cast_unchecked::<PyIterator>() };
        return Ok(match iterator.send(py.None().bind(py))? {
            PySendResult::Next(waiter) => Stepped::Yield(waiter.unbind()),
            PySendResult::Return(_) => Stepped::Done,
        });
    }
    returned(py, coroutine.call_method1(intern!(py, "send"), (py.None(),)))
}

/// Throws into a coroutine.
pub(crate) fn throw(coroutine: &Bound<'_, PyAny>, error: PyErr) -> PyResult<Stepped> {
    let py = coroutine.py();
    let error = error.into_value(py);
    returned(py, coroutine.call_method1(intern!(py, "throw"), (error,)))
}

fn returned(py: Python<'_>, result: PyResult<Bound<'_, PyAny>>) -> PyResult<Stepped> {
    match result {
        Ok(waiter) => Ok(Stepped::Yield(waiter.unbind())),
        Err(error) if error.is_instance_of::<PyStopIteration>(py) => Ok(Stepped::Done),
        Err(error) => Err(error),
    }
}

/// A contextvars context that can be entered from Rust.
pub(crate) struct Context(Py<PyAny>);

impl Context {
    /// Copies a context, or the current one.
    pub(crate) fn copy(py: Python<'_>, base: Option<&Py<PyAny>>) -> PyResult<Self> {
        // SAFETY: PyContext_Copy takes a context object (checked by the interpreter, which raises
        // TypeError otherwise); both calls return a new reference or null with an error set.
        #[allow(unsafe_code)]
        let context = unsafe {
            let raw = match base {
                Some(base) => pyo3::ffi::PyContext_Copy(base.as_ptr()),
                None => pyo3::ffi::PyContext_CopyCurrent(),
            };
            Bound::from_owned_ptr_or_err(py, raw)?
        };
        Ok(Self(context.unbind()))
    }

    /// Runs `work` inside this context.
    pub(crate) fn run<T>(&self, py: Python<'_>, work: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
        // SAFETY: the context is alive as long as `self` is borrowed; it is left on this thread
        // whatever `work` returns, also by a panic. A thread that the interpreter ends meanwhile
        // stops for good inside `work`, see `exit`.
        #[allow(unsafe_code)]
        let entered = unsafe { pyo3::ffi::PyContext_Enter(self.0.as_ptr()) };
        if entered != 0 {
            return Err(PyErr::fetch(py));
        }
        let on_panic = Leave(self);
        let result = work();
        std::mem::forget(on_panic);
        // SAFETY: as above: the context that was entered last on this thread.
        #[allow(unsafe_code)]
        let left = unsafe { pyo3::ffi::PyContext_Exit(self.0.as_ptr()) };
        if left != 0 {
            return Err(PyErr::fetch(py));
        }
        result
    }
}

/// Leaves a context in which something panicked.
struct Leave<'a>(&'a Context);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        // SAFETY: attached, as `run` is; the context was entered last on this thread. When that is
        // not so an error is set, which the panic replaces.
        #[allow(unsafe_code)]
        unsafe {
            if pyo3::ffi::PyContext_Exit(self.0.0.as_ptr()) != 0 {
                pyo3::ffi::PyErr_Clear();
            }
        }
    }
}

/// Sets a context variable in the current context.
pub(crate) fn set_variable(
    py: Python<'_>,
    variable: &Py<PyAny>,
    value: &Py<PyAny>,
) -> PyResult<()> {
    // SAFETY: PyContextVar_Set checks that it is given a context variable; it returns a new
    // reference to a token, or null with an exception set.
    #[allow(unsafe_code)]
    unsafe {
        let token = pyo3::ffi::PyContextVar_Set(variable.as_ptr(), value.as_ptr());
        Bound::from_owned_ptr_or_err(py, token).map(drop)
    }
}

/// An awaitable that calls `handler(*arguments)` in a copy of a context and awaits what it returns
/// if that is a coroutine.
#[pyclass(module = "eventbus._eventbus", freelist = 64)]
pub(crate) struct Invoke {
    handler: Option<Py<PyAny>>,
    argument: Py<PyAny>,
    base: Option<Py<PyAny>>,
    running: Option<(Context, Py<PyAny>)>,
}

#[pymethods]
impl Invoke {
    #[new]
    #[pyo3(signature = (handler, argument, context=None))]
    fn new(handler: Py<PyAny>, argument: Py<PyAny>, context: Option<Py<PyAny>>) -> Self {
        Self { handler: Some(handler), argument, base: context, running: None }
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let _inside = exit::enter(py);
        if let Some(handler) = self.handler.take() {
            let context = Context::copy(py, self.base.as_ref())?;
            let stepped = context.run(py, || {
                let called = handler.bind(py).call1((&self.argument,));
                let result = called.map_err(|error| not_stopped(py, error))?;
                if !is_coroutine(&result)? {
                    return Ok((Stepped::Done, None));
                }
                let stepped = step(&result).map_err(|error| not_stopped(py, error))?;
                Ok((stepped, Some(result.unbind())))
            })?;
            return Ok(match stepped {
                (Stepped::Yield(waiter), Some(coroutine)) => {
                    self.running = Some((context, coroutine));
                    Some(waiter)
                }
                _ => None,
            });
        }
        let Some((context, coroutine)) = &self.running else {
            return Err(PyRuntimeError::new_err("cannot reuse already awaited coroutine"));
        };
        let stepped = context.run(py, || step(coroutine.bind(py)));
        self.settle(py, stepped)
    }

    fn send(&mut self, py: Python<'_>, _value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        self.__next__(py)?.ok_or_else(|| PyStopIteration::new_err((py.None(),)))
    }

    #[pyo3(signature = (kind, value=None, traceback=None))]
    fn throw(
        &mut self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        value: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let _inside = exit::enter(py);
        let _ = traceback;
        self.handler = None;
        let error = thrown(kind, value)?;
        let Some((context, coroutine)) = &self.running else { return Err(error) };
        let stepped = context.run(py, || throw(coroutine.bind(py), error));
        self.settle(py, stepped)?.ok_or_else(|| PyStopIteration::new_err((py.None(),)))
    }

    fn close(&mut self, py: Python<'_>) -> PyResult<()> {
        let _inside = exit::enter(py);
        self.handler = None;
        match self.running.take() {
            Some((context, coroutine)) => {
                context.run(py, || coroutine.call_method0(py, intern!(py, "close")).map(|_| ()))
            }
            None => Ok(()),
        }
    }
}

/// Turns what a handler raises and what means something else when an awaitable raises it into a
/// failure: `StopIteration` would say that the call returned, `GeneratorExit` that its caller was
/// closed.
fn not_stopped(py: Python<'_>, error: PyErr) -> PyErr {
    let kind = if error.is_instance_of::<PyStopIteration>(py) {
        "StopIteration"
    } else if error.is_instance_of::<PyGeneratorExit>(py) {
        "GeneratorExit"
    } else {
        return error;
    };
    let failure = PyRuntimeError::new_err(format!("handler raised {kind}"));
    failure.set_cause(py, Some(error));
    failure
}

impl Invoke {
    fn settle(
        &mut self,
        py: Python<'_>,
        stepped: PyResult<Stepped>,
    ) -> PyResult<Option<Py<PyAny>>> {
        match stepped {
            Ok(Stepped::Yield(waiter)) => Ok(Some(waiter)),
            Ok(Stepped::Done) => {
                self.running = None;
                Ok(None)
            }
            Err(error) => {
                self.running = None;
                Err(not_stopped(py, error))
            }
        }
    }
}
