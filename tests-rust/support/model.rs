//! A reference model of groups, dedup and records, simple enough to be read as their definition.
//!
//! Every rule is a scan over one list; a transaction works on a copy that is kept or thrown away.

use std::collections::{BTreeMap, BTreeSet};

/// What a publish asks for, in small numbers.
#[derive(Debug, Clone)]
pub struct Publish {
    pub id: u64,
    pub topic: usize,
    pub key: Option<u8>,
    pub priority: i16,
    pub delay: i64,
    pub ttl: Option<i64>,
    pub unique: Option<u8>,
    pub dedup: Option<u8>,
}

#[derive(Debug, Clone)]
pub enum Settle {
    Ack,
    Retry(i64),
    Reject,
    Fail,
    Release,
}

/// One copy of a message in a group.
#[derive(Debug, Clone)]
pub struct Copy {
    pub message: Publish,
    pub queue: u32,
    pub seq: u64,
    /// Token and end of the lease while it is claimed.
    pub lease: Option<(u64, i64)>,
    pub due: i64,
    pub expires: Option<i64>,
    pub attempts: u32,
    pub crashes: u32,
}

/// Why and how a copy died, as far as it is compared: id, reason, attempts, crashes.
pub type Dead = (u64, &'static str, u32, u32);

#[derive(Debug, Clone, Default)]
pub struct Group {
    pub copies: Vec<Copy>,
    pub dead: Vec<(Dead, Copy)>,
    /// (binding, queue) in order of declaration; binding 2 matches every topic.
    pub bound: Vec<(usize, u32)>,
    pub queues: u32,
    pub paused: bool,
    pub max_length: usize,
    pub accepted: u64,
    pub acked: u64,
    pub removed: u64,
    pub retried: u64,
    pub expired_leases: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    QueueFull,
    LeaseLost,
    VersionConflict,
}

#[derive(Debug, Clone, Default)]
pub struct Model {
    pub now: i64,
    pub groups: Vec<Group>,
    /// (group, binding) in order of declaration, which is the order in which a publish visits them.
    pub routes: Vec<(usize, usize)>,
    pub seq: u64,
    pub dedup: BTreeSet<(usize, u8)>,
    /// Last version and whether it exists.
    pub records: BTreeMap<u8, (u64, bool)>,
}

impl Group {
    pub fn bind(&mut self, binding: usize) {
        if self.bound.iter().all(|(bound, _)| *bound != binding) {
            self.bound.push((binding, self.queues));
            self.queues += 1;
        }
    }

    pub fn unbind(&mut self, binding: usize) -> u64 {
        let Some(at) = self.bound.iter().position(|(bound, _)| *bound == binding) else { return 0 };
        let (_, queue) = self.bound.remove(at);
        self.remove_waiting(|copy| copy.queue == queue)
    }

    pub fn remove_waiting(&mut self, hit: impl Fn(&Copy) -> bool) -> u64 {
        let before = self.copies.len();
        self.copies.retain(|copy| copy.lease.is_some() || !hit(copy));
        let removed = (before - self.copies.len()) as u64;
        self.removed += removed;
        removed
    }

    pub fn is_bound(&self, queue: u32) -> bool {
        self.bound.iter().any(|(_, bound)| *bound == queue)
    }

    fn bury(&mut self, at: usize, reason: &'static str) {
        let copy = self.copies.remove(at);
        self.dead.push(((copy.message.id, reason, copy.attempts, copy.crashes), copy));
    }

    fn give_back(&mut self, at: usize, due: i64) {
        if self.is_bound(self.copies[at].queue) {
            self.copies[at].lease = None;
            self.copies[at].due = due;
        } else {
            self.copies.remove(at);
            self.removed += 1;
        }
    }

    /// Returns the sequence numbers of what waits and may no longer be delivered, in order of death.
    pub fn ended(&self, now: i64) -> Vec<u64> {
        let ended = |copy: &&Copy| copy.lease.is_none() && copy.expires.is_some_and(|at| at <= now);
        let mut ended: Vec<_> = self.copies.iter().filter(ended).collect();
        ended.sort_by_key(|copy| (copy.expires, copy.seq));
        ended.into_iter().map(|copy| copy.seq).collect()
    }

    pub fn expire(&mut self, ended: &[u64]) {
        for seq in ended {
            if let Some(at) = self.copies.iter().position(|copy| copy.seq == *seq) {
                self.bury(at, "expired");
            }
        }
    }

    pub fn sweep(&mut self, now: i64) {
        let over = |copy: &Copy| copy.lease.is_some_and(|(_, until)| until <= now);
        while let Some(at) = self.copies.iter().position(over) {
            self.expired_leases += 1;
            self.give_back(at, now);
        }
        self.expire(&self.ended(now));
    }

    /// Whether it is the first of its key in the group.
    fn is_head(&self, copy: &Copy) -> bool {
        let same = |other: &&Copy| other.message.key == copy.message.key;
        copy.message.key.is_none()
            || self.copies.iter().filter(same).all(|other| other.seq >= copy.seq)
    }

    /// Claims; returns (id, queue, attempts, crashes) in order. The caller tells the tokens after:
    /// until then the nth copy (from 0) has the token `u64::MAX - n`.
    pub fn claim(
        &mut self,
        now: i64,
        served: &[u32],
        max: usize,
        until: i64,
        max_deliveries: u32,
    ) -> Vec<(u64, u32, u32, u32)> {
        self.sweep(now);
        let mut claimed = Vec::new();
        while claimed.len() < max && !self.paused {
            let fits = |copy: &Copy| {
                copy.lease.is_none()
                    && copy.due <= now
                    && served.contains(&copy.queue)
                    && self.is_head(copy)
            };
            let ready = (0..self.copies.len()).filter(|at| fits(&self.copies[*at]));
            let rank = |at: &usize| (-self.copies[*at].message.priority, self.copies[*at].seq);
            let Some(best) = ready.min_by_key(rank) else { break };
            if self.copies[best].crashes >= max_deliveries {
                self.bury(best, "crashed");
                continue;
            }
            let copy = &mut self.copies[best];
            copy.lease = Some((u64::MAX - claimed.len() as u64, until));
            claimed.push((copy.message.id, copy.queue, copy.attempts, copy.crashes));
            copy.crashes += 1;
        }
        claimed
    }

    pub fn settle(&mut self, token: u64, how: &Settle, now: i64) -> Result<(), Refused> {
        let held = |copy: &Copy| copy.lease.is_some_and(|(current, _)| current == token);
        let at = self.copies.iter().position(held).ok_or(Refused::LeaseLost)?;
        self.copies[at].crashes -= 1;
        match how {
            Settle::Ack => {
                self.copies.remove(at);
                self.acked += 1;
            }
            Settle::Retry(after) => {
                self.copies[at].attempts += 1;
                self.retried += 1;
                self.give_back(at, now + after);
            }
            Settle::Reject => self.bury(at, "rejected"),
            Settle::Fail => {
                self.copies[at].attempts += 1;
                self.bury(at, "failed");
            }
            Settle::Release => self.give_back(at, now),
        }
        Ok(())
    }

    fn add(&mut self, message: &Publish, queue: u32, seq: u64, (now, due): (i64, i64)) {
        let (message, expires) = (message.clone(), message.ttl.map(|ttl| now + ttl));
        let copy = Copy { message, queue, seq, lease: None, due, expires, attempts: 0, crashes: 0 };
        self.copies.push(copy);
    }

    fn has_unique(&self, queue: u32, unique: Option<u8>) -> bool {
        let same = |copy: &Copy| copy.queue == queue && copy.message.unique == unique;
        unique.is_some() && self.copies.iter().any(same)
    }

    /// Queues the dead copies of one message again where that is possible.
    pub fn retry_dead(&mut self, id: u64, seq: &mut u64, now: i64) -> Result<u64, Refused> {
        let asked = self.dead.iter().filter(|((dead, ..), _)| *dead == id).count();
        if self.copies.len() + asked > self.max_length {
            return Err(Refused::QueueFull);
        }
        let mut found = 0;
        for ((dead, reason, ..), copy) in std::mem::take(&mut self.dead) {
            let entry = ((dead, reason, copy.attempts, copy.crashes), copy.clone());
            let unique = copy.message.unique;
            if dead != id || !self.is_bound(copy.queue) || self.has_unique(copy.queue, unique) {
                self.dead.push(entry);
                continue;
            }
            *seq += 1;
            self.add(&copy.message, copy.queue, *seq, (now, now));
            found += 1;
        }
        Ok(found)
    }
}

impl Model {
    pub fn bind(&mut self, group: usize, binding: usize) {
        self.groups[group].bind(binding);
        if !self.routes.contains(&(group, binding)) {
            self.routes.push((group, binding));
        }
    }

    pub fn unbind(&mut self, group: usize, binding: usize) -> u64 {
        self.routes.retain(|route| *route != (group, binding));
        self.groups[group].sweep(self.now);
        self.groups[group].unbind(binding)
    }

    /// Publishes; returns whether it was a duplicate, and how many queues keep it.
    ///
    /// A publish looks at times to live, in the groups that it reaches: at those of `ended`, what
    /// waited when its transaction began. The groups looked at are added to `looked_at`.
    pub fn publish(
        &mut self,
        message: &Publish,
        ended: &[Vec<u64>],
        looked_at: &mut BTreeSet<usize>,
    ) -> Result<(bool, u32), Refused> {
        if let Some(id) = message.dedup
            && !self.dedup.insert((message.topic, id))
        {
            return Ok((true, 0));
        }
        let mut kept = 0;
        for (number, binding) in self.routes.clone() {
            if binding != message.topic && binding != 2 {
                continue;
            }
            let group = &mut self.groups[number];
            let bound = group.bound.iter().find(|(bound, _)| *bound == binding);
            let queue = bound.expect("a route is there as long as its binding").1;
            group.expire(&ended[number]);
            looked_at.insert(number);
            if group.has_unique(queue, message.unique) {
                continue;
            }
            if group.copies.len() >= group.max_length {
                return Err(Refused::QueueFull);
            }
            self.seq += 1;
            group.add(message, queue, self.seq, (self.now, self.now + message.delay));
            group.accepted += 1;
            kept += 1;
        }
        Ok((false, kept))
    }

    pub fn write(&mut self, key: u8, if_version: Option<u64>, put: bool) -> Result<u64, Refused> {
        let (last, exists) = self.records.get(&key).copied().unwrap_or_default();
        let visible = if exists { last } else { 0 };
        if if_version.is_some_and(|expected| expected != visible) {
            return Err(Refused::VersionConflict);
        }
        let next = if put { last + 1 } else { last };
        self.records.insert(key, (next, put));
        Ok(next)
    }
}
