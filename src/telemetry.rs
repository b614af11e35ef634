//! Counters of one bus: what was delivered, failed, dropped or malformed.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Counts since the bus was made; relaxed, as they are read for display only.
#[derive(Debug, Default)]
pub struct Counters {
    /// Handler calls that ended well, per subscription and event.
    pub delivered: Counter,
    /// Handler calls that raised.
    pub failed: Counter,
    /// Events dropped by an overflow, a cancelled subscription or a closed loop.
    pub dropped: Counter,
    /// Messages that could not be decoded.
    pub malformed: Counter,
    /// Gaps announced.
    pub gaps: Counter,
    /// Leases lost to another worker or the sweep.
    pub leases_lost: Counter,
}

/// One counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the count.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Returns the count.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // the fields of `Counters`
pub struct Counts {
    pub delivered: u64,
    pub failed: u64,
    pub dropped: u64,
    pub malformed: u64,
    pub unsigned: u64,
    pub gaps: u64,
    pub leases_lost: u64,
}

impl Counters {
    /// Returns the counts, with what the gate of the backend did not let in.
    #[must_use]
    pub fn snapshot(&self, unsigned: u64) -> Counts {
        Counts {
            delivered: self.delivered.get(),
            failed: self.failed.get(),
            dropped: self.dropped.get(),
            malformed: self.malformed.get(),
            unsigned,
            gaps: self.gaps.get(),
            leases_lost: self.leases_lost.get(),
        }
    }
}
