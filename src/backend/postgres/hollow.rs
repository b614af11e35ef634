//! Looks that saw something ready which no claim then found, so that a consumer does not spin.

use std::collections::HashMap;
use std::time::Duration;

use ahash::RandomState;
use parking_lot::Mutex;

/// So many in a row are usual: another consumer was faster.
const USUAL: u32 = 2;

/// Looks in a row that saw something ready, without a claim that found something, by group. What is
/// ready may be locked by somebody's open transaction.
#[derive(Debug, Default)]
pub(super) struct Hollow(Mutex<HashMap<Box<str>, u32, RandomState>>);

impl Hollow {
    /// Something was claimed, or nothing is ready.
    pub(super) fn clear(&self, group: &str) {
        self.0.lock().remove(group);
    }

    /// Something seems ready: returns how long to wait before claiming it.
    pub(super) fn pause(&self, group: &str) -> Duration {
        let mut looks = self.0.lock();
        let count = looks.entry(group.into()).or_insert(0);
        *count = count.saturating_add(1);
        match count.saturating_sub(USUAL) {
            0 => Duration::ZERO,
            many => Duration::from_millis(5 << many.min(6)),
        }
    }
}
