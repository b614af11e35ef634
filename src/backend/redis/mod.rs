//! The Redis backend: the whole contract on one server, a Sentinel set or a cluster.
//!
//! Every write is one Lua script (`lua/`), so it is atomic; all keys of a bus share a hash tag. Two
//! connections per process, whatever the number of subscriptions and consumers: commands, which are
//! pipelined, and pub/sub, which also carries the wake-ups of waiting claims.
//!
//! - `dial`: makes a connection; `meter`: limits what it may bring; `link`: keeps one; `identity`: which server they lead to;
//!   `session`: everything between connect and close
//! - `lanes`, `batch`: commits; `registry`: the bindings that targets are computed with; `context`:
//!   how they are read, and come back when the server loses its data
//! - `claim`, `bounds`, `waits`: claims, how much they bring, and who waits for one; `operate`: groups and operators
//! - `listen`: broadcasts; `hole`: when a gap is told; `kept`: those kept for replay; `message`: the
//!   stored form of a message, which is also its frame
//! - `raw`: single commands and channels, for wires that others have made
//! - `checks`: what an operator should know of the server; `scripts`: the scripts; `library`: how the
//!   server runs them; `setup`: what loads them as functions, for operators

mod batch;
mod bounds;
mod checks;
mod claim;
mod context;
mod dead_reason;
mod dial;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod hole;
mod identity;
mod kept;
mod lanes;
mod library;
mod link;
mod listen;
mod message;
mod messages;
mod meter;
mod operate;
mod raw;
mod registry;
mod scripts;
mod session;
mod setup;
mod single;
mod waits;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::RwLock;
use tokio::time::Instant;

pub use self::raw::{RedisClient, Reply};
pub use self::setup::{Loaded, Setup, setup};

use self::dial::Dialer;
use self::session::Session;
use super::gate::Gate;
use super::replay::{Kept, Replay};
use super::{
    Backend, Capabilities, ClaimRequest, Committed, ConnectionState, DeadLetter, Delivery,
    EventKey, GroupSpec, Health, Inspection, Lease, ListenRequest, Listener, MessageAction,
    MessageId, MessageInfo, Op, Record, Transaction,
};
use crate::config::RedisConfig;
use crate::error::{Error, Result};
use crate::topic::Binding;

/// Returns a duration in microseconds, as the scripts count; beyond 2^53 they could not.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).min(1 << 52)
}

/// A backend on Redis.
#[derive(Debug)]
pub struct RedisBackend {
    config: RedisConfig,
    dialer: Arc<Dialer>,
    session: RwLock<Option<Arc<Session>>>,
    /// One attempt to connect at a time.
    connecting: tokio::sync::Mutex<()>,
    closed: AtomicBool,
    capabilities: Capabilities,
    gate: Option<Arc<Gate>>,
}

impl RedisBackend {
    /// Creates a backend that is not connected yet.
    ///
    /// # Errors
    /// `Config` listing every problem; a TLS file that cannot be read is one.
    pub fn new(config: RedisConfig) -> Result<Self> {
        config.validate()?;
        let capabilities = Capabilities {
            name: "redis",
            in_process: false,
            durable: true,
            replay: config.kept().is_some_and(|kept| kept.is_on()),
            max_partitions: 1,
        };
        Ok(Self {
            dialer: Arc::new(Dialer::new(config.clone())?),
            gate: Gate::of(&config.signing_keys, false),
            config,
            session: RwLock::default(),
            connecting: tokio::sync::Mutex::default(),
            closed: AtomicBool::new(false),
            capabilities,
        })
    }

    fn session(&self) -> Result<Arc<Session>> {
        let session = self.session.read().clone();
        session.ok_or_else(|| {
            if self.closed.load(Ordering::Acquire) {
                Error::Closed { what: "bus" }
            } else {
                Error::NotConnected { bus: "redis" }
            }
        })
    }
}

#[async_trait]
impl Backend for RedisBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn gate(&self) -> Option<&Arc<Gate>> {
        self.gate.as_ref()
    }

    async fn connect(&self) -> Result<()> {
        let _turn = self.connecting.lock().await;
        if self.session.read().is_some() {
            return Ok(());
        }
        let session =
            Session::open(self.config.clone(), Arc::clone(&self.dialer), self.gate.clone()).await?;
        *self.session.write() = Some(session);
        self.closed.store(false, Ordering::Release);
        Ok(())
    }

    fn has_queue(&self, topic: &str) -> bool {
        self.session().is_ok_and(|session| session.context.registry.read().has_queue(topic))
    }

    async fn commit(&self, batch: Vec<Transaction>) -> Vec<Result<Committed>> {
        let session = match self.session() {
            Ok(session) => session,
            Err(error) => return vec![Err(error); batch.len()],
        };
        let only_settles = |tx: &Transaction| tx.ops.iter().all(|op| matches!(op, Op::Settle(..)));
        // One lane for all of a call keeps its order.
        if batch.iter().all(only_settles) {
            session.settles.commit(batch).await
        } else {
            session.writes.commit(batch).await
        }
    }

    async fn listen(&self, request: ListenRequest) -> Result<Box<dyn Listener>> {
        request.check(&self.capabilities)?;
        let session = self.session()?;
        let names = &session.receiver.names;
        let wanted = request
            .bindings
            .iter()
            .flat_map(|binding| listen::server_names(names, binding))
            .collect();
        let deadline = Instant::now() + self.config.net.op_timeout;
        // The feed is there first, so that nothing falls between the confirmation and it.
        let slot = Arc::new(parking_lot::Mutex::new(None));
        let keep: Box<dyn Any + Send + Sync> = Box::new(Arc::clone(&slot));
        let Some(since) = request.since else {
            let listener = session.receiver.feeds.add(request, keep);
            *slot.lock() = Some(session.subscribe(wanted, deadline).await?);
            return Ok(Box::new(listener));
        };
        let (listener, ring, hint) = session.receiver.feeds.add_replay(&request, keep);
        *slot.lock() = Some(session.subscribe(wanted, deadline).await?);
        let kept = kept::Reader(Arc::downgrade(&session));
        let start = kept.find(since).await?;
        let sweep = Some(self.config.sweep);
        let replay =
            Replay { kept, bindings: request.bindings, ring, hint, sweep, gate: self.gate.clone() };
        session.tasks.spawn(replay.run(start));
        Ok(Box::new(listener))
    }

    async fn declare_group(&self, spec: GroupSpec) -> Result<()> {
        self.session()?.declare(spec).await
    }

    async fn unbind(&self, group: &str, bindings: &[Binding]) -> Result<u64> {
        self.session()?.unbind(group, bindings).await
    }

    async fn delete_group(&self, group: &str) -> Result<u64> {
        self.session()?.delete(group).await
    }

    async fn purge(&self, group: &str) -> Result<u64> {
        self.session()?.purge(group).await
    }

    async fn pause(&self, group: &str, paused: bool) -> Result<()> {
        self.session()?.pause(group, paused).await
    }

    async fn heard(&self) -> Result<()> {
        let session = self.session()?;
        // Its answer follows what was published before, on the same connection.
        let deadline = Instant::now() + session.config.net.op_timeout;
        let answer = session.pushes.send(&redis::cmd("PING"), deadline).await;
        answer.map(|_| ()).map_err(|trouble| session.failed("heard", trouble))
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Delivery>> {
        request.check()?;
        let session = self.session()?;
        // A dropped caller must not take deliveries along: the claim ends on its own, and gives back
        // what nobody takes.
        let request = request.clone();
        let (give, taken) = tokio::sync::oneshot::channel();
        let own = Arc::clone(&session);
        session.tasks.spawn(async move {
            let claimed = own.claim(&request).await;
            if let Err(Ok(claimed)) = give.send(claimed) {
                own.give_back(claimed).await;
            }
        });
        taken.await.unwrap_or(Err(Error::Closed { what: "bus" }))
    }

    async fn wait_ready(&self, request: &ClaimRequest) -> Result<()> {
        let session = self.session()?;
        let waited = session.wait_ready(request).await;
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed { what: "bus" });
        }
        waited
    }

    async fn renew(&self, leases: &[Lease], lease: Duration) -> Vec<Result<()>> {
        match self.session() {
            Ok(session) => session.renew(leases, lease).await,
            Err(error) => vec![Err(error); leases.len()],
        }
    }

    async fn read(&self, keys: &[Arc<str>]) -> Result<Vec<Option<Record>>> {
        self.session()?.read(keys).await
    }

    async fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Record>> {
        self.session()?.scan(prefix, after, limit).await
    }

    async fn inspect(&self) -> Result<Inspection> {
        self.session()?.inspect().await
    }

    async fn message(&self, group: Option<&str>, event: EventKey) -> Result<Vec<MessageInfo>> {
        self.session()?.messages(group, event).await
    }

    async fn act_on(
        &self,
        group: Option<&str>,
        event: EventKey,
        action: MessageAction,
    ) -> Result<u64> {
        self.session()?.act_on(group, event, action).await
    }

    async fn dead_letters(
        &self,
        group: &str,
        after: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        self.session()?.dead_letters(group, after, limit).await
    }

    async fn dead_news(&self, group: &str) -> Result<Vec<DeadLetter>> {
        self.session()?.dead_news(group).await
    }

    fn sweep_interval(&self) -> Duration {
        self.config.sweep
    }

    async fn retry_dead(&self, group: &str, ids: &[MessageId]) -> Result<u64> {
        self.session()?.on_dead("retry_dead", group, ids).await
    }

    async fn discard_dead(&self, group: &str, ids: &[MessageId]) -> Result<u64> {
        self.session()?.on_dead("discard_dead", group, ids).await
    }

    fn health(&self) -> Health {
        match self.session() {
            Ok(session) => session.status.health(),
            Err(Error::Closed { .. }) => {
                Health { state: ConnectionState::Closed, ..Health::default() }
            }
            Err(_) => Health { state: ConnectionState::Connecting, ..Health::default() },
        }
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        let session = self.session.write().take();
        if let Some(session) = session {
            session.close().await;
        }
        Ok(())
    }
}
