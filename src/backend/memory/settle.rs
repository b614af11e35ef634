//! How a claim or a wait ends: settled, dead, taken back or expired.

use std::collections::BTreeMap;

use super::dead::Letter;
use super::group::Group;
use super::micros;
use super::wait::Wakes;
use crate::backend::{DeadReason, Outcome, cut_error};

/// Most dead letters that wait to be told.
const MAX_NEWS: usize = 1000;

impl Group {
    /// Removes a copy and counts it as removed.
    pub(super) fn discard(&mut self, index: u32, wakes: &mut Wakes) {
        if self.remove(index, wakes).is_some() {
            self.counts.removed += 1;
        }
    }

    /// Moves a copy to the dead letters.
    pub(super) fn bury(
        &mut self,
        index: u32,
        now: i64,
        (reason, error): (DeadReason, Option<String>),
        wakes: &mut Wakes,
    ) {
        let queue = self.copies.get(index).and_then(|copy| self.queues.get(&copy.queue));
        let Some(binding) = queue.map(|queue| queue.binding.clone()) else { return };
        let Some(copy) = self.remove(index, wakes) else { return };
        let error = error.unwrap_or_else(|| copy.error.map(String::from).unwrap_or_default());
        let letter = Letter {
            message: copy.message,
            queue: copy.queue,
            binding,
            reason,
            error: cut_error(error),
            attempts: copy.attempts,
            crashes: copy.crashes,
            died_at: now,
        };
        if reason.is_news() {
            if self.dead_news.len() == MAX_NEWS {
                self.dead_news.pop_front();
            }
            self.dead_news.push_back((letter.message.id, letter.queue));
        }
        self.dead.push(letter);
        self.trim_dead(now);
    }

    /// Ends the claim with this token.
    pub(super) fn settle(&mut self, index: u32, outcome: Outcome, now: i64, wakes: &mut Wakes) {
        let Some(copy) = self.copies.get_mut(index) else { return };
        if outcome != Outcome::Crash {
            copy.crashes = copy.crashes.saturating_sub(1);
        }
        match outcome {
            Outcome::Ack => {
                self.counts.acked += 1;
                self.remove(index, wakes);
            }
            Outcome::Retry { after, error } => {
                copy.attempts += 1;
                copy.error = Some(cut_error(error).into());
                self.counts.retried += 1;
                let due = now.saturating_add(micros(after));
                self.give_back(index, now, due, wakes);
            }
            Outcome::Dead { reason, error } => {
                if reason == DeadReason::Failed {
                    copy.attempts += 1;
                }
                self.bury(index, now, (reason, Some(error)), wakes);
            }
            Outcome::Release | Outcome::Crash => self.give_back(index, now, now, wakes),
            Outcome::Defer { after } => {
                let due = now.saturating_add(micros(after));
                self.give_back(index, now, due, wakes);
            }
        }
    }

    /// Returns a claimed copy to its place in the queue, if that is still there.
    fn give_back(&mut self, index: u32, now: i64, due: i64, wakes: &mut Wakes) {
        let queue = self.copies.get(index).map(|copy| copy.queue);
        if queue.and_then(|queue| self.queues.get(&queue)).is_none_or(|queue| !queue.bound) {
            return self.discard(index, wakes);
        }
        self.displace(index);
        self.place(index, now, due, wakes);
    }

    /// Does what time has brought: leases that ran out, messages now due, ended times to live.
    pub(super) fn sweep(&mut self, now: i64, wakes: &mut Wakes) {
        while let Some((_, index)) = first_until(&self.leases, now) {
            self.counts.expired_leases += 1;
            self.give_back(index, now, now, wakes);
        }
        while let Some((_, index)) = first_until(&self.delayed, now) {
            self.displace(index);
            self.place(index, now, now, wakes);
        }
        self.expire(now, wakes);
    }

    /// Buries what waits and may no longer be delivered.
    pub(super) fn expire(&mut self, now: i64, wakes: &mut Wakes) {
        while let Some((_, index)) = first_until(&self.ends, now) {
            let error = "not delivered before its time to live ended".to_owned();
            self.bury(index, now, (DeadReason::Expired, Some(error)), wakes);
        }
    }

    /// Returns the next time at which `sweep` may make something ready.
    pub(super) fn next_change(&self) -> Option<i64> {
        let delayed = self.delayed.first_key_value().map(|((at, _), _)| *at);
        let leases = self.leases.first_key_value().map(|((at, _), _)| *at);
        delayed.into_iter().chain(leases).min()
    }
}

/// Returns the first entry that is due.
fn first_until(entries: &BTreeMap<(i64, u64), u32>, now: i64) -> Option<(i64, u32)> {
    let ((at, _), index) = entries.first_key_value()?;
    (*at <= now).then_some((*at, *index))
}
