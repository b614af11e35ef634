//! What operators and consumers do to one group beside claims and commits.

use std::sync::Arc;

use super::dead::Letter;
use super::group::{Copy, Group, Place};
use super::micros;
use super::wait::Wakes;
use crate::backend::{
    DeadLetter, EventKey, GroupStats, Lease, MessageAction, MessageId, MessageInfo, MessageState,
};
use crate::error::{Error, Result};
use crate::topic::Binding;

impl Group {
    /// Returns how many copies it holds, dead letters aside.
    pub(super) fn len(&self) -> u64 {
        self.copies.len() as u64
    }

    /// Returns the copy that a lease holds, if its token is current.
    pub(super) fn held(&self, lease: &Lease) -> Option<u32> {
        let index = *self.active.get(&lease.token)?;
        let copy = self.copies.get(index)?;
        let same = copy.message.id == lease.message && copy.queue == lease.binding;
        same.then_some(index)
    }

    /// Moves the end of a lease.
    pub(super) fn extend(&mut self, index: u32, until: i64, wakes: &mut Wakes) {
        let Some(copy) = self.copies.get_mut(index) else { return };
        self.leases.remove(&(copy.at, copy.token));
        copy.at = until;
        self.leases.insert((until, copy.token), index);
        self.waiters.due(until, wakes);
    }

    pub(super) fn pause(&mut self, paused: bool, wakes: &mut Wakes) {
        self.paused = paused;
        self.waiters.all(wakes);
    }

    pub(super) fn describe(&self, event: &EventKey) -> Vec<MessageInfo> {
        let copies = self.copies_of(event);
        let info = |copy: &Copy| MessageInfo {
            group: Arc::clone(&self.name),
            binding: copy.queue,
            message: copy.message.id,
            topic: Arc::clone(&copy.message.topic),
            state: match copy.place {
                Place::Active => MessageState::Active,
                Place::Delayed => MessageState::Delayed,
                Place::Ready | Place::Blocked | Place::Moving => MessageState::Ready,
            },
            at: copy.at,
            attempts: copy.attempts,
            priority: copy.message.priority,
        };
        copies.into_iter().filter_map(|index| self.copies.get(index)).map(info).collect()
    }

    /// Applies an action to the waiting copies of an event; returns how many changed.
    pub(super) fn act_on(
        &mut self,
        event: &EventKey,
        action: MessageAction,
        now: i64,
        wakes: &mut Wakes,
    ) -> u64 {
        let mut changed = 0;
        for index in self.copies_of(event) {
            let place = self.copies.get(index).map_or(Place::Active, |copy| copy.place);
            match (action, place) {
                (_, Place::Active) => continue,
                (MessageAction::Cancel, _) => self.discard(index, wakes),
                (MessageAction::Reschedule(at), _) => {
                    self.displace(index);
                    self.place(index, now, at, wakes);
                }
                (MessageAction::Promote, Place::Delayed) => {
                    self.displace(index);
                    self.place(index, now, now, wakes);
                }
                (MessageAction::Promote, _) => continue,
            }
            changed += 1;
        }
        changed
    }

    /// Removes dead letters beyond the limits of age and number.
    pub(super) fn trim_dead(&mut self, now: i64) {
        let until = now.saturating_sub(self.dead_retention);
        self.counts.removed += self.dead.trim(until, self.max_dead);
    }

    pub(super) fn dead_page(&self, after: Option<MessageId>, limit: usize) -> Vec<DeadLetter> {
        let page = self.dead.page(after, limit).into_iter();
        page.map(|letter| letter.show(&self.name)).collect()
    }

    /// Takes the dead letters that nobody has been told of, at most 100; those that are kept no more
    /// are passed over.
    pub(super) fn take_dead_news(&mut self) -> Vec<DeadLetter> {
        let count = self.dead_news.len().min(100);
        let told = self.dead_news.drain(..count);
        told.filter_map(|(id, queue)| Some(self.dead.last(&id, queue)?.show(&self.name))).collect()
    }

    /// Queues dead letters again. One whose binding is gone, or whose unique key is taken, stays.
    ///
    /// # Errors
    /// `QueueFull` when not all of them find room: then none is moved.
    pub(super) fn retry_dead(
        &mut self,
        ids: &[MessageId],
        seq: &mut u64,
        now: i64,
        wakes: &mut Wakes,
    ) -> Result<u64> {
        let asked: usize = ids.iter().map(|id| self.dead.count(id)).sum();
        if self.len() + asked as u64 > self.max_length {
            let queue = self.name.as_ref().to_owned();
            return Err(Error::QueueFull { queue, limit: self.max_length });
        }
        let mut found = 0;
        for id in ids {
            let (place, letters) = self.dead.take(id);
            for letter in letters {
                let queue = self.bound.get(&letter.binding).copied();
                let Some(queue) = queue.filter(|queue| self.admits(*queue, &letter)) else {
                    self.dead.restore(place, letter);
                    continue;
                };
                *seq += 1;
                let ttl = letter.message.expires_after;
                let expires = ttl.map(|ttl| now.saturating_add(micros(ttl)));
                self.add(&letter.message, (queue, *seq), (now, now, expires), wakes);
                found += 1;
            }
        }
        Ok(found)
    }

    /// Whether a queue has no other message with the letter's unique key.
    fn admits(&self, queue: u32, letter: &Letter) -> bool {
        let taken = |unique| self.queues.get(&queue).is_some_and(|q| q.unique.contains(unique));
        !letter.message.unique.as_ref().is_some_and(taken)
    }

    pub(super) fn discard_dead(&mut self, ids: &[MessageId]) -> u64 {
        let taken: usize = ids.iter().map(|id| self.dead.take(id).1.len()).sum();
        self.counts.removed += taken as u64;
        taken as u64
    }

    pub(super) fn stats(&self, now: i64) -> GroupStats {
        let text = |binding: &Binding| match binding {
            Binding::Topic(topic) => topic.as_ref().to_owned(),
            Binding::Pattern(pattern) => pattern.as_str().to_owned(),
        };
        let bound = self.queues.values().filter(|queue| queue.bound);
        GroupStats {
            group: self.name.as_ref().to_owned(),
            bindings: bound.map(|queue| text(&queue.binding)).collect(),
            paused: self.paused,
            ready: self.ready + self.blocked.len() as u64,
            delayed: self.delayed.len() as u64,
            in_flight: self.active.len() as u64,
            dead: self.dead.len() as u64,
            oldest_age: self.oldest_age(now),
            accepted: self.counts.accepted,
            acked: self.counts.acked,
            retried: self.counts.retried,
            expired_leases: self.counts.expired_leases,
            removed: self.counts.removed,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "an age in seconds needs no microsecond")]
    fn oldest_age(&self, now: i64) -> f64 {
        let ready = self.queues.values().filter_map(|queue| queue.ready.oldest());
        let blocked = self.blocked.first_key_value().map(|(_, index)| *index);
        let oldest = ready.chain(blocked).filter_map(|index| self.copies.get(index));
        let accepted = oldest.map(|copy| copy.accepted_at).min();
        accepted.map_or(0.0, |at| now.saturating_sub(at).max(0) as f64 / 1e6)
    }
}
