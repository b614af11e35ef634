//! Options of the backends: one file each, and what their checks share.

mod memory;
mod net;
mod postgres;
mod redis;

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

pub use memory::MemoryConfig;
pub use net::{Endpoint, NetConfig, TlsConfig};
pub use postgres::{LargePayloads, PostgresConfig};
pub use redis::{RedisConfig, Topology, Wire};

use crate::error::{Error, Result};

/// A password or key that no `Debug`, log or error shows.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// Returns the secret, for the one place that sends it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Collects what is wrong with a configuration, so that all of it is said at once.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<String>);

impl Problems {
    pub(crate) fn add(&mut self, problem: String) {
        self.0.push(problem);
    }

    fn at_least_one(&mut self, key: &str, ok: bool) {
        if !ok {
            self.add(format!("{key} is 0, must be at least 1"));
        }
    }

    fn some_time(&mut self, key: &str, value: Duration) {
        if value.is_zero() {
            self.add(format!("{key} is 0 s, must be more"));
        }
    }

    /// Ends the check.
    pub(crate) fn end(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Config { problems: self.0 }) }
    }
}

/// Reads a duration from a number of seconds.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, de::Error};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(from)?;
        Duration::try_from_secs_f64(seconds)
            .map_err(|_| D::Error::custom(format!("{seconds} is not a number of seconds >= 0")))
    }
}
