//! The Postgres backend: the whole contract on tables of its own, in a schema of its own.
//!
//! - `sql/`: tables and functions; settle, publish, claim and commit are functions there, so that
//!   every client in every language runs the same ones, inside its own transactions if it likes
//! - `schema`, `migration`: the version of the schema; `calls`: its functions as this client calls them
//! - `connect`, `session`, `pool`, `link`: connections; `server`: where they lead; `fault`: what their
//!   errors mean
//! - `parcel`, `step`, `send`, `answers`, `committer`: the write path, in batches
//! - `foreign`: broadcasts of the `DataKnobs` wire, on channels of its own
//! - `joined`: transactions on a connection of the caller's
//! - `kept`: broadcasts kept for replay; `ear`, `notices`, `wire`: notifications; `heard`: those that came before;
//!   `wake`, `hollow`: who waits
//! - `registry`, `declared`: what is bound to what; `claims`, `operate`, `records`: everything else
//! - `live`: an open backend

mod answers;
mod calls;
mod claims;
mod committer;
mod connect;
mod declared;
mod ear;
mod fault;
mod foreign;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod heard;
mod hollow;
mod joined;
mod kept;
mod link;
mod live;
mod messages;
mod meter;
mod migration;
mod notices;
mod operate;
mod parcel;
mod pool;
mod records;
mod registry;
mod schema;
mod send;
mod server;
mod session;
mod step;
mod wake;
mod wire;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::RwLock;

pub use self::foreign::{Heard, Texts};
pub use self::migration::{Migration, migrate};

use self::connect::Connector;
use self::ear::Hearing;
use self::live::Live;
use self::operate::storable;
use super::gate::Gate;
use super::{
    Backend, Capabilities, ClaimRequest, Committed, ConnectionState, DeadLetter, Delivery,
    EventKey, GroupSpec, Health, Inspection, Joins, Lease, ListenRequest, Listener, Message,
    MessageAction, MessageId, MessageInfo, Op, Record, Transaction,
};
use crate::config::{PostgresConfig, Unsigned};
use crate::error::{Error, Result};
use crate::topic::{Binding, validate_group};

/// Returns a duration in microseconds; one beyond all calendars is cut, so that sums never overflow.
fn micros(duration: Duration) -> i64 {
    const LONGEST: i64 = 1 << 61;
    i64::try_from(duration.as_micros()).unwrap_or(LONGEST).min(LONGEST)
}

fn closed() -> Error {
    Error::Closed { what: "bus" }
}

/// Where a backend is in its life.
#[derive(Debug, Default)]
enum Phase {
    #[default]
    New,
    Open(Arc<Live>),
    Closed,
}

/// A backend on a Postgres server.
#[derive(Debug)]
pub struct PostgresBackend {
    config: PostgresConfig,
    connector: Connector,
    texts: Texts,
    capabilities: Capabilities,
    gate: Option<Arc<Gate>>,
    phase: RwLock<Phase>,
    /// Held while connecting or closing.
    turn: tokio::sync::Mutex<()>,
}

impl PostgresBackend {
    /// Creates a backend that is not connected yet.
    ///
    /// # Errors
    /// `Config` listing every problem of the configuration.
    pub fn new(config: PostgresConfig, texts: Texts) -> Result<Self> {
        config.validate()?;
        let connector = Connector::new(&config)?;
        let capabilities = Capabilities {
            name: "postgres",
            in_process: false,
            durable: true,
            replay: config.kept().is_some_and(|kept| kept.is_on()),
            max_partitions: 1,
        };
        let accepts_sql = config.accept_unsigned == Some(Unsigned::Sql);
        let gate = Gate::of(&config.signing_keys, accepts_sql);
        let (phase, turn) = (RwLock::default(), tokio::sync::Mutex::default());
        Ok(Self { config, connector, texts, capabilities, gate, phase, turn })
    }

    fn live(&self) -> Result<Arc<Live>> {
        match &*self.phase.read() {
            Phase::Open(live) => Ok(Arc::clone(live)),
            Phase::New => Err(Error::NotConnected { bus: "postgres" }),
            Phase::Closed => Err(closed()),
        }
    }

    /// Runs an operation; what is cut off by a close says so.
    async fn run<T>(
        &self,
        operation: impl AsyncFnOnce(&Arc<Live>) -> Result<T> + Send,
    ) -> Result<T> {
        let live = self.live()?;
        let done = tokio::select! {
            biased;
            done = operation(&live) => done,
            // Without connections it would try until its time is over.
            () = live.ended() => Err(closed()),
        };
        if done.is_err() && live.is_ended() { Err(closed()) } else { done }
    }
}

impl Drop for PostgresBackend {
    fn drop(&mut self) {
        if let Phase::Open(live) = &*self.phase.read() {
            live.abort();
        }
    }
}

/// Checks that everything in a transaction can be stored, and sent.
fn check(live: &Live, transaction: &Transaction) -> Result<()> {
    for op in &transaction.ops {
        match op {
            Op::Publish(message) => {
                // What is broadcast only is kept nowhere, so `DataKnobs` topics may be anything.
                let kept = || {
                    let registry = live.registry.get();
                    message.dedup_id.is_some()
                        || registry.keeps
                        || registry.has_match(&message.topic)
                };
                if live.style.foreign.is_none() || kept() {
                    storable("topic", &message.topic)?;
                }
                let texts = [&message.key, &message.dedup_id, &message.unique];
                for (what, text) in ["key", "dedup_id", "unique key"].into_iter().zip(texts) {
                    storable(what, text.as_deref().unwrap_or_default())?;
                }
                live.sendable(message)?;
            }
            Op::Put { key, .. } | Op::Delete { key, .. } => storable("record key", key)?,
            Op::Settle(..) => {}
        }
    }
    Ok(())
}

#[async_trait]
impl Backend for PostgresBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn gate(&self) -> Option<&Arc<Gate>> {
        self.gate.as_ref()
    }

    fn joins(&self) -> Result<&dyn Joins> {
        Ok(self)
    }

    async fn connect(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        if matches!(&*self.phase.read(), Phase::Open(_)) {
            return Ok(());
        }
        let gate = self.gate.clone();
        let live = Live::open(&self.config, self.connector.clone(), self.texts, gate).await?;
        *self.phase.write() = Phase::Open(live);
        Ok(())
    }

    async fn heard(&self) -> Result<()> {
        self.run(async |live| {
            let Hearing::Live(client) = live.hearing.borrow().clone() else { return Ok(()) };
            // Notifications that were pending arrive before the end of any answer.
            let asked = client.simple_query("select 1");
            match tokio::time::timeout(live.link.op_timeout, asked).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(live.link.connector.failed(&fault::text(&error))),
                Err(_) => Err(live.link.timeout("heard", false)),
            }
        })
        .await
    }

    fn has_queue(&self, topic: &str) -> bool {
        self.live().is_ok_and(|live| live.registry.get().has_match(topic))
    }

    async fn commit(&self, batch: Vec<Transaction>) -> Vec<Result<Committed>> {
        let live = match self.live() {
            Ok(live) => live,
            Err(error) => return vec![Err(error); batch.len()],
        };
        let mut results: Vec<Result<Committed>> = Vec::with_capacity(batch.len());
        let mut sent = Vec::with_capacity(batch.len());
        for transaction in batch {
            results.push(check(&live, &transaction).map(|()| Committed::default()));
            if results.last().is_some_and(Result::is_ok) {
                sent.push(transaction);
            }
        }
        if sent.is_empty() {
            return results;
        }
        let answers = live.inbox.commit(sent).await;
        for (result, answer) in results.iter_mut().filter(|result| result.is_ok()).zip(answers) {
            *result = if answer.is_err() && live.is_ended() { Err(closed()) } else { answer };
        }
        results
    }

    fn goes_apart(&self, message: &Message) -> bool {
        self.live().is_ok_and(|live| live.goes_apart(message))
    }

    async fn listen_near(&self, request: ListenRequest, topic: &str) -> Result<Box<dyn Listener>> {
        request.check(&self.capabilities)?;
        if request.since.is_some() {
            return self.listen(request).await;
        }
        self.run(async |live| listen(live, request, Some(topic)).await).await
    }

    async fn listen(&self, request: ListenRequest) -> Result<Box<dyn Listener>> {
        request.check(&self.capabilities)?;
        let Some(since) = request.since else {
            return self.run(async |live| listen(live, request, None).await).await;
        };
        self.run(async |live| kept::listen(live, &request, since).await).await
    }

    async fn declare_group(&self, spec: GroupSpec) -> Result<()> {
        validate_group(&spec.name)?;
        if spec.max_length == Some(0) {
            let rule = "must be at least 1";
            return Err(Error::InvalidArgument { what: "max_length", value: "0".into(), rule });
        }
        self.run(async |live| {
            live.declare(&spec).await?;
            live.declared.add(&spec);
            Ok(())
        })
        .await
    }

    async fn unbind(&self, group: &str, bindings: &[Binding]) -> Result<u64> {
        self.run(async |live| {
            live.declared.remove_bindings(group, bindings);
            live.unbind(group, bindings).await
        })
        .await
    }

    async fn delete_group(&self, group: &str) -> Result<u64> {
        self.run(async |live| {
            live.declared.remove(group);
            live.delete_group(group).await
        })
        .await
    }

    async fn purge(&self, group: &str) -> Result<u64> {
        self.run(async |live| live.purge(group).await).await
    }

    async fn pause(&self, group: &str, paused: bool) -> Result<()> {
        self.run(async |live| live.pause(group, paused).await).await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Delivery>> {
        request.check()?;
        self.run(async |live| claims::claim(live, request).await).await
    }

    async fn wait_ready(&self, request: &ClaimRequest) -> Result<()> {
        self.run(async |live| claims::wait_ready(live, request).await).await
    }

    async fn renew(&self, leases: &[Lease], lease: Duration) -> Vec<Result<()>> {
        let renewed = self.run(async |live| Ok(claims::renew(live, leases, lease).await)).await;
        renewed.unwrap_or_else(|error| vec![Err(error); leases.len()])
    }

    async fn read(&self, keys: &[Arc<str>]) -> Result<Vec<Option<Record>>> {
        self.run(async |live| live.read(keys).await).await
    }

    async fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Record>> {
        self.run(async |live| live.scan(prefix, after, limit).await).await
    }

    async fn inspect(&self) -> Result<Inspection> {
        self.run(async |live| live.inspect().await).await
    }

    async fn message(&self, group: Option<&str>, event: EventKey) -> Result<Vec<MessageInfo>> {
        self.run(async |live| live.messages(group, event).await).await
    }

    async fn act_on(
        &self,
        group: Option<&str>,
        event: EventKey,
        action: MessageAction,
    ) -> Result<u64> {
        self.run(async |live| live.act_on(group, event, action).await).await
    }

    async fn dead_letters(
        &self,
        group: &str,
        after: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        self.run(async |live| live.dead_letters(group, after, limit).await).await
    }

    async fn dead_news(&self, group: &str) -> Result<Vec<DeadLetter>> {
        self.run(async |live| live.dead_news(group).await).await
    }

    fn sweep_interval(&self) -> Duration {
        self.config.sweep
    }

    async fn retry_dead(&self, group: &str, ids: &[MessageId]) -> Result<u64> {
        self.run(async |live| live.retry_dead(group, ids).await).await
    }

    async fn discard_dead(&self, group: &str, ids: &[MessageId]) -> Result<u64> {
        self.run(async |live| live.discard_dead(group, ids).await).await
    }

    fn health(&self) -> Health {
        let live = match &*self.phase.read() {
            Phase::Open(live) => Arc::clone(live),
            Phase::New => {
                return Health { state: ConnectionState::Connecting, ..Health::default() };
            }
            Phase::Closed => return Health { state: ConnectionState::Closed, ..Health::default() },
        };
        let link = &live.link;
        let mut warnings = link.warnings.lock().clone();
        warnings.extend(link.ailments.lock().iter().cloned());
        warnings.extend(Some(link.unusable()).filter(|said| !said.is_empty()));
        if live.registry.get().unreadable > 0 {
            warnings.push(
                "a group has a binding that is not used here: a newer version declared it, \
                 somebody wrote into the tables of the bus, or the patterns of all groups would make \
                 every publish slow"
                    .into(),
            );
        }
        if link.is_pooled() {
            warnings.push(
                "notifications do not arrive, as behind a transaction pooler: subscriptions and \
                 consumers poll, and what is broadcast is kept in a table for them; connect directly \
                 or use session pooling"
                    .into(),
            );
        }
        warnings.extend(link.connector.room.warning());
        Health {
            state: live.state(),
            server: link.server.lock().clone(),
            server_id: String::new(),
            warnings,
            last_error: link.last_error.lock().clone(),
            reconnects: link.reconnects.load(Ordering::Relaxed),
            malformed: link.malformed.load(Ordering::Relaxed) + link.connector.room.overruns(),
        }
    }

    async fn close(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        let before = std::mem::replace(&mut *self.phase.write(), Phase::Closed);
        if let Phase::Open(live) = before {
            live.close().await;
        }
        Ok(())
    }
}

/// Starts a listener once the server has confirmed that it hears what is published from now on.
async fn listen(
    live: &Arc<Live>,
    request: ListenRequest,
    near: Option<&str>,
) -> Result<Box<dyn Listener>> {
    let deadline = tokio::time::Instant::now() + live.link.op_timeout;
    let late = || live.link.timeout("listen", false);
    let needed = live.channels.want(&request, near);
    live.wakes.need();
    let turn = match tokio::time::timeout_at(deadline, live.channels.turn.read()).await {
        Ok(turn) => turn,
        Err(_) => return Err(late()),
    };
    let text = needed.statements() + &live.link.schema.hear();
    let needed = Arc::new(needed);
    loop {
        let mut hearing = live.hearing.clone();
        let live_now = hearing.wait_for(|hearing| !matches!(hearing, Hearing::Deaf));
        let found = match tokio::time::timeout_at(deadline, live_now).await {
            Ok(found) => found.map_err(|_| closed())?.clone(),
            Err(_) => return Err(late()),
        };
        let Hearing::Live(client) = found else {
            // It takes a turn of its own, behind whoever waits to end a subscription.
            drop(turn);
            return kept::poll(live, &request).await;
        };
        // What was published before arrives before this answer, so it is not heard.
        match tokio::time::timeout_at(deadline, client.simple_query(&text)).await {
            Ok(Ok(_)) if live.is_ended() => return Err(closed()),
            Ok(Ok(_)) => {
                live.wakes.set_arriving();
                let added = live.feeds.add(request.clone(), Box::new(Arc::clone(&needed)));
                let hearing = live.hearing.borrow();
                // A connection that was made meanwhile may not have known that somebody listens.
                if matches!(&*hearing, Hearing::Live(now) if Arc::ptr_eq(now, &client)) {
                    return Ok(Box::new(added));
                }
            }
            Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(_) => return Err(late()),
        }
    }
}
