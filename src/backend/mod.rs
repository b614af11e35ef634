//! The contract that every backend fulfils: one trait and its plain data types.
//!
//! A backend stores and carries bytes; it never decodes an event. `commit` is the one write path
//! of queues and records: each [`Transaction`] is atomic, all of them travel in one round trip,
//! and a stale token or failed precondition in one never touches another.

mod bucket;
mod feeds;
mod gate;
pub mod identity;
pub mod memory;
pub mod postgres;
pub mod redis;
mod replay;

pub use gate::Gate;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::ring::{Item, Ring};
use crate::topic::Binding;

/// What a backend can do beyond the contract's core, asked once; the docs table and the
/// conformance suites read it.
#[derive(Debug, Clone, Serialize)]
pub struct Capabilities {
    /// The backend's name: `memory`, `redis`, `postgres`.
    pub name: &'static str,
    /// Publisher and subscriber share the process: broadcasts are the very objects published.
    pub in_process: bool,
    /// What is accepted survives the end of this process.
    pub durable: bool,
    /// `subscribe(since=…)` can replay broadcasts.
    pub replay: bool,
    /// Most partitions of one bus.
    pub max_partitions: u32,
}

/// Identity of a published message; every group copy of it has the same (UUID, 16 bytes). It says
/// which event the message carries, as [`identity`] describes.
pub type MessageId = [u8; 16];

/// Names an event in the kept broadcasts: the bytes of its id, or of a UUID made from it.
pub type EventKey = [u8; 16];

/// When a message becomes due for its groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Due {
    /// At once, and broadcast.
    #[default]
    Now,
    /// After this long by the backend's clock; not broadcast.
    After(Duration),
    /// At this time, microseconds since the epoch, by the backend's clock; not broadcast.
    At(i64),
}

/// A transaction as one statement with one argument, for a connection of the caller's.
#[derive(Debug, Clone)]
pub struct Statement {
    /// The SQL text; `$1` stands for the argument, which is text.
    pub text: String,
    /// The argument.
    pub argument: String,
}

/// Transactions that take effect with a caller's own, on the caller's connection: prepared here, run
/// there, and their answer is read here.
pub trait Joins: Send + Sync {
    /// Prepares a transaction. The statement returns one row with one array of numbers.
    ///
    /// # Errors
    /// `NotConnected`, `Closed`; what can never be stored.
    fn statement(&self, transaction: &Transaction) -> Result<Statement>;

    /// Reads what the statement returned.
    ///
    /// # Errors
    /// As for one transaction of [`Backend::commit`]: nothing of it happened then, but the caller's
    /// transaction goes on.
    fn answer(&self, transaction: &Transaction, figures: &[i64]) -> Result<Committed>;

    /// Says what a failed statement means, by its SQLSTATE and message; `None` when that is between
    /// the caller and the server.
    fn failure(&self, code: &str, said: &str) -> Option<Error>;
}

/// One message to publish.
#[derive(Debug, Clone)]
pub struct Message {
    /// Identity, chosen by the publisher.
    pub id: MessageId,
    /// The topic it is published on.
    pub topic: Arc<str>,
    /// The event that it carries, by which a replay finds it.
    pub event: EventKey,
    /// The encoded event.
    pub body: Bytes,
    /// Ordering key: one in flight per (group, key), across the group's bindings, in order of
    /// acceptance whatever the priorities; its head's priority places the key among the others.
    pub key: Option<Box<str>>,
    /// Higher first, strictly; default 0.
    pub priority: i16,
    /// When groups get it.
    pub due: Due,
    /// Not delivered to groups later than this after acceptance.
    pub expires_after: Option<Duration>,
    /// A second publish with the same (topic, `dedup_id`) inside the window is accepted and dropped.
    pub dedup_id: Option<Box<str>>,
    /// Dropped per queue while another message with this key is ready, delayed or in flight there.
    pub unique: Option<Box<str>>,
    /// Whether listeners of this backend get it too.
    pub broadcast: bool,
}

impl Message {
    /// Whether listeners get it: one with a time to wait is for queues alone.
    pub fn is_heard(&self) -> bool {
        self.broadcast && self.due == Due::Now
    }
}

/// Fencing token of one delivery: unique and increasing; stale as soon as the delivery is claimed
/// again or taken back by the sweep.
pub type Token = u64;

/// Names one delivery when it is settled or renewed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The group.
    pub group: Arc<str>,
    /// The binding whose queue held the copy (its index in the group, as given in the delivery).
    pub binding: u32,
    /// The message.
    pub message: MessageId,
    /// The fencing token of the claim.
    pub token: Token,
}

impl Lease {
    /// The error of a lease that is held no more.
    #[must_use]
    pub fn lost(&self) -> Error {
        Error::LeaseLost { group: self.group.as_ref().to_owned(), token: self.token }
    }
}

/// How a delivery ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Handled: removed.
    Ack,
    /// Failed: counts an attempt, due again after the delay.
    Retry {
        /// The delay by the backend's clock.
        after: Duration,
        /// What happened: type, message, traceback; at most 16 KiB are kept.
        error: String,
    },
    /// Ended for good: moved to the dead letters. `Failed` counts an attempt, other reasons do not.
    Dead {
        /// Why.
        reason: DeadReason,
        /// What happened; at most 16 KiB are kept.
        error: String,
    },
    /// Given back untouched; nothing is counted and it keeps its place in the queue.
    Release,
    /// Ended with its process: given back at once, and the crash that its claim counted stays
    /// counted.
    Crash,
    /// Given back untouched but due later: for what this worker cannot read and a newer one can.
    Defer {
        /// The delay by the backend's clock.
        after: Duration,
    },
}

/// Most bytes of an error's text that are kept.
pub const MAX_ERROR_BYTES: usize = 16 * 1024;

/// Cuts an error's text to [`MAX_ERROR_BYTES`] between two characters.
#[must_use]
pub fn cut_error(mut text: String) -> String {
    if text.len() > MAX_ERROR_BYTES {
        // A boundary is at most three bytes away, and 0 is one.
        let end = (0..=MAX_ERROR_BYTES).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
    }
    text
}

/// Why a delivery became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadReason {
    /// `max_attempts` handler errors (this error counts as an attempt).
    Failed,
    /// The handler rejected it.
    Rejected,
    /// `max_deliveries` claims ended without settle or release.
    Crashed,
    /// The body cannot be decoded.
    Undecodable,
    /// No handler of that name.
    UnknownTask,
    /// It was not delivered before its time to live ended.
    Expired,
    /// It has no signature by one of the keys of the bus that claimed it.
    Unsigned,
}

impl DeadReason {
    /// Whether it is decided without a word of a handler; see [`Backend::dead_news`].
    #[must_use]
    pub fn is_news(self) -> bool {
        matches!(self, Self::Crashed | Self::Undecodable | Self::Expired | Self::Unsigned)
    }
}

/// One step of a transaction.
#[derive(Debug, Clone)]
pub enum Op {
    /// Publish a message.
    Publish(Message),
    /// Settle a delivery; a stale token fails the whole transaction with `LeaseLost`.
    Settle(Lease, Outcome),
    /// Write a record; a failed precondition fails the whole transaction with `VersionConflict`.
    Put {
        /// The record's key.
        key: Arc<str>,
        /// Its new value.
        value: Bytes,
        /// `None` = unconditional, `0` = must not exist, `n` = must be at version n.
        if_version: Option<u64>,
        /// Removed this long after now by the backend's clock.
        ttl: Option<Duration>,
    },
    /// Delete a record; deleting an absent one without precondition is fine.
    Delete {
        /// The record's key.
        key: Arc<str>,
        /// As in `Put`.
        if_version: Option<u64>,
    },
}

/// Steps that take effect together or not at all.
#[derive(Debug, Clone, Default)]
pub struct Transaction {
    /// The steps, in order: later ones see the effect of earlier ones.
    pub ops: Vec<Op>,
}

impl Transaction {
    /// Returns one that only settles a delivery.
    #[must_use]
    pub fn settle(lease: Lease, outcome: Outcome) -> Self {
        Self { ops: vec![Op::Settle(lease, outcome)] }
    }

    /// Returns about how many bytes it is on the wire of a server.
    #[must_use]
    pub fn weight(&self) -> usize {
        let weigh = |op: &Op| match op {
            Op::Publish(message) => 100 + message.body.len(),
            Op::Put { value, .. } => 100 + value.len(),
            Op::Settle(..) | Op::Delete { .. } => 100,
        };
        self.ops.iter().map(weigh).sum()
    }
}

/// What one publish of a committed transaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The dedup window knew it: nothing was stored, nothing is to be broadcast.
    pub duplicate: bool,
    /// How many queues (bindings of groups) keep a copy.
    pub queues: u32,
}

/// What a committed transaction did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// One per `Op::Publish`, in order.
    pub published: Vec<Accepted>,
    /// The new version per `Op::Put`, in order. Versions start at 1 and are never reused.
    pub versions: Vec<u64>,
}

/// Declares a group: idempotent; bindings are added, never removed.
#[derive(Debug, Clone)]
pub struct GroupSpec {
    /// The group's name: 1–255 bytes, no control characters.
    pub name: Arc<str>,
    /// What it is bound to, beside what it has already.
    pub bindings: Vec<Binding>,
    /// Most messages it may hold (ready, delayed and in flight); `None` keeps what is set, else the
    /// backend's default.
    pub max_length: Option<u64>,
}

/// Most bytes of messages that one claim on Redis returns; the first message always comes. What its
/// server holds for one client stays bounded, whatever the number of slots.
pub const MAX_CLAIM_BYTES: usize = 1 << 20;

/// Asks for deliveries.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// The group; it must be declared.
    pub group: Arc<str>,
    /// What the consumer handles: only these bindings' queues are served. Empty = all.
    pub bindings: Arc<[Binding]>,
    /// Most deliveries to return; at least 1. On Redis fewer come when they have more than
    /// [`MAX_CLAIM_BYTES`] together.
    pub max: usize,
    /// How long the claim holds without renewal.
    pub lease: Duration,
    /// Crashes after which a message is dead-lettered instead of delivered.
    pub max_deliveries: u32,
}

impl ClaimRequest {
    /// Checks what no backend can serve.
    ///
    /// # Errors
    /// `InvalidArgument` for no deliveries, or a lease of no time.
    pub fn check(&self) -> Result<()> {
        at_least_one("max", self.max)?;
        at_least_one("max_deliveries", self.max_deliveries as usize)?;
        if self.lease.is_zero() {
            let rule = "must be longer than 0 s";
            return Err(Error::InvalidArgument { what: "lease", value: "0 s".into(), rule });
        }
        Ok(())
    }
}

fn at_least_one(what: &'static str, value: usize) -> Result<()> {
    if value > 0 {
        return Ok(());
    }
    Err(Error::InvalidArgument { what, value: value.to_string(), rule: "must be at least 1" })
}

/// One attempt to handle a message.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// What settles it.
    pub lease: Lease,
    /// The topic it was published on.
    pub topic: Arc<str>,
    /// The encoded event.
    pub body: Bytes,
    /// Its ordering key.
    pub key: Option<Box<str>>,
    /// Its priority.
    pub priority: i16,
    /// Handler errors so far.
    pub attempts: u32,
    /// Claims so far that ended without settle or release, not counting this one.
    pub crashes: u32,
    /// When it was accepted, microseconds since the epoch.
    pub accepted_at: i64,
    /// When the lease ends unless renewed, microseconds since the epoch.
    pub lease_until: i64,
}

/// What a listener receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broadcast {
    /// A broadcast message.
    Frame {
        /// The topic it was published on.
        topic: Arc<str>,
        /// The encoded event.
        body: Bytes,
        /// Its place among the broadcasts that a listener of this backend gets; increasing. With
        /// replay it counts what was kept, for all clients alike.
        position: u64,
    },
    /// A hole: messages between the frames around it were lost.
    Gap(Gap),
}

/// A hole in a broadcast, announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub cause: GapCause,
    /// How many are missing, when known.
    pub count: Option<u64>,
}

/// Why a broadcast has a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GapCause {
    /// The receiver was slower than its bounded buffer allows.
    Overflow,
    /// The connection was lost and came back.
    Reconnect,
    /// Replay was asked for from a position that is no longer kept.
    Retention,
}

/// What a full buffer does with the next broadcast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// Drops the oldest buffered one and announces a gap.
    #[default]
    DropOldest,
    /// Drops the new one and announces a gap.
    DropNewest,
    /// Ends the subscription after a gap.
    Close,
}

/// Asks for broadcasts.
#[derive(Debug, Clone)]
pub struct ListenRequest {
    /// What to receive; a message that matches several is received once.
    pub bindings: Vec<Binding>,
    /// Most frames buffered; at least 1.
    pub buffer: usize,
    /// What happens when the buffer is full.
    pub overflow: Overflow,
    /// Where to begin in the kept broadcasts; needs [`Capabilities::replay`]. Such a listener is
    /// never offered more than its buffer holds: it falls behind instead, and a gap comes only where
    /// retention overtook it.
    pub since: Option<Since>,
}

impl ListenRequest {
    /// Checks what a backend cannot serve.
    ///
    /// # Errors
    /// `InvalidArgument` for a buffer of no frames, `Unsupported` for `since` without replay.
    pub fn check(&self, capabilities: &Capabilities) -> Result<()> {
        at_least_one("buffer", self.buffer)?;
        if self.since.is_none() || capabilities.replay {
            return Ok(());
        }
        Err(Error::Unsupported {
            operation: "subscribe(since=…)",
            backend: capabilities.name,
            remedy: "give the bus a retention, or subscribe without since",
        })
    }
}

/// Where a replay begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// At the oldest broadcast that is kept.
    Beginning,
    /// Behind the broadcast at this position.
    After(u64),
    /// Behind the oldest kept broadcast of this event; when none is kept, a gap and then the oldest
    /// kept.
    Event(EventKey),
    /// At the first one accepted at this time or later, microseconds since the epoch by the
    /// backend's clock; a gap first when some of them are not kept any more.
    Time(i64),
}

/// A broadcast message as it waits in a listener's buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The topic it was published on.
    pub topic: Arc<str>,
    /// The encoded event.
    pub body: Bytes,
    /// As in [`Broadcast::Frame`].
    pub position: u64,
}

/// A live source of broadcasts; dropping it ends the subscription.
#[async_trait]
pub trait Listener: Send + Sync {
    /// Returns its buffer, for who takes without waiting. Closing it ends the intake.
    fn buffer(&self) -> &Arc<Ring<Frame>>;

    /// Whether it knows of more than it has put into its buffer; only a replay can be behind.
    fn is_behind(&self) -> bool {
        false
    }

    /// Returns what arrived, in order, at most `max`; waits while there is nothing. An empty
    /// result means the listener was closed. Cancel safe: nothing is taken before it is returned.
    async fn next(&self, max: usize) -> Result<Vec<Broadcast>> {
        let taken = self.buffer().take(max).await;
        let broadcasts = taken.into_iter().map(|item| match item {
            Item::Value(Frame { topic, body, position }) => {
                Broadcast::Frame { topic, body, position }
            }
            Item::Gap(gap) => Broadcast::Gap(gap),
        });
        Ok(broadcasts.collect())
    }
}

/// A stored record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its key.
    pub key: Arc<str>,
    /// Counts writes of this key; starts at 1, never reused, also across deletes.
    pub version: u64,
    /// Its value.
    pub value: Bytes,
}

/// A message that ended without being handled, kept for the operator.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// The group it belonged to.
    pub group: Arc<str>,
    /// The binding's index in the group.
    pub binding: u32,
    /// The message.
    pub message: MessageId,
    /// The topic it was published on.
    pub topic: Arc<str>,
    /// The raw body.
    pub body: Bytes,
    /// Why it is here.
    pub reason: DeadReason,
    /// The last error's text.
    pub error: String,
    /// Handler errors.
    pub attempts: u32,
    /// Crashed deliveries.
    pub crashes: u32,
    /// When it died, microseconds since the epoch.
    pub died_at: i64,
}

/// A message in a queue, as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageInfo {
    /// The group.
    pub group: Arc<str>,
    /// The binding's index in the group.
    pub binding: u32,
    /// The message.
    pub message: MessageId,
    /// The topic it was published on.
    pub topic: Arc<str>,
    /// Where it stands.
    pub state: MessageState,
    /// When it is due (delayed), became ready, or its lease ends (active), microseconds since the
    /// epoch.
    pub at: i64,
    /// Handler errors so far.
    pub attempts: u32,
    /// Its priority.
    pub priority: i16,
}

/// Where a message of a group stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageState {
    /// Can be claimed (or waits behind its key).
    Ready,
    /// Not due yet.
    Delayed,
    /// Claimed.
    Active,
}

/// What an operator does to a waiting message, by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageAction {
    /// Remove it; an active one cannot be cancelled.
    Cancel,
    /// Make it due at this time, microseconds since the epoch.
    Reschedule(i64),
    /// Make it due now.
    Promote,
}

/// Figures of one group.
///
/// Exact at one instant: `accepted = acked + dead + removed + ready + delayed + in_flight`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GroupStats {
    /// The group.
    pub group: String,
    /// Its bindings, topics and patterns as text, in index order.
    pub bindings: Vec<String>,
    /// Whether claims are paused.
    pub paused: bool,
    /// Messages that can be claimed, or wait behind their key.
    pub ready: u64,
    /// Messages not yet due.
    pub delayed: u64,
    /// Messages claimed and not settled.
    pub in_flight: u64,
    /// Dead letters.
    pub dead: u64,
    /// Age of the oldest ready message in seconds; 0.0 when there is none.
    pub oldest_age: f64,
    /// Copies accepted since the group was declared.
    pub accepted: u64,
    /// Deliveries acknowledged.
    pub acked: u64,
    /// Retries counted.
    pub retried: u64,
    /// Leases that ran out and were taken back.
    pub expired_leases: u64,
    /// Copies removed by cancel, purge or unbind, and dead letters discarded or no longer kept.
    pub removed: u64,
}

/// Figures of a bus.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Inspection {
    /// The backend's name.
    pub backend: String,
    /// Messages accepted (a duplicate is not).
    pub published: u64,
    /// Publishes dropped by the dedup window.
    pub duplicates: u64,
    /// Live records.
    pub records: u64,
    /// One per group, by name.
    pub groups: Vec<GroupStats>,
}

/// Whether a backend can be used just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionState {
    /// Not reached yet, or lost and being sought.
    Connecting,
    /// Every connection is proven alive.
    #[default]
    Live,
    /// It works, but something that is needed is missing: see the warnings.
    Degraded,
    /// Closed.
    Closed,
}

/// How a backend and its servers are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Whether it can be used.
    pub state: ConnectionState,
    /// What the server calls itself, with its version; empty when unknown.
    pub server: String,
    /// Tells the server from others: the same for all backends that it serves; empty when unknown.
    pub server_id: String,
    /// What an operator should change, each with the remedy.
    pub warnings: Vec<String>,
    /// The last trouble with a connection; empty when there was none.
    pub last_error: String,
    /// How often a connection was lost and made anew.
    pub reconnects: u64,
    /// Frames from the wire that could not be read and were skipped.
    pub malformed: u64,
}

/// What a backend in this process does at once: callers need no future, and no runtime.
pub trait InProcess: Send + Sync {
    /// Applies one transaction; see [`Backend::commit`].
    ///
    /// # Errors
    /// As the result of [`Backend::commit`].
    fn commit_now(&self, transaction: Transaction) -> Result<Committed>;

    /// Applies transactions, each on its own, under one lock.
    fn commit_all_now(&self, batch: Vec<Transaction>) -> Vec<Result<Committed>>;

    /// Claims; see [`Backend::claim`].
    ///
    /// # Errors
    /// As for [`Backend::claim`].
    fn claim_now(&self, request: &ClaimRequest) -> Result<Vec<Delivery>>;
}

/// What every backend does. All methods may be called concurrently.
///
/// # Cancel safety
/// Dropping any of these futures leaves each transaction whole or absent, and a claim's deliveries
/// either returned or still queued.
#[async_trait]
pub trait Backend: Send + Sync + std::fmt::Debug {
    /// Returns what this backend can do.
    fn capabilities(&self) -> &Capabilities;

    /// Returns the operations that never wait, of a backend that lives in this process.
    fn in_process(&self) -> Option<&dyn InProcess> {
        None
    }

    /// Returns what signs and verifies, where the backend was given keys and what it carries leaves
    /// this process.
    fn gate(&self) -> Option<&Arc<Gate>> {
        None
    }

    /// Returns what puts transactions of this backend into transactions of the caller's, where the
    /// backend is a database that callers have connections to.
    ///
    /// # Errors
    /// `Unsupported` where it is none.
    fn joins(&self) -> Result<&dyn Joins> {
        Err(Error::Unsupported {
            operation: "connection=",
            backend: self.capabilities().name,
            remedy: "a bus of connect(\"postgresql://…\") joins transactions of its database",
        })
    }

    /// Reaches the server and gets ready; what lives in this process always is. Idempotent, and
    /// opens again what `close` ended.
    ///
    /// # Errors
    /// `Connect` or `Timeout` when the server cannot be reached or refuses; `Config` when it can
    /// not be used as configured.
    async fn connect(&self) -> Result<()> {
        Ok(())
    }

    /// Waits until the listeners of this process have what was published before the call.
    ///
    /// # Errors
    /// `Timeout` or `Connect` when the server does not answer.
    async fn heard(&self) -> Result<()> {
        Ok(())
    }

    /// Whether a message on `topic` would be kept by a group; may be answered from a cache that is
    /// never stale towards `false` for a group declared in this process.
    fn has_queue(&self, topic: &str) -> bool;

    /// Applies transactions, each atomic and independent of the others, in order.
    async fn commit(&self, batch: Vec<Transaction>) -> Vec<Result<Committed>>;

    /// Starts receiving broadcasts; what is published after this returned is received.
    async fn listen(&self, request: ListenRequest) -> Result<Box<dyn Listener>>;

    /// Whether a broadcast goes a way that foreign processes of its wire do not see.
    fn goes_apart(&self, message: &Message) -> bool {
        let _ = message;
        false
    }

    /// As `listen`, for a pattern that was given together with a topic: where foreign processes
    /// broadcast on a channel per topic, those of this one are heard too.
    ///
    /// # Errors
    /// As for `listen`.
    async fn listen_near(&self, request: ListenRequest, topic: &str) -> Result<Box<dyn Listener>> {
        let _ = topic;
        self.listen(request).await
    }

    /// Declares a group; what is published after this returned is kept for it. A binding that was
    /// removed and is declared again gets a new index.
    async fn declare_group(&self, spec: GroupSpec) -> Result<()>;

    /// Removes bindings and what waits in their queues; returns how many messages were removed.
    /// What is in flight can still be settled; what would return to the queue (retry, release, end
    /// of the lease) is removed instead. Dead letters stay; unknown bindings are ignored.
    async fn unbind(&self, group: &str, bindings: &[Binding]) -> Result<u64>;

    /// Removes a group with everything in it; returns how many messages were removed, dead letters
    /// included. Its leases are lost, its waits end with `NotFound`.
    async fn delete_group(&self, group: &str) -> Result<u64>;

    /// Removes what is ready or delayed; what is in flight stays. Returns how many.
    async fn purge(&self, group: &str) -> Result<u64>;

    /// Stops (`true`) or resumes claims of a group; what is in flight is not touched.
    async fn pause(&self, group: &str, paused: bool) -> Result<()>;

    /// Claims what is ready, best priority first, then oldest; empty when nothing is.
    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Delivery>>;

    /// Waits until a claim may succeed. A hint: it may return early, and returns at the latest when
    /// a delayed message becomes due, a lease runs out, or after the backend's sweep interval.
    async fn wait_ready(&self, request: &ClaimRequest) -> Result<()>;

    /// Extends leases to `lease` from now; one result per lease, `LeaseLost` when stale.
    async fn renew(&self, leases: &[Lease], lease: Duration) -> Vec<Result<()>>;

    /// Reads records; one result per key.
    async fn read(&self, keys: &[Arc<str>]) -> Result<Vec<Option<Record>>>;

    /// Reads records whose key begins with `prefix`, in key order, after the key `after`.
    async fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Record>>;

    /// Returns the figures of the bus.
    async fn inspect(&self) -> Result<Inspection>;

    /// Lists the waiting and active copies of every message that carries an event, in one group or in
    /// all: one per publish and binding that matched, by group and order of acceptance. Dead letters
    /// are not among them. The id of a message that is not the first finds it alone; see [`identity`].
    async fn message(&self, group: Option<&str>, event: EventKey) -> Result<Vec<MessageInfo>>;

    /// Applies an action to the copies that [`Backend::message`] lists and that still wait; returns
    /// how many changed. Promoting changes only what is delayed; what is active is never changed. A
    /// copy is either changed or claimed, never both. Many copies are changed in steps: a failure
    /// leaves those of earlier steps changed.
    async fn act_on(
        &self,
        group: Option<&str>,
        event: EventKey,
        action: MessageAction,
    ) -> Result<u64>;

    /// Lists dead letters, oldest first, after the message `after` (from the start when it is no
    /// longer there). Copies of one message stand together and are never torn by a page, so the last
    /// message of a page may exceed `limit`.
    async fn dead_letters(
        &self,
        group: &str,
        after: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>>;

    /// Takes the dead letters of a group that the store itself decided on (`crashed`, `expired`,
    /// `undecodable`, `unsigned`) and that nobody has been told of, oldest first, at most 100: each is given to
    /// one caller. Of a long absence only the newest may be left.
    async fn dead_news(&self, group: &str) -> Result<Vec<DeadLetter>> {
        let _ = group;
        Ok(Vec::new())
    }

    /// How often `dead_news` is worth asking.
    fn sweep_interval(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// Queues dead letters again as newly accepted, with fresh counters and time to live, under the
    /// same id; returns how many. One whose binding is gone or whose `unique` key is taken stays.
    ///
    /// # Errors
    /// `QueueFull` when not all of them find room: then none is moved.
    async fn retry_dead(&self, group: &str, ids: &[MessageId]) -> Result<u64>;

    /// Removes dead letters; returns how many were found.
    async fn discard_dead(&self, group: &str, ids: &[MessageId]) -> Result<u64>;

    /// Returns how the backend and its servers are; never waits for a server that does not answer.
    fn health(&self) -> Health {
        Health::default()
    }

    /// Ends listeners (what is buffered can still be taken) and waits; every later call answers
    /// `Closed`. Idempotent; stored data of a shared bus stays.
    async fn close(&self) -> Result<()>;
}
