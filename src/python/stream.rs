//! The buffer of a queued subscription or a stream, as Python reads it.

use std::sync::Arc;

use pyo3::prelude::*;

use super::event::PyEvent;
use super::exit;
use super::hub::Hub;
use super::mailbox::Pending;
use super::runtime::Origin;
use crate::backend::{Frame, Gap, GapCause, Listener};
use crate::bus::{Bus, fresh_defaults};
use crate::codec;
use crate::ring::{Item, Ring};
use crate::topic::RouteId;

/// Where the events of a subscription come from.
enum Source {
    /// From publishers in this process: the very objects.
    Hub { hub: Arc<Hub>, id: RouteId, ring: Arc<Ring<Py<PyAny>>> },
    /// From a broker: frames, decoded when they are taken.
    Broker {
        bus: Arc<Bus>,
        ring: Arc<Ring<Frame>>,
        /// Ends the subscription on the server when dropped.
        listener: parking_lot::Mutex<Option<Box<dyn Listener>>>,
        /// Called with what is wrong with a frame that cannot be read.
        malformed: Py<PyAny>,
    },
}

/// The compiled part of a buffered subscription.
#[pyclass(frozen, module = "eventbus._eventbus")]
pub(crate) struct CoreSubscription {
    source: Source,
    origin: Origin,
}

impl CoreSubscription {
    pub(crate) fn of_hub(
        hub: Arc<Hub>,
        id: RouteId,
        ring: Arc<Ring<Py<PyAny>>>,
        origin: Origin,
    ) -> Self {
        Self { source: Source::Hub { hub, id, ring }, origin }
    }

    pub(crate) fn of_broker(
        bus: Arc<Bus>,
        listener: Box<dyn Listener>,
        malformed: Py<PyAny>,
        origin: Origin,
    ) -> Self {
        let ring = Arc::clone(listener.buffer());
        let listener = parking_lot::Mutex::new(Some(listener));
        Self { source: Source::Broker { bus, ring, listener, malformed }, origin }
    }

    /// Ends the intake; what is buffered can still be taken.
    fn end(&self) {
        match &self.source {
            Source::Hub { hub, id, ring } => {
                hub.remove(*id);
                ring.close();
            }
            Source::Broker { ring, listener, .. } => {
                ring.close();
                let ended = listener.lock().take();
                drop(ended);
            }
        }
    }

    /// Drops what is buffered; returns how many events.
    fn discard(&self) -> usize {
        match &self.source {
            Source::Hub { ring, .. } => ring.drain().len(),
            Source::Broker { ring, .. } => ring.drain().len(),
        }
    }
}

/// Renders a gap as (cause, count).
fn gap_to_py(py: Python<'_>, gap: &Gap) -> PyResult<Py<PyAny>> {
    let cause = pythonize::pythonize(py, &gap.cause)?;
    Ok((cause, gap.count).into_pyobject(py)?.into_any().unbind())
}

/// Takes the next event of a broker that can be read.
fn take_frame(
    py: Python<'_>,
    bus: &Bus,
    ring: &Ring<Frame>,
    malformed: &Py<PyAny>,
) -> PyResult<Option<Py<PyAny>>> {
    while let Some(item) = ring.pop() {
        let frame = match item {
            Item::Gap(gap) => {
                if gap.cause == GapCause::Overflow {
                    bus.counters().dropped.add(gap.count.unwrap_or(0));
                }
                return gap_to_py(py, &gap).map(Some);
            }
            Item::Value(frame) => frame,
        };
        match codec::decode(&frame.body, bus.limits(), fresh_defaults) {
            Ok(event) => {
                let event = PyEvent::received(py, event, *bus.limits())?;
                return Ok(Some(Py::new(py, event)?.into_any()));
            }
            Err(error) => {
                bus.counters().malformed.add(1);
                let text = error.to_string();
                malformed.call1(py, (&*frame.topic, text))?;
            }
        }
    }
    Ok(None)
}

#[pymethods]
impl CoreSubscription {
    /// Takes the next event, a (cause, count) for a gap, or `None` when nothing is buffered.
    fn take(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        exit::register_thread();
        match &self.source {
            Source::Hub { ring, .. } => match ring.pop() {
                Some(Item::Value(event)) => Ok(Some(event)),
                Some(Item::Gap(gap)) => gap_to_py(py, &gap).map(Some),
                None => Ok(None),
            },
            Source::Broker { bus, ring, malformed, .. } => take_frame(py, bus, ring, malformed),
        }
    }

    /// Waits until something is buffered or the subscription ended.
    fn wait(&self) -> Pending {
        match &self.source {
            Source::Hub { ring, .. } => ready(Arc::clone(ring)),
            Source::Broker { ring, .. } => ready(Arc::clone(ring)),
        }
    }

    /// Whether everything that came was taken, and a replay knows of nothing more.
    fn idle(&self) -> bool {
        match &self.source {
            Source::Hub { ring, .. } => ring.is_empty(),
            Source::Broker { ring, listener, .. } => {
                // In this order: what is put into the buffer is followed up after that.
                let behind = listener.lock().as_ref().is_some_and(|one| one.is_behind());
                !behind && ring.is_empty()
            }
        }
    }

    /// Ends the intake; what is buffered can still be taken.
    fn stop(&self) {
        self.end();
    }

    /// Ends the intake and drops what is buffered; returns how many events.
    fn cancel(&self) -> usize {
        self.end();
        self.discard()
    }

    /// Refuses what comes from now on, counting it as dropped; returns how many were buffered.
    fn abandon(&self) -> usize {
        match &self.source {
            Source::Hub { ring, .. } => ring.close(),
            Source::Broker { .. } => self.end(),
        }
        self.discard()
    }

    /// Whether nothing comes any more and everything was taken.
    fn ended(&self) -> bool {
        match &self.source {
            Source::Hub { ring, .. } => ring.is_closed() && ring.is_empty(),
            Source::Broker { ring, .. } => ring.is_closed() && ring.is_empty(),
        }
    }

    fn __len__(&self) -> usize {
        match &self.source {
            Source::Hub { ring, .. } => ring.len(),
            Source::Broker { ring, .. } => ring.len(),
        }
    }

    fn __bool__(&self) -> bool {
        true
    }
}

fn ready<T: Send + 'static>(ring: Arc<Ring<T>>) -> Pending {
    Pending::nothing(async move {
        ring.ready().await;
        Ok(())
    })
}

impl Drop for CoreSubscription {
    fn drop(&mut self) {
        // A forgotten stream must not fill its buffer for ever. In a forked child there is nothing
        // to end, and waking would write to the parent's loop.
        if self.origin.check().is_ok() {
            self.end();
        } else if let Source::Broker { listener, .. } = &self.source {
            std::mem::forget(listener.lock().take());
        }
    }
}
