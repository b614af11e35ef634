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
pub use postgres::{Bodies, LargePayloads, PostgresConfig, Unsigned};
pub use redis::{Foreign, RedisConfig, Scripts, Topology, Wire};

use crate::error::{Error, Result};
use crate::signing::Keys;

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

/// Most broadcasts kept for replay unless it is said otherwise.
const MOST_KEPT: u64 = 1_000_000;

/// How long, and how many, broadcasts are kept for replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// How long; `None` = as long as they are not too many.
    pub age: Option<Duration>,
    /// How many; 0 = none: what was kept is forgotten.
    pub max: u64,
}

impl Retention {
    /// Returns what the options `retention` and `retention_max` ask for; `None` = nothing.
    fn of(age: Option<Duration>, max: Option<u64>) -> Option<Self> {
        if age.is_none() && max.is_none() {
            return None;
        }
        let off = age.is_some_and(|age| age.is_zero());
        Some(Self { age, max: if off { 0 } else { max.unwrap_or(MOST_KEPT) } })
    }

    /// Whether anything is kept.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.max > 0
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

    fn retention(&mut self, max: Option<u64>) {
        self.at_least_one("retention_max", max != Some(0));
    }

    fn replay(&mut self, wire: Wire, kept: Option<Retention>) {
        if wire == Wire::Dataknobs && kept.is_some_and(|kept| kept.is_on()) {
            self.add("retention is set, which the wire dataknobs cannot replay".into());
        }
    }

    fn signing(&mut self, wire: Wire, hear: &[Foreign], keys: &Keys) {
        if wire.hears_dataknobs(hear) && !keys.is_empty() {
            let why = "a frame of the wire dataknobs has no place for a signature";
            self.add(format!("signing_key is set, but {why}: anybody could send such a frame"));
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

/// Reads a duration from a number of seconds, or none.
mod some_seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        Option::<f64>::deserialize(from)?.map(super::seconds::read).transpose()
    }
}

/// Reads a duration from a number of seconds.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, de::Error};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        read(f64::deserialize(from)?)
    }

    pub(super) fn read<E: Error>(seconds: f64) -> Result<Duration, E> {
        Duration::try_from_secs_f64(seconds)
            .map_err(|_| E::custom(format!("{seconds} is not a number of seconds >= 0")))
    }
}
