//! The buffer of a queued subscription or a stream, as Python reads it.

use std::sync::Arc;

use pyo3::prelude::*;

use super::hub::Hub;
use super::mailbox::Pending;
use super::runtime::Origin;
use crate::backend::Gap;
use crate::ring::{Item, Ring};
use crate::topic::RouteId;

/// The compiled part of a buffered subscription.
#[pyclass(frozen, module = "eventbus._eventbus")]
pub(crate) struct CoreSubscription {
    hub: Arc<Hub>,
    id: RouteId,
    ring: Arc<Ring<Py<PyAny>>>,
    origin: Origin,
}

impl CoreSubscription {
    pub(crate) fn new(
        hub: Arc<Hub>,
        id: RouteId,
        ring: Arc<Ring<Py<PyAny>>>,
        origin: Origin,
    ) -> Self {
        Self { hub, id, ring, origin }
    }
}

/// Renders a gap as (cause, count).
fn gap_to_py(py: Python<'_>, gap: &Gap) -> PyResult<Py<PyAny>> {
    let cause = pythonize::pythonize(py, &gap.cause)?;
    Ok((cause, gap.count).into_pyobject(py)?.into_any().unbind())
}

#[pymethods]
impl CoreSubscription {
    /// Takes the next event, a (cause, count) for a gap, or `None` when nothing is buffered.
    fn take(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        match self.ring.pop() {
            Some(Item::Value(event)) => Ok(Some(event)),
            Some(Item::Gap(gap)) => gap_to_py(py, &gap).map(Some),
            None => Ok(None),
        }
    }

    /// Waits until something is buffered or the subscription ended.
    fn wait(&self) -> Pending {
        let ring = Arc::clone(&self.ring);
        Pending::new(move |_py| {
            let ready = async move {
                ring.ready().await;
                Ok(())
            };
            Ok(Pending::run(ready, |py, ()| Ok(py.None())))
        })
    }

    /// Ends the intake; what is buffered can still be taken.
    fn stop(&self) {
        self.hub.remove(self.id);
        self.ring.close();
    }

    /// Ends the intake and drops what is buffered; returns how many events.
    fn cancel(&self) -> usize {
        self.stop();
        self.ring.drain().len()
    }

    /// Refuses what comes from now on, counting it as dropped; returns how many were buffered.
    fn abandon(&self) -> usize {
        self.ring.close();
        self.ring.drain().len()
    }

    /// Whether nothing comes any more and everything was taken.
    fn ended(&self) -> bool {
        self.ring.is_closed() && self.ring.is_empty()
    }

    fn __len__(&self) -> usize {
        self.ring.len()
    }

    fn __bool__(&self) -> bool {
        true
    }
}

impl Drop for CoreSubscription {
    fn drop(&mut self) {
        // A forgotten stream must not fill its buffer for ever. In a forked child there is nothing
        // to end, and waking would write to the parent's loop.
        if self.origin.check().is_ok() {
            self.hub.remove(self.id);
            self.ring.close();
        }
    }
}
