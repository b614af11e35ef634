//! A batch of transactions as the commit script reads it, and its answer read back.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use rmp::{decode, encode};

use super::message::{self, write_nil_or, write_text};
use super::registry::Registry;
use super::{dead_reason, micros};
use crate::backend::{
    Accepted, Committed, Due, Lease, Message, Op, Outcome, Transaction, cut_error, identity,
};
use crate::error::{Error, Result};

/// How broadcasts are addressed.
#[derive(Debug, Clone)]
pub(super) struct Channels {
    /// Before the topic in a channel's name.
    pub(super) prefix: String,
    /// Whether the frame is the body alone, not the stored form.
    pub(super) bare: bool,
}

/// Most messages that share a broadcast; the script knows the same number.
const MOST_IN_FRAME: usize = 64;
/// Size in bytes that ends a broadcast of several messages; the script knows the same number.
const FULL_FRAME: usize = 1 << 20;

/// What became of a part of the batch: which transactions a result belongs to.
#[derive(Debug)]
enum Part {
    /// Plain publishes, one per transaction.
    Publishes(Vec<usize>),
    /// A transaction of plain publishes.
    Publish(usize),
    /// Plain acknowledgements, one per transaction.
    Acks(Vec<usize>),
    /// Any transaction.
    Any(usize),
}

/// A batch ready to be sent.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    parts: Vec<Part>,
    /// Queues that keep a copy, per plain publish of each transaction.
    queues: Vec<Vec<u32>>,
}

fn array(out: &mut Vec<u8>, length: usize) {
    drop(encode::write_array_len(out, u32::try_from(length).unwrap_or(u32::MAX)));
}

fn number(out: &mut Vec<u8>, value: u64) {
    drop(encode::write_uint(out, value));
}

fn flag(out: &mut Vec<u8>, value: bool) {
    drop(encode::write_bool(out, value));
}

/// Writes a time or nothing; the script's `false` is nothing.
fn optional(out: &mut Vec<u8>, value: Option<u64>) {
    match value {
        Some(value) => number(out, value),
        None => flag(out, false),
    }
}

pub(super) fn is_plain(message: &Message) -> bool {
    message.key.is_none()
        && message.priority == 0
        && message.due == Due::Now
        && message.expires_after.is_none()
        && message.dedup_id.is_none()
        && message.unique.is_none()
}

fn is_plain_publish(op: &Op) -> bool {
    matches!(op, Op::Publish(message) if is_plain(message))
}

/// Whether a message is not the first of its event: the script keeps an index of these.
fn is_of_others(op: &Op) -> bool {
    match op {
        Op::Publish(message) => identity::is_again(&message.id),
        Op::Settle(lease, _) => identity::is_again(&lease.message),
        Op::Put { .. } | Op::Delete { .. } => false,
    }
}

/// The topics of a batch, each with its channel and targets, named by index.
struct Topics<'a> {
    registry: &'a Registry,
    channels: &'a Channels,
    index: AHashMap<Arc<str>, (u64, u32)>,
    out: Vec<u8>,
}

impl Topics<'_> {
    /// Returns the index of a topic, from 1, and how many queues keep a copy.
    fn index_of(&mut self, topic: &Arc<str>) -> (u64, u32) {
        if let Some(found) = self.index.get(topic) {
            return *found;
        }
        let targets = self.registry.targets(topic);
        array(&mut self.out, if self.registry.keeps { 3 } else { 2 });
        write_text(&mut self.out, format!("{}{topic}", self.channels.prefix).as_bytes());
        array(&mut self.out, targets.len() * 2);
        for (group, queue) in &targets {
            number(&mut self.out, *group);
            number(&mut self.out, *queue);
        }
        if self.registry.keeps {
            write_text(&mut self.out, topic.as_bytes());
        }
        let queues = u32::try_from(targets.len()).unwrap_or(u32::MAX);
        let entry = (self.index.len() as u64 + 1, queues);
        self.index.insert(Arc::clone(topic), entry);
        entry
    }

    /// Writes topic, message and frame; returns how many queues keep a copy.
    fn publish(&mut self, out: &mut Vec<u8>, message: &Message) -> u32 {
        let (topic, queues) = self.index_of(&message.topic);
        number(out, topic);
        write_text(out, &message::write(message));
        if !message.is_heard() {
            flag(out, false);
            return queues;
        }
        if self.registry.keeps {
            array(out, 2);
        }
        if self.channels.bare {
            write_text(out, &message.body);
        } else {
            flag(out, true);
        }
        if self.registry.keeps {
            write_text(out, &message.event);
        }
        queues
    }
}

impl Topics<'_> {
    /// Returns how many publishes these are, if no queue and no log keeps any and all are broadcast
    /// as they are: then the script need not look at each.
    fn count_heard<'m>(&mut self, ops: impl Iterator<Item = &'m Op>) -> Option<usize> {
        if self.registry.keeps || self.channels.bare {
            return None;
        }
        let mut count = 0;
        for op in ops {
            let Op::Publish(message) = op else { return None };
            if !message.is_heard() || self.index_of(&message.topic).1 > 0 {
                return None;
            }
            count += 1;
        }
        Some(count)
    }

    /// Writes publishes that are broadcast only; neighbours of one topic share a frame.
    fn write_heard<'m>(
        &mut self,
        out: &mut Vec<u8>,
        count: usize,
        ops: impl Iterator<Item = &'m Op>,
    ) {
        let mut frames: Vec<(u64, usize, Vec<u8>)> = Vec::new();
        for op in ops {
            let Op::Publish(message) = op else { continue };
            let (topic, _) = self.index_of(&message.topic);
            match frames.last_mut() {
                Some((last, held, frame))
                    if *last == topic && *held < MOST_IN_FRAME && frame.len() < FULL_FRAME =>
                {
                    message::append(frame, message);
                    *held += 1;
                }
                _ => frames.push((topic, 1, message::write(message))),
            }
        }
        array(out, 2 + frames.len() * 2);
        write_text(out, b"b");
        number(out, count as u64);
        for (topic, _, frame) in &frames {
            number(out, *topic);
            write_text(out, frame);
        }
    }
}

/// Settings of a batch beside its transactions.
#[derive(Debug)]
pub(super) struct Header<'a> {
    pub(super) registry: &'a Registry,
    pub(super) channels: &'a Channels,
    pub(super) producer: &'a str,
    pub(super) number: u64,
    pub(super) dedup_window: Duration,
    /// Whether the batch may have been sent before.
    pub(super) again: bool,
}

impl Batch {
    /// Writes transactions; plain ones that stand together share a part.
    pub(super) fn write(header: &Header<'_>, transactions: &[&Transaction]) -> Self {
        let mut topics = Topics {
            registry: header.registry,
            channels: header.channels,
            index: AHashMap::new(),
            out: Vec::new(),
        };
        let mut parts: Vec<Part> = Vec::new();
        let mut queues = vec![Vec::new(); transactions.len()];
        for (index, transaction) in transactions.iter().enumerate() {
            match transaction.ops.as_slice() {
                [op] if is_plain_publish(op) => match parts.last_mut() {
                    Some(Part::Publishes(run)) => run.push(index),
                    _ => parts.push(Part::Publishes(vec![index])),
                },
                [Op::Settle(lease, Outcome::Ack)] => match parts.last_mut() {
                    Some(Part::Acks(run))
                        if run
                            .first()
                            .and_then(|first| transactions.get(*first))
                            .and_then(|first| group_of(first))
                            .is_some_and(|group| *group == *lease.group) =>
                    {
                        run.push(index);
                    }
                    _ => parts.push(Part::Acks(vec![index])),
                },
                ops if !ops.is_empty() && ops.iter().all(is_plain_publish) => {
                    parts.push(Part::Publish(index));
                }
                _ => parts.push(Part::Any(index)),
            }
        }
        let mut segments = Vec::new();
        for part in &parts {
            write_part(&mut segments, part, transactions, &mut topics, &mut queues);
        }
        let mut bytes = Vec::with_capacity(segments.len() + topics.out.len() + 128);
        array(&mut bytes, 9);
        write_text(&mut bytes, header.registry.version.as_bytes());
        write_text(&mut bytes, header.producer.as_bytes());
        number(&mut bytes, header.number);
        array(&mut bytes, topics.index.len());
        bytes.extend_from_slice(&topics.out);
        array(&mut bytes, parts.len());
        bytes.extend_from_slice(&segments);
        let window = u64::try_from(header.dedup_window.as_millis()).unwrap_or(u64::MAX);
        number(&mut bytes, window);
        flag(&mut bytes, header.again);
        flag(&mut bytes, header.registry.keeps);
        flag(&mut bytes, transactions.iter().flat_map(|one| &one.ops).any(is_of_others));
        Self { bytes, parts, queues }
    }

    /// Returns what reads the answer to one plain publish that so many queues keep.
    pub(super) fn single(queues: u32) -> Self {
        let parts = vec![Part::Publishes(vec![0])];
        Self { bytes: Vec::new(), parts, queues: vec![vec![queues]] }
    }

    /// Reads the answer: one result per transaction, in order; `None` when it makes no sense.
    pub(super) fn read(
        &self,
        answer: &[u8],
        transactions: &[&Transaction],
    ) -> Option<Vec<Result<Committed>>> {
        let mut results: Vec<Option<Result<Committed>>> = Vec::new();
        results.resize_with(transactions.len(), || None);
        let mut rest = answer;
        if decode::read_array_len(&mut rest).ok()? as usize != self.parts.len() {
            return None;
        }
        for part in &self.parts {
            match part {
                Part::Publishes(run) => {
                    if is_true(&mut rest) {
                        for index in run {
                            *results.get_mut(*index)? = Some(Ok(self.plain(*index)));
                        }
                    } else {
                        let count = decode::read_array_len(&mut rest).ok()? as usize;
                        for index in run.iter().take(count) {
                            *results.get_mut(*index)? = Some(read_result(&mut rest)?);
                        }
                    }
                }
                Part::Publish(index) => {
                    *results.get_mut(*index)? = Some(if is_true(&mut rest) {
                        Ok(self.plain(*index))
                    } else {
                        read_result(&mut rest)?
                    });
                }
                Part::Acks(run) => {
                    for index in run {
                        *results.get_mut(*index)? = Some(Ok(Committed::default()));
                    }
                    for _ in 0..read_list_len(&mut rest)? {
                        // The place of an acknowledgement in its segment: 3, 6, 9, …
                        let place: usize = decode::read_int(&mut rest).ok()?;
                        let index = *run.get((place / 3).checked_sub(1)?)?;
                        let lease = lease_of(transactions.get(index)?)?;
                        *results.get_mut(index)? = Some(Err(lease.lost()));
                    }
                }
                Part::Any(index) => {
                    *results.get_mut(*index)? = Some(read_result(&mut rest)?);
                }
            }
        }
        results.into_iter().collect()
    }

    fn plain(&self, index: usize) -> Committed {
        let queues = self.queues.get(index).map_or(&[][..], Vec::as_slice);
        let accepted = |queues: &u32| Accepted { duplicate: false, queues: *queues };
        Committed { published: queues.iter().map(accepted).collect(), versions: Vec::new() }
    }
}

fn lease_of(transaction: &Transaction) -> Option<&Lease> {
    transaction.ops.iter().find_map(|op| match op {
        Op::Settle(lease, _) => Some(lease),
        _ => None,
    })
}

fn group_of(transaction: &Transaction) -> Option<&str> {
    lease_of(transaction).map(|lease| lease.group.as_ref())
}

fn write_part(
    out: &mut Vec<u8>,
    part: &Part,
    transactions: &[&Transaction],
    topics: &mut Topics<'_>,
    queues: &mut [Vec<u32>],
) {
    let ops = |index: &usize| transactions.get(*index).map_or(&[][..], |tx| tx.ops.as_slice());
    match part {
        Part::Publishes(run) => {
            let published = || run.iter().flat_map(ops);
            if let Some(count) = topics.count_heard(published()) {
                for index in run {
                    queues.get_mut(*index).into_iter().for_each(|queues| queues.push(0));
                }
                return topics.write_heard(out, count, published());
            }
            array(out, 1 + run.len() * 3);
            write_text(out, b"p");
            for index in run {
                write_plain(out, ops(index), topics, queues.get_mut(*index));
            }
        }
        Part::Publish(index) => {
            if let Some(count) = topics.count_heard(ops(index).iter()) {
                queues.get_mut(*index).into_iter().for_each(|queues| queues.resize(count, 0));
                return topics.write_heard(out, count, ops(index).iter());
            }
            array(out, 1 + ops(index).len() * 3);
            write_text(out, b"P");
            write_plain(out, ops(index), topics, queues.get_mut(*index));
        }
        Part::Acks(run) => {
            array(out, 2 + run.len() * 3);
            write_text(out, b"a");
            let group = run.first().and_then(|first| transactions.get(*first).copied());
            write_text(out, group.and_then(group_of).unwrap_or_default().as_bytes());
            for lease in run.iter().filter_map(|index| lease_of(transactions.get(*index)?)) {
                write_lease(out, lease);
            }
        }
        Part::Any(index) => {
            array(out, 1 + ops(index).len());
            write_text(out, b"t");
            for op in ops(index) {
                write_op(out, op, topics);
            }
        }
    }
}

fn write_plain(
    out: &mut Vec<u8>,
    ops: &[Op],
    topics: &mut Topics<'_>,
    queues: Option<&mut Vec<u32>>,
) {
    let mut counts = Vec::with_capacity(ops.len());
    for op in ops {
        if let Op::Publish(message) = op {
            counts.push(topics.publish(out, message));
        }
    }
    if let Some(queues) = queues {
        *queues = counts;
    }
}

fn write_lease(out: &mut Vec<u8>, lease: &Lease) {
    write_text(out, &lease.message);
    write_text(out, lease.token.to_string().as_bytes());
    write_text(out, lease.binding.to_string().as_bytes());
}

fn write_op(out: &mut Vec<u8>, op: &Op, topics: &mut Topics<'_>) {
    match op {
        Op::Publish(message) => {
            array(out, 5);
            write_text(out, b"p");
            topics.publish(out, message);
            array(out, 7);
            let (due, delay) = match message.due {
                Due::Now => (None, None),
                Due::After(delay) => (None, Some(micros(delay))),
                Due::At(at) => (Some(u64::try_from(at).unwrap_or(0)), None),
            };
            optional(out, due);
            optional(out, delay);
            optional(out, message.expires_after.map(micros));
            write_false_or(out, message.key.as_deref());
            drop(encode::write_sint(out, i64::from(message.priority)));
            let dedup = message.dedup_id.as_deref();
            let dedup = dedup.map(|id| format!("{}:{}{id}", message.topic.len(), message.topic));
            write_false_or(out, dedup.as_deref());
            write_false_or(out, message.unique.as_deref());
        }
        Op::Settle(lease, outcome) => {
            array(out, 8);
            write_text(out, b"s");
            write_text(out, lease.group.as_bytes());
            write_lease(out, lease);
            write_outcome(out, outcome);
        }
        Op::Put { key, value, if_version, ttl } => {
            array(out, 5);
            write_text(out, b"w");
            write_text(out, key.as_bytes());
            write_text(out, value);
            optional(out, *if_version);
            optional(out, ttl.map(micros));
        }
        Op::Delete { key, if_version } => {
            array(out, 3);
            write_text(out, b"d");
            write_text(out, key.as_bytes());
            optional(out, *if_version);
        }
    }
}

fn write_false_or(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(_) => write_nil_or(out, text),
        None => flag(out, false),
    }
}

fn write_outcome(out: &mut Vec<u8>, outcome: &Outcome) {
    let (name, after, error) = match outcome {
        Outcome::Ack => ("ack".to_owned(), Duration::ZERO, String::new()),
        Outcome::Release => ("release".to_owned(), Duration::ZERO, String::new()),
        Outcome::Crash => ("crash".to_owned(), Duration::ZERO, String::new()),
        Outcome::Defer { after } => ("defer".to_owned(), *after, String::new()),
        Outcome::Retry { after, error } => ("retry".to_owned(), *after, cut_error(error.clone())),
        Outcome::Dead { reason, error } => {
            let name = format!("dead:{}", dead_reason::name(*reason));
            (name, Duration::ZERO, cut_error(error.clone()))
        }
    };
    write_text(out, name.as_bytes());
    number(out, micros(after));
    write_text(out, error.as_bytes());
}

/// Takes a `true` if one stands here.
fn is_true(rest: &mut &[u8]) -> bool {
    match rest.split_first() {
        Some((0xc3, after)) => {
            *rest = after;
            true
        }
        _ => false,
    }
}

/// Reads the length of a list; the script cannot tell an empty one from an empty map.
fn read_list_len(rest: &mut &[u8]) -> Option<u32> {
    if let Some((0x80, after)) = rest.split_first() {
        *rest = after;
        return Some(0);
    }
    decode::read_array_len(rest).ok()
}

fn read_text(rest: &mut &[u8]) -> Option<String> {
    let length = decode::read_str_len(rest).ok()? as usize;
    let (text, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// Reads `['ok', published, versions]` or what went wrong.
fn read_result(rest: &mut &[u8]) -> Option<Result<Committed>> {
    read_list_len(rest)?;
    match read_text(rest)?.as_str() {
        "ok" => {
            let mut committed = Committed::default();
            for _ in 0..read_list_len(rest)? {
                read_list_len(rest)?;
                let duplicate = decode::read_bool(rest).ok()?;
                let queues = decode::read_int(rest).ok()?;
                committed.published.push(Accepted { duplicate, queues });
            }
            for _ in 0..read_list_len(rest)? {
                committed.versions.push(decode::read_int(rest).ok()?);
            }
            Some(Ok(committed))
        }
        "full" => {
            let queue = read_text(rest)?;
            let limit = read_text(rest)?.parse().ok()?;
            Some(Err(Error::QueueFull { queue, limit }))
        }
        "lost" => {
            let group = read_text(rest)?;
            let token = read_text(rest)?.parse().ok()?;
            Some(Err(Error::LeaseLost { group, token }))
        }
        "conflict" => {
            let key = read_text(rest)?;
            let expected = decode::read_int(rest).ok()?;
            let actual = decode::read_int(rest).ok()?;
            Some(Err(Error::VersionConflict { key, expected, actual }))
        }
        _ => None,
    }
}
