//! The awaitable of a publish: store group copies, then call the subscribers in this very task.

use std::sync::Arc;

use pyo3::exceptions::{PyRuntimeError, PyStopIteration};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use super::bus::{CoreBus, Shared};
use super::exit;
use super::hub::{Receiver, Route, Subscriber};
use super::invoke::{self, Stepped};
use super::mailbox::{self, Parking, thrown};
use super::never_awaited;
use crate::backend::{Accepted, Committed, Op, Transaction};
use crate::error::Result;
use crate::ring::Pushed;

/// Called with the outcome of a commit.
pub(crate) type OnCommitted = Box<dyn FnOnce(&Committed) + Send + Sync>;

/// A broadcast that follows a commit.
pub(crate) struct Broadcast {
    pub(crate) event: Py<PyAny>,
    pub(crate) route: Arc<Route>,
    /// Which publish of the transaction it belongs to; a duplicate is not broadcast.
    pub(crate) op: Option<usize>,
}

/// What a publish or a transaction is made of, once its arguments were checked.
#[derive(Default)]
pub(crate) struct Prepared {
    pub(crate) ops: Vec<Op>,
    pub(crate) broadcasts: Vec<Broadcast>,
    /// Topics of delayed messages by publish index: dropped when no group is bound.
    pub(crate) delayed: Vec<(usize, Py<PyAny>)>,
    /// Topics of broadcasts that foreign processes do not see.
    pub(crate) apart: Vec<Arc<str>>,
    /// Called with the outcome of the commit.
    pub(crate) committed: Option<OnCommitted>,
}

/// Checks arguments and encodes; runs at the first `send`.
pub(crate) type Prepare =
    Box<dyn for<'py> FnOnce(Python<'py>, &Bound<'py, CoreBus>) -> PyResult<Prepared> + Send + Sync>;

type Commit = std::pin::Pin<Box<dyn Future<Output = Result<Committed>> + Send>>;

enum State {
    /// The hot path: one event, no options.
    One {
        topic: Py<PyAny>,
        event: Py<PyAny>,
    },
    /// Anything else, and the name of the method that it came from.
    Prepare(Prepare, &'static str),
    Committing(Box<Committing>),
    Calling(Calling),
    Done,
}

/// A commit that waits for its server.
struct Committing {
    commit: parking_lot::Mutex<Commit>,
    parking: Option<Parking>,
    prepared: Prepared,
}

/// A fan-out in progress.
struct Calling {
    event: Py<PyAny>,
    route: Arc<Route>,
    next: usize,
    /// The coroutine of the subscriber before `next`, when it suspended.
    running: Option<Py<PyAny>>,
    then: Option<std::vec::IntoIter<Broadcast>>,
}

/// The awaitable that `publish`, `publish_many` and `Transaction.commit` return: a coroutine to
/// asyncio. Nothing happens before the first `send`.
#[pyclass(module = "eventbus._eventbus")]
pub(crate) struct Publish {
    bus: Py<CoreBus>,
    state: State,
}

impl Publish {
    pub(crate) fn one(bus: Py<CoreBus>, topic: Py<PyAny>, event: Py<PyAny>) -> Self {
        exit::register_thread();
        Self { bus, state: State::One { topic, event } }
    }

    /// `method` names it when it is never awaited.
    pub(crate) fn prepare(bus: Py<CoreBus>, method: &'static str, prepare: Prepare) -> Self {
        exit::register_thread();
        Self { bus, state: State::Prepare(prepare, method) }
    }

    fn start(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let bus = self.bus.bind(py);
        match std::mem::replace(&mut self.state, State::Done) {
            State::One { topic, event } => {
                let shared = bus.get().ready(bus, "publish")?;
                let mut ops = Vec::new();
                let (event, route) =
                    CoreBus::prepare_plain(shared, topic.bind(py), event.bind(py), &mut ops)?;
                if !ops.is_empty() {
                    let broadcasts = match route.subscribers.is_empty() {
                        true => Vec::new(),
                        false => vec![Broadcast { event, route, op: Some(0) }],
                    };
                    self.begin(py, Prepared { ops, broadcasts, ..Prepared::default() })?;
                    return Ok(None);
                }
                let mut calling = Calling { event, route, next: 0, running: None, then: None };
                let waiter = calling.run(py, shared, None)?;
                if waiter.is_some() {
                    self.state = State::Calling(calling);
                }
                Ok(waiter)
            }
            State::Prepare(prepare, _) => {
                bus.get().ready(bus, "publish")?;
                let prepared = prepare(py, bus)?;
                self.begin(py, prepared)?;
                Ok(None)
            }
            other => {
                self.state = other;
                Ok(None)
            }
        }
    }

    /// Commits what is to be stored; in process that is done at once.
    fn begin(&mut self, py: Python<'_>, mut prepared: Prepared) -> PyResult<()> {
        if prepared.ops.is_empty() {
            if let Some(committed) = prepared.committed.take() {
                committed(&Committed::default());
            }
            return self.fan_out(py, prepared, &[]);
        }
        let shared = self.bus.get().shared();
        let transaction = Transaction { ops: std::mem::take(&mut prepared.ops) };
        prepared.apart = shared.apart(&transaction);
        let core = Arc::clone(&shared.bus);
        if core.backend().in_process().is_some() {
            let result = mailbox::now(core.commit(transaction))?;
            return self.finish_commit(py, result, prepared);
        }
        let commit: Commit = Box::pin(async move { core.commit(transaction).await });
        self.state = State::Committing(Box::new(Committing {
            commit: parking_lot::Mutex::new(commit),
            parking: None,
            prepared,
        }));
        Ok(())
    }

    fn finish_commit(
        &mut self,
        py: Python<'_>,
        result: Result<Committed>,
        mut prepared: Prepared,
    ) -> PyResult<()> {
        let done = result?;
        if let Some(committed) = prepared.committed.take() {
            committed(&done);
        }
        report(self.bus.bind(py), &prepared.apart, &prepared.delayed, &done.published)?;
        self.fan_out(py, prepared, &done.published)
    }

    fn fan_out(
        &mut self,
        _py: Python<'_>,
        mut prepared: Prepared,
        published: &[Accepted],
    ) -> PyResult<()> {
        prepared.broadcasts.retain(|broadcast| {
            let accepted = broadcast.op.and_then(|op| published.get(op));
            !broadcast.route.subscribers.is_empty()
                && !accepted.is_some_and(|accepted| accepted.duplicate)
        });
        let mut broadcasts = prepared.broadcasts.into_iter();
        self.state = match broadcasts.next() {
            None => State::Done,
            Some(first) => State::Calling(Calling {
                event: first.event,
                route: first.route,
                next: 0,
                running: None,
                then: Some(broadcasts),
            }),
        };
        Ok(())
    }

    fn poll_commit(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let State::Committing(waiting) = &mut self.state else { return Ok(None) };
        let Committing { commit, parking, .. } = &mut **waiting;
        match mailbox::step(py, commit.get_mut().as_mut(), parking) {
            Ok(mailbox::Step::Yield(waiter)) => Ok(Some(waiter)),
            Ok(mailbox::Step::Ready(result)) => {
                if let State::Committing(waiting) = std::mem::replace(&mut self.state, State::Done)
                {
                    self.finish_commit(py, result, waiting.prepared)?;
                }
                Ok(None)
            }
            Err(error) => {
                self.state = State::Done;
                Err(error)
            }
        }
    }

    /// Calls handlers until one suspends or all are done.
    fn advance(&mut self, py: Python<'_>, throw: Option<PyErr>) -> PyResult<Option<Py<PyAny>>> {
        let State::Calling(calling) = &mut self.state else { return Ok(None) };
        let result = calling.run(py, self.bus.get().shared(), throw);
        if !matches!(result, Ok(Some(_))) {
            self.state = State::Done;
        }
        result
    }
}

impl Drop for Publish {
    fn drop(&mut self) {
        let method = match self.state {
            State::One { .. } => "publish",
            State::Prepare(_, method) => method,
            State::Committing(_) | State::Calling(_) | State::Done => return,
        };
        never_awaited::warn(|py| method_name(self.bus.bind(py), method));
    }
}

/// Returns the name of a method as its bus is known by.
pub(crate) fn method_name(bus: &Bound<'_, CoreBus>, method: &str) -> PyResult<String> {
    Ok(format!("{}.{method}", bus.get_type().qualname()?))
}

impl Calling {
    fn run(
        &mut self,
        py: Python<'_>,
        shared: &Shared,
        throw: Option<PyErr>,
    ) -> PyResult<Option<Py<PyAny>>> {
        if let Some(coroutine) = self.running.take() {
            let cancelled = throw.as_ref().is_some_and(|error| is_cancelled_error(py, error));
            let stepped = match throw {
                Some(error) => invoke::throw(coroutine.bind(py), error),
                None => invoke::step(coroutine.bind(py)),
            };
            match stepped {
                Ok(Stepped::Yield(waiter)) => {
                    self.running = Some(coroutine);
                    return Ok(Some(waiter));
                }
                Ok(Stepped::Done) => shared.bus.counters().delivered.add(1),
                Err(error) => {
                    let subscriber = Arc::clone(&self.route.subscribers[self.next - 1]);
                    handler_failed(py, shared, &subscriber, error)?;
                    if cancelled && is_cancelling(py)? {
                        // The handler failed in its clean-up: the publisher is cancelled all the same.
                        return Err(cancelled_error(py)?);
                    }
                }
            }
        }
        loop {
            let mut delivered = 0;
            while let Some(subscriber) = self.route.subscribers.get(self.next) {
                self.next += 1;
                if !subscriber.is_active() {
                    continue;
                }
                match &subscriber.receiver {
                    Receiver::Inline { handler, .. } => match call(handler.bind(py), &self.event) {
                        Ok(None) => delivered += 1,
                        Ok(Some((waiter, coroutine))) => {
                            self.running = Some(coroutine);
                            shared.bus.counters().delivered.add(delivered);
                            return Ok(Some(waiter));
                        }
                        Err(error) => handler_failed(py, shared, subscriber, error)?,
                    },
                    Receiver::Queued { ring, event_loop } => {
                        if is_closed(py, event_loop)? {
                            // Its task can never run again.
                            ring.close();
                            let lost = ring.drain();
                            shared.bus.counters().dropped.add(lost.len() as u64);
                        }
                        // The dropped one is destroyed here, outside the ring's lock.
                        match ring.push(self.event.clone_ref(py)) {
                            Pushed::Stored => {}
                            Pushed::Replaced(_dropped) | Pushed::Refused(_dropped) => {
                                shared.bus.counters().dropped.add(1);
                            }
                        }
                    }
                }
            }
            shared.bus.counters().delivered.add(delivered);
            match self.then.as_mut().and_then(Iterator::next) {
                None => return Ok(None),
                Some(next) => {
                    self.event = next.event;
                    self.route = next.route;
                    self.next = 0;
                }
            }
        }
    }
}

/// Calls one handler; `Some` when its coroutine suspended.
#[inline]
fn call(handler: &Bound<'_, PyAny>, event: &Py<PyAny>) -> PyResult<Option<(Py<PyAny>, Py<PyAny>)>> {
    let result = handler.call1((event,))?;
    if !invoke::is_coroutine(&result)? {
        return Ok(None);
    }
    Ok(match invoke::step(&result)? {
        Stepped::Done => None,
        Stepped::Yield(waiter) => Some((waiter, result.unbind())),
    })
}

/// Tells the bus what it warns of once: publishes outside their transaction, and delayed ones that
/// no queue kept.
pub(crate) fn report(
    bus: &Bound<'_, CoreBus>,
    apart: &[Arc<str>],
    delayed: &[(usize, Py<PyAny>)],
    published: &[Accepted],
) -> PyResult<()> {
    let py = bus.py();
    for topic in apart {
        bus.call_method1(intern!(py, "_went_apart"), (&**topic,))?;
    }
    for (index, topic) in delayed {
        if published.get(*index).is_some_and(|one| one.queues == 0 && !one.duplicate) {
            bus.call_method1(intern!(py, "_delayed_dropped"), (topic,))?;
        }
    }
    Ok(())
}

/// Reports a handler's exception and goes on, or lets it out when it is not the handler's own:
/// interpreter exit, or the cancellation of the publisher's task (contract D25, D36, D72).
fn handler_failed(
    py: Python<'_>,
    shared: &Shared,
    subscriber: &Subscriber,
    error: PyErr,
) -> PyResult<()> {
    if !error.is_instance_of::<pyo3::exceptions::PyException>(py) && !own_cancellation(py, &error)?
    {
        return Err(error);
    }
    shared.bus.counters().failed.add(1);
    if let Receiver::Inline { report, id, .. } = &subscriber.receiver {
        report.call1(py, (id, error.into_value(py)))?;
    }
    Ok(())
}

/// Whether this is a `CancelledError` that the handler raised although its task is not cancelled.
fn own_cancellation(py: Python<'_>, error: &PyErr) -> PyResult<bool> {
    Ok(is_cancelled_error(py, error) && !is_cancelling(py)?)
}

fn cancelled_class(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    static CANCELLED: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    CANCELLED.import(py, "asyncio", "CancelledError")
}

fn cancelled_error(py: Python<'_>) -> PyResult<PyErr> {
    Ok(PyErr::from_type(cancelled_class(py)?.clone(), ()))
}

fn is_cancelled_error(py: Python<'_>, error: &PyErr) -> bool {
    cancelled_class(py).is_ok_and(|class| error.is_instance(py, class))
}

/// Whether somebody asked the current task to end; without a task, nobody can be asked.
fn is_cancelling(py: Python<'_>) -> PyResult<bool> {
    static CURRENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let current = CURRENT
        .get_or_try_init(py, || py.import("asyncio")?.getattr("current_task").map(Bound::unbind))?;
    let task = current.bind(py).call0()?;
    if task.is_none() {
        return Ok(true);
    }
    Ok(task.call_method0(intern!(py, "cancelling"))?.extract::<u32>()? > 0)
}

fn is_closed(py: Python<'_>, event_loop: &Py<PyAny>) -> PyResult<bool> {
    event_loop.call_method0(py, intern!(py, "is_closed"))?.is_truthy(py)
}

#[pymethods]
impl Publish {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let _inside = exit::enter(py);
        match &self.state {
            State::Done => {
                return Err(PyRuntimeError::new_err("cannot reuse already awaited coroutine"));
            }
            State::One { .. } | State::Prepare(..) => {
                if let Some(waiter) = self.start(py)? {
                    return Ok(Some(waiter));
                }
            }
            State::Committing(_) | State::Calling(_) => {}
        }
        if let State::Committing(_) = &self.state
            && let Some(waiter) = self.poll_commit(py)?
        {
            return Ok(Some(waiter));
        }
        self.advance(py, None)
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
        let error = thrown(kind, value)?;
        match &self.state {
            State::Calling(Calling { running: Some(_), .. }) => {}
            _ => {
                self.state = State::Done;
                return Err(error);
            }
        }
        self.advance(py, Some(error))?.ok_or_else(|| PyStopIteration::new_err((py.None(),)))
    }

    fn close(&mut self, py: Python<'_>) -> PyResult<()> {
        let _inside = exit::enter(py);
        if let State::Calling(Calling { running: Some(coroutine), .. }) =
            std::mem::replace(&mut self.state, State::Done)
        {
            coroutine.call_method0(py, intern!(py, "close"))?;
        }
        Ok(())
    }
}
