//! Who waits for which group in this process, and whether it needs notifications at all.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ahash::RandomState;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::backend::bucket::Bucket;

/// How many wake-ups in a row may be in vain at once, and how often one may beyond that: anybody may
/// notify.
const IN_VAIN: (u32, Duration) = (100, Duration::from_millis(20));

/// What is notified when something may be ready in a group.
#[derive(Debug)]
pub(super) struct Wait {
    pub(super) notify: Notify,
    count: AtomicU64,
    /// Filled by every claim that gets something.
    pub(super) in_vain: Bucket,
}

impl Default for Wait {
    fn default() -> Self {
        let in_vain = Bucket::new(IN_VAIN.0, IN_VAIN.1);
        Self { notify: Notify::new(), count: AtomicU64::new(0), in_vain }
    }
}

impl Wait {
    /// Returns how often it was notified.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    fn wake(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        self.notify.notify_waiters();
    }
}

/// The waits of one backend.
#[derive(Debug, Default)]
pub(super) struct Wakes {
    /// By group.
    waits: Mutex<HashMap<i32, Arc<Wait>, RandomState>>,
    /// Somebody has subscribed or waited: every new connection keeps listening.
    needed: AtomicBool,
    /// The present connection listens.
    arriving: AtomicBool,
}

impl Wakes {
    /// Says that this process needs notifications, from now on for ever.
    pub(super) fn need(&self) {
        self.needed.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_needed(&self) -> bool {
        self.needed.load(Ordering::SeqCst)
    }

    /// Says that the server was told so.
    pub(super) fn set_arriving(&self) {
        self.arriving.store(true, Ordering::SeqCst);
    }

    pub(super) fn are_arriving(&self) -> bool {
        self.arriving.load(Ordering::SeqCst)
    }

    /// Returns the wait of a group.
    pub(super) fn of(&self, group: i32) -> Arc<Wait> {
        let mut waits = self.waits.lock();
        // What nobody holds any more is forgotten when the table grows.
        if waits.len() >= 64 {
            waits.retain(|_, wait| Arc::strong_count(wait) > 1);
        }
        Arc::clone(waits.entry(group).or_default())
    }

    pub(super) fn wake(&self, groups: &[i32]) {
        let waits = self.waits.lock();
        groups.iter().filter_map(|group| waits.get(group)).for_each(|wait| wait.wake());
    }

    pub(super) fn all(&self) {
        self.waits.lock().values().for_each(|wait| wait.wake());
    }
}
