//! The dead letters of one group: kept oldest first, bounded by age and number.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use ahash::RandomState;

use crate::backend::{DeadLetter, DeadReason, Message, MessageId};
use crate::topic::Binding;

/// One dead copy.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) message: Arc<Message>,
    pub(super) queue: u32,
    pub(super) binding: Binding,
    pub(super) reason: DeadReason,
    pub(super) error: String,
    pub(super) attempts: u32,
    pub(super) crashes: u32,
    pub(super) died_at: i64,
}

impl Letter {
    /// Returns it as an operator sees it.
    pub(super) fn show(&self, group: &Arc<str>) -> DeadLetter {
        DeadLetter {
            group: Arc::clone(group),
            binding: self.queue,
            message: self.message.id,
            topic: Arc::clone(&self.message.topic),
            body: self.message.body.clone(),
            reason: self.reason,
            error: self.error.clone(),
            attempts: self.attempts,
            crashes: self.crashes,
            died_at: self.died_at,
        }
    }
}

/// All dead copies of a group; copies of one message stand together at its first death.
#[derive(Debug, Default)]
pub(super) struct DeadLetters {
    by_age: BTreeMap<u64, VecDeque<Letter>>,
    places: HashMap<MessageId, u64, RandomState>,
    next: u64,
    len: usize,
}

impl DeadLetters {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, letter: Letter) {
        let place = *self.places.entry(letter.message.id).or_insert_with(|| {
            self.next += 1;
            self.next
        });
        self.by_age.entry(place).or_default().push_back(letter);
        self.len += 1;
    }

    /// Removes what died at or before `until`, then the oldest until at most `max` are left;
    /// returns how many.
    pub(super) fn trim(&mut self, until: i64, max: usize) -> u64 {
        let mut removed = 0;
        while let Some(mut first) = self.by_age.first_entry() {
            let letters = first.get_mut();
            if self.len <= max && letters.front().is_some_and(|letter| letter.died_at > until) {
                break;
            }
            // A message whose copies died apart goes copy by copy.
            let Some(letter) = letters.pop_front() else { return removed };
            if letters.is_empty() {
                first.remove();
                self.places.remove(&letter.message.id);
            }
            self.len -= 1;
            removed += 1;
        }
        removed
    }

    /// Returns letters oldest first, after the message `after` (from the start when it is not
    /// there); whole messages until at least `limit` letters.
    pub(super) fn page(&self, after: Option<MessageId>, limit: usize) -> Vec<&Letter> {
        let after = after.and_then(|id| self.places.get(&id)).map_or(0, |place| place + 1);
        let mut found = Vec::new();
        for letters in self.by_age.range(after..).map(|(_, letters)| letters) {
            if found.len() >= limit {
                break;
            }
            found.extend(letters);
        }
        found
    }

    /// Returns how many letters of one message there are.
    pub(super) fn count(&self, id: &MessageId) -> usize {
        self.places.get(id).and_then(|place| self.by_age.get(place)).map_or(0, VecDeque::len)
    }

    /// Returns the youngest letter of one message in one queue.
    pub(super) fn last(&self, id: &MessageId, queue: u32) -> Option<&Letter> {
        let letters = self.by_age.get(self.places.get(id)?)?;
        letters.iter().rev().find(|letter| letter.queue == queue)
    }

    /// Takes the letters of one message, and tells their place for `restore`.
    pub(super) fn take(&mut self, id: &MessageId) -> (u64, VecDeque<Letter>) {
        let Some(place) = self.places.remove(id) else { return (0, VecDeque::new()) };
        let letters = self.by_age.remove(&place).unwrap_or_default();
        self.len -= letters.len();
        (place, letters)
    }

    /// Puts a taken letter back where it was.
    pub(super) fn restore(&mut self, place: u64, letter: Letter) {
        self.places.insert(letter.message.id, place);
        self.by_age.entry(place).or_default().push_back(letter);
        self.len += 1;
    }
}
