//! Options of the Redis backend: their meaning, unit, default and validation.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Endpoint, NetConfig, Problems, Retention, seconds, some_seconds};
use crate::error::Result;
use crate::signing::Keys;

/// How the servers of one Redis are arranged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Topology {
    /// One server.
    #[default]
    Single,
    /// Sentinels that know who is master of this service.
    Sentinel {
        /// The name the sentinels know it by.
        service: String,
        /// User name at the sentinels.
        username: Option<String>,
        /// Password at the sentinels.
        password: Option<super::Secret>,
    },
    /// Nodes of a cluster; the bus lives on the master of its hash slot.
    Cluster,
}

/// Which frames broadcasts are sent in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// The msgpack envelope on the bus's own channels.
    #[default]
    Native,
    /// `DataKnobs` JSON on `<channel_prefix>:<topic>`.
    Dataknobs,
}

/// How the server runs the scripts of the bus.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scripts {
    /// As functions where an operator has loaded them, else as scripts.
    #[default]
    Auto,
    /// As functions of the library that `eventbus redis-setup` loads: users need no right to run
    /// scripts of their own.
    Functions,
    /// As scripts that every process loads by itself.
    Eval,
}

/// What is heard beside the native wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Foreign {
    /// `DataKnobs` JSON on the channels of the `channel_prefix`.
    Dataknobs,
}

impl Wire {
    /// Returns the largest message that is expected, in bytes.
    pub(crate) fn largest(self, given: Option<u64>) -> usize {
        let usual = if self == Self::Dataknobs { 16 << 20 } else { 1 << 20 };
        given.map_or(usual, |most| usize::try_from(most).unwrap_or(usize::MAX))
    }

    /// Whether a bus that sends on this wire, and was told to hear these, hears `DataKnobs`.
    pub(crate) fn hears_dataknobs(self, hear: &[Foreign]) -> bool {
        self == Self::Dataknobs || hear.contains(&Foreign::Dataknobs)
    }
}

/// Options of the Redis backend.
///
/// Durations are read from configuration as seconds (a number, fractions allowed).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisConfig {
    /// Where the server, the sentinels or some nodes of the cluster are.
    pub endpoints: Vec<Endpoint>,
    /// How the servers are arranged.
    pub topology: Topology,
    /// Number of the database (default 0).
    pub db: i64,
    /// Connections, time-outs and TLS.
    pub net: NetConfig,
    /// What every key of the bus begins with: buses of different prefixes never meet (default
    /// `eventbus`).
    pub prefix: String,
    /// Prefix of the `DataKnobs` channels (default `events`).
    pub channel_prefix: String,
    /// What broadcasts are sent as.
    pub wire: Wire,
    /// What signs what is sent, and what is received must be signed with (default none).
    pub signing_keys: Keys,
    /// What is heard beside the native wire; with the wire `dataknobs` that is heard anyway (default
    /// nothing).
    pub hear: Vec<Foreign>,
    /// How the server runs the scripts of the bus.
    pub scripts: Scripts,
    /// Largest message that is expected, in bytes: a server whose answers are larger than that allows
    /// is disconnected (default 1 MiB, with the wire `dataknobs` 16 MiB).
    pub max_message_bytes: Option<u64>,
    /// How often what waits is looked at without a wake-up (seconds, default 5).
    #[serde(with = "seconds")]
    pub sweep: Duration,
    /// How long a `dedup_id` is remembered (seconds, default 86,400 = 24 h).
    #[serde(with = "seconds")]
    pub dedup_window: Duration,
    /// How long broadcasts are kept for replay (seconds; 0 = not at all, and what was kept is
    /// forgotten; default: not at all unless `retention_max` is set; it is a setting of the bus:
    /// the last one given holds for every process).
    #[serde(with = "some_seconds")]
    pub retention: Option<Duration>,
    /// Most broadcasts kept for replay; beyond it the oldest are forgotten (messages, default
    /// 1,000,000 with `retention`).
    pub retention_max: Option<u64>,
    /// How long a dead letter is kept (seconds, default 1,209,600 = 14 days).
    #[serde(with = "seconds")]
    pub dead_retention: Duration,
    /// Most dead letters kept per group; beyond it the oldest are removed (messages, default
    /// 100,000).
    pub max_dead: u64,
    /// Most deleted record keys whose last version is remembered one by one. Beyond it a new key
    /// may start above version 1, so that no version is ever reused (keys, default 100,000).
    pub max_tombstones: u64,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            endpoints: vec![Endpoint::Tcp { host: "localhost".into(), port: 6379 }],
            topology: Topology::default(),
            db: 0,
            net: NetConfig::default(),
            prefix: "eventbus".into(),
            channel_prefix: "events".into(),
            wire: Wire::default(),
            signing_keys: Keys::default(),
            hear: Vec::new(),
            scripts: Scripts::default(),
            max_message_bytes: None,
            sweep: Duration::from_secs(5),
            dedup_window: Duration::from_secs(24 * 3600),
            retention: None,
            retention_max: None,
            dead_retention: Duration::from_secs(14 * 24 * 3600),
            max_dead: 100_000,
            max_tombstones: 100_000,
        }
    }
}

impl RedisConfig {
    /// Returns what is kept for replay, if anything was said of it.
    #[must_use]
    pub fn kept(&self) -> Option<Retention> {
        Retention::of(self.retention, self.retention_max)
    }

    /// Returns the largest message that is expected, in bytes.
    pub(crate) fn largest(&self) -> usize {
        self.wire.largest(self.max_message_bytes)
    }

    /// Checks every option.
    ///
    /// # Errors
    /// `Config` listing all problems at once.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Problems::default();
        if self.endpoints.is_empty() {
            problems.add("no host is given".into());
        }
        if !(0..=i64::from(u32::MAX)).contains(&self.db) {
            problems.add(format!("db is {}, must be at least 0", self.db));
        }
        if self.topology == Topology::Cluster && self.db != 0 {
            problems.add(format!("db is {}; a Redis cluster has database 0 only", self.db));
        }
        if self.prefix.is_empty() || self.prefix.contains(['{', '}']) {
            let rule = "must not be empty nor contain { or }, which choose the cluster's slot";
            problems.add(format!("prefix is {:?}; it {rule}", self.prefix));
        }
        problems.at_least_one("max_dead", self.max_dead > 0);
        problems.some_time("sweep", self.sweep);
        problems.some_time("dedup_window", self.dedup_window);
        problems.retention(self.retention_max);
        problems.replay(self.wire, self.kept());
        problems.signing(self.wire, &self.hear, &self.signing_keys);
        problems.some_time("dead_retention", self.dead_retention);
        self.net.check(&mut problems);
        problems.end()
    }
}
