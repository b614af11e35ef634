//! The moves of one copy between the places of its group.

use super::group::{Group, Place};
use super::wait::Wakes;
use crate::backend::Token;

impl Group {
    /// Puts a moving copy where it belongs.
    pub(super) fn place(&mut self, index: u32, now: i64, due: i64, wakes: &mut Wakes) {
        let Some(copy) = self.copies.get_mut(index) else { return };
        copy.token = 0;
        copy.at = due.max(now);
        if let Some(end) = copy.expires {
            self.ends.insert((end, copy.seq), index);
        }
        if due > now {
            copy.place = Place::Delayed;
            self.delayed.insert((due, copy.seq), index);
            self.waiters.due(due, wakes);
            return;
        }
        let head = copy.message.key.as_ref().and_then(|key| self.keys.get(key)?.first_key_value());
        if head.is_some_and(|(seq, _)| *seq != copy.seq) {
            copy.place = Place::Blocked;
            self.blocked.insert(copy.seq, index);
            return;
        }
        self.make_ready(index, wakes);
    }

    pub(super) fn make_ready(&mut self, index: u32, wakes: &mut Wakes) {
        let Some(copy) = self.copies.get_mut(index) else { return };
        let Some(queue) = self.queues.get_mut(&copy.queue) else { return };
        copy.place = Place::Ready;
        queue.ready.push(copy.message.priority, copy.seq, index);
        self.ready += 1;
        if !self.paused {
            self.waiters.ready(copy.queue, wakes);
        }
    }

    /// Takes a copy out of the index of its place.
    pub(super) fn displace(&mut self, index: u32) {
        let Some(copy) = self.copies.get_mut(index) else { return };
        match copy.place {
            Place::Moving => {}
            Place::Ready => {
                if let Some(queue) = self.queues.get_mut(&copy.queue) {
                    queue.ready.remove(copy.message.priority, copy.seq);
                }
                self.ready -= 1;
            }
            Place::Blocked => {
                self.blocked.remove(&copy.seq);
            }
            Place::Delayed => {
                self.delayed.remove(&(copy.at, copy.seq));
            }
            Place::Active => {
                self.leases.remove(&(copy.at, copy.token));
                self.active.remove(&copy.token);
            }
        }
        if let (Some(end), true) = (copy.expires, copy.place != Place::Active) {
            self.ends.remove(&(end, copy.seq));
        }
        copy.place = Place::Moving;
    }

    /// Marks a copy that `Ready::pop` gave as claimed.
    pub(super) fn lease(&mut self, index: u32, token: Token, until: i64, wakes: &mut Wakes) {
        self.ready -= 1;
        let Some(copy) = self.copies.get_mut(index) else { return };
        if let Some(end) = copy.expires {
            self.ends.remove(&(end, copy.seq));
        }
        copy.place = Place::Active;
        copy.crashes += 1;
        copy.token = token;
        copy.at = until;
        self.leases.insert((until, token), index);
        self.active.insert(token, index);
        self.waiters.due(until, wakes);
    }
}
