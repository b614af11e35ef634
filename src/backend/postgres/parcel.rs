//! Transactions on their way to `commit`: sorted into what is set at once and what goes step by step.
//!
//! A transaction is *plain* when it cannot fail half-way: only publishes that nothing can refuse, or
//! one acknowledgement. Everything else is *whole*: its steps run in order inside a subtransaction.

use std::borrow::Cow;
use std::collections::HashSet;

use ahash::RandomState;
use uuid::Uuid;

use super::micros;
use super::registry::{Registry, Target};
use super::wire::{self, Packer};
use crate::backend::{
    Accepted, Committed, DeadReason, Due, Lease, Message, Op, Outcome, Token, Transaction,
    cut_error,
};
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

/// One step of a whole transaction; what does not apply is none.
#[derive(Debug, Default)]
pub(super) struct Step<'a> {
    pub(super) tx: i32,
    pub(super) kind: i16,
    pub(super) id: Option<Uuid>,
    pub(super) name: Option<&'a str>,
    pub(super) body: Option<&'a [u8]>,
    pub(super) key: Option<&'a str>,
    pub(super) unique: Option<&'a str>,
    pub(super) dedup: Option<&'a str>,
    pub(super) error: Option<Cow<'a, str>>,
    /// The priority of a publish, the reason of a death.
    pub(super) priority: Option<i16>,
    /// The token of a settle, the expected version of a record.
    pub(super) number: Option<i64>,
    pub(super) group: Option<i32>,
    pub(super) binding: Option<i32>,
    pub(super) outcome: Option<i16>,
    pub(super) after: Option<i64>,
    pub(super) due: Option<i64>,
    pub(super) ttl: Option<i64>,
    pub(super) first: i32,
    pub(super) count: i32,
    pub(super) notify: Option<String>,
    pub(super) large: Option<Uuid>,
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
    pub(super) large: Vec<(Uuid, &'a [u8])>,
    /// Messages plainly published.
    pub(super) published: i64,
    /// Whether it routes anything, so that the registry must be current.
    pub(super) routes: bool,
    ops: Vec<&'a Op>,
    slots: Vec<Slot<'a>>,
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
    ) -> Self {
        let mut parcel = Self {
            acks: Vec::new(),
            copies: Vec::new(),
            steps: Vec::new(),
            targets: Vec::new(),
            lanes: Vec::new(),
            notify: Vec::new(),
            large: Vec::new(),
            published: 0,
            routes: false,
            ops: Vec::new(),
            slots: Vec::new(),
            packer: Packer::new(producer, number),
            tokens: HashSet::default(),
        };
        let (mut steps, mut bytes, mut demoted) = (0, 0, 0);
        let mut last_whole = None;
        for item in items {
            steps += item.transaction.ops.len();
            bytes += weight(item.transaction);
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
    }

    /// Whether there is anything to send.
    pub(super) fn is_empty(&self) -> bool {
        self.only_notifies() && self.notify.is_empty()
    }

    /// Returns the groups in which something may become ready.
    pub(super) fn touched(&self) -> Vec<i32> {
        let copies = self.copies.iter().map(|copy| copy.target.group);
        let targets = self.targets.iter().map(|target| target.group);
        let settled = self.steps.iter().filter_map(|step| step.group);
        let acked = self.acks.iter().map(|(group, _)| *group);
        let mut groups: Vec<_> = copies.chain(targets).chain(settled).chain(acked).collect();
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
            if !heard(message) {
                continue;
            }
            if wire::fits(&message.topic, &message.body) {
                self.notify.extend(self.packer.inline(&message.topic, &message.body));
            } else {
                let id = Uuid::new_v4();
                self.large.push((id, &message.body));
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
            return self.slots.push(Slot::Done(Err(lost(lease))));
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
                Op::Put { key, value, if_version, ttl } => Step {
                    kind: 2,
                    name: Some(key),
                    body: Some(value),
                    number: if_version.map(signed),
                    ttl: ttl.map(micros),
                    ..Step::default()
                },
                Op::Delete { key, if_version } => Step {
                    kind: 3,
                    name: Some(key),
                    number: if_version.map(signed),
                    ..Step::default()
                },
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
        let mut large = None;
        if heard(message) {
            if wire::fits(&message.topic, &message.body) {
                self.packer.inline(&message.topic, &message.body);
            } else {
                let id = Uuid::new_v4();
                large = Some(id);
                self.packer.stored(&message.topic, id);
            }
        }
        let (after, due) = due(message);
        Step {
            kind: 0,
            id: Some(Uuid::from_bytes(message.id)),
            name: Some(&message.topic),
            body: Some(&message.body),
            key: message.key.as_deref(),
            unique: message.unique.as_deref(),
            dedup: message.dedup_id.as_deref(),
            priority: Some(message.priority),
            after,
            due,
            ttl: message.expires_after.map(micros),
            first,
            count,
            notify: self.packer.take(),
            large,
            ..Step::default()
        }
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
                Slot::Ack(number, lease) if lost_acks.contains(&number) => Err(lost(lease)),
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

/// Reads the figures of whole transactions one after the other.
struct Answers<'s, 'a> {
    rest: &'s [i64],
    /// Every step sent.
    ops: &'s [&'a Op],
    registry: &'s Registry,
}

impl Answers<'_, '_> {
    fn take(&mut self) -> Option<i64> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn failed_op(&mut self) -> Option<&Op> {
        let step = usize::try_from(self.take()?).ok()?;
        self.ops.get(step.checked_sub(1)?).copied()
    }

    /// Reads the next answer; `None` when it is not understood.
    fn next(&mut self, transaction: &Transaction) -> Option<Result<Committed>> {
        match self.take()? {
            0 => self.committed(transaction).map(Ok),
            2 => match self.failed_op()? {
                Op::Settle(lease, _) => Some(Err(lost(lease))),
                _ => None,
            },
            3 => {
                let op = self.failed_op()?.clone();
                let actual = u64::try_from(self.take()?).ok()?;
                let (Op::Put { key, if_version, .. } | Op::Delete { key, if_version }) = op else {
                    return None;
                };
                let key = key.as_ref().to_owned();
                Some(Err(Error::VersionConflict { key, expected: if_version?, actual }))
            }
            4 => {
                self.take()?;
                let group = i32::try_from(self.take()?).ok()?;
                let limit = u64::try_from(self.take()?).ok()?;
                let name = self.registry.name(group).map(|name| name.as_ref().to_owned());
                let queue = name.unwrap_or_else(|| group.to_string());
                Some(Err(Error::QueueFull { queue, limit }))
            }
            _ => None,
        }
    }

    fn committed(&mut self, transaction: &Transaction) -> Option<Committed> {
        let mut committed = Committed::default();
        let mut figures = usize::try_from(self.take()?).ok()?;
        for op in &transaction.ops {
            let publish = matches!(op, Op::Publish(_));
            if !publish && !matches!(op, Op::Put { .. }) {
                continue;
            }
            let figure = self.take()?;
            figures = figures.checked_sub(1)?;
            if publish {
                let queues = u32::try_from(figure.max(0)).ok()?;
                committed.published.push(Accepted { duplicate: figure < 0, queues });
            } else {
                committed.versions.push(u64::try_from(figure).ok()?);
            }
        }
        (figures == 0).then_some(committed)
    }
}

fn settle<'a>(lease: &'a Lease, outcome: &'a Outcome, group: Option<i32>) -> Step<'a> {
    let step = Step {
        kind: 1,
        id: Some(Uuid::from_bytes(lease.message)),
        number: Some(signed(lease.token)),
        group,
        binding: Some(i32::try_from(lease.binding).unwrap_or(-1)),
        ..Step::default()
    };
    match outcome {
        Outcome::Ack => Step { outcome: Some(0), ..step },
        Outcome::Retry { after, error } => {
            Step { outcome: Some(1), after: Some(micros(*after)), error: storable(error), ..step }
        }
        Outcome::Dead { reason, error } => Step {
            outcome: Some(2),
            priority: Some(reason_number(*reason)),
            error: storable(error),
            ..step
        },
        Outcome::Release => Step { outcome: Some(3), ..step },
        Outcome::Defer { after } => Step { outcome: Some(4), after: Some(micros(*after)), ..step },
    }
}

/// Cuts an error's text, and shows the one character that Postgres keeps in no text.
fn storable(error: &str) -> Option<Cow<'_, str>> {
    let fits = error.len() <= crate::backend::MAX_ERROR_BYTES && !error.contains('\0');
    Some(if fits { error.into() } else { cut_error(error.replace('\0', "\u{2400}")).into() })
}

pub(super) fn reason_number(reason: DeadReason) -> i16 {
    match reason {
        DeadReason::Failed => 0,
        DeadReason::Rejected => 1,
        DeadReason::Crashed => 2,
        DeadReason::Undecodable => 3,
        DeadReason::UnknownTask => 4,
        DeadReason::Expired => 5,
    }
}

fn lost(lease: &Lease) -> Error {
    Error::LeaseLost { group: lease.group.as_ref().to_owned(), token: lease.token }
}

fn heard(message: &Message) -> bool {
    message.broadcast && message.due == Due::Now
}

/// Returns the delay and the time of a message that is not due now.
pub(super) fn due(message: &Message) -> (Option<i64>, Option<i64>) {
    match message.due {
        Due::Now => (None, None),
        Due::After(delay) => (Some(micros(delay)), None),
        Due::At(at) => (None, Some(at)),
    }
}

/// No token or version is beyond the server's integers, so one that is equals none of them.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Returns about how many bytes a transaction is on the wire.
pub(super) fn weight(transaction: &Transaction) -> usize {
    let weigh = |op: &Op| match op {
        Op::Publish(message) => 100 + message.body.len(),
        Op::Put { value, .. } => 100 + value.len(),
        Op::Settle(..) | Op::Delete { .. } => 100,
    };
    transaction.ops.iter().map(weigh).sum()
}
