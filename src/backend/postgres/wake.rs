//! Who waits for which group in this process.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The waits of one backend, by group.
#[derive(Debug, Default)]
pub(super) struct Wakes(Mutex<HashMap<i32, Arc<Notify>, RandomState>>);

impl Wakes {
    /// Returns what is notified when something may be ready in a group.
    pub(super) fn of(&self, group: i32) -> Arc<Notify> {
        let mut waits = self.0.lock();
        // What nobody holds any more is forgotten when the table grows.
        if waits.len() >= 64 {
            waits.retain(|_, notify| Arc::strong_count(notify) > 1);
        }
        Arc::clone(waits.entry(group).or_default())
    }

    pub(super) fn wake(&self, groups: &[i32]) {
        let waits = self.0.lock();
        groups.iter().filter_map(|group| waits.get(group)).for_each(|wait| wait.notify_waiters());
    }

    pub(super) fn all(&self) {
        self.0.lock().values().for_each(|wait| wait.notify_waiters());
    }
}
