//! Claims, waits and renewals.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ahash::RandomState;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::RngExt;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_postgres::Row;
use uuid::Uuid;

use super::calls::{CLAIM, PEEK, RENEW, column};
use super::live::Live;
use super::session::Argument;
use super::step::signed;
use super::wake::Wait;
use super::{closed, micros};
use crate::backend::{ClaimRequest, Delivery, Lease, Outcome, Transaction};
use crate::error::{Error, Result};
use crate::topic::Binding;

/// Splits bindings into what the functions of the schema take.
pub(super) fn split(bindings: &[Binding]) -> (Vec<bool>, Vec<&str>) {
    let patterns = bindings.iter().map(|binding| matches!(binding, Binding::Pattern(_)));
    (patterns.collect(), bindings.iter().map(text).collect())
}

fn text(binding: &Binding) -> &str {
    match binding {
        Binding::Topic(topic) => topic,
        Binding::Pattern(pattern) => pattern.as_str(),
    }
}

/// What a claim that got nothing said of the wait that follows.
#[derive(Debug)]
struct Armed {
    wait: Arc<Wait>,
    /// How often the wait had been notified before the claim.
    seen: u64,
    pause: Option<Duration>,
    at: Instant,
}

/// What the last claims said, by the bindings that they were for: those are not equal by chance, as
/// they are kept.
#[derive(Debug, Default)]
pub(super) struct Arms(Mutex<HashMap<usize, (ClaimRequest, Armed), RandomState>>);

impl Arms {
    fn key(request: &ClaimRequest) -> usize {
        request.bindings.as_ptr().addr()
    }

    fn arm(&self, request: &ClaimRequest, armed: Armed) {
        let mut arms = self.0.lock();
        // Who never waits, or has gone, leaves something behind.
        if arms.len() >= 64 {
            arms.retain(|_, (_, armed)| armed.at.elapsed() < Duration::from_secs(60));
        }
        arms.insert(Self::key(request), (request.clone(), armed));
    }

    fn take(&self, request: &ClaimRequest) -> Option<Armed> {
        let found = self.0.lock().remove(&Self::key(request));
        found.filter(|(before, _)| before.group == request.group).map(|(_, armed)| armed)
    }
}

/// Deliveries on their way to the caller; given back when it has gone.
struct Held {
    live: Arc<Live>,
    deliveries: Vec<Delivery>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.deliveries.is_empty() {
            return;
        }
        let live = Arc::clone(&self.live);
        let release = |delivery: Delivery| Transaction::settle(delivery.lease, Outcome::Release);
        let batch = std::mem::take(&mut self.deliveries).into_iter().map(release).collect();
        self.live.link.tasks.spawn(async move {
            // What cannot be given back comes back when its lease ends.
            live.inbox.commit(batch).await;
        });
    }
}

/// Claims; a caller that goes away leaves everything queued.
pub(super) async fn claim(live: &Arc<Live>, request: &ClaimRequest) -> Result<Vec<Delivery>> {
    let (reply, answer) = oneshot::channel();
    let (task, request) = (Arc::clone(live), request.clone());
    live.link.tasks.spawn(async move {
        let bus = task.registry.get().bus.clone();
        let claimed = match take(&task, &request).await {
            Err(Error::NotFound { .. }) if is_replaced(&task, &bus).await => Ok(Vec::new()),
            claimed => claimed,
        };
        let held = claimed.map(|deliveries| Held { live: task, deliveries });
        // Dropped here when nobody waits for it.
        let _ = reply.send(held);
    });
    let mut held = answer.await.map_err(|_| closed())??;
    Ok(std::mem::take(&mut held.deliveries))
}

/// Whether a group is missing because the schema was made anew; by then it is declared again.
async fn is_replaced(live: &Live, bus: &str) -> bool {
    live.was_replaced(bus).await.unwrap_or(false)
}

async fn take(live: &Live, request: &ClaimRequest) -> Result<Vec<Delivery>> {
    let (patterns, texts) = split(&request.bindings);
    let max = i32::try_from(request.max).unwrap_or(i32::MAX);
    let max_deliveries = i32::try_from(request.max_deliveries).unwrap_or(i32::MAX);
    let lease = micros(request.lease);
    let group = &*request.group;
    // What wakes from here on comes after what the claim saw. Without notifications nothing would.
    let group_id = live.registry.get().id(group).filter(|_| live.wakes.are_arriving());
    let wait = group_id.map(|id| live.wakes.of(id));
    let seen = wait.as_ref().map_or(0, |wait| wait.count());
    let sweep = wait.as_ref().map(|_| micros(live.sweep));
    let number: i64 = rand::rng().random();
    let first: [Argument<'_>; 9] =
        [&group, &patterns, &texts, &max, &lease, &max_deliveries, &sweep, &number, &false];
    let mut again = first;
    let [.., is_again] = &mut again;
    *is_again = &true;
    let mut rows = live.pool.call_or(&CLAIM, &first, &again, group).await?;
    let is_empty = match rows.last() {
        Some(row) => column::<Option<i64>>(row, 0)?.is_none(),
        None => false,
    };
    let last = rows.pop_if(|_| is_empty);
    if !rows.is_empty() {
        live.hollow.clear(group);
        if let Some(wait) = &wait {
            wait.in_vain.fill();
        }
    }
    if let Some((row, wait)) = last.zip(wait) {
        live.armed.arm(request, Armed { wait, seen, pause: pause(&row, 11)?, at: Instant::now() });
    }
    let mut found: Vec<(i16, i64, Delivery)> =
        rows.iter().map(|row| delivery(&request.group, row)).collect::<Result<_>>()?;
    found.sort_unstable_by_key(|(priority, seq, _)| (std::cmp::Reverse(*priority), *seq));
    Ok(found.into_iter().map(|(_, _, delivery)| delivery).collect())
}

fn delivery(group: &Arc<str>, row: &Row) -> Result<(i16, i64, Delivery)> {
    let priority: i16 = column(row, 7)?;
    let lease = Lease {
        group: Arc::clone(group),
        binding: unsigned(column(row, 2)?),
        message: column::<Uuid>(row, 1)?.into_bytes(),
        token: u64::try_from(column::<i64>(row, 3)?).unwrap_or(0),
    };
    let delivery = Delivery {
        lease,
        topic: column::<&str>(row, 4)?.into(),
        body: Bytes::copy_from_slice(column(row, 5)?),
        key: column::<Option<&str>>(row, 6)?.map(Into::into),
        priority,
        attempts: unsigned(column(row, 8)?),
        crashes: unsigned(column(row, 9)?),
        accepted_at: column(row, 10)?,
        lease_until: column(row, 11)?,
    };
    Ok((priority, column(row, 0)?, delivery))
}

/// Counters and indexes are never negative.
pub(super) fn unsigned(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

/// Waits until a claim may succeed, also while the server is away.
pub(super) async fn wait_ready(live: &Arc<Live>, request: &ClaimRequest) -> Result<()> {
    let bus = live.registry.get().bus.clone();
    match wait(live, request).await {
        Err(Error::NotFound { .. }) if is_replaced(live, &bus).await => Ok(()),
        waited => waited,
    }
}

async fn wait(live: &Arc<Live>, request: &ClaimRequest) -> Result<()> {
    let group = live.group_id(&request.group).await?;
    if !live.wakes.are_arriving() {
        live.attend(&live.link.schema.listen(true)).await;
    }
    let wait = live.wakes.of(group);
    let mut closing = live.hearing.clone();
    closing.mark_unchanged();
    let mut armed = live.armed.take(request);
    loop {
        let notified = wait.notify.notified();
        tokio::pin!(notified);
        // From here on a wake-up counts, also one that comes before the wait.
        notified.as_mut().enable();
        let looked = match armed.take() {
            Some(armed) if armed.wait.count() != armed.seen => {
                wait.in_vain.take().await;
                return Ok(());
            }
            // A deleted group's wait is not that of its successor.
            Some(armed) if Arc::ptr_eq(&armed.wait, &wait) => {
                Ok(armed.pause.map(|pause| pause.saturating_sub(armed.at.elapsed())))
            }
            _ => look(live, request).await,
        };
        let pause = match looked {
            Ok(None) => {
                tokio::time::sleep(live.hollow.pause(&request.group)).await;
                return Ok(());
            }
            Ok(Some(pause)) => {
                live.hollow.clear(&request.group);
                pause
            }
            Err(error) if error.is_retryable() => {
                live.link.note(&error.to_string());
                Duration::from_secs(1)
            }
            Err(error) => return Err(error),
        };
        tokio::select! {
            () = notified => {
                wait.in_vain.take().await;
                return Ok(());
            }
            () = tokio::time::sleep(pause) => {}
            // The connection that carries wake-ups went or came.
            _ = closing.changed() => {}
            () = live.ended() => return Err(closed()),
        }
    }
}

/// Returns `None` when a claim may succeed, else how long to wait before the next look.
async fn look(live: &Live, request: &ClaimRequest) -> Result<Option<Duration>> {
    let (patterns, texts) = split(&request.bindings);
    let sweep = micros(live.sweep);
    let group = &*request.group;
    let rows = live.pool.call(&PEEK, &[&group, &patterns, &texts, &sweep], group).await?;
    let missing = || Error::Internal { reason: "the server answered a wait with nothing".into() };
    pause(rows.first().ok_or_else(missing)?, 0)
}

/// Reads after how long a claim may succeed; `None`: now.
fn pause(row: &Row, index: usize) -> Result<Option<Duration>> {
    let micros = u64::try_from(column::<i64>(row, index)?).unwrap_or(0);
    Ok((micros > 0).then(|| Duration::from_micros(micros)))
}

/// Extends leases; one result each.
pub(super) async fn renew(live: &Live, leases: &[Lease], lease: Duration) -> Vec<Result<()>> {
    let registry = live.registry_for(leases).await;
    let group: Vec<_> = leases.iter().map(|lease| registry.id(&lease.group).unwrap_or(0)).collect();
    let binding: Vec<_> =
        leases.iter().map(|lease| i32::try_from(lease.binding).unwrap_or(-1)).collect();
    let id: Vec<_> = leases.iter().map(|lease| Uuid::from_bytes(lease.message)).collect();
    let token: Vec<_> = leases.iter().map(|lease| signed(lease.token)).collect();
    let arguments: [Argument<'_>; 5] = [&group, &binding, &id, &token, &micros(lease)];
    let renewed = live.pool.call(&RENEW, &arguments, "").await;
    let renewed = renewed.and_then(|rows| match rows.first() {
        Some(row) => column::<Vec<i32>>(row, 0),
        None => Ok(Vec::new()),
    });
    let current = match renewed {
        Ok(current) => current,
        Err(error) => return vec![Err(error); leases.len()],
    };
    let mut results: Vec<Result<()>> = leases.iter().map(|lease| Err(lease.lost())).collect();
    for number in current {
        let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
        if let Some(result) = index.and_then(|index| results.get_mut(index)) {
            *result = Ok(());
        }
    }
    results
}
