//! The memory backend: the whole contract inside one process, under one lock.
//!
//! Every call except `wait_ready` and a listener's `next` completes when it is first polled. There
//! are no background tasks: what time brings (leases that ran out, due messages, ended times to
//! live) is done inside the calls that would notice.
//!
//! - `state`: everything there is, and operations on whole groups
//! - `group`: one group's copies; `place`, `ready`: where they stand; `claim`, `settle`: deliveries;
//!   `dead`, `operate`: what operators see and do
//! - `commit`: the check and the application of transactions; `dedup`, `records`
//! - `broadcast`: feeds of listeners; `kept`: broadcasts kept for replay; `wait`: who waits for a claim

mod broadcast;
mod claim;
mod commit;
mod dead;
mod dedup;
mod group;
mod kept;
mod operate;
mod place;
mod ready;
mod records;
mod settle;
mod slab;
mod state;
mod wait;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::broadcast::{Feed, MemoryListener};
use self::kept::{Log, Reader};
use self::state::State;
use self::wait::{Waiter, Wakes};
use super::InProcess;
use super::replay::{Hint, Kept, Replay, ReplayListener};
use super::{
    Backend, Capabilities, ClaimRequest, Committed, DeadLetter, Delivery, EventKey, GroupSpec,
    Inspection, Lease, ListenRequest, Listener, MessageAction, MessageId, MessageInfo, Record,
    Transaction,
};
use crate::clock::{Clock, SystemClock};
use crate::config::{MemoryConfig, Retention};
use crate::error::{Error, Result};
use crate::ring::Ring;
use crate::topic::{Binding, RouteId};

/// Returns a duration in microseconds, as the clock counts.
fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// What the backend, its listeners and its waiters share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    /// Routes to queues, so that a bus without groups never takes the lock to learn it.
    routes: AtomicUsize,
}

impl Shared {
    /// Runs one operation under the lock, and wakes whom it woke after it.
    fn with<R>(&self, run: impl FnOnce(&mut State, i64, &mut Wakes) -> Result<R>) -> Result<R> {
        let now = self.clock.now();
        let mut wakes = Wakes::default();
        let mut state = self.state.lock();
        let result = if state.closed { Err(closed()) } else { run(&mut state, now, &mut wakes) };
        drop(state);
        wakes.fire();
        result
    }

    /// As `with`, for operations that change bindings.
    fn rebind<R>(&self, run: impl FnOnce(&mut State, i64, &mut Wakes) -> Result<R>) -> Result<R> {
        self.with(|state, now, wakes| {
            let result = run(state, now, wakes);
            self.routes.store(state.routes.len(), Ordering::Release);
            result
        })
    }

    /// Adds a listener.
    fn add_feed(
        self: &Arc<Self>,
        feed: Arc<Feed>,
        bindings: Vec<Binding>,
    ) -> Result<MemoryListener> {
        let (id, routes) = self.with(|state, _, _| {
            state.next_id += 1;
            state.feeds.insert(state.next_id, Arc::clone(&feed));
            let bindings = bindings.into_iter();
            let routes = bindings.map(|b| state.listeners.insert(b, Arc::clone(&feed))).collect();
            Ok((state.next_id, routes))
        })?;
        Ok(MemoryListener { feed, id, routes, shared: Arc::clone(self) })
    }

    /// Removes a listener.
    fn forget(&self, id: u64, routes: &[RouteId]) {
        let mut state = self.state.lock();
        for route in routes {
            state.listeners.remove(*route);
        }
        state.feeds.remove(&id);
    }
}

fn closed() -> Error {
    Error::Closed { what: "bus" }
}

/// A backend inside this process.
#[derive(Debug)]
pub struct MemoryBackend {
    shared: Arc<Shared>,
    capabilities: Capabilities,
}

impl Default for MemoryBackend {
    fn default() -> Self {
        Self::new(MemoryConfig::default(), Arc::new(SystemClock))
    }
}

impl MemoryBackend {
    /// Creates an empty backend; `config` is taken as valid.
    #[must_use]
    pub fn new(config: MemoryConfig, clock: Arc<dyn Clock>) -> Self {
        let retention = config.kept().filter(Retention::is_on);
        let kept = retention.map(Log::new);
        let state = Mutex::new(State { config, kept, ..State::default() });
        let capabilities = Capabilities {
            name: "memory",
            in_process: true,
            durable: false,
            replay: retention.is_some(),
            max_partitions: 1,
        };
        Self {
            shared: Arc::new(Shared { state, clock, routes: AtomicUsize::new(0) }),
            capabilities,
        }
    }

    /// Returns at once when a claim may succeed, else a registration to wait for.
    fn register(&self, request: &ClaimRequest) -> Result<Option<Registration<'_>>> {
        self.shared.with(|state, now, wakes| {
            state.next_id += 1;
            let id = state.next_id;
            let group = state.group(&request.group)?;
            group.sweep(now, wakes);
            if group.has_ready(&request.bindings) {
                return Ok(None);
            }
            let notify = Arc::new(Notify::new());
            let until = group.next_change();
            group.waiters.add(Waiter {
                id,
                queues: group.served(&request.bindings),
                until,
                notify: Arc::clone(&notify),
            });
            let group = Arc::clone(&request.group);
            Ok(Some(Registration { shared: &self.shared, group, id, until, notify }))
        })
    }
}

/// A place among the waiters of a group, given up when dropped.
struct Registration<'a> {
    shared: &'a Shared,
    group: Arc<str>,
    id: u64,
    until: Option<i64>,
    notify: Arc<Notify>,
}

impl Registration<'_> {
    async fn wait(&self) {
        match self.until {
            None => self.notify.notified().await,
            Some(at) => tokio::select! {
                () = self.notify.notified() => {}
                () = self.shared.clock.sleep_until(at) => {}
            },
        }
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        if let Ok(group) = self.shared.state.lock().group(&self.group) {
            group.waiters.remove(self.id);
        }
    }
}

impl InProcess for MemoryBackend {
    fn commit_now(&self, transaction: Transaction) -> Result<Committed> {
        self.shared.with(|state, now, wakes| state.transact(transaction, now, wakes))
    }

    fn commit_all_now(&self, batch: Vec<Transaction>) -> Vec<Result<Committed>> {
        let count = batch.len();
        let done = self.shared.with(|state, now, wakes| {
            Ok(batch.into_iter().map(|tx| state.transact(tx, now, wakes)).collect())
        });
        done.unwrap_or_else(|error| vec![Err(error); count])
    }

    fn claim_now(&self, request: &ClaimRequest) -> Result<Vec<Delivery>> {
        request.check()?;
        self.shared.with(|state, now, wakes| {
            let mut token = state.token;
            let claimed = state.group(&request.group)?.claim(request, now, &mut token, wakes);
            state.token = token;
            Ok(claimed)
        })
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn has_queue(&self, topic: &str) -> bool {
        if self.shared.routes.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut found = false;
        self.shared.state.lock().routes.for_each_match(topic, |_, _| found = true);
        found
    }

    fn in_process(&self) -> Option<&dyn InProcess> {
        Some(self)
    }

    async fn commit(&self, batch: Vec<Transaction>) -> Vec<Result<Committed>> {
        self.commit_all_now(batch)
    }

    async fn listen(&self, request: ListenRequest) -> Result<Box<dyn Listener>> {
        request.check(&self.capabilities)?;
        let Some(since) = request.since else {
            let feed = Arc::new(Feed::new(&request));
            return Ok(Box::new(self.shared.add_feed(feed, request.bindings)?));
        };
        let kept = Reader(Arc::clone(&self.shared));
        let start = kept.find(since).await?;
        let ring = Arc::new(Ring::new(request.buffer, request.overflow));
        let hint = Arc::new(Hint::default());
        let feed = Arc::new(Feed::replaying(Arc::clone(&ring), Arc::clone(&hint)));
        let feed = self.shared.add_feed(feed, request.bindings.clone())?;
        let listener = ReplayListener::new(Arc::clone(&ring), Arc::clone(&hint), Box::new(feed));
        let replay =
            Replay { kept, bindings: request.bindings, ring, hint, sweep: None, gate: None };
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| Error::Internal {
            reason: "a replay needs a runtime to be started in".into(),
        })?;
        runtime.spawn(replay.run(start));
        Ok(Box::new(listener))
    }

    async fn declare_group(&self, spec: GroupSpec) -> Result<()> {
        self.shared.rebind(|state, _, wakes| state.declare(spec, wakes))
    }

    async fn unbind(&self, group: &str, bindings: &[Binding]) -> Result<u64> {
        self.shared.rebind(|state, now, wakes| state.unbind(group, bindings, now, wakes))
    }

    async fn delete_group(&self, group: &str) -> Result<u64> {
        // The group is dropped here, after the lock.
        let group = self.shared.rebind(|state, _, wakes| state.delete(group, wakes))?;
        Ok(group.len() + group.dead.len() as u64)
    }

    async fn purge(&self, group: &str) -> Result<u64> {
        self.shared.with(|state, now, wakes| {
            let group = state.group(group)?;
            group.sweep(now, wakes);
            Ok(group.remove_waiting(None, wakes))
        })
    }

    async fn pause(&self, group: &str, paused: bool) -> Result<()> {
        self.shared.with(|state, _, wakes| {
            state.group(group)?.pause(paused, wakes);
            Ok(())
        })
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Delivery>> {
        self.claim_now(request)
    }

    async fn wait_ready(&self, request: &ClaimRequest) -> Result<()> {
        while let Some(registration) = self.register(request)? {
            registration.wait().await;
        }
        Ok(())
    }

    async fn renew(&self, leases: &[Lease], lease: Duration) -> Vec<Result<()>> {
        let done = self.shared.with(|state, now, wakes| {
            let until = now.saturating_add(micros(lease));
            Ok(leases.iter().map(|lease| state.renew(lease, until, wakes)).collect())
        });
        done.unwrap_or_else(|error| vec![Err(error); leases.len()])
    }

    async fn read(&self, keys: &[Arc<str>]) -> Result<Vec<Option<Record>>> {
        self.shared.with(|state, now, _| {
            state.records.sweep(now);
            Ok(keys.iter().map(|key| state.records.read(key)).collect())
        })
    }

    async fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Record>> {
        self.shared.with(|state, now, _| {
            state.records.sweep(now);
            Ok(state.records.scan(prefix, after, limit))
        })
    }

    async fn inspect(&self) -> Result<Inspection> {
        self.shared.with(|state, now, wakes| Ok(state.inspect(now, wakes)))
    }

    async fn message(&self, group: Option<&str>, event: EventKey) -> Result<Vec<MessageInfo>> {
        self.shared.with(|state, now, wakes| {
            let groups = state.swept_or_all(group, now, wakes)?;
            Ok(groups.into_iter().flat_map(|group| group.describe(&event)).collect())
        })
    }

    async fn act_on(
        &self,
        group: Option<&str>,
        event: EventKey,
        action: MessageAction,
    ) -> Result<u64> {
        self.shared.with(|state, now, wakes| {
            let groups = state.swept_or_all(group, now, wakes)?;
            Ok(groups.into_iter().map(|group| group.act_on(&event, action, now, wakes)).sum())
        })
    }

    async fn dead_letters(
        &self,
        group: &str,
        after: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        self.shared
            .with(|state, now, wakes| Ok(state.swept(group, now, wakes)?.dead_page(after, limit)))
    }

    async fn dead_news(&self, group: &str) -> Result<Vec<DeadLetter>> {
        self.shared.with(|state, now, wakes| Ok(state.swept(group, now, wakes)?.take_dead_news()))
    }

    async fn retry_dead(&self, group: &str, ids: &[MessageId]) -> Result<u64> {
        self.shared.with(|state, now, wakes| {
            let mut seq = state.seq;
            let found = state.swept(group, now, wakes)?.retry_dead(ids, &mut seq, now, wakes);
            state.seq = seq;
            found
        })
    }

    async fn discard_dead(&self, group: &str, ids: &[MessageId]) -> Result<u64> {
        self.shared.with(|state, now, wakes| Ok(state.swept(group, now, wakes)?.discard_dead(ids)))
    }

    async fn close(&self) -> Result<()> {
        let mut wakes = Wakes::default();
        let mut state = self.shared.state.lock();
        state.closed = true;
        for group in state.groups.iter_mut() {
            group.waiters.all(&mut wakes);
        }
        let feeds = std::mem::take(&mut state.feeds);
        drop(state);
        wakes.fire();
        for feed in feeds.values() {
            feed.close();
        }
        Ok(())
    }
}
