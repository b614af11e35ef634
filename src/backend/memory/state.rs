//! Everything a memory backend holds, and the operations on whole groups.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ahash::RandomState;

use super::broadcast::Feed;
use super::commit::Plan;
use super::dedup::Window;
use super::group::Group;
use super::kept::Log;
use super::records::Records;
use super::slab::Slab;
use super::wait::Wakes;
use crate::backend::{GroupSpec, GroupStats, Inspection, Lease, Token};
use crate::config::MemoryConfig;
use crate::error::{Error, Result};
use crate::topic::{Binding, Router};

/// What the lock protects.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) config: MemoryConfig,
    pub(super) closed: bool,
    /// The last sequence, token, broadcast position and id of a listener or waiter given out.
    pub(super) seq: u64,
    pub(super) token: Token,
    pub(super) position: u64,
    pub(super) next_id: u64,
    pub(super) groups: Slab<Group>,
    pub(super) names: HashMap<Arc<str>, u32, RandomState>,
    /// From a topic to (group, queue).
    pub(super) routes: Router<(u32, u32)>,
    pub(super) listeners: Router<Arc<Feed>>,
    pub(super) feeds: BTreeMap<u64, Arc<Feed>>,
    /// Broadcasts kept for replay.
    pub(super) kept: Option<Log>,
    pub(super) dedup: Window,
    pub(super) records: Records,
    pub(super) published: u64,
    pub(super) duplicates: u64,
    /// Scratch of `transact`.
    pub(super) plan: Option<Box<Plan>>,
}

impl State {
    pub(super) fn group_index(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied()
    }

    pub(super) fn group(&mut self, name: &str) -> Result<&mut Group> {
        let index = self.names.get(name).copied();
        let group = index.and_then(|index| self.groups.get_mut(index));
        group.ok_or_else(|| Error::NotFound { what: "group", name: name.to_owned() })
    }

    /// Returns a group as it is at this time, its dead letters included.
    pub(super) fn swept(&mut self, name: &str, now: i64, wakes: &mut Wakes) -> Result<&mut Group> {
        let index = self.group_index(name);
        let group = index.and_then(|index| self.groups.get_mut(index));
        let missing = || Error::NotFound { what: "group", name: name.to_owned() };
        let group = group.ok_or_else(missing)?;
        group.sweep(now, wakes);
        group.trim_dead(now);
        Ok(group)
    }

    /// Returns one group, or all by name, as they are at this time.
    pub(super) fn swept_or_all(
        &mut self,
        name: Option<&str>,
        now: i64,
        wakes: &mut Wakes,
    ) -> Result<Vec<&mut Group>> {
        let mut groups: Vec<&mut Group> = match name {
            Some(name) => vec![self.group(name)?],
            None => self.groups.iter_mut().collect(),
        };
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        groups.iter_mut().for_each(|group| group.sweep(now, wakes));
        Ok(groups)
    }

    pub(super) fn declare(&mut self, spec: GroupSpec, wakes: &mut Wakes) -> Result<()> {
        crate::topic::validate_group(&spec.name)?;
        if spec.max_length == Some(0) {
            let rule = "must be at least 1 message";
            return Err(Error::InvalidArgument { what: "max_length", value: "0".into(), rule });
        }
        let index = match self.group_index(&spec.name) {
            Some(index) => index,
            None => {
                let group = Group::new(Arc::clone(&spec.name), &self.config);
                let index = self.groups.insert(group);
                self.names.insert(spec.name, index);
                index
            }
        };
        let Some(group) = self.groups.get_mut(index) else { return Ok(()) };
        if let Some(max_length) = spec.max_length {
            group.max_length = max_length;
        }
        for binding in spec.bindings {
            if !group.bound.contains_key(&binding) {
                let route = self.routes.insert(binding.clone(), (index, group.next_queue()));
                group.bind(binding, route);
            }
        }
        group.waiters.all(wakes);
        Ok(())
    }

    pub(super) fn unbind(
        &mut self,
        name: &str,
        bindings: &[Binding],
        now: i64,
        wakes: &mut Wakes,
    ) -> Result<u64> {
        let mut removed = 0;
        self.group(name)?.sweep(now, wakes);
        for binding in bindings {
            if let Some((route, count)) = self.group(name)?.unbind(binding, wakes) {
                self.routes.remove(route);
                removed += count;
            }
        }
        self.group(name)?.waiters.all(wakes);
        Ok(removed)
    }

    /// Takes a group out; the caller drops it after the lock.
    pub(super) fn delete(&mut self, name: &str, wakes: &mut Wakes) -> Result<Group> {
        self.group(name)?;
        let index = self.names.remove(name);
        let group = index.and_then(|index| self.groups.remove(index));
        let missing = || Error::NotFound { what: "group", name: name.to_owned() };
        let mut group = group.ok_or_else(missing)?;
        for queue in group.queues.values().filter(|queue| queue.bound) {
            self.routes.remove(queue.route);
        }
        group.waiters.all(wakes);
        Ok(group)
    }

    /// Moves the end of a lease, if it is current.
    pub(super) fn renew(&mut self, lease: &Lease, until: i64, wakes: &mut Wakes) -> Result<()> {
        let lost = || lease.lost();
        let group = self.group(&lease.group).map_err(|_| lost())?;
        let index = group.held(lease).ok_or_else(lost)?;
        group.extend(index, until, wakes);
        Ok(())
    }

    pub(super) fn inspect(&mut self, now: i64, wakes: &mut Wakes) -> Inspection {
        self.records.sweep(now);
        let stats = |group: &mut Group| {
            group.sweep(now, wakes);
            group.trim_dead(now);
            group.stats(now)
        };
        let mut groups: Vec<GroupStats> = self.groups.iter_mut().map(stats).collect();
        groups.sort_by(|a, b| a.group.cmp(&b.group));
        Inspection {
            backend: "memory".to_owned(),
            published: self.published,
            duplicates: self.duplicates,
            records: self.records.len() as u64,
            groups,
        }
    }
}
