//! The ids published inside the dedup window.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ahash::RandomState;

/// Names a `dedup_id` of a topic; no two pairs have the same text.
pub(super) fn name(topic: &str, id: &str) -> Arc<str> {
    format!("{}:{topic}{id}", topic.len()).into()
}

/// What was published lately; all ids live equally long, so they end in order of arrival.
#[derive(Debug, Default)]
pub(super) struct Window {
    until: HashMap<Arc<str>, i64, RandomState>,
    arrivals: VecDeque<(i64, Arc<str>)>,
}

impl Window {
    pub(super) fn contains(&self, name: &str, now: i64) -> bool {
        self.until.get(name).is_some_and(|until| *until > now)
    }

    /// Remembers an id, and forgets what ended and what is more than `max`.
    pub(super) fn insert(&mut self, name: Arc<str>, now: i64, until: i64, max: usize) {
        while let Some((end, oldest)) = self.arrivals.front() {
            if *end > now && self.arrivals.len() < max {
                break;
            }
            // The id may have been published again after its window: then this entry is not its.
            if self.until.get(oldest) == Some(end) {
                self.until.remove(oldest);
            }
            self.arrivals.pop_front();
        }
        self.arrivals.push_back((until, Arc::clone(&name)));
        self.until.insert(name, until);
    }
}
