//! The write path: a transaction is checked as a whole, then applied as a whole.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ahash::RandomState;
use bytes::Bytes;

use super::dedup;
use super::micros;
use super::records::Version;
use super::state::State;
use super::wait::Wakes;
use crate::backend::{
    Accepted, Committed, Due, EventKey, Lease, Message, Op, Outcome, Token, Transaction,
};
use crate::error::{Error, Result};

/// A publish that passed its check.
#[derive(Debug)]
struct Publish {
    /// Where its copies end in `Plan::targets`; they begin where the previous one's end.
    end: usize,
    duplicate: bool,
    dedup: Option<Arc<str>>,
}

/// What the check of a transaction found, and what its earlier steps will have changed.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// There is one step only: no other needs to know what it will have changed.
    alone: bool,
    publishes: Vec<Publish>,
    /// (group, queue) of each copy.
    targets: Vec<(u32, u32)>,
    /// (group, copy) of each settle.
    settles: Vec<(u32, u32)>,
    settled: HashSet<Token, RandomState>,
    /// Groups whose `reserved` is in use.
    touched: Vec<u32>,
    unique: HashMap<(u32, u32, Box<str>), bool, RandomState>,
    dedup: HashSet<Arc<str>, RandomState>,
    records: HashMap<Arc<str>, Version, RandomState>,
}

impl Plan {
    fn record(&mut self, key: &Arc<str>, after: Version) {
        if !self.alone {
            self.records.insert(Arc::clone(key), after);
        }
    }

    /// Takes a unique key of a queue; returns whether it was taken before.
    fn takes_unique(&mut self, (group, queue): (u32, u32), key: &str, taken: bool) -> bool {
        if self.alone {
            return taken;
        }
        std::mem::replace(self.unique.entry((group, queue, key.into())).or_insert(taken), true)
    }

    fn clear(&mut self) {
        self.publishes.clear();
        self.targets.clear();
        self.settles.clear();
        self.touched.clear();
        if self.alone {
            return;
        }
        self.settled.clear();
        self.unique.clear();
        self.dedup.clear();
        self.records.clear();
    }
}

impl State {
    /// Applies one transaction, or nothing of it.
    pub(super) fn transact(
        &mut self,
        transaction: Transaction,
        now: i64,
        wakes: &mut Wakes,
    ) -> Result<Committed> {
        // Boxed and kept: making one costs more than a whole small transaction.
        let mut plan = self.plan.take().unwrap_or_default();
        plan.alone = transaction.ops.len() == 1;
        let checked = self.check(&transaction, &mut plan, now, wakes);
        for group in plan.touched.drain(..) {
            if let Some(group) = self.groups.get_mut(group) {
                group.reserved = 0;
            }
        }
        let committed = checked.map(|()| self.apply(transaction, &mut plan, now, wakes));
        plan.clear();
        self.plan = Some(plan);
        committed
    }

    fn check(
        &mut self,
        transaction: &Transaction,
        plan: &mut Plan,
        now: i64,
        wakes: &mut Wakes,
    ) -> Result<()> {
        for op in &transaction.ops {
            match op {
                Op::Publish(message) => self.check_publish(message, plan, now, wakes)?,
                Op::Settle(lease, outcome) => self.check_settle(lease, outcome, plan)?,
                Op::Put { key, if_version, .. } => {
                    let before = self.check_version(key, *if_version, plan, now)?;
                    let after = Version { exists: true, last: before.last + 1 };
                    plan.record(key, after);
                }
                Op::Delete { key, if_version } => {
                    let before = self.check_version(key, *if_version, plan, now)?;
                    plan.record(key, Version { exists: false, ..before });
                }
            }
        }
        Ok(())
    }

    fn check_publish(
        &mut self,
        message: &Message,
        plan: &mut Plan,
        now: i64,
        wakes: &mut Wakes,
    ) -> Result<()> {
        let mut publish = Publish { end: plan.targets.len(), duplicate: false, dedup: None };
        if let Some(id) = &message.dedup_id {
            let name = dedup::name(&message.topic, id);
            publish.duplicate = self.dedup.contains(&name, now)
                || (!plan.alone && !plan.dedup.insert(Arc::clone(&name)));
            publish.dedup = Some(name);
        }
        if publish.duplicate {
            plan.publishes.push(publish);
            return Ok(());
        }
        let begin = plan.targets.len();
        let targets = &mut plan.targets;
        self.routes.for_each_match(&message.topic, |_, target| targets.push(*target));
        let mut kept = begin;
        for at in begin..plan.targets.len() {
            let (group_index, queue) = plan.targets[at];
            let Some(group) = self.groups.get_mut(group_index) else { continue };
            group.expire(now, wakes);
            if let Some(unique) = &message.unique {
                let taken = group.queues.get(&queue).is_some_and(|q| q.unique.contains(unique));
                if plan.takes_unique((group_index, queue), unique, taken) {
                    continue;
                }
            }
            let length = group.len().saturating_add_signed(group.reserved);
            if length >= group.max_length {
                let queue = group.name.as_ref().to_owned();
                return Err(Error::QueueFull { queue, limit: group.max_length });
            }
            if group.reserved == 0 {
                plan.touched.push(group_index);
            }
            group.reserved += 1;
            plan.targets[kept] = (group_index, queue);
            kept += 1;
        }
        plan.targets.truncate(kept);
        publish.end = kept;
        plan.publishes.push(publish);
        Ok(())
    }

    fn check_settle(&mut self, lease: &Lease, outcome: &Outcome, plan: &mut Plan) -> Result<()> {
        let lost = || lease.lost();
        let group_index = self.group_index(&lease.group).ok_or_else(lost)?;
        let group = self.groups.get_mut(group_index).ok_or_else(lost)?;
        let index = group.held(lease).ok_or_else(lost)?;
        plan.settles.push((group_index, index));
        if plan.alone {
            return Ok(());
        }
        if !plan.settled.insert(lease.token) {
            return Err(lost());
        }
        let gone = match outcome {
            Outcome::Ack | Outcome::Dead { .. } => true,
            // A copy whose binding was removed has no place to return to.
            Outcome::Retry { .. } | Outcome::Release | Outcome::Crash | Outcome::Defer { .. } => {
                group.queues.get(&lease.binding).is_none_or(|queue| !queue.bound)
            }
        };
        if !gone {
            return Ok(());
        }
        if let Some(unique) = group.copies.get(index).and_then(|copy| copy.message.unique.clone()) {
            plan.unique.insert((group_index, lease.binding, unique), false);
        }
        if group.reserved == 0 {
            plan.touched.push(group_index);
        }
        group.reserved -= 1;
        Ok(())
    }

    fn check_version(
        &mut self,
        key: &Arc<str>,
        expected: Option<u64>,
        plan: &Plan,
        now: i64,
    ) -> Result<Version> {
        self.records.sweep(now);
        let found = plan.records.get(key).copied().unwrap_or_else(|| self.records.version(key));
        match expected {
            Some(expected) if expected != found.visible() => {
                let key = key.as_ref().to_owned();
                Err(Error::VersionConflict { key, expected, actual: found.visible() })
            }
            _ => Ok(found),
        }
    }

    fn apply(
        &mut self,
        transaction: Transaction,
        plan: &mut Plan,
        now: i64,
        wakes: &mut Wakes,
    ) -> Committed {
        let mut committed = Committed::default();
        let mut broadcasts: Vec<(EventKey, Arc<str>, Bytes)> = Vec::new();
        let (mut publishes, mut settles) = (plan.publishes.drain(..), plan.settles.drain(..));
        let (mut begin, mut recorded) = (0, false);
        for op in transaction.ops {
            match op {
                Op::Publish(message) => {
                    let Some(publish) = publishes.next() else { continue };
                    let targets = &plan.targets[begin..publish.end];
                    begin = publish.end;
                    let heard = message.is_heard() && !publish.duplicate;
                    if heard && (self.kept.is_some() || !self.listeners.is_empty()) {
                        let (topic, body) = (Arc::clone(&message.topic), message.body.clone());
                        broadcasts.push((message.event, topic, body));
                    }
                    committed.published.push(Accepted {
                        duplicate: publish.duplicate,
                        queues: u32::try_from(targets.len()).unwrap_or(u32::MAX),
                    });
                    self.count(publish, now);
                    if !targets.is_empty() {
                        self.store(&Arc::new(message), targets, now, wakes);
                    }
                }
                Op::Settle(_, outcome) => {
                    let Some((group, index)) = settles.next() else { continue };
                    let Some(group) = self.groups.get_mut(group) else { continue };
                    group.settle(index, outcome, now, wakes);
                }
                Op::Put { key, value, ttl, .. } => {
                    let expires = ttl.map(|ttl| now.saturating_add(micros(ttl)));
                    committed.versions.push(self.records.put(key, value, expires));
                    recorded = true;
                }
                Op::Delete { key, .. } => {
                    self.records.delete(&key);
                    recorded = true;
                }
            }
        }
        if recorded {
            self.records.trim(self.config.max_tombstones);
        }
        for (event, topic, body) in broadcasts {
            self.position += 1;
            let position = self.position;
            if let Some(log) = &mut self.kept {
                log.add((position, now), (event, &topic, &body));
            }
            self.listeners
                .for_each_match(&topic, |_, feed| feed.push(&topic, &body, position, wakes));
        }
        committed
    }

    fn count(&mut self, publish: Publish, now: i64) {
        if publish.duplicate {
            self.duplicates += 1;
            return;
        }
        self.published += 1;
        if let Some(name) = publish.dedup {
            let until = now.saturating_add(micros(self.config.dedup_window));
            self.dedup.insert(name, now, until, self.config.max_dedup_ids);
        }
    }

    /// Adds a copy of a message to each of the queues.
    fn store(
        &mut self,
        message: &Arc<Message>,
        targets: &[(u32, u32)],
        now: i64,
        wakes: &mut Wakes,
    ) {
        let due = match message.due {
            Due::Now => now,
            Due::After(delay) => now.saturating_add(micros(delay)),
            Due::At(at) => at,
        };
        let expires = message.expires_after.map(|after| now.saturating_add(micros(after)));
        for (group, queue) in targets {
            self.seq += 1;
            if let Some(group) = self.groups.get_mut(*group) {
                group.insert(message, (*queue, self.seq), (now, due, expires), wakes);
            }
        }
    }
}
