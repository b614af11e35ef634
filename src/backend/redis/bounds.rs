//! How much a claim of a group may bring, learned from answers that were lost.
//!
//! A server ends the connection of a client whose answer is larger than its limit
//! (`client-output-buffer-limit normal`, `maxmemory-clients`). Every lost answer halves the next one.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::backend::MAX_CLAIM_BYTES;

/// For how long what was learned holds; then twice as much is tried.
const HOLDS: Duration = Duration::from_secs(60);

/// What one claim may bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) most: usize,
    pub(super) bytes: usize,
}

impl Bound {
    fn all(most: usize) -> Self {
        Self { most, bytes: MAX_CLAIM_BYTES }
    }

    /// Returns half of it; one message at least.
    pub(super) fn half(self) -> Self {
        Self { most: (self.most / 2).max(1), bytes: (self.bytes / 2).max(1) }
    }

    fn double(self) -> Self {
        Self { most: self.most.saturating_mul(2), bytes: self.bytes.saturating_mul(2) }
    }
}

#[derive(Debug)]
struct Learned {
    bound: Bound,
    /// Answers lost since it was learned: one alone may have been lost by chance.
    losses: u32,
    last: Instant,
}

/// The bounds of the groups whose answers were lost.
#[derive(Debug, Default)]
pub(super) struct Bounds(Mutex<AHashMap<Arc<str>, Learned>>);

impl Bounds {
    /// Returns what a claim for so many may bring.
    pub(super) fn of(&self, group: &Arc<str>, most: usize) -> Bound {
        let mut all = self.0.lock();
        let Some(learned) = all.get_mut(group) else { return Bound::all(most) };
        if learned.last.elapsed() >= HOLDS {
            learned.bound = learned.bound.double();
            learned.last = Instant::now();
            if learned.losses <= 1
                || (learned.bound.bytes >= MAX_CLAIM_BYTES && learned.bound.most >= most)
            {
                all.remove(group);
                return Bound::all(most);
            }
        }
        if learned.losses <= 1 {
            return Bound::all(most);
        }
        Bound { most: learned.bound.most.min(most), bytes: learned.bound.bytes }
    }

    /// Takes note of a lost answer to a claim with this bound; returns the next one.
    pub(super) fn lost(&self, group: &Arc<str>, bound: Bound) -> Bound {
        let half = bound.half();
        let mut all = self.0.lock();
        let last = Instant::now();
        let learned = all.entry(Arc::clone(group)).or_insert(Learned { bound, losses: 0, last });
        *learned = Learned { bound: half, losses: learned.losses + 1, last };
        half
    }

    /// Forgets what was learned from a message that is out of the way.
    pub(super) fn forget(&self, group: &str) {
        self.0.lock().remove(group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_second_loss_holds_for_a_minute_and_then_twice_as_much_is_tried() {
        let (bounds, group): (_, Arc<str>) = (Bounds::default(), "g".into());
        let all = bounds.of(&group, 16);
        assert_eq!(all, Bound { most: 16, bytes: MAX_CLAIM_BYTES });
        let half = bounds.lost(&group, all);
        assert_eq!(half, Bound { most: 8, bytes: MAX_CLAIM_BYTES / 2 });
        assert_eq!(bounds.of(&group, 16), all, "one may have been lost by chance");
        let quarter = bounds.lost(&group, half);
        assert_eq!(bounds.of(&group, 16), quarter);
        assert_eq!(bounds.of(&group, 2).most, 2);
        tokio::time::advance(HOLDS).await;
        assert_eq!(bounds.of(&group, 16), half);
        tokio::time::advance(HOLDS).await;
        assert_eq!(bounds.of(&group, 16), all);
        assert!(bounds.0.lock().is_empty());
    }

    #[test]
    fn one_message_always_comes() {
        let (bounds, group): (_, Arc<str>) = (Bounds::default(), "g".into());
        let mut bound = bounds.of(&group, 1000);
        for _ in 0..100 {
            bound = bounds.lost(&group, bound);
        }
        assert_eq!(bound, Bound { most: 1, bytes: 1 });
        bounds.forget(&group);
        assert_eq!(bounds.of(&group, 7).most, 7);
    }
}
