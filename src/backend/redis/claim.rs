//! Claims, waits for claims, and leases.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use redis::Value;
use tokio::time::Instant;

use super::message::{self, HEAD};
use super::registry::{text, write_binding};
use super::session::Session;
use super::{micros, scripts};
use crate::backend::{
    ClaimRequest, DeadReason, Delivery, GroupSpec, Lease, Outcome, Token, Transaction,
};
use crate::error::{Error, Result};

/// Numbers for claims that may have to be sent again: the server remembers the newest of a slot.
#[derive(Debug, Default)]
pub(super) struct Slots {
    free: Mutex<Vec<u64>>,
    made: AtomicU64,
    number: AtomicU64,
}

/// One of them, free again when dropped.
struct Slot<'a> {
    slots: &'a Slots,
    index: u64,
    number: u64,
}

impl Slots {
    fn take(&self) -> Slot<'_> {
        let free = self.free.lock().pop();
        let index = free.unwrap_or_else(|| self.made.fetch_add(1, Ordering::Relaxed));
        Slot { slots: self, index, number: self.number.fetch_add(1, Ordering::Relaxed) + 1 }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.slots.free.lock().push(self.index);
    }
}

/// What the claim script answered.
enum Found {
    Ready,
    /// Nothing; look again after this long.
    Empty(Duration),
    Claimed(Vec<Delivery>),
}

fn arm_key(request: &ClaimRequest) -> (Arc<str>, usize) {
    (Arc::clone(&request.group), request.bindings.as_ptr() as usize)
}

impl Session {
    /// Claims; a claim that finds nothing takes a place among those who wait.
    pub(super) async fn claim(self: &Arc<Self>, request: &ClaimRequest) -> Result<Vec<Delivery>> {
        let key = arm_key(request);
        self.armed.lock().remove(&key);
        let waiting = self.waits.enter(&request.group);
        match self.look(request, request.max).await? {
            Found::Claimed(claimed) => Ok(claimed),
            Found::Ready => Ok(Vec::new()),
            Found::Empty(after) => {
                self.armed.lock().insert(key, (waiting, Instant::now() + after));
                Ok(Vec::new())
            }
        }
    }

    /// Waits until a claim may succeed.
    pub(super) async fn wait_ready(self: &Arc<Self>, request: &ClaimRequest) -> Result<()> {
        let armed = self.armed.lock().remove(&arm_key(request));
        let (waiting, until) = match armed {
            Some(armed) => armed,
            None => {
                let waiting = self.waits.enter(&request.group);
                match self.look(request, 0).await? {
                    Found::Empty(after) => (waiting, Instant::now() + after),
                    Found::Ready | Found::Claimed(_) => return Ok(()),
                }
            }
        };
        tokio::select! {
            () = waiting.woken() => {}
            () = tokio::time::sleep_until(until) => {}
        }
        drop(waiting);
        // The group may have been deleted, which only another look tells.
        match self.look(request, 0).await? {
            Found::Empty(_) | Found::Ready | Found::Claimed(_) => Ok(()),
        }
    }

    async fn look(self: &Arc<Self>, request: &ClaimRequest, max: usize) -> Result<Found> {
        let slot = self.slots.take();
        let registry = Arc::clone(&self.registry.read());
        let known = registry.known(&request.group);
        let queues = known.map(|known| known.queues(&request.bindings)).unwrap_or_default();
        let question = |again: bool| {
            let mut command = scripts::CLAIM.call(&self.prefix);
            command
                .arg(request.group.as_bytes())
                .arg(max)
                .arg(micros(request.lease))
                .arg(request.max_deliveries)
                .arg(&self.process)
                .arg(slot.index)
                .arg(slot.number)
                .arg(u8::from(again))
                .arg(&registry.version)
                .arg(known.map_or(0, |known| known.group))
                .arg(queues.len());
            for queue in &queues {
                command.arg(*queue);
            }
            for binding in request.bindings.iter() {
                command.arg(write_binding(binding));
            }
            command
        };
        let answer = self.run("claim", question).await?;
        self.found(request, answer).await
    }

    async fn found(&self, request: &ClaimRequest, answer: Value) -> Result<Found> {
        let wrong = || Error::Internal { reason: "the claim script's answer is no list".into() };
        let Value::Array(parts) = answer else { return Err(wrong()) };
        let mut parts = parts.into_iter();
        let kind = parts.next().and_then(text).ok_or_else(wrong)?;
        let mut number = || parts.next().and_then(text).and_then(|text| text.parse::<i64>().ok());
        match kind.as_str() {
            "nogroup" => Err(Error::NotFound { what: "group", name: request.group.to_string() }),
            "nodata" if !request.bindings.is_empty() => {
                self.status.warn(
                    "the server lost its data: groups were declared anew, what waited is gone",
                );
                let bindings = request.bindings.to_vec();
                let name = Arc::clone(&request.group);
                // What comes from now on is kept again.
                self.declare(GroupSpec { name, bindings, max_length: None }).await?;
                Ok(Found::Ready)
            }
            "nodata" => Err(Error::NotFound { what: "group", name: request.group.to_string() }),
            "ready" => Ok(Found::Ready),
            "empty" => {
                let (next, now) = (number().ok_or_else(wrong)?, number().ok_or_else(wrong)?);
                let sweep = self.config.sweep;
                let after = match u64::try_from(next.saturating_sub(now)) {
                    Ok(after) if next >= 0 => sweep.min(Duration::from_micros(after)),
                    _ if next >= 0 => Duration::ZERO,
                    _ => sweep,
                };
                Ok(Found::Empty(after + Duration::from_millis(1)))
            }
            _ => {
                let (_, until) = (number().ok_or_else(wrong)?, number().ok_or_else(wrong)?);
                let mut claimed = Vec::new();
                let mut unreadable = Vec::new();
                while let (Some(token), Some(tries), Some(Value::BulkString(stored))) =
                    (parts.next().and_then(text), parts.next().and_then(text), parts.next())
                {
                    let token = token.parse().map_err(|_| wrong())?;
                    match delivery(request, token, &tries, Bytes::from(stored), until) {
                        Ok(delivery) => claimed.push(delivery),
                        Err(lease) => unreadable.push(lease),
                    }
                }
                if !unreadable.is_empty() {
                    self.bury(unreadable).await;
                }
                Ok(Found::Claimed(claimed))
            }
        }
    }

    /// Moves what is no message to the dead letters, raw bytes kept.
    async fn bury(&self, unreadable: Vec<Lease>) {
        let error = "the stored bytes are no message".to_owned();
        let bury = |lease| {
            let outcome = Outcome::Dead { reason: DeadReason::Undecodable, error: error.clone() };
            Transaction::settle(lease, outcome)
        };
        // What fails here comes back when its lease ends.
        drop(self.settles.commit(unreadable.into_iter().map(bury).collect()).await);
    }

    /// Gives back deliveries that nobody took.
    pub(super) async fn give_back(&self, claimed: Vec<Delivery>) {
        let release = |delivery: Delivery| Transaction::settle(delivery.lease, Outcome::Release);
        drop(self.settles.commit(claimed.into_iter().map(release).collect()).await);
    }

    /// Extends leases.
    pub(super) async fn renew(&self, leases: &[Lease], lease: Duration) -> Vec<Result<()>> {
        let answer = self
            .script("renew", &scripts::RENEW, |command| {
                command.arg(micros(lease));
                for one in leases {
                    command
                        .arg(one.group.as_bytes())
                        .arg(&one.message)
                        .arg(one.token)
                        .arg(one.binding);
                }
            })
            .await;
        let kept = match answer {
            Ok(Value::Array(kept)) => kept,
            Ok(_) => Vec::new(),
            Err(error) => return vec![Err(error); leases.len()],
        };
        let told = leases.iter().zip(kept);
        told.map(|(lease, kept)| match kept {
            Value::Int(1) => Ok(()),
            _ => Err(lease.lost()),
        })
        .collect()
    }
}

/// Reads one claimed copy; one that cannot be read gives the lease to bury it by.
fn delivery(
    request: &ClaimRequest,
    token: Token,
    tries: &str,
    stored: Bytes,
    until: i64,
) -> Result<Delivery, Lease> {
    let mut lease =
        Lease { group: Arc::clone(&request.group), binding: 0, message: [0; 16], token };
    let head = stored.slice(..HEAD.min(stored.len()));
    let body = stored.slice(HEAD.min(stored.len())..);
    if let Some(binding) = head.get(16..20).and_then(|bytes| bytes.try_into().ok()) {
        lease.binding = u32::from_be_bytes(binding);
    }
    // The script has seen that an id stands here.
    if let Some(id) = body.get(2..18).and_then(|bytes| bytes.try_into().ok()) {
        lease.message = id;
    }
    let Some((message, _)) = message::read(&body) else { return Err(lease) };
    let accepted = head.get(..8).and_then(|bytes| bytes.try_into().ok()).map(f64::from_be_bytes);
    let (attempts, crashes) = tries.split_once(':').unwrap_or(("0", "0"));
    Ok(Delivery {
        lease,
        topic: message.topic,
        body: message.body,
        key: message.key,
        priority: message.priority,
        attempts: attempts.parse().unwrap_or(0),
        crashes: crashes.parse().unwrap_or(0),
        accepted_at: whole(accepted.unwrap_or(0.0)),
        lease_until: until,
    })
}

/// Returns a time of the server as the contract counts it.
#[expect(clippy::cast_possible_truncation, reason = "microseconds of this era fit")]
fn whole(time: f64) -> i64 {
    time as i64
}
