//! The one way back to Python: a mailbox per event loop, and an awaitable over a Rust future.
//!
//! A Rust future is polled by the Python task that awaits it, on the loop's own thread. When it is
//! not ready, the task waits on an asyncio future, and the Rust waker puts a token into the loop's
//! mailbox. The first token of a batch writes to an eventfd that the loop watches, which takes no
//! GIL on the sending side; the loop then resolves the whole batch.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;
use pyo3::exceptions::{PyRuntimeError, PyStopIteration};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyType, PyWeakrefMethods, PyWeakrefReference};

use super::{exit, never_awaited, runtime};
use crate::error::Error;

/// What a finished Rust future hands to Python, made while attached.
pub(crate) type Finish = Box<dyn for<'py> FnOnce(Python<'py>) -> PyResult<Py<PyAny>> + Send>;
/// Makes the future of an awaitable.
type Start = Box<dyn for<'py> FnOnce(Python<'py>) -> PyResult<Work> + Send + Sync>;
/// A Rust future as the bridge runs it.
pub(crate) type Work = Pin<Box<dyn Future<Output = Finish> + Send>>;

/// Collects wake-up tokens for one loop.
struct Queue {
    tokens: Mutex<Vec<Arc<Slot>>>,
    signal: Signal,
}

/// How the loop is told that its mailbox is not empty.
enum Signal {
    #[cfg(target_os = "linux")]
    EventFd(eventfd::EventFd),
    /// Loops without `add_reader`: one `call_soon_threadsafe` per batch.
    /// The loop is held weakly: it owns its mailbox, not the other way round.
    CallSoon { event_loop: Py<PyAny>, drain: PyOnceLock<Py<PyAny>> },
}

impl Queue {
    fn post(&self, slot: Arc<Slot>) {
        let first = {
            let mut tokens = self.tokens.lock();
            tokens.push(slot);
            tokens.len() == 1
        };
        if first {
            self.signal.raise();
        }
    }
}

impl Signal {
    fn raise(&self) {
        match self {
            #[cfg(target_os = "linux")]
            Self::EventFd(fd) => fd.raise(),
            Self::CallSoon { event_loop, drain } => {
                // Fails only when the interpreter or the loop is ending: nobody waits any more.
                exit::register_thread();
                let _ = Python::try_attach(|py| {
                    let event_loop = event_loop.call0(py)?;
                    match drain.get(py) {
                        Some(drain) if !event_loop.is_none(py) => event_loop.call_method1(
                            py,
                            intern!(py, "call_soon_threadsafe"),
                            (drain,),
                        ),
                        _ => Ok(py.None()),
                    }
                });
            }
        }
    }
}

/// One waiting task.
pub(crate) struct Slot {
    /// Weak: tokens wait in the queue, which must not be kept by what waits in it.
    queue: Weak<Queue>,
    queued: AtomicBool,
    /// The asyncio future the task waits on; taken out on the loop's thread, never on ours.
    waiter: Mutex<Option<Py<PyAny>>>,
}

impl Wake for Slot {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            let queue = self.queue.upgrade();
            if let Some(queue) = queue {
                queue.post(self);
            }
        }
    }
}

/// The loop's side of a mailbox.
#[pyclass(frozen, module = "eventbus._eventbus")]
pub(crate) struct Mailbox {
    queue: Arc<Queue>,
}

#[pymethods]
impl Mailbox {
    /// Resolves everything that was woken since the last call; runs on the loop.
    fn drain(&self, py: Python<'_>) -> PyResult<()> {
        let _inside = exit::enter(py);
        #[cfg(target_os = "linux")]
        if let Signal::EventFd(fd) = &self.queue.signal {
            fd.clear();
        }
        let tokens = std::mem::take(&mut *self.queue.tokens.lock());
        let mut failed = Ok(());
        for slot in tokens {
            slot.queued.store(false, Ordering::Release);
            let waiter = slot.waiter.lock().take();
            if let Some(waiter) = waiter {
                // One that fails must not keep the others of the batch waiting.
                failed = failed.and(resolve(waiter.bind(py)));
            }
        }
        failed
    }
}

/// Resolves the future of a waiting task.
fn resolve(waiter: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = waiter.py();
    if !waiter.call_method0(intern!(py, "done"))?.is_truthy()? {
        waiter.call_method1(intern!(py, "set_result"), (py.None(),))?;
    }
    Ok(())
}

/// A loop and the queue of its mailbox, of which it owns neither.
struct Known {
    forks: u32,
    event_loop: Py<PyWeakrefReference>,
    queue: Weak<Queue>,
}

thread_local! {
    /// The loop that this thread ran last.
    static LAST: RefCell<Option<Known>> = const { RefCell::new(None) };
}

impl Mailbox {
    /// Returns the queue of a loop's mailbox, which is made on first use and lives as long as the
    /// loop.
    fn queue(py: Python<'_>, event_loop: &Bound<'_, PyAny>) -> PyResult<Weak<Queue>> {
        // The fork count is part of each entry: a child must not share its parent's eventfd.
        let forks = runtime::forks();
        let last = LAST.with_borrow(|last| match last {
            Some(known) if known.forks == forks => {
                let before = known.event_loop.bind(py).upgrade();
                let is_same = before.is_some_and(|before| before.is(event_loop));
                is_same.then(|| Weak::clone(&known.queue))
            }
            _ => None,
        });
        if let Some(queue) = last {
            return Ok(queue);
        }
        let queue = Arc::downgrade(&Self::of(py, event_loop, forks)?.get().queue);
        let weak = PyWeakrefReference::new(event_loop)?.unbind();
        LAST.set(Some(Known { forks, event_loop: weak, queue: Weak::clone(&queue) }));
        Ok(queue)
    }

    fn of(py: Python<'_>, event_loop: &Bound<'_, PyAny>, forks: u32) -> PyResult<Py<Self>> {
        static MAILBOXES: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let mailboxes = MAILBOXES
            .get_or_try_init(py, || {
                let class = py.import("weakref")?.getattr("WeakKeyDictionary")?;
                class.call0().map(Bound::unbind)
            })?
            .bind(py);
        let found = mailboxes.call_method1(intern!(py, "get"), (event_loop,))?;
        if let Ok((made_at, mailbox)) = found.extract::<(u32, Py<Self>)>()
            && made_at == forks
        {
            return Ok(mailbox);
        }
        let mailbox = Self::open(py, event_loop)?;
        mailboxes.set_item(event_loop, (forks, mailbox.clone_ref(py)))?;
        Ok(mailbox)
    }

    fn open(py: Python<'_>, event_loop: &Bound<'_, PyAny>) -> PyResult<Py<Self>> {
        #[cfg(target_os = "linux")]
        if let Ok(fd) = eventfd::EventFd::new() {
            let raw = fd.raw();
            let mailbox = Self::with_signal(py, Signal::EventFd(fd))?;
            let drain = mailbox.getattr(py, intern!(py, "drain"))?;
            let added = event_loop.call_method1(intern!(py, "add_reader"), (raw, drain));
            match added {
                Ok(_) => return Ok(mailbox),
                Err(error)
                    if error.is_instance_of::<pyo3::exceptions::PyNotImplementedError>(py) => {}
                Err(error) => return Err(error),
            }
        }
        let weak = py.import("weakref")?.getattr("ref")?.call1((event_loop,))?.unbind();
        let signal = Signal::CallSoon { event_loop: weak, drain: PyOnceLock::new() };
        let mailbox = Self::with_signal(py, signal)?;
        if let Signal::CallSoon { drain, .. } = &mailbox.get().queue.signal {
            let bound = mailbox.getattr(py, intern!(py, "drain"))?;
            let _ = drain.set(py, bound);
        }
        Ok(mailbox)
    }

    fn with_signal(py: Python<'_>, signal: Signal) -> PyResult<Py<Self>> {
        let queue = Arc::new(Queue { tokens: Mutex::new(Vec::new()), signal });
        Py::new(py, Self { queue })
    }
}

/// Returns the running event loop.
pub(crate) fn running_loop(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    pyo3_async_runtimes::get_running_loop(py)
}

/// Lets the awaiting task wait until a Rust waker fires.
pub(crate) struct Parking {
    slot: Arc<Slot>,
    event_loop: Py<PyAny>,
    waker: Waker,
}

impl Parking {
    /// Binds to the running loop.
    pub(crate) fn here(py: Python<'_>) -> PyResult<Self> {
        let event_loop = running_loop(py)?;
        let queue = Mailbox::queue(py, &event_loop)?;
        let slot =
            Arc::new(Slot { queue, queued: AtomicBool::new(false), waiter: Mutex::new(None) });
        let waker = Waker::from(Arc::clone(&slot));
        Ok(Self { slot, event_loop: event_loop.unbind(), waker })
    }

    /// Returns the waker to register with the Rust future.
    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Makes the asyncio future that the task yields; call it before polling with the waker, so
    /// that a wake-up in between finds it.
    pub(crate) fn prepare(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let waiter = self.event_loop.call_method0(py, intern!(py, "create_future"))?;
        waiter.setattr(py, intern!(py, "_asyncio_future_blocking"), true)?;
        *self.slot.waiter.lock() = Some(waiter.clone_ref(py));
        Ok(waiter)
    }

    /// Forgets the asyncio future: the Rust future was ready after all.
    pub(crate) fn forget(&self) {
        let waiter = self.slot.waiter.lock().take();
        drop(waiter);
    }
}

impl Drop for Parking {
    fn drop(&mut self) {
        // On the Python side by construction; keeps the Py out of tokio's threads.
        self.forget();
    }
}

/// An awaitable over a Rust future: a coroutine to asyncio (`send`, `throw`, `close`).
///
/// Nothing happens before the first `send`. Cancelling drops the Rust future.
#[pyclass(module = "eventbus._eventbus", name = "Pending")]
pub(crate) struct Pending {
    state: Progress,
}

enum Progress {
    New {
        /// Called by the first `send`, so that arguments are checked and work starts there.
        start: Start,
        /// What it is called when it is never awaited.
        name: &'static str,
    },
    Waiting {
        work: SyncWork,
        parking: Option<Parking>,
    },
    Done,
}

/// A future is only polled through `&mut`, so sharing a reference to its holder is harmless.
struct SyncWork(Mutex<Work>);

impl Pending {
    /// Wraps work that starts at the first `send`.
    pub(crate) fn new(
        start: impl for<'py> FnOnce(Python<'py>) -> PyResult<Work> + Send + Sync + 'static,
    ) -> Self {
        exit::register_thread();
        Self { state: Progress::New { start: Box::new(start), name: "Pending" } }
    }

    /// Names the method that returned it, for whoever forgets to await it.
    pub(crate) fn named(mut self, method: &'static str) -> Self {
        if let Progress::New { name, .. } = &mut self.state {
            *name = method;
        }
        self
    }

    /// Wraps a future that ends with nothing; it starts at the first `send`.
    pub(crate) fn nothing<F>(future: F) -> Self
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let work = Mutex::new(Self::run(future, |py, ()| Ok(py.None())));
        Self::new(move |_py| Ok(work.into_inner()))
    }

    /// Wraps a future whose result is converted while attached.
    pub(crate) fn run<F, T, C>(future: F, convert: C) -> Work
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
        T: Send + 'static,
        C: for<'py> FnOnce(Python<'py>, T) -> PyResult<Py<PyAny>> + Send + 'static,
    {
        Box::pin(async move {
            let result = future.await;
            Box::new(move |py: Python<'_>| convert(py, result?)) as Finish
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Progress::New { name, .. } = self.state {
            never_awaited::warn(|_py| Ok(name.to_owned()));
        }
    }
}

#[pymethods]
impl Pending {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let _inside = exit::enter(py);
        if let Progress::New { .. } = self.state {
            let Progress::New { start, .. } = std::mem::replace(&mut self.state, Progress::Done)
            else {
                return Ok(None);
            };
            self.state =
                Progress::Waiting { work: SyncWork(Mutex::new(start(py)?)), parking: None };
        }
        let Progress::Waiting { work, parking } = &mut self.state else {
            return Err(PyRuntimeError::new_err("cannot reuse already awaited coroutine"));
        };
        match step(py, work.0.get_mut().as_mut(), parking) {
            Ok(Step::Yield(waiter)) => Ok(Some(waiter)),
            Ok(Step::Ready(finish)) => {
                self.state = Progress::Done;
                let value = finish(py)?;
                if value.is_none(py) { Ok(None) } else { Err(PyStopIteration::new_err((value,))) }
            }
            Err(error) => {
                self.state = Progress::Done;
                Err(error)
            }
        }
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
        let _ = (py, traceback);
        self.state = Progress::Done;
        Err(thrown(kind, value)?)
    }

    fn close(&mut self) {
        self.state = Progress::Done;
    }
}

/// What one step of a future gave.
pub(crate) enum Step<T> {
    /// It waits: yield this asyncio future to the loop.
    Yield(Py<PyAny>),
    /// It is ready.
    Ready(T),
}

/// Polls work once; parks the task when it is not ready.
pub(crate) fn step<T>(
    py: Python<'_>,
    mut work: Pin<&mut (dyn Future<Output = T> + Send)>,
    parking: &mut Option<Parking>,
) -> PyResult<Step<T>> {
    let runtime = runtime::runtime()?;
    let _context = runtime.enter();
    let first = parking.as_ref().map_or(Waker::noop(), Parking::waker);
    if let Poll::Ready(value) = poll(work.as_mut(), first)? {
        return Ok(Step::Ready(value));
    }
    let parked = match parking {
        Some(parked) => parked,
        None => parking.insert(Parking::here(py)?),
    };
    // Once more, now that a wake-up finds somebody.
    let waiter = parked.prepare(py)?;
    match poll(work, parked.waker())? {
        Poll::Ready(value) => {
            parked.forget();
            Ok(Step::Ready(value))
        }
        Poll::Pending => Ok(Step::Yield(waiter)),
    }
}

/// Runs work that never waits (a commit or claim of an in-process backend), without a runtime.
///
/// # Errors
/// `InternalError` when it waits all the same, or panics.
pub(crate) fn now<T>(work: impl Future<Output = T> + Send) -> PyResult<T> {
    let work = std::pin::pin!(work);
    match poll(work, Waker::noop())? {
        Poll::Ready(value) => Ok(value),
        Poll::Pending => {
            Err(Error::Internal { reason: "an in-process operation waits".into() }.into())
        }
    }
}

/// Runs work at once if it never waits, else returns it as something to await.
pub(crate) fn now_or_later<F>(in_process: bool, work: F) -> PyResult<Option<Pending>>
where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    if in_process {
        now(work)??;
        return Ok(None);
    }
    Ok(Some(Pending::nothing(work)))
}

fn poll<T>(
    mut work: Pin<&mut (dyn Future<Output = T> + Send)>,
    waker: &Waker,
) -> PyResult<Poll<T>> {
    let polled =
        catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(&mut Context::from_waker(waker))));
    polled.map_err(|panic| {
        let reason = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "panic".to_owned());
        Error::Internal { reason }.into()
    })
}

/// Builds the exception that `throw(type_or_instance, value, traceback)` asks for.
pub(crate) fn thrown(kind: &Bound<'_, PyAny>, value: Option<&Bound<'_, PyAny>>) -> PyResult<PyErr> {
    if kind.is_instance_of::<PyType>() {
        let value = value.filter(|value| !value.is_none());
        return match value {
            Some(value) if value.is_instance(kind)? => Ok(PyErr::from_value(value.clone())),
            Some(value) => Ok(PyErr::from_value(kind.call1((value,))?)),
            None => Ok(PyErr::from_value(kind.call0()?)),
        };
    }
    Ok(PyErr::from_value(kind.clone()))
}

#[cfg(target_os = "linux")]
mod eventfd {
    //! A Linux eventfd: a counter that a loop can watch.
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

    pub(super) struct EventFd(File);

    impl EventFd {
        pub(super) fn new() -> std::io::Result<Self> {
            // SAFETY: eventfd takes no pointers; its result is checked before it is owned.
            #[allow(unsafe_code)]
            let fd = unsafe {
                let raw = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
                if raw < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                OwnedFd::from_raw_fd(raw)
            };
            Ok(Self(File::from(fd)))
        }

        pub(super) fn raw(&self) -> RawFd {
            self.0.as_raw_fd()
        }

        pub(super) fn raise(&self) {
            // Fails only when the counter would overflow: then the loop is signalled already.
            let _ = (&self.0).write(&1_u64.to_ne_bytes());
        }

        pub(super) fn clear(&self) {
            let _ = (&self.0).read(&mut [0; 8]);
        }
    }
}
