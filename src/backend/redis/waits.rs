//! Who waits in this process for a claim, and whom a wake-up of the server wakes.

use std::sync::Arc;

use ahash::AHashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Debug, Default)]
struct State {
    next: u64,
    groups: AHashMap<Arc<str>, Vec<(u64, Arc<Notify>)>>,
    closed: bool,
}

/// The waiting calls, by group.
#[derive(Debug, Default)]
pub(super) struct Waits(Mutex<State>);

/// A place among them, given up when dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    waits: Arc<Waits>,
    group: Arc<str>,
    id: u64,
    notify: Arc<Notify>,
}

impl Waits {
    /// Takes a place; a wake-up from now on is not missed.
    pub(super) fn enter(self: &Arc<Self>, group: &Arc<str>) -> Waiting {
        let notify = Arc::new(Notify::new());
        let mut state = self.0.lock();
        state.next += 1;
        let id = state.next;
        if state.closed {
            notify.notify_one();
        }
        state.groups.entry(Arc::clone(group)).or_default().push((id, Arc::clone(&notify)));
        Waiting { waits: Arc::clone(self), group: Arc::clone(group), id, notify }
    }

    /// Wakes who waits for a group; returns whether there was anybody.
    pub(super) fn wake(&self, group: &str) -> bool {
        let state = self.0.lock();
        let Some(waiting) = state.groups.get(group) else { return false };
        waiting.iter().for_each(|(_, notify)| notify.notify_one());
        !waiting.is_empty()
    }

    /// Wakes everybody: after a hole nobody knows what was missed.
    pub(super) fn wake_all(&self) {
        let state = self.0.lock();
        state.groups.values().flatten().for_each(|(_, notify)| notify.notify_one());
    }

    /// Wakes everybody, and who comes later at once.
    pub(super) fn close(&self) {
        self.0.lock().closed = true;
        self.wake_all();
    }
}

impl Waiting {
    pub(super) async fn woken(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.waits.0.lock();
        if let Some(waiting) = state.groups.get_mut(&self.group) {
            waiting.retain(|(id, _)| *id != self.id);
            if waiting.is_empty() {
                state.groups.remove(&self.group);
            }
        }
    }
}
