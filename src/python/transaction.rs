//! The class `CoreTransaction`: collects steps, commits them as one.

use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::bus::CoreBus;
use super::consumer::CoreDelivery;
use super::convert;
use super::options::{self, RawOptions};
use super::publish::{Prepared, Publish, report};
use crate::backend::{Op, Outcome, Transaction};
use crate::codec::Wire;
use crate::error::Error;

/// Steps that are committed together or not at all.
#[pyclass(frozen, module = "eventbus._eventbus")]
pub(crate) struct CoreTransaction {
    bus: Py<CoreBus>,
    delivery: Option<Py<CoreDelivery>>,
    prepared: Mutex<Option<Prepared>>,
    /// What was given to a connection of the caller's, with the topics of delayed messages.
    joined: Mutex<Option<(Transaction, Delayed)>>,
    keys: Mutex<Vec<Arc<str>>>,
    versions: Arc<Mutex<Vec<u64>>>,
}

/// Topics of delayed messages by publish index.
type Delayed = Vec<(usize, Py<PyAny>)>;

impl CoreTransaction {
    fn with<T>(&self, work: impl FnOnce(&mut Prepared) -> PyResult<T>) -> PyResult<T> {
        // Taken out while `work` runs, as that may call Python.
        let taken = self.prepared.lock().take();
        let Some(mut prepared) = taken else {
            return Err(Error::Closed { what: "transaction" }.into());
        };
        let result = work(&mut prepared);
        *self.prepared.lock() = Some(prepared);
        result
    }

    /// Takes the steps, with the acknowledgement of the delivery before them.
    fn take(&self, py: Python<'_>) -> PyResult<Prepared> {
        let taken = self.prepared.lock().take();
        let mut prepared = taken.ok_or(Error::Closed { what: "transaction" })?;
        if let Some(delivery) = &self.delivery {
            let (consumer, claimed) = delivery.bind(py).get().parts();
            let ack = consumer.settlement(claimed.lease.token, Outcome::Ack)?;
            prepared.ops.insert(0, ack);
        }
        Ok(prepared)
    }
}

#[pymethods]
impl CoreTransaction {
    #[new]
    #[pyo3(signature = (bus, delivery=None))]
    fn new(bus: Py<CoreBus>, delivery: Option<Py<CoreDelivery>>) -> Self {
        Self {
            bus,
            delivery,
            prepared: Mutex::new(Some(Prepared::default())),
            joined: Mutex::default(),
            keys: Mutex::default(),
            versions: Arc::default(),
        }
    }

    /// Adds a publish; arguments as for `CoreBus.publish`.
    #[pyo3(signature = (topic, event, **options))]
    fn publish(
        &self,
        py: Python<'_>,
        topic: &Bound<'_, PyAny>,
        event: &Bound<'_, PyAny>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        let options = match options {
            Some(options) => Some(RawOptions::from_dict(options)?.parse(py)?),
            None => None,
        };
        let bus = self.bus.bind(py).get();
        self.with(|prepared| {
            CoreBus::prepare_one(bus.shared(), topic, event, options.as_ref(), prepared)
        })
    }

    /// Adds a record write.
    #[pyo3(signature = (key, value, if_version=None, ttl=None))]
    fn put(
        &self,
        py: Python<'_>,
        key: &str,
        value: &Bound<'_, PyAny>,
        if_version: Option<u64>,
        ttl: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        options::record_key(key)?;
        let limits = *self.bus.bind(py).get().shared().bus.limits();
        let value = convert::encode_value(value, &limits, Wire::Native, "$")?;
        let ttl = ttl.map(|ttl| options::seconds("ttl", &ttl)).transpose()?;
        let key: Arc<str> = key.into();
        self.with(|prepared| {
            self.keys.lock().push(Arc::clone(&key));
            prepared.ops.push(Op::Put { key, value, if_version, ttl });
            Ok(())
        })
    }

    /// Adds a record deletion.
    #[pyo3(signature = (key, if_version=None))]
    fn delete(&self, key: &str, if_version: Option<u64>) -> PyResult<()> {
        options::record_key(key)?;
        self.with(|prepared| {
            prepared.ops.push(Op::Delete { key: key.into(), if_version });
            Ok(())
        })
    }

    /// Commits, settling the delivery first; then broadcasts what was published.
    fn commit(&self, py: Python<'_>) -> PyResult<Publish> {
        let mut prepared = self.take(py)?;
        let versions = Arc::clone(&self.versions);
        let delivery = self.delivery.as_ref().map(|delivery| delivery.clone_ref(py));
        prepared.committed = Some(Box::new(move |committed| {
            *versions.lock() = committed.versions.clone();
            if let Some(delivery) = &delivery {
                delivery.get().mark_settled();
            }
        }));
        let prepare = Mutex::new(Some(prepared));
        Ok(Publish::prepare(
            self.bus.clone_ref(py),
            "transaction().commit",
            Box::new(move |_py, _bus| {
                let taken = prepare.lock().take();
                taken.ok_or_else(|| Error::Closed { what: "transaction" }.into())
            }),
        ))
    }

    /// Returns the steps as SQL text and its one argument, for a connection of the caller's.
    /// `many`: as for `publish_many`, whose size is limited.
    #[pyo3(signature = (many=false))]
    fn statement(&self, py: Python<'_>, many: bool) -> PyResult<(String, String)> {
        let bus = self.bus.bind(py);
        let shared = bus.get().ready(bus, "publish")?;
        let joins = shared.bus.backend().joins()?;
        let prepared = self.take(py)?;
        let transaction = Transaction { ops: prepared.ops };
        if many {
            options::check_batch(&transaction.ops)?;
        }
        let statement = joins.statement(&transaction)?;
        *self.joined.lock() = Some((transaction, prepared.delayed));
        Ok((statement.text, statement.argument))
    }

    /// Reads what the statement returned; raises what it refused.
    fn answered(&self, py: Python<'_>, figures: Vec<i64>) -> PyResult<()> {
        let Some((transaction, delayed)) = self.joined.lock().take() else {
            return Err(Error::Closed { what: "transaction" }.into());
        };
        let bus = self.bus.bind(py);
        let joins = bus.get().shared().bus.backend().joins()?;
        let done = joins.answer(&transaction, &figures)?;
        *self.versions.lock() = done.versions;
        report(bus, &bus.get().shared().apart(&transaction), &delayed, &done.published)
    }

    /// Raises what a failed statement means; returns when that is between caller and server.
    fn failed(&self, py: Python<'_>, code: &str, said: &str) -> PyResult<()> {
        let joins = self.bus.bind(py).get().shared().bus.backend().joins()?;
        joins.failure(code, said).map_or(Ok(()), |error| Err(error.into()))
    }

    /// Takes the delivery out of hand: the caller's transaction acknowledged it.
    fn settled(&self) {
        if let Some(delivery) = &self.delivery {
            delivery.get().mark_settled();
        }
    }

    /// Drops every step.
    fn rollback(&self) {
        let dropped = self.prepared.lock().take();
        drop(dropped);
    }

    /// Returns the new version of each record put, after the commit.
    #[getter]
    fn versions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        let (keys, versions) = (self.keys.lock().clone(), self.versions.lock().clone());
        for (key, version) in keys.iter().zip(versions) {
            dict.set_item(&**key, version)?;
        }
        Ok(dict)
    }
}
