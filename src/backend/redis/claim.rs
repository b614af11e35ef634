//! Claims, waits for claims, and leases.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use redis::{Cmd, Value};
use tokio::time::Instant;

use super::bounds::Bound;
use super::link::Trouble;
use super::message::{self, HEAD};
use super::registry::{Registry, text, write_binding};
use super::session::Session;
use super::{micros, scripts};
use crate::backend::{ClaimRequest, DeadReason, Delivery, Lease, Outcome, Token, Transaction};
use crate::error::{Error, Result};

/// How often the answer to a claim of one message may be lost before it is put off.
const MOST_ALONE: u32 = 5;
/// How long after the first time a lost claim is asked for once more.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// Numbers for claims that may have to be sent again: the server remembers the newest of a slot.
#[derive(Debug, Default)]
pub(super) struct Slots {
    free: Mutex<Vec<u64>>,
    made: AtomicU64,
    number: AtomicU64,
    unseen: Mutex<Vec<Unseen>>,
}

/// A claim whose answer never came.
#[derive(Debug)]
struct Unseen {
    request: ClaimRequest,
    index: u64,
    number: u64,
    given_back: Option<Instant>,
}

/// One of them, free again when dropped.
struct Slot<'a> {
    /// None of one that is asked about only.
    slots: Option<&'a Slots>,
    index: u64,
    number: u64,
}

impl Slots {
    fn take(&self) -> Slot<'_> {
        let free = self.free.lock().pop();
        let index = free.unwrap_or_else(|| self.made.fetch_add(1, Ordering::Relaxed));
        Slot { slots: Some(self), index, number: self.number.fetch_add(1, Ordering::Relaxed) + 1 }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if let Some(slots) = self.slots {
            slots.free.lock().push(self.index);
        }
    }
}

/// A claim that is asked for until it is answered.
struct Asked<'a> {
    session: &'a Session,
    request: &'a ClaimRequest,
    registry: &'a Registry,
    slot: &'a Slot<'a>,
}

impl Asked<'_> {
    fn command(&self, kind: &str, bound: Bound) -> Cmd {
        let (session, request, registry) = (self.session, self.request, self.registry);
        let known = registry.known(&request.group);
        let queues = known.map(|known| known.queues(&request.bindings)).unwrap_or_default();
        let mut command = scripts::CLAIM.call(session.commands.calling(), &session.prefix);
        command
            .arg(request.group.as_bytes())
            .arg(bound.most)
            .arg(micros(request.lease))
            .arg(request.max_deliveries)
            .arg(&session.process)
            .arg(self.slot.index)
            .arg(self.slot.number)
            .arg(kind)
            .arg(&registry.version)
            .arg(known.map_or(0, |known| known.group))
            .arg(bound.bytes)
            .arg(queues.len());
        for queue in &queues {
            command.arg(*queue);
        }
        for binding in request.bindings.iter() {
            command.arg(write_binding(binding));
        }
        command
    }

    /// Claims; a lost answer halves what is asked for next. A message that is lost alone several
    /// times is put off if it is large: it must not hold up what is behind it.
    async fn claim(&self, max: usize) -> Result<Value> {
        let session = self.session;
        let deadline = Instant::now() + session.config.net.op_timeout;
        let mut bound = session.bounds.of(&self.request.group, max);
        let (mut kind, mut alone) = ("first", 0);
        loop {
            match session.commands.send(&self.command(kind, bound), deadline).await {
                Ok(answer) => return Ok(answer),
                Err(Trouble::NoScript) => session.context.prepare(deadline).await?,
                Err(Trouble::Lost) if Instant::now() < deadline => {
                    alone += u32::from(bound.most == 1);
                    kind = if alone < MOST_ALONE { "again" } else { "defer" };
                    bound = session.bounds.lost(&self.request.group, bound);
                }
                Err(Trouble::Away) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(Trouble::Refused(closed @ Error::Closed { .. })) => return Err(closed),
                Err(_) if kind != "first" => return Err(session.failed("claim", Trouble::Lost)),
                Err(trouble) => return Err(session.failed("claim", trouble)),
            }
        }
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
        self.give_back_unseen().await;
        let slot = self.slots.take();
        let registry = self.context.registry();
        let asked = Asked { session: self, request, registry: &registry, slot: &slot };
        if max == 0 {
            let looking = asked.command("first", Bound { most: 0, bytes: 0 });
            let answer = self.run("claim", |_| looking.clone()).await?;
            return self.found(request, &registry, answer).await;
        }
        let answer = asked.claim(max).await;
        if answer.as_ref().is_err_and(Error::outcome_unknown) {
            // It may hold what nobody has seen.
            self.slots.unseen.lock().push(Unseen {
                request: request.clone(),
                index: slot.index,
                number: slot.number,
                given_back: None,
            });
        }
        self.found(request, &registry, answer?).await
    }

    /// Gives back what claims hold whose answers never came: nobody has seen it, nothing is counted.
    async fn give_back_unseen(self: &Arc<Self>) {
        let unseen = std::mem::take(&mut *self.slots.unseen.lock());
        let registry = self.context.registry();
        let deadline = Instant::now() + self.config.net.op_timeout;
        for mut one in unseen {
            if one.given_back.is_none_or(|at| at.elapsed() >= SECOND_LOOK) {
                let slot = Slot { slots: None, index: one.index, number: one.number };
                let (session, request) = (&**self, &one.request);
                let asked = Asked { session, request, registry: &registry, slot: &slot };
                let command = asked.command("void", Bound { most: 0, bytes: 0 });
                match self.commands.send(&command, deadline).await {
                    Ok(_) if one.given_back.is_some() => continue,
                    // What was sent on a connection that broke may still come to be done.
                    Ok(_) => one.given_back = Some(Instant::now()),
                    Err(Trouble::Refused(_)) => continue,
                    Err(_) => {}
                }
            }
            self.slots.unseen.lock().push(one);
        }
    }

    async fn found(
        &self,
        request: &ClaimRequest,
        registry: &Registry,
        answer: Value,
    ) -> Result<Found> {
        let wrong = || Error::Internal { reason: "the claim script's answer is no list".into() };
        let Value::Array(parts) = answer else { return Err(wrong()) };
        let mut parts = parts.into_iter();
        let kind = parts.next().and_then(text).ok_or_else(wrong)?;
        let mut number = || parts.next().and_then(text).and_then(|text| text.parse::<i64>().ok());
        match kind.as_str() {
            "nogroup" => self.missing_group(request).await,
            "ready" => Ok(Found::Ready),
            "deferred" => {
                self.bounds.forget(&request.group);
                self.status.warn(&format!(
                    "a message of group {:?} is larger than what the server sends to a client: it \
                     waits, and is tried again every 60 s; raise client-output-buffer-limit normal \
                     (and maxmemory-clients)",
                    request.group
                ));
                Ok(Found::Ready)
            }
            "empty" => {
                let (next, now) = (number().ok_or_else(wrong)?, number().ok_or_else(wrong)?);
                let sweep = self.config.sweep;
                let after = match u64::try_from(next.saturating_sub(now)) {
                    Ok(after) if next >= 0 => sweep.min(Duration::from_micros(after)),
                    _ if next >= 0 => Duration::ZERO,
                    _ => sweep,
                };
                if parts.next().and_then(text).is_some_and(|now| now != registry.version) {
                    // Another process has changed the bindings, or restored them without these.
                    self.refresh().await?;
                }
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

    /// Tells a group that was deleted from one that was lost: the latter is declared again.
    async fn missing_group(&self, request: &ClaimRequest) -> Result<Found> {
        self.refresh().await?;
        if self.context.registry.read().known(&request.group).is_some() {
            return Ok(Found::Ready);
        }
        Err(Error::NotFound { what: "group", name: request.group.to_string() })
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
