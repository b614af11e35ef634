//! What a worker task of a consumer awaits: claim, call the handler, acknowledge, again.

use std::sync::Arc;
use std::time::Duration;

use pyo3::PyTraverseError;
use pyo3::exceptions::PyStopIteration;
use pyo3::gc::PyVisit;
use pyo3::intern;
use pyo3::prelude::*;

use super::coarse_clock::Moment;
use super::consumer::{self, CoreConsumer, CoreDelivery};
use super::exit;
use super::invoke::{self, Context, Stepped};
use super::mailbox::thrown;
use super::runtime::Origin;
use crate::backend::Outcome;
use crate::bus::Consumer;

/// Deliveries after which a worker that never had to wait lets the loop turn.
const PAUSE_AFTER: u32 = 128;

/// Handlers that hold the loop longer than this are reported.
const HELD_TOO_LONG: Duration = Duration::from_secs(1);

/// An awaitable that can be awaited again and again. Each time it handles deliveries until there
/// is nothing to claim (its value is then `None`), or until a handler raises: then its value is
/// `(delivery, exception)`. A handler that returned although its task was cancelled meanwhile is
/// acknowledged, and the value is `(delivery, None)`.
#[pyclass(module = "eventbus._eventbus")]
pub(crate) struct Runner {
    consumer: Arc<Consumer>,
    origin: Origin,
    bus: Py<PyAny>,
    handler: Py<PyAny>,
    /// Whether the handler is given the delivery instead of its event.
    whole: bool,
    context: Py<PyAny>,
    /// The context variable that holds the current delivery.
    variable: Py<PyAny>,
    /// Called when a handler suspends: another worker may look for more.
    on_suspend: Py<PyAny>,
    /// Called with a delivery and the reason when its acknowledgement came too late.
    on_late: Py<PyAny>,
    /// Called once with the seconds and the number of calls when handlers held the loop too long.
    on_held: Option<Py<PyAny>>,
    running: Option<Running>,
    /// Handled, to be acknowledged together before anybody else can look.
    handled: Vec<Py<CoreDelivery>>,
    since_pause: u32,
    /// Calls begun or continued since the loop last turned.
    calls: u32,
}

struct Running {
    context: Context,
    coroutine: Py<PyAny>,
    delivery: Py<CoreDelivery>,
    /// Whether something was thrown into it: its task was cancelled while it ran.
    thrown: bool,
}

/// What handling one delivery came to.
enum Handled {
    /// The handler returned: to be acknowledged.
    Returned,
    /// It waits for this.
    Suspended(Py<PyAny>),
    /// It raised: the delivery and the exception.
    Raised(Py<PyAny>),
}

#[pymethods]
impl Runner {
    #[new]
    #[allow(clippy::too_many_arguments)]
    fn new(
        bus: Py<PyAny>,
        consumer: PyRef<'_, CoreConsumer>,
        handler: Py<PyAny>,
        whole: bool,
        context: Py<PyAny>,
        variable: Py<PyAny>,
        on_suspend: Py<PyAny>,
        on_late: Py<PyAny>,
        on_held: Py<PyAny>,
    ) -> Self {
        let (consumer, origin) = consumer.parts();
        Self {
            consumer: Arc::clone(consumer),
            origin,
            bus,
            handler,
            whole,
            context,
            variable,
            on_suspend,
            on_late,
            on_held: Some(on_held),
            running: None,
            handled: Vec::new(),
            since_pause: 0,
            calls: 0,
        }
    }

    /// The token of the delivery whose handler is suspended.
    #[getter]
    fn token(&self) -> Option<u64> {
        self.running.as_ref().map(|running| running.delivery.get().token())
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let _inside = exit::enter(py);
        self.calls = 0;
        let since = Moment::now();
        let result = self.run(py);
        let held = since.elapsed();
        // Before the loop turns, so that no other task of this thread sees a handled delivery open.
        self.flush(py)?;
        if held > HELD_TOO_LONG {
            self.tell_held(py, held)?;
        }
        result
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
        let Some(mut running) = self.running.take() else { return Err(error) };
        running.thrown = true;
        let stepped = running.context.run(py, || invoke::throw(running.coroutine.bind(py), error));
        let resumed = self.resumed(py, running, stepped);
        self.flush(py)?;
        match resumed? {
            Some(waiter) => Ok(waiter),
            None => self.send(py, py.None().bind(py)),
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        for part in [&self.bus, &self.handler, &self.context, &self.on_suspend, &self.on_late] {
            visit.call(Some(part))?;
        }
        visit.call(&self.on_held)?;
        if let Some(running) = &self.running {
            visit.call(Some(&running.coroutine))?;
            visit.call(Some(&running.delivery))?;
        }
        self.handled.iter().try_for_each(|delivery| visit.call(Some(delivery)))
    }

    fn __clear__(mut slf: PyRefMut<'_, Self>) {
        let py = slf.py();
        slf.bus = py.None();
        slf.handler = py.None();
        slf.on_suspend = py.None();
        slf.on_late = py.None();
        slf.on_held = None;
        slf.running = None;
        slf.handled.clear();
    }

    fn close(&mut self, py: Python<'_>) -> PyResult<()> {
        let _inside = exit::enter(py);
        match self.running.take() {
            Some(running) => running
                .context
                .run(py, || running.coroutine.call_method0(py, intern!(py, "close")).map(|_| ())),
            None => Ok(()),
        }
    }
}

impl Runner {
    #[cold]
    fn tell_held(&mut self, py: Python<'_>, held: Duration) -> PyResult<()> {
        let Some(on_held) = self.on_held.take() else { return Ok(()) };
        on_held.call1(py, (held.as_secs_f64(), self.calls)).map(drop)
    }

    /// Handles deliveries until one suspends, one needs a decision or none is left.
    fn run(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        if let Some(running) = self.running.take() {
            self.calls = 1;
            let stepped = running.context.run(py, || invoke::step(running.coroutine.bind(py)));
            if let Some(waiter) = self.resumed(py, running, stepped)? {
                return Ok(Some(waiter));
            }
        }
        loop {
            self.since_pause += 1;
            if self.since_pause > PAUSE_AFTER {
                self.since_pause = 0;
                return Ok(Some(py.None()));
            }
            self.origin.check()?;
            if !self.consumer.has_claimed() {
                // A claim asks for as many as there are free slots.
                self.flush(py)?;
            }
            let Some(delivery) = consumer::take(py, &self.consumer, self.origin, &self.bus)? else {
                self.since_pause = 0;
                return Ok(None);
            };
            match self.handle(py, delivery)? {
                Handled::Returned => {}
                Handled::Suspended(waiter) => {
                    self.on_suspend.call0(py)?;
                    return Ok(Some(waiter));
                }
                Handled::Raised(what) => return Err(PyStopIteration::new_err((what,))),
            }
        }
    }

    /// Goes on after a step of a suspended handler: `Some` when it suspended again.
    fn resumed(
        &mut self,
        py: Python<'_>,
        running: Running,
        stepped: PyResult<Stepped>,
    ) -> PyResult<Option<Py<PyAny>>> {
        match stepped {
            Ok(Stepped::Yield(waiter)) => {
                self.running = Some(running);
                Ok(Some(waiter))
            }
            Ok(Stepped::Done) if running.thrown => {
                let what = (running.delivery.clone_ref(py), py.None());
                self.returned(running.delivery);
                Err(PyStopIteration::new_err((what,)))
            }
            Ok(Stepped::Done) => {
                self.returned(running.delivery);
                Ok(None)
            }
            Err(error) => {
                let what = raised(py, running.delivery, error)?;
                Err(PyStopIteration::new_err((what,)))
            }
        }
    }

    /// Calls the handler in a context of its own and acknowledges when it has returned.
    fn handle(&mut self, py: Python<'_>, delivery: Py<CoreDelivery>) -> PyResult<Handled> {
        self.calls += 1;
        let context = Context::copy(py, Some(&self.context))?;
        let started = context.run(py, || {
            invoke::set_variable(py, &self.variable, delivery.as_any())?;
            let result = if self.whole {
                self.handler.bind(py).call1((&delivery,))?
            } else {
                let event = delivery.get().event(py);
                self.handler.bind(py).call1((event,))?
            };
            if !invoke::is_coroutine(&result)? {
                return Ok((Stepped::Done, None));
            }
            Ok((invoke::step(&result)?, Some(result.unbind())))
        });
        match started {
            Ok((Stepped::Yield(waiter), Some(coroutine))) => {
                self.running = Some(Running { context, coroutine, delivery, thrown: false });
                Ok(Handled::Suspended(waiter))
            }
            Ok(_) => {
                self.returned(delivery);
                Ok(Handled::Returned)
            }
            Err(error) => raised(py, delivery, error).map(Handled::Raised),
        }
    }

    /// Remembers a handled delivery for the next flush, unless its handler settled it.
    fn returned(&mut self, delivery: Py<CoreDelivery>) {
        self.consumer.bus().counters().delivered.add(1);
        if delivery.get().claim_settlement() {
            self.handled.push(delivery);
        }
    }

    /// Acknowledges what was handled.
    fn flush(&mut self, py: Python<'_>) -> PyResult<()> {
        if self.handled.is_empty() {
            return Ok(());
        }
        let handled = std::mem::take(&mut self.handled);
        let tokens: Vec<_> = handled.iter().map(|delivery| delivery.get().token()).collect();
        if self.consumer.bus().backend().in_process().is_none() {
            // What comes too late is told by `CoreConsumer.lost`.
            self.consumer.settle_later(&tokens, &Outcome::Ack);
            return Ok(());
        }
        let results = self.consumer.settle_all_now(&tokens, &Outcome::Ack)?;
        for (delivery, result) in handled.into_iter().zip(results) {
            if let Err(error) = result {
                self.on_late.call1(py, (delivery, PyErr::from(error).into_value(py)))?;
            }
        }
        Ok(())
    }
}

fn raised(py: Python<'_>, delivery: Py<CoreDelivery>, error: PyErr) -> PyResult<Py<PyAny>> {
    Ok((delivery, error.into_value(py)).into_pyobject(py)?.into_any().unbind())
}
