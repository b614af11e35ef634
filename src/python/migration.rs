//! What operators do once: the schema of a Postgres bus, the functions of a Redis bus.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::bus::read_config;
use super::mailbox::Pending;
use super::runtime;
use crate::bus;
use crate::bus::Loaded;
use crate::config::{PostgresConfig, RedisConfig};

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

/// Loads the functions of a bus into its Redis servers; returns the name of their library, its text,
/// and what became of it on each server.
#[pyfunction]
pub(crate) fn redis_setup(config: &Bound<'_, PyDict>, apply: bool) -> PyResult<Pending> {
    let config: RedisConfig = read_config(config)?;
    runtime::runtime()?;
    Ok(Pending::new(move |_py| {
        let work = async move { bus::setup_redis(&config, apply).await };
        Ok(Pending::run(work, |py, done| {
            let of = |(server, loaded)| (server, word(loaded));
            let servers: Vec<(String, &str)> = done.servers.into_iter().map(of).collect();
            Ok((done.library, done.text, servers).into_pyobject(py)?.into_any().unbind())
        }))
    })
    .named("redis_setup"))
}

fn word(loaded: Loaded) -> &'static str {
    match loaded {
        Loaded::Unchanged => "unchanged",
        Loaded::New => "new",
        Loaded::Replaced => "replaced",
    }
}
