//! Who waits for a claim, and whom a change wakes.

use std::sync::Arc;
use std::task::Waker;

use tokio::sync::Notify;

/// What to wake once the lock is released; waking runs foreign code, so never under the lock.
#[derive(Debug, Default)]
pub(super) struct Wakes {
    claims: Vec<Arc<Notify>>,
    listeners: Vec<Waker>,
}

impl Wakes {
    pub(super) fn push(&mut self, who: Arc<Notify>) {
        self.claims.push(who);
    }

    pub(super) fn extend(&mut self, listeners: Vec<Waker>) {
        self.listeners.extend(listeners);
    }

    pub(super) fn fire(self) {
        self.claims.iter().for_each(|who| who.notify_one());
        self.listeners.into_iter().for_each(Waker::wake);
    }
}

/// One call of `wait_ready`.
#[derive(Debug)]
pub(super) struct Waiter {
    /// Names it when it is cancelled.
    pub(super) id: u64,
    /// The queues it serves; `None` = all of the group.
    pub(super) queues: Option<Vec<u32>>,
    /// When it looks again by itself.
    pub(super) until: Option<i64>,
    /// Keeps one permit, so a wake-up before the first poll is not lost.
    pub(super) notify: Arc<Notify>,
}

/// The waiting calls of one group; each is woken once and registers again.
#[derive(Debug, Default)]
pub(super) struct Waiters(Vec<Waiter>);

impl Waiters {
    pub(super) fn add(&mut self, waiter: Waiter) {
        self.0.push(waiter);
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.0.retain(|waiter| waiter.id != id);
    }

    /// A message of this queue can be claimed now.
    pub(super) fn ready(&mut self, queue: u32, wakes: &mut Wakes) {
        if !self.0.is_empty() {
            self.wake_if(wakes, |w| w.queues.as_ref().is_none_or(|served| served.contains(&queue)));
        }
    }

    /// Something will happen at this time: who would sleep longer must look again.
    pub(super) fn due(&mut self, at: i64, wakes: &mut Wakes) {
        if !self.0.is_empty() {
            self.wake_if(wakes, |waiter| waiter.until.is_none_or(|until| at < until));
        }
    }

    /// The group changed: everybody must look again.
    pub(super) fn all(&mut self, wakes: &mut Wakes) {
        self.wake_if(wakes, |_| true);
    }

    fn wake_if(&mut self, wakes: &mut Wakes, hit: impl Fn(&Waiter) -> bool) {
        for waiter in self.0.extract_if(.., |waiter| hit(waiter)) {
            wakes.push(waiter.notify);
        }
    }
}
