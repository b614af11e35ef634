//! The classes `CoreConsumer` and `CoreDelivery`: claims, settlement, lost leases.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use super::event::PyEvent;
use super::exit;
use super::mailbox::{self, Pending};
use super::options;
use super::runtime::Origin;
use crate::backend::{DeadReason, Delivery, Outcome};
use crate::bus::{Consumer, fresh_defaults};
use crate::codec;
use crate::error::Error;
use crate::event::Event;

/// The compiled part of a consumer.
#[pyclass(frozen, weakref, module = "eventbus._eventbus")]
pub(crate) struct CoreConsumer {
    consumer: Arc<Consumer>,
    origin: Origin,
}

impl CoreConsumer {
    pub(crate) fn new(consumer: Arc<Consumer>, origin: Origin) -> Self {
        Self { consumer, origin }
    }

    /// Returns the core consumer and where it was made.
    pub(crate) fn parts(&self) -> (&Arc<Consumer>, Origin) {
        (&self.consumer, self.origin)
    }
}

impl Drop for CoreConsumer {
    fn drop(&mut self) {
        // Forgotten without a stop: give back what was claimed ahead.
        self.abandon(false);
    }
}

/// Claims the next delivery without waiting.
pub(crate) fn take(
    py: Python<'_>,
    consumer: &Arc<Consumer>,
    origin: Origin,
    bus: &Py<PyAny>,
) -> PyResult<Option<Py<CoreDelivery>>> {
    exit::register_thread();
    let Some((delivery, event)) = next_decoded(consumer)? else { return Ok(None) };
    let event = Py::new(py, PyEvent::received(py, event, *consumer.bus().limits())?)?;
    let bus = bus.clone_ref(py);
    let delivery = CoreDelivery::new(Arc::clone(consumer), delivery, event, origin, bus);
    Py::new(py, delivery).map(Some)
}

/// Takes deliveries until one can be decoded, claiming at once where the backend can; brokers claim
/// ahead. Undecodable ones go to the dead letters with their raw bytes, newer envelopes are left for
/// newer workers.
fn next_decoded(consumer: &Arc<Consumer>) -> PyResult<Option<(Delivery, Event)>> {
    let in_process = consumer.bus().backend().in_process().is_some();
    loop {
        let Some(delivery) = consumer.pop() else {
            if !in_process {
                consumer.check_open()?;
                return Ok(None);
            }
            if mailbox::now(consumer.fill())?? == 0 {
                return Ok(None);
            }
            continue;
        };
        let error = match codec::decode(&delivery.body, consumer.bus().limits(), fresh_defaults) {
            Ok(event) => return Ok(Some((delivery, event))),
            Err(error) => error,
        };
        let outcome = match error {
            Error::UnknownVersion { .. } => Outcome::Defer { after: consumer.options().lease },
            error => {
                consumer.bus().counters().malformed.add(1);
                Outcome::Dead { reason: DeadReason::Undecodable, error: error.to_string() }
            }
        };
        let token = delivery.lease.token;
        if !in_process {
            consumer.settle_later(&[token], &outcome);
            continue;
        }
        match mailbox::now(consumer.settle(token, outcome))? {
            Ok(()) | Err(Error::LeaseLost { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[pymethods]
impl CoreConsumer {
    /// Claims the next delivery without waiting; `None` when nothing is ready or no slot is free.
    fn take(&self, py: Python<'_>, bus: Py<PyAny>) -> PyResult<Option<Py<CoreDelivery>>> {
        self.origin.check()?;
        take(py, &self.consumer, self.origin, &bus)
    }

    /// Waits until `take` may give something.
    fn wait(&self) -> PyResult<Pending> {
        self.origin.check()?;
        let consumer = Arc::clone(&self.consumer);
        Ok(Pending::nothing(async move { consumer.wait_ready().await }))
    }

    /// Waits for lost leases and for what died by a decision of the store: (tokens, dead letters),
    /// both empty when the consumer stopped.
    fn news(&self) -> Pending {
        let consumer = Arc::clone(&self.consumer);
        Pending::new(move |_py| {
            let bus = Arc::clone(consumer.bus());
            Ok(Pending::run(async move { Ok(consumer.news().await) }, move |py, news| {
                let dead = options::dead_letters(py, news.dead, &bus)?;
                Ok((news.lost, dead).into_pyobject(py)?.into_any().unbind())
            }))
        })
    }

    /// Takes what died by a decision of the store, for an iterator.
    fn dead(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        options::dead_letters(py, self.consumer.take_dead(), self.consumer.bus())
    }

    /// Stops claiming and gives back what was not handed out.
    fn stop(&self) -> Pending {
        let consumer = Arc::clone(&self.consumer);
        Pending::nothing(async move { consumer.stop().await })
    }

    /// Stops and gives everything in hand back, counting nothing.
    fn release(&self) -> Pending {
        let consumer = Arc::clone(&self.consumer);
        Pending::nothing(async move { consumer.release().await })
    }

    /// Stops without anybody waiting for it, as its loop ends; as the process ends, gives back all
    /// that is in hand.
    fn abandon(&self, everything: bool) {
        if self.origin.check().is_err() {
            return;
        }
        if self.consumer.bus().backend().in_process().is_some() {
            let _ = mailbox::now(self.consumer.stop());
        } else {
            let consumer = Arc::clone(&self.consumer);
            self.consumer.bus().tasks().spawn_last(async move {
                // What cannot be given back comes back when its lease ends.
                let _ = if everything { consumer.release().await } else { consumer.stop().await };
            });
        }
    }

    /// How many deliveries are in hand.
    #[getter]
    fn in_hand(&self) -> usize {
        self.consumer.in_hand()
    }
}

/// One attempt to handle an event.
#[pyclass(frozen, name = "CoreDelivery", module = "eventbus._eventbus", subclass)]
pub(crate) struct CoreDelivery {
    consumer: Arc<Consumer>,
    delivery: Delivery,
    event: Py<PyEvent>,
    settlement: Arc<Settlement>,
    origin: Origin,
    bus: Py<PyAny>,
}

impl CoreDelivery {
    fn new(
        consumer: Arc<Consumer>,
        delivery: Delivery,
        event: Py<PyEvent>,
        origin: Origin,
        bus: Py<PyAny>,
    ) -> Self {
        Self { bus, consumer, delivery, event, settlement: Arc::default(), origin }
    }

    /// Returns the consumer and the delivery, for a transaction that settles it.
    pub(crate) fn parts(&self) -> (&Arc<Consumer>, &Delivery) {
        (&self.consumer, &self.delivery)
    }

    pub(crate) fn token(&self) -> u64 {
        self.delivery.lease.token
    }

    /// Marks it as settled by somebody who settles several; false when it was settled before.
    pub(crate) fn claim_settlement(&self) -> bool {
        self.settlement.moves(OPEN, SETTLED)
    }

    pub(crate) fn mark_settled(&self) {
        self.settlement.0.store(SETTLED, Ordering::Release);
        self.consumer.forget(self.delivery.lease.token);
    }

    /// Settles at once where the backend can, else returns what to await.
    fn settle(&self, outcome: Outcome) -> PyResult<Option<Pending>> {
        self.origin.check()?;
        if !self.settlement.moves(OPEN, UNDER_WAY) {
            return Err(self.delivery.lease.lost().into());
        }
        let (consumer, token) = (Arc::clone(&self.consumer), self.delivery.lease.token);
        let in_process = consumer.bus().backend().in_process().is_some();
        let settlement = Arc::clone(&self.settlement);
        let attempt = Attempt { settlement, consumer: Arc::clone(&consumer), token };
        mailbox::now_or_later(in_process, async move {
            let result = consumer.settle(token, outcome).await;
            attempt.ends(&result);
            result
        })
    }
}

#[pymethods]
impl CoreDelivery {
    /// The bus it came from.
    #[getter]
    fn bus(&self, py: Python<'_>) -> Py<PyAny> {
        self.bus.clone_ref(py)
    }

    #[getter]
    pub(crate) fn event(&self, py: Python<'_>) -> Py<PyEvent> {
        self.event.clone_ref(py)
    }

    #[getter]
    fn topic<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        PyString::new(py, &self.delivery.topic)
    }

    #[getter]
    fn group<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        PyString::new(py, &self.delivery.lease.group)
    }

    #[getter]
    fn key(&self) -> Option<&str> {
        self.delivery.key.as_deref()
    }

    #[getter]
    fn priority(&self) -> i16 {
        self.delivery.priority
    }

    /// Which attempt this is, from 1: handler errors so far plus one.
    #[getter]
    fn attempt(&self) -> u32 {
        self.delivery.attempts + 1
    }

    #[getter]
    fn crashes(&self) -> u32 {
        self.delivery.crashes
    }

    #[getter]
    fn fencing_token(&self) -> u64 {
        self.delivery.lease.token
    }

    #[getter]
    fn message_id(&self) -> String {
        options::id_text(&self.delivery.lease.message)
    }

    #[getter]
    fn accepted_at(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        options::utc_time(py, self.delivery.accepted_at)
    }

    #[getter]
    fn settled(&self) -> bool {
        self.settlement.0.load(Ordering::Acquire) != OPEN
    }

    /// The raw bytes.
    #[getter]
    fn body<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.delivery.body)
    }

    /// Seconds until the next attempt when this one fails, as the policy or `asked` says; `None`
    /// when it is the last.
    #[pyo3(signature = (asked=None))]
    fn next_attempt(&self, asked: Option<Bound<'_, PyAny>>) -> PyResult<Option<f64>> {
        let fraction = rand::random::<f64>();
        let outcome = self.consumer.after_failure(self.delivery.attempts, String::new(), fraction);
        let Outcome::Retry { after, .. } = outcome else { return Ok(None) };
        let after = asked.map_or(Ok(after), |asked| options::seconds("after", &asked))?;
        Ok(Some(after.as_secs_f64()))
    }

    /// Acknowledges; `None` when done, else what to await.
    fn settle_ack(&self) -> PyResult<Option<Pending>> {
        self.settle(Outcome::Ack)
    }

    /// Counts a failure: due again after `after` seconds (default: the policy's back-off), or dead
    /// when the attempts are used up.
    #[pyo3(signature = (error, after=None))]
    fn settle_failed(
        &self,
        error: String,
        after: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Option<Pending>> {
        let fraction = rand::random::<f64>();
        let mut outcome = self.consumer.after_failure(self.delivery.attempts, error, fraction);
        if let (Outcome::Retry { after: own, .. }, Some(asked)) = (&mut outcome, after) {
            *own = options::seconds("after", &asked)?;
        }
        self.settle(outcome)
    }

    /// Moves it to the dead letters.
    fn settle_dead(&self, reason: &str, error: String) -> PyResult<Option<Pending>> {
        let reason = match reason {
            "rejected" => DeadReason::Rejected,
            "undecodable" => DeadReason::Undecodable,
            "unknown_task" => DeadReason::UnknownTask,
            _ => DeadReason::Failed,
        };
        self.settle(Outcome::Dead { reason, error })
    }

    /// Gives it back untouched.
    fn settle_release(&self) -> PyResult<Option<Pending>> {
        self.settle(Outcome::Release)
    }

    /// Gives it back as the loop or the process ends, `crashed` or untouched: at once in process,
    /// else without anybody waiting. Idempotent.
    fn settle_last(&self, crashed: bool) {
        let outcome = if crashed { Outcome::Crash } else { Outcome::Release };
        if self.origin.check().is_ok() && self.claim_settlement() {
            give_back(&self.consumer, self.delivery.lease.token, outcome);
        }
    }
}

/// How far the settlement of a delivery is; whoever is last to let go of an unsettled one gives it
/// back.
#[derive(Default)]
struct Settlement(AtomicU8);

const OPEN: u8 = 0;
const UNDER_WAY: u8 = 1;
const SETTLED: u8 = 2;
/// Under way, and nobody else holds the delivery any more.
const FORGOTTEN: u8 = 3;

impl Settlement {
    /// Moves from one state to another; false when it was in a third.
    fn moves(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// A settlement under way. One that is given up, or that the server did not answer, is none: it can
/// be tried again, and a delivery that is forgotten is given back instead of being renewed.
struct Attempt {
    settlement: Arc<Settlement>,
    consumer: Arc<Consumer>,
    token: u64,
}

impl Attempt {
    fn ends(&self, result: &Result<(), Error>) {
        if !matches!(result, Err(error) if error.is_retryable()) {
            self.settlement.0.store(SETTLED, Ordering::Release);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.settlement.moves(UNDER_WAY, OPEN) && self.settlement.moves(FORGOTTEN, SETTLED) {
            give_back(&self.consumer, self.token, Outcome::Release);
        }
    }
}

/// Gives back what nobody holds any more.
fn give_back(consumer: &Arc<Consumer>, token: u64, outcome: Outcome) {
    if consumer.bus().backend().in_process().is_some() {
        let _ = mailbox::now(consumer.settle(token, outcome));
    } else {
        consumer.settle_later(&[token], &outcome);
    }
}

impl Drop for CoreDelivery {
    fn drop(&mut self) {
        // Garbage collected without a settlement.
        if self.origin.check().is_ok()
            && !self.settlement.moves(UNDER_WAY, FORGOTTEN)
            && self.settlement.moves(OPEN, SETTLED)
        {
            give_back(&self.consumer, self.delivery.lease.token, Outcome::Release);
        }
    }
}
