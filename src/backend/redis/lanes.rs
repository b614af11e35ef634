//! Commits: what accumulated while a batch was under way makes the next one.
//!
//! Two lanes, one for what only settles: a full server must still drain, and must not be made
//! fuller by what travels along. A lane has one batch under way, so that order holds and a batch
//! whose answer was lost can be sent again: the server knows its number.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::batch::{Batch, Header};
use super::context::Context;
use super::link::Trouble;
use super::{scripts, single};
use crate::backend::{Committed, Transaction};
use crate::error::{Error, Result};
use crate::nudge::{Crowd, Nudge};

/// Most transactions in a batch.
const MAX_TRANSACTIONS: usize = 1000;
/// Most bytes of bodies in a batch, unless one transaction alone has more.
const MAX_BYTES: usize = 4 << 20;
/// Most transactions that wait for their batch.
const MAX_WAITING: usize = 20_000;
/// Most bytes that wait for their batch.
const MAX_WAITING_BYTES: usize = 64 << 20;

type Answer = oneshot::Sender<Result<Committed>>;

struct Waiting {
    transaction: Transaction,
    bytes: usize,
    deadline: Instant,
    answer: Answer,
    _room: tokio::sync::OwnedSemaphorePermit,
}

/// The way in for transactions.
#[derive(Debug)]
pub(super) struct Lane {
    queue: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
    op_timeout: Duration,
    context: Arc<Context>,
    nudge: Nudge,
}

impl Lane {
    /// Returns a lane, and the task that serves it.
    pub(super) fn new(context: Arc<Context>) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        let room = Arc::new(Semaphore::new(MAX_WAITING_BYTES));
        let op_timeout = context.op_timeout;
        let served = Arc::clone(&context);
        let (nudge, task) = Nudge::around(move |crowd| serve(served, waiting, crowd));
        (Self { queue, room, op_timeout, context, nudge }, task)
    }

    /// Hands a transaction in; the answer comes when its batch was committed.
    async fn enter(
        &self,
        transaction: Transaction,
    ) -> Result<oneshot::Receiver<Result<Committed>>> {
        let deadline = Instant::now() + self.op_timeout;
        let bytes = transaction.weight();
        let needed = u32::try_from(bytes.min(MAX_WAITING_BYTES)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(needed);
        let late = |_| self.context.link.too_late("commit", self.op_timeout, false);
        let room = tokio::time::timeout_at(deadline, room).await.map_err(late)?;
        let room = room.map_err(|_| Error::Closed { what: "bus" })?;
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { transaction, bytes, deadline, answer, _room: room };
        let place = tokio::time::timeout_at(deadline, self.queue.reserve()).await.map_err(late)?;
        place.map_err(|_| Error::Closed { what: "bus" })?.send(waiting);
        Ok(answered)
    }

    /// Commits transactions, in order.
    pub(super) async fn commit(&self, batch: Vec<Transaction>) -> Vec<Result<Committed>> {
        let bytes: usize = batch.iter().map(Transaction::weight).sum();
        self.nudge.ask(bytes, self.commit_all(batch)).await
    }

    async fn commit_all(&self, batch: Vec<Transaction>) -> Vec<Result<Committed>> {
        let mut entered = Vec::with_capacity(batch.len());
        for transaction in batch {
            entered.push(self.enter(transaction).await);
        }
        let mut results = Vec::with_capacity(entered.len());
        for one in entered {
            results.push(match one {
                Ok(answered) => answered.await.unwrap_or(Err(Error::Closed { what: "bus" })),
                Err(error) => Err(error),
            });
        }
        results
    }
}

/// Serves a lane until nobody can hand anything in.
async fn serve(context: Arc<Context>, mut waiting: mpsc::Receiver<Waiting>, crowd: Crowd) {
    let producer = uuid::Uuid::new_v4().simple().to_string();
    let mut number = 0;
    let mut left: Option<Waiting> = None;
    loop {
        let first = match left.take() {
            Some(first) => first,
            None => match waiting.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let mut bytes = first.bytes;
        let mut batch = vec![first];
        while batch.len() < MAX_TRANSACTIONS {
            let Ok(next) = waiting.try_recv() else { break };
            if bytes + next.bytes > MAX_BYTES {
                left = Some(next);
                break;
            }
            bytes += next.bytes;
            batch.push(next);
        }
        number += 1;
        crowd.found(batch.len());
        send(&context, &producer, number, batch).await;
    }
}

/// Sends one batch, again and again while an answer is missing and somebody waits for it.
async fn send(context: &Context, producer: &str, number: u64, mut batch: Vec<Waiting>) {
    let (mut sent, mut packed) = (false, false);
    loop {
        if !sent {
            // What nobody waits for any more, or not in time, is not sent at all.
            let now = Instant::now();
            for late in batch.extract_if(.., |one| one.answer.is_closed() || one.deadline <= now) {
                let error = context.link.too_late("commit", context.op_timeout, false);
                let _ = late.answer.send(Err(error));
            }
        }
        let Some(deadline) = batch.iter().map(|one| one.deadline).max() else { return };
        let transactions: Vec<&Transaction> = batch.iter().map(|one| &one.transaction).collect();
        let registry = context.registry();
        let header = Header {
            registry: &registry,
            channels: &context.channels,
            producer,
            number,
            dedup_window: context.dedup_window,
            again: sent,
        };
        let calling = context.link.calling();
        let single = if packed {
            None
        } else {
            single::write(&header, calling, &context.prefix, &transactions)
        };
        let (command, encoded) = single.unwrap_or_else(|| {
            let encoded = Batch::write(&header, &transactions);
            let mut command = scripts::COMMIT.call(calling, &context.prefix);
            command.arg(&encoded.bytes[..]);
            (command, encoded)
        });
        let error = match context.link.send(&command, deadline).await {
            Ok(Value::BulkString(answer)) if answer == b"STALE" => {
                match context.refresh(deadline).await {
                    Ok(()) => continue,
                    Err(trouble) => Err(trouble),
                }
            }
            Ok(Value::BulkString(answer)) if answer == b"MORE" => {
                packed = true;
                continue;
            }
            Ok(Value::BulkString(answer)) => match encoded.read(&answer, &transactions) {
                Some(results) => Ok(results),
                None => Err(nonsense()),
            },
            Ok(_) => Err(nonsense()),
            Err(trouble) => Err(trouble),
        };
        let error = match error {
            Ok(results) => {
                for (one, result) in batch.into_iter().zip(results) {
                    let _ = one.answer.send(result);
                }
                return;
            }
            Err(Trouble::Refused(error)) => error,
            Err(Trouble::NoScript) => match context.prepare(deadline).await {
                Ok(()) => continue,
                Err(error) => error,
            },
            Err(Trouble::Lost) if Instant::now() < deadline => {
                sent = true;
                continue;
            }
            Err(Trouble::Away) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            Err(trouble) => {
                let unknown = sent || matches!(trouble, Trouble::Lost);
                context.link.too_late("commit", context.op_timeout, unknown)
            }
        };
        for one in batch {
            let _ = one.answer.send(Err(error.clone()));
        }
        return;
    }
}

fn nonsense() -> Trouble {
    let reason = "the commit script gave an answer that cannot be read".to_owned();
    Trouble::Refused(Error::Internal { reason })
}
