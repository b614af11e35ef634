//! What can be claimed of one queue: strict priority, then order of acceptance.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

/// The place of a message among the ready ones; smaller is sooner.
pub(super) type Rank = (Reverse<i16>, u64);

/// Marks an entry of a line that was taken out of the middle.
const GONE: u32 = u32::MAX;

/// The ready messages of one priority, by sequence.
///
/// New messages arrive in sequence and go to a ring; what comes back (a retry, a release, a due
/// message, the next of a key) is older than the ring's end and goes to a tree.
#[derive(Debug, Default)]
struct Line {
    fresh: VecDeque<(u64, u32)>,
    gone: usize,
    back: BTreeMap<u64, u32>,
}

impl Line {
    fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.back.is_empty()
    }

    fn push(&mut self, seq: u64, index: u32) {
        match self.fresh.back() {
            // `>=`: the end of the ring may be this message's own entry, taken out before.
            Some((last, _)) if *last >= seq => {
                self.back.insert(seq, index);
            }
            _ => self.fresh.push_back((seq, index)),
        }
    }

    fn first(&self) -> Option<(u64, u32)> {
        let fresh = self.fresh.front().copied();
        if self.back.is_empty() {
            return fresh;
        }
        let back = self.back.first_key_value().map(|(seq, index)| (*seq, *index));
        fresh.into_iter().chain(back).min()
    }

    fn peek(&self) -> Option<u64> {
        self.first().map(|(seq, _)| seq)
    }

    fn pop(&mut self) -> Option<u32> {
        let seq = self.peek()?;
        if self.fresh.front().is_some_and(|(first, _)| *first == seq) {
            let taken = self.fresh.pop_front().map(|(_, index)| index);
            self.trim();
            return taken;
        }
        self.back.pop_first().map(|(_, index)| index)
    }

    fn remove(&mut self, seq: u64) {
        if self.back.remove(&seq).is_some() {
            return;
        }
        let Ok(at) = self.fresh.binary_search_by_key(&seq, |(seq, _)| *seq) else { return };
        self.fresh[at].1 = GONE;
        self.gone += 1;
        self.trim();
    }

    /// Keeps the front live, and the ring at most half gone.
    fn trim(&mut self) {
        if self.gone == 0 {
            return;
        }
        while self.fresh.front().is_some_and(|(_, index)| *index == GONE) {
            self.fresh.pop_front();
            self.gone -= 1;
        }
        if self.gone * 2 > self.fresh.len() {
            self.fresh.retain(|(_, index)| *index != GONE);
            self.gone = 0;
        }
    }
}

/// The ready messages of one queue.
#[derive(Debug, Default)]
pub(super) struct Ready {
    /// Priority 0, kept apart because nearly everything has it.
    normal: Line,
    others: BTreeMap<Reverse<i16>, Line>,
}

impl Ready {
    pub(super) fn push(&mut self, priority: i16, seq: u64, index: u32) {
        if priority == 0 {
            self.normal.push(seq, index);
        } else {
            self.others.entry(Reverse(priority)).or_default().push(seq, index);
        }
    }

    /// Returns the rank of what `pop` would take.
    pub(super) fn peek(&self) -> Option<Rank> {
        let normal = self.normal.peek().map(|seq| (Reverse(0), seq));
        if self.others.is_empty() {
            return normal;
        }
        // A line is removed with its last message, so the first one has a head.
        let (priority, line) = self.others.first_key_value()?;
        let other = line.peek().map(|seq| (*priority, seq));
        match (normal, other) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    pub(super) fn pop(&mut self) -> Option<u32> {
        if self.others.is_empty() {
            return self.normal.pop();
        }
        let (Reverse(priority), _) = self.peek()?;
        if priority == 0 {
            return self.normal.pop();
        }
        let line = self.others.get_mut(&Reverse(priority))?;
        let taken = line.pop();
        if line.is_empty() {
            self.others.remove(&Reverse(priority));
        }
        taken
    }

    pub(super) fn remove(&mut self, priority: i16, seq: u64) {
        if priority == 0 {
            return self.normal.remove(seq);
        }
        let Some(line) = self.others.get_mut(&Reverse(priority)) else { return };
        line.remove(seq);
        if line.is_empty() {
            self.others.remove(&Reverse(priority));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.normal.is_empty() && self.others.is_empty()
    }

    /// Returns the index of the message that was accepted first, whatever its priority.
    pub(super) fn oldest(&self) -> Option<u32> {
        let lines = self.others.values().chain([&self.normal]);
        lines.filter_map(Line::first).min().map(|(_, index)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_first_again_and_priorities_are_strict() {
        let mut ready = Ready::default();
        ready.push(0, 2, 2);
        ready.push(0, 3, 3);
        ready.push(-1, 4, 4);
        ready.push(7, 5, 5);
        ready.push(0, 1, 1);
        let order: Vec<_> = std::iter::from_fn(|| ready.pop()).collect();
        assert_eq!(order, [5, 1, 2, 3, 4]);
        assert!(ready.is_empty());
    }

    #[test]
    fn removing_from_the_middle_leaves_the_rest_and_no_litter() {
        let mut ready = Ready::default();
        for seq in 0..1000 {
            ready.push(0, seq, u32::try_from(seq).unwrap_or(0));
        }
        for seq in 1..999 {
            ready.remove(0, seq);
        }
        assert!(ready.normal.fresh.len() <= 4, "{}", ready.normal.fresh.len());
        assert_eq!(ready.oldest(), Some(0));
        assert_eq!((ready.pop(), ready.pop(), ready.pop()), (Some(0), Some(999), None));
    }
}
