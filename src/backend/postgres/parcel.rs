//! Transactions on their way to `commit`: sorted into what is set at once and what goes step by step.
//!
//! A transaction is *plain* when it cannot fail half-way: only publishes that nothing can refuse, or
//! one acknowledgement. Everything else is *whole*: its steps run in order inside a subtransaction.

use std::collections::HashSet;

use ahash::RandomState;
use uuid::Uuid;

use super::answers::Answers;
use super::registry::{Registry, Target};
use super::step::{self, Step, record, settle};
use super::wire::{Packer, Style};
use crate::backend::{Accepted, Committed, Lease, Message, Op, Outcome, Token, Transaction};
use crate::error::{Error, Result};

/// Most steps, and most bytes, of one parcel; a single transaction may have more.
const MOST_STEPS: usize = 4_000;
const MOST_BYTES: usize = 8 << 20;
/// A plain publish behind a whole one goes step by step too, to keep its place; so many at most.
const MOST_DEMOTED: usize = 16;

/// A transaction, and the call it came with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item<'a> {
    pub(super) call: usize,
    pub(super) transaction: &'a Transaction,
}

/// Where the answer of a transaction will be found.
#[derive(Debug)]
enum Slot<'a> {
    /// Answered before it was sent.
    Done(Result<Committed>),
    /// Plain publishes, by the number of their copies.
    Plain(Vec<u32>),
    /// The acknowledgement with this number.
    Ack(i32, &'a Lease),
    /// The next of the whole ones.
    Whole(&'a Transaction),
}

/// One copy of a plainly published message.
#[derive(Debug)]
pub(super) struct Copy<'a> {
    pub(super) target: Target,
    pub(super) message: &'a Message,
}

/// What travels in one call of `commit`.
#[derive(Debug)]
pub(super) struct Parcel<'a> {
    pub(super) acks: Vec<(i32, &'a Lease)>,
    pub(super) copies: Vec<Copy<'a>>,
    pub(super) steps: Vec<Step<'a>>,
    pub(super) targets: Vec<Target>,
    pub(super) lanes: Vec<(i32, &'a str)>,
    pub(super) notify: Vec<String>,
    /// Broadcasts whose bodies are stored.
    pub(super) large: Vec<(Uuid, &'a Message)>,
    /// Plainly published broadcasts that are to be kept for replay.
    pub(super) kept: Vec<&'a Message>,
    /// Messages plainly published.
    pub(super) published: i64,
    /// Whether it routes anything, so that the registry must be current.
    pub(super) routes: bool,
    ops: Vec<&'a Op>,
    slots: Vec<Slot<'a>>,
    keeps: bool,
    packer: Packer,
    tokens: HashSet<Token, RandomState>,
}

impl<'a> Parcel<'a> {
    /// Takes as many of the items, in order, as fit; at least one.
    pub(super) fn build(
        items: &[Item<'a>],
        registry: &Registry,
        producer: Uuid,
        number: u64,
        style: &Style,
    ) -> Self {
        let mut parcel = Self {
            acks: Vec::new(),
            copies: Vec::new(),
            steps: Vec::new(),
            targets: Vec::new(),
            lanes: Vec::new(),
            notify: Vec::new(),
            large: Vec::new(),
            kept: Vec::new(),
            published: 0,
            routes: false,
            ops: Vec::new(),
            slots: Vec::new(),
            keeps: registry.keeps,
            packer: Packer::new(producer, number, style, registry.parts),
            tokens: HashSet::default(),
        };
        let (mut steps, mut bytes, mut demoted) = (0, 0, 0);
        let mut last_whole = None;
        for item in items {
            steps += item.transaction.ops.len();
            bytes += item.transaction.weight();
            if !parcel.slots.is_empty() && (steps > MOST_STEPS || bytes > MOST_BYTES) {
                break;
            }
            match parcel.sort(item, registry, last_whole) {
                Sort::Plain(targets) => parcel.add_plain(item.transaction, targets),
                Sort::Ack(group, lease) => {
                    parcel.tokens.insert(lease.token);
                    parcel.acks.push((group, lease));
                    let number = i32::try_from(parcel.acks.len()).unwrap_or(i32::MAX);
                    parcel.slots.push(Slot::Ack(number, lease));
                }
                Sort::Whole { plain } => {
                    demoted += usize::from(plain);
                    if demoted > MOST_DEMOTED {
                        break;
                    }
                    last_whole = Some(item.call);
                    parcel.add_whole(item.transaction, registry);
                }
            }
        }
        let rest = parcel.packer.take();
        parcel.notify.extend(rest);
        parcel
    }

    /// Returns how many transactions it holds.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether its commit writes nothing, so that the server waits for no disk.
    pub(super) fn only_notifies(&self) -> bool {
        self.acks.is_empty()
            && self.copies.is_empty()
            && self.steps.is_empty()
            && self.large.is_empty()
            && self.kept.is_empty()
    }

    /// Whether there is anything to send.
    pub(super) fn is_empty(&self) -> bool {
        self.only_notifies() && self.notify.is_empty()
    }

    /// Returns the groups in which something may become ready. What a plain acknowledgement lets go
    /// is known to the server alone: mostly nothing.
    pub(super) fn touched(&self) -> Vec<i32> {
        let copies = self.copies.iter().map(|copy| copy.target.group);
        let targets = self.targets.iter().map(|target| target.group);
        let settled = self.steps.iter().filter_map(|step| step.group);
        let mut groups: Vec<_> = copies.chain(targets).chain(settled).collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    fn sort(&self, item: &Item<'a>, registry: &Registry, last_whole: Option<usize>) -> Sort<'a> {
        let ops = &item.transaction.ops;
        if let [Op::Settle(lease, Outcome::Ack)] = ops.as_slice() {
            let fresh = !self.tokens.contains(&lease.token) && last_whole != Some(item.call);
            return match registry.id(&lease.group) {
                Some(group) if fresh => Sort::Ack(group, lease),
                _ => Sort::Whole { plain: false },
            };
        }
        let mut targets = Vec::with_capacity(ops.len());
        for op in ops {
            match op {
                Op::Publish(message) if message.dedup_id.is_none() && message.unique.is_none() => {
                    targets.push(registry.targets(&message.topic));
                }
                _ => return Sort::Whole { plain: false },
            }
        }
        if targets.iter().flatten().any(|target| target.limited) {
            return Sort::Whole { plain: false };
        }
        if last_whole.is_some() { Sort::Whole { plain: true } } else { Sort::Plain(targets) }
    }

    fn add_plain(&mut self, transaction: &'a Transaction, targets: Vec<Vec<Target>>) {
        let mut counts = Vec::with_capacity(targets.len());
        for (op, targets) in transaction.ops.iter().zip(targets) {
            let Op::Publish(message) = op else { continue };
            self.routes = true;
            self.published += 1;
            counts.push(u32::try_from(targets.len()).unwrap_or(u32::MAX));
            if let Some(key) = message.key.as_deref() {
                self.lanes.extend(targets.iter().map(|target| (target.group, key)));
            }
            self.copies.extend(targets.into_iter().map(|target| Copy { target, message }));
            if !message.is_heard() {
                continue;
            }
            if self.keeps {
                self.kept.push(message);
            }
            if self.packer.fits(&message.topic, &message.body) {
                self.notify.extend(self.packer.inline(&message.topic, &message.body));
            } else {
                let id = Uuid::new_v4();
                self.large.push((id, message));
                self.notify.extend(self.packer.stored(&message.topic, id));
            }
        }
        self.slots.push(Slot::Plain(counts));
    }

    fn add_whole(&mut self, transaction: &'a Transaction, registry: &Registry) {
        if transaction.ops.is_empty() {
            return self.slots.push(Slot::Done(Ok(Committed::default())));
        }
        if let Some(lease) = self.unknown_group(transaction, registry) {
            return self.slots.push(Slot::Done(Err(lease.lost())));
        }
        // What is packed so far comes before what a whole transaction says.
        let packed = self.packer.take();
        self.notify.extend(packed);
        let tx = i32::try_from(self.slots.len()).unwrap_or(i32::MAX);
        for op in &transaction.ops {
            let step = match op {
                Op::Publish(message) => self.publish(message, registry),
                Op::Settle(lease, outcome) => {
                    self.tokens.insert(lease.token);
                    settle(lease, outcome, registry.id(&lease.group))
                }
                Op::Put { key, value, if_version, ttl } => {
                    record(key, Some(value), *if_version, *ttl)
                }
                Op::Delete { key, if_version } => record(key, None, *if_version, None),
            };
            self.ops.push(op);
            self.steps.push(Step { tx, ..step });
        }
        self.slots.push(Slot::Whole(transaction));
    }

    fn unknown_group(
        &self,
        transaction: &'a Transaction,
        registry: &Registry,
    ) -> Option<&'a Lease> {
        transaction.ops.iter().find_map(|op| match op {
            Op::Settle(lease, _) if registry.id(&lease.group).is_none() => Some(lease),
            _ => None,
        })
    }

    fn publish(&mut self, message: &'a Message, registry: &Registry) -> Step<'a> {
        self.routes = true;
        let targets = registry.targets(&message.topic);
        if let Some(key) = message.key.as_deref() {
            self.lanes.extend(targets.iter().map(|target| (target.group, key)));
        }
        let first = i32::try_from(self.targets.len() + 1).unwrap_or(i32::MAX);
        let count = i32::try_from(targets.len()).unwrap_or(i32::MAX);
        self.targets.extend(targets);
        let step = step::publish(message, &mut self.packer);
        let event = step.event.filter(|_| self.keeps);
        Step { first, count, event, ..step }
    }

    /// Turns the server's answer into one result per transaction.
    pub(super) fn results(
        self,
        lost_acks: &[i32],
        results: &[i64],
        registry: &Registry,
    ) -> Result<Vec<Result<Committed>>> {
        let lost_acks: HashSet<i32, RandomState> = lost_acks.iter().copied().collect();
        let mut answers = Answers { rest: results, ops: &self.ops, registry };
        let mut all = Vec::with_capacity(self.slots.len());
        for slot in self.slots {
            all.push(match slot {
                Slot::Done(result) => result,
                Slot::Plain(counts) => {
                    let accepted = |queues| Accepted { duplicate: false, queues };
                    let published = counts.into_iter().map(accepted).collect();
                    Ok(Committed { published, versions: Vec::new() })
                }
                Slot::Ack(number, lease) if lost_acks.contains(&number) => Err(lease.lost()),
                Slot::Ack(..) => Ok(Committed::default()),
                Slot::Whole(transaction) => {
                    answers.next(transaction).ok_or_else(|| Error::Internal {
                        reason: "the server's answer to a commit is not understood".into(),
                    })?
                }
            });
        }
        Ok(all)
    }
}

enum Sort<'a> {
    Plain(Vec<Vec<Target>>),
    Ack(i32, &'a Lease),
    /// `plain`: it could have been plain elsewhere.
    Whole {
        plain: bool,
    },
}
