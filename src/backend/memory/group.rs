//! One group: its copies of messages, where each stands, and every move between those places.
//!
//! A copy is ready, blocked behind its key, delayed or active (claimed). The accounting holds after
//! every call: accepted = acked + removed + dead + ready (and blocked) + delayed + active.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use ahash::RandomState;

use super::claim::Heads;
use super::dead::DeadLetters;
use super::micros;
use super::ready::Ready;
use super::slab::Slab;
use super::wait::{Waiters, Wakes};
use crate::backend::{EventKey, Message, MessageId, Token, identity};
use crate::config::MemoryConfig;
use crate::topic::{Binding, RouteId};

/// Ends the chain of copies that stand under one id.
const END: u32 = u32::MAX;

/// Where a copy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In no index: on its way from one place to another.
    Moving,
    /// Can be claimed.
    Ready,
    /// Waits for the head of its key.
    Blocked,
    /// Not due.
    Delayed,
    /// Claimed.
    Active,
}

/// One copy of a message.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) message: Arc<Message>,
    /// Order of acceptance.
    pub(super) seq: u64,
    /// The claim that holds it; 0 when none.
    pub(super) token: Token,
    /// When it is due (delayed) or its lease ends (active); else when it became ready.
    pub(super) at: i64,
    pub(super) accepted_at: i64,
    pub(super) expires: Option<i64>,
    pub(super) attempts: u32,
    pub(super) crashes: u32,
    pub(super) queue: u32,
    pub(super) place: Place,
    pub(super) error: Option<Box<str>>,
    previous: u32,
    next: u32,
}

/// What is bound to one topic or pattern.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) binding: Binding,
    pub(super) route: RouteId,
    /// False once unbound: it only waits for what is in flight.
    pub(super) bound: bool,
    pub(super) ready: Ready,
    pub(super) unique: HashSet<Box<str>, RandomState>,
    len: usize,
}

/// Counters since the group was declared.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) accepted: u64,
    pub(super) acked: u64,
    pub(super) retried: u64,
    pub(super) expired_leases: u64,
    pub(super) removed: u64,
}

/// One group.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: Arc<str>,
    pub(super) max_length: u64,
    pub(super) dead_retention: i64,
    pub(super) max_dead: usize,
    pub(super) paused: bool,
    /// Copies that a transaction under validation would add or take.
    pub(super) reserved: i64,
    pub(super) queues: BTreeMap<u32, Queue>,
    pub(super) bound: HashMap<Binding, u32, RandomState>,
    next_queue: u32,
    pub(super) copies: Slab<Copy>,
    /// The newest copy of each chain, by `identity::shelf` of its message's id.
    by_id: HashMap<MessageId, u32, RandomState>,
    pub(super) keys: HashMap<Box<str>, BTreeMap<u64, u32>, RandomState>,
    pub(super) ready: u64,
    pub(super) blocked: BTreeMap<u64, u32>,
    pub(super) delayed: BTreeMap<(i64, u64), u32>,
    /// Ends of leases, by token.
    pub(super) leases: BTreeMap<(i64, Token), u32>,
    pub(super) active: HashMap<Token, u32, RandomState>,
    /// Ends of the time to live of what waits.
    pub(super) ends: BTreeMap<(i64, u64), u32>,
    pub(super) dead: DeadLetters,
    /// Message and queue of dead letters that nobody has been told of; bounded.
    pub(super) dead_news: VecDeque<(MessageId, u32)>,
    pub(super) counts: Counts,
    pub(super) waiters: Waiters,
    /// Scratch of `claim`.
    pub(super) heads: Heads,
}

impl Group {
    pub(super) fn new(name: Arc<str>, config: &MemoryConfig) -> Self {
        Self {
            name,
            max_length: config.max_length,
            dead_retention: micros(config.dead_retention),
            max_dead: config.max_dead,
            paused: false,
            reserved: 0,
            queues: BTreeMap::new(),
            bound: HashMap::default(),
            next_queue: 0,
            copies: Slab::default(),
            by_id: HashMap::default(),
            keys: HashMap::default(),
            ready: 0,
            blocked: BTreeMap::new(),
            delayed: BTreeMap::new(),
            leases: BTreeMap::new(),
            active: HashMap::default(),
            ends: BTreeMap::new(),
            dead: DeadLetters::default(),
            dead_news: VecDeque::new(),
            counts: Counts::default(),
            waiters: Waiters::default(),
            heads: Heads::new(),
        }
    }

    /// Returns the index that the next binding will have.
    pub(super) fn next_queue(&self) -> u32 {
        self.next_queue
    }

    pub(super) fn bind(&mut self, binding: Binding, route: RouteId) {
        self.bound.insert(binding.clone(), self.next_queue);
        let queue = Queue {
            binding,
            route,
            bound: true,
            ready: Ready::default(),
            unique: HashSet::default(),
            len: 0,
        };
        self.queues.insert(self.next_queue, queue);
        self.next_queue += 1;
    }

    /// Removes a binding and what waits in its queue; what is in flight stays until it is settled.
    pub(super) fn unbind(
        &mut self,
        binding: &Binding,
        wakes: &mut Wakes,
    ) -> Option<(RouteId, u64)> {
        let index = self.bound.remove(binding)?;
        let queue = self.queues.get_mut(&index)?;
        queue.bound = false;
        let route = queue.route;
        let removed = self.remove_waiting(Some(index), wakes);
        if self.queues.get(&index).is_some_and(|queue| queue.len == 0) {
            self.queues.remove(&index);
        }
        Some((route, removed))
    }

    /// Removes what is not in flight, of one queue or all; returns how many.
    pub(super) fn remove_waiting(&mut self, queue: Option<u32>, wakes: &mut Wakes) -> u64 {
        let hit = |copy: &Copy| {
            copy.place != Place::Active && queue.is_none_or(|queue| copy.queue == queue)
        };
        let waiting: Vec<_> =
            self.copies.iter().filter(|(_, copy)| hit(copy)).map(|(index, _)| index).collect();
        let before = self.counts.removed;
        for index in waiting {
            self.discard(index, wakes);
        }
        self.counts.removed - before
    }

    /// Adds a copy of a message to a queue; `due` later than `now` delays it.
    pub(super) fn insert(
        &mut self,
        message: &Arc<Message>,
        (queue, seq): (u32, u64),
        (now, due, expires): (i64, i64, Option<i64>),
        wakes: &mut Wakes,
    ) {
        self.counts.accepted += 1;
        self.add(message, (queue, seq), (now, due, expires), wakes);
    }

    /// As `insert`, for what was accepted before.
    pub(super) fn add(
        &mut self,
        message: &Arc<Message>,
        (queue, seq): (u32, u64),
        (now, due, expires): (i64, i64, Option<i64>),
        wakes: &mut Wakes,
    ) {
        let Some(entry) = self.queues.get_mut(&queue) else { return };
        entry.len += 1;
        if let Some(unique) = &message.unique {
            entry.unique.insert(unique.clone());
        }
        let index = self.copies.insert(Copy {
            message: Arc::clone(message),
            seq,
            token: 0,
            at: now,
            accepted_at: now,
            expires,
            attempts: 0,
            crashes: 0,
            queue,
            place: Place::Moving,
            error: None,
            previous: END,
            next: END,
        });
        if let Some(older) = self.by_id.insert(identity::shelf(&message.id), index) {
            if let Some(copy) = self.copies.get_mut(older) {
                copy.previous = index;
            }
            if let Some(copy) = self.copies.get_mut(index) {
                copy.next = older;
            }
        }
        if let Some(key) = &message.key {
            match self.keys.get_mut(key) {
                Some(line) => {
                    line.insert(seq, index);
                }
                None => {
                    self.keys.insert(key.clone(), BTreeMap::from([(seq, index)]));
                }
            }
        }
        self.place(index, now, due, wakes);
    }

    /// Removes a copy for good; the next of its key moves up.
    pub(super) fn remove(&mut self, index: u32, wakes: &mut Wakes) -> Option<Copy> {
        self.displace(index);
        let copy = self.copies.remove(index)?;
        if let Some(newer) = self.copies.get_mut(copy.previous) {
            newer.next = copy.next;
        } else if copy.next == END {
            self.by_id.remove(&identity::shelf(&copy.message.id));
        } else {
            self.by_id.insert(identity::shelf(&copy.message.id), copy.next);
        }
        if let Some(older) = self.copies.get_mut(copy.next) {
            older.previous = copy.previous;
        }
        if let Some(queue) = self.queues.get_mut(&copy.queue) {
            queue.len -= 1;
            if let Some(unique) = &copy.message.unique {
                queue.unique.remove(unique);
            }
            if queue.len == 0 && !queue.bound {
                self.queues.remove(&copy.queue);
            }
        }
        if let Some(key) = &copy.message.key
            && let Some(line) = self.keys.get_mut(key)
        {
            line.remove(&copy.seq);
            match line.first_key_value().map(|(seq, index)| (*seq, *index)) {
                None => {
                    self.keys.remove(key);
                }
                Some((seq, next)) => {
                    if self.blocked.remove(&seq).is_some() {
                        self.make_ready(next, wakes);
                    }
                }
            }
        }
        Some(copy)
    }

    /// Returns the copies of the messages that carry an event, in order of acceptance.
    pub(super) fn copies_of(&self, event: &EventKey) -> Vec<u32> {
        let mut found: Vec<(u64, u32)> = Vec::new();
        let (others, _) = identity::range(event);
        for (shelf, only) in [(identity::shelf(event), Some(event)), (others, None)] {
            let mut index = self.by_id.get(&shelf).copied().unwrap_or(END);
            while let Some(copy) = self.copies.get(index) {
                if only.is_none_or(|id| copy.message.id == *id) {
                    found.push((copy.seq, index));
                }
                index = copy.next;
            }
        }
        found.sort_unstable();
        found.into_iter().map(|(_, index)| index).collect()
    }
}
