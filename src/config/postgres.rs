//! Options of the Postgres backend: their meaning, unit, default and validation.

use std::time::Duration;

use serde::Deserialize;

use super::{Endpoint, Foreign, NetConfig, Problems, Retention, Wire, seconds, some_seconds};
use crate::error::Result;
use crate::signing::Keys;

/// How a `DataKnobs` broadcast goes that is too large for a notification.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LargePayloads {
    /// By a table, where originals do not find it.
    #[default]
    Table,
    /// Not at all: its publish fails.
    Error,
}

/// Where the bodies of native broadcasts go; a setting of the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bodies {
    /// In notifications, which every role that may connect can listen to.
    Inline,
    /// In a table that only roles of the bus read; notifications name rows of it.
    Table,
}

/// What is accepted without a signature although the bus has keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unsigned {
    /// What the SQL function `publish` stored: JSON in queues and among what is kept for replay.
    Sql,
}

/// Options of the Postgres backend.
///
/// Durations are read from configuration as seconds (a number, fractions allowed).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresConfig {
    /// Where the server is.
    pub endpoint: Endpoint,
    /// The database (default `postgres`).
    pub database: String,
    /// Connections, time-outs and TLS.
    pub net: NetConfig,
    /// The schema of the bus's own tables and functions: `[a-z_][a-z0-9_]{0,40}` (default
    /// `eventbus`).
    pub schema: String,
    /// Whether the schema is brought up to date when connecting (default true); otherwise its
    /// version is checked only, for a role without DDL rights.
    pub migrate: bool,
    /// Most connections beside the one that listens and the one that commits (default 4).
    pub pool_size: usize,
    /// Prefix of the `DataKnobs` channels (default `events`).
    pub channel_prefix: String,
    /// What broadcasts are sent as.
    pub wire: Wire,
    /// What signs what is sent, and what is received must be signed with (default none).
    pub signing_keys: Keys,
    /// What need not be signed (default nothing).
    pub accept_unsigned: Option<Unsigned>,
    /// Where bodies of broadcasts go (default: as the bus is set; a new one says inline; the last one
    /// given holds for every process).
    pub broadcast_bodies: Option<Bodies>,
    /// What is heard beside the native wire; with the wire `dataknobs` that is heard anyway (default
    /// nothing).
    pub hear: Vec<Foreign>,
    /// How `DataKnobs` broadcasts over 7,999 bytes go (default by table).
    pub large_payloads: LargePayloads,
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

impl Default for PostgresConfig {
    fn default() -> Self {
        Self {
            endpoint: Endpoint::Tcp { host: "localhost".into(), port: 5432 },
            database: "postgres".into(),
            net: NetConfig::default(),
            schema: "eventbus".into(),
            migrate: true,
            pool_size: 4,
            channel_prefix: "events".into(),
            wire: Wire::default(),
            signing_keys: Keys::default(),
            accept_unsigned: None,
            broadcast_bodies: None,
            hear: Vec::new(),
            large_payloads: LargePayloads::default(),
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

impl PostgresConfig {
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
        let first = self.schema.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        let rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !first || self.schema.len() > 41 || !self.schema.chars().all(rest) {
            let rule = "must be [a-z_][a-z0-9_]{0,40}";
            problems.add(format!("schema is {:?}, {rule}", self.schema));
        }
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = self.channel_prefix.len();
        if !(1..=61).contains(&length) || !self.channel_prefix.chars().all(word) {
            let rule = "must be 1 to 61 of A-Z, a-z, 0-9 and _";
            problems.add(format!("channel_prefix is {:?}, {rule}", self.channel_prefix));
        }
        problems.at_least_one("pool_size", self.pool_size > 0);
        problems.at_least_one("max_dead", self.max_dead > 0);
        problems.some_time("sweep", self.sweep);
        problems.some_time("dedup_window", self.dedup_window);
        problems.retention(self.retention_max);
        problems.replay(self.wire, self.kept());
        problems.signing(self.wire, &self.hear, &self.signing_keys);
        if self.wire == Wire::Dataknobs && self.broadcast_bodies == Some(Bodies::Table) {
            let why = "processes of the wire dataknobs read bodies in notifications only";
            problems.add(format!("broadcast_bodies is table, but {why}"));
        }
        if self.accept_unsigned.is_some() && self.signing_keys.is_empty() {
            problems.add("accept_unsigned is set without a signing_key".into());
        }
        problems.some_time("dead_retention", self.dead_retention);
        self.net.check(&mut problems);
        problems.end()
    }
}
