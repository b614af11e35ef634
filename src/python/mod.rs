//! The extension module `eventbus._eventbus`: registration only.

mod bus;
mod coarse_clock;
mod consumer;
mod convert;
mod errors;
mod event;
mod exit;
mod hub;
mod invoke;
mod lazy;
mod mailbox;
mod migration;
mod never_awaited;
mod options;
mod publish;
mod redis_client;
mod runner;
mod runtime;
mod slots;
mod stream;
mod transaction;

use pyo3::prelude::*;

/// The compiled core of eventbus; use the package `eventbus` instead.
///
/// A free-threaded interpreter turns its GIL on for it: dictionaries are walked, and cells of events
/// are read, in ways that are only safe while no other thread runs.
#[pymodule(gil_used = true)]
mod _eventbus {
    #[pymodule_export]
    use super::bus::CoreBus;
    #[pymodule_export]
    use super::consumer::{CoreConsumer, CoreDelivery};
    #[pymodule_export]
    use super::convert::{decode, encode};
    #[pymodule_export]
    use super::event::PyEvent;
    #[pymodule_export]
    use super::invoke::Invoke;
    #[pymodule_export]
    use super::mailbox::Pending;
    #[pymodule_export]
    use super::migration::{migrate, redis_setup};
    #[pymodule_export]
    use super::publish::Publish;
    #[pymodule_export]
    use super::redis_client::{RedisClient, RedisSubscription};
    #[pymodule_export]
    use super::runner::Runner;
    #[pymodule_export]
    use super::runtime::{after_fork_in_child, shutdown};
    #[pymodule_export]
    use super::stream::CoreSubscription;
    #[pymodule_export]
    use super::transaction::CoreTransaction;

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        super::slots::install(py);
        super::slots::is_own_iterator::<super::publish::Publish>(py);
        super::slots::is_own_iterator::<super::mailbox::Pending>(py);
        super::slots::is_own_iterator::<super::runner::Runner>(py);
        super::slots::is_own_iterator::<super::invoke::Invoke>(py);
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
