//! Options of the memory backend: their meaning, unit, default and validation.

use std::time::Duration;

use serde::Deserialize;

use super::{Problems, Retention, seconds, some_seconds};
use crate::error::Result;

/// Options of the memory backend.
///
/// Durations are read from configuration as seconds (a number, fractions allowed).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// Most messages a group holds (ready, delayed and in flight) unless its declaration says
    /// otherwise (messages, default 1,000,000).
    pub max_length: u64,
    /// How long a `dedup_id` is remembered (seconds, default 86,400 = 24 h).
    #[serde(with = "seconds")]
    pub dedup_window: Duration,
    /// Most `dedup_id`s remembered at once; beyond it the oldest are forgotten before their window
    /// ends (ids, default 1,000,000).
    pub max_dedup_ids: usize,
    /// How long broadcasts are kept for replay (seconds; 0 = not at all, and what was kept is
    /// forgotten; default: not at all unless `retention_max` is set).
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
    pub max_dead: usize,
    /// Most deleted record keys whose last version is remembered one by one. Beyond it a new key
    /// may start above version 1, so that no version is ever reused (keys, default 100,000).
    pub max_tombstones: usize,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            max_length: 1_000_000,
            dedup_window: Duration::from_secs(24 * 3600),
            max_dedup_ids: 1_000_000,
            retention: None,
            retention_max: None,
            dead_retention: Duration::from_secs(14 * 24 * 3600),
            max_dead: 100_000,
            max_tombstones: 100_000,
        }
    }
}

impl MemoryConfig {
    /// Returns what is kept for replay, if anything was said of it.
    #[must_use]
    pub fn kept(&self) -> Option<Retention> {
        Retention::of(self.retention, self.retention_max)
    }

    /// Checks every option.
    ///
    /// # Errors
    /// `Config` listing all problems at once.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Problems::default();
        problems.at_least_one("max_length", self.max_length > 0);
        problems.at_least_one("max_dedup_ids", self.max_dedup_ids > 0);
        problems.at_least_one("max_dead", self.max_dead > 0);
        problems.some_time("dedup_window", self.dedup_window);
        problems.retention(self.retention_max);
        problems.some_time("dead_retention", self.dead_retention);
        problems.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn the_defaults_are_valid() {
        assert!(MemoryConfig::default().validate().is_ok());
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let config = MemoryConfig {
            max_length: 0,
            max_dead: 0,
            dedup_window: Duration::ZERO,
            ..MemoryConfig::default()
        };
        let problems = match config.validate() {
            Err(Error::Config { problems }) => problems,
            _ => Vec::new(),
        };
        assert_eq!(problems.len(), 3, "{problems:?}");
    }
}
