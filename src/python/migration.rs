//! The function `migrate`: the schema of a Postgres bus.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::bus::read_config;
use super::mailbox::Pending;
use super::runtime;
use crate::bus;
use crate::config::PostgresConfig;

/// Brings a schema up to date; returns the version that was there, the one of this build, and the
/// statements.
#[pyfunction]
pub(crate) fn migrate(
    config: &Bound<'_, PyDict>,
    grant_role: Option<String>,
    apply: bool,
) -> PyResult<Pending> {
    let config: PostgresConfig = read_config(config)?;
    runtime::runtime()?;
    Ok(Pending::new(move |_py| {
        let work =
            async move { bus::migrate_postgres(&config, grant_role.as_deref(), apply).await };
        Ok(Pending::run(work, |py, done| {
            let found = (done.found, done.known, done.statements);
            Ok(found.into_pyobject(py)?.into_any().unbind())
        }))
    })
    .named("migrate"))
}
