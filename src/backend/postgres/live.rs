//! Everything that an open backend holds, and how it is opened and closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::calls::{AILMENTS, DEAD_MESSAGES, MAINTAIN, TRIM_KEPT, column};
use super::claims::Arms;
use super::committer::{Desk, Inbox};
use super::connect::Connector;
use super::declared::Declared;
use super::ear::{Ear, Hearing};
use super::foreign::{Channels, MOST_TEXT, Names, Texts};
use super::heard::Heard;
use super::hollow::Hollow;
use super::link::Link;
use super::pool::Pool;
use super::registry::{Cache, Registry};
use super::schema::Schema;
use super::session::Argument;
use super::step::signed;
use super::wake::Wakes;
use super::wire::Style;
use super::{fault, kept, micros, notices};
use crate::backend::feeds::Feeds;
use crate::backend::gate::Gate;
use crate::backend::{ConnectionState, Lease, Message};
use crate::config::{LargePayloads, PostgresConfig, Wire};
use crate::error::{Error, Result};
use crate::shutdown::Tasks;

/// How long closing waits for background tasks.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// Of so many rounds of care one is thorough.
const THOROUGH: u32 = 12;
/// With so many more dead rows than the last cleaning left, the messages are cleaned again.
const WORN: i64 = 10_000;
/// How often that is looked at, when this process has published or settled as many.
const CLEANING: Duration = Duration::from_secs(1);
/// With more dead rows than this, operators are told.
const MANY_DEAD_ROWS: i64 = 100_000;

/// An open backend.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) link: Arc<Link>,
    pub(super) pool: Arc<Pool>,
    pub(super) registry: Arc<Cache>,
    pub(super) feeds: Arc<Feeds>,
    pub(super) wakes: Arc<Wakes>,
    pub(super) hearing: watch::Receiver<Hearing>,
    pub(super) inbox: Inbox,
    pub(super) hollow: Hollow,
    pub(super) armed: Arms,
    pub(super) sweep: Duration,
    pub(super) dead_retention: i64,
    pub(super) declared: Declared,
    /// The `DataKnobs` channels that its listeners need.
    pub(super) channels: Arc<Channels>,
    /// How broadcasts go out.
    pub(super) style: Style,
    /// Whether what is too large for a notification goes by table.
    may_part: bool,
    pub(super) dedup_window: i64,
    pub(super) max_dead: i64,
    max_tombstones: i64,
    published: Arc<AtomicI64>,
    moved: Arc<AtomicI64>,
    end: CancellationToken,
}

impl Live {
    /// Reaches the server, prepares the schema and starts the background tasks.
    pub(super) async fn open(
        config: &PostgresConfig,
        connector: Connector,
        texts: Texts,
        gate: Option<Arc<Gate>>,
    ) -> Result<Arc<Self>> {
        let tasks = Tasks::new(tokio::runtime::Handle::current());
        let schema = Schema::new(&config.schema);
        let link = Link::new(connector, schema, tasks, config.net.op_timeout);
        let opened = Self::start(config, &link, texts, gate).await;
        if opened.is_err() {
            link.tasks.abort();
        }
        opened
    }

    async fn start(
        config: &PostgresConfig,
        link: &Arc<Link>,
        texts: Texts,
        gate: Option<Arc<Gate>>,
    ) -> Result<Arc<Self>> {
        let session = link.open().await?;
        let (server, warnings) = examine(&link.connector, session.client()).await?;
        *link.server.lock() = server;
        *link.warnings.lock() = warnings;
        link.schema.prepare(session.client(), config.migrate).await?;
        let identity = link.schema.identity(session.client()).await?;
        let pool = Arc::new(Pool::new(Arc::clone(link), config.pool_size));
        let registry = Arc::new(Cache::default());
        let feeds = Arc::new(Feeds::new(gate.clone()));
        let wakes = Arc::new(Wakes::default());
        let (hearing, awaited) = (watch::Sender::new(Hearing::Deaf), watch::Sender::default());
        let mut waiting = hearing.subscribe();
        let texts = Arc::new(Names::new(&config.channel_prefix, texts));
        let (unneeded, over) = tokio::sync::mpsc::unbounded_channel();
        let hears = config.wire.hears_dataknobs(&config.hear);
        let channels = Arc::new(Channels::new(Arc::clone(&texts), hears, unneeded));
        let foreign = (config.wire == Wire::Dataknobs).then_some(texts);
        let style = Style { foreign, gate };
        let ear = Arc::new(Ear {
            channels: Arc::clone(&channels),
            link: Arc::clone(link),
            pool: Arc::clone(&pool),
            registry: Arc::clone(&registry),
            feeds: Arc::clone(&feeds),
            wakes: Arc::clone(&wakes),
            hearing,
            heartbeat: config.net.heartbeat,
            connect_timeout: config.net.connect_timeout,
            awaited,
            gate: style.gate.clone(),
            heard: Heard::default(),
            changed: notices::paced(),
            hinted: notices::paced(),
        });
        link.tasks.spawn(Arc::clone(&ear).tend(over));
        link.tasks.spawn(Arc::clone(&ear).follow());
        link.tasks.spawn(Arc::clone(&ear).hint());
        link.tasks.spawn(ear.run());
        // Until it is known whether a pooler stands between, nothing is prepared.
        let known = waiting.wait_for(|hearing| !matches!(hearing, Hearing::Deaf));
        let limit = config.net.connect_timeout + Duration::from_secs(2);
        match tokio::time::timeout(limit, known).await {
            Ok(Ok(_)) => {}
            _ => {
                let said = link.last_error.lock().clone();
                return Err(link.connector.failed(&format!("cannot listen: {said}")));
            }
        }
        pool.keep(session);
        if let Some(retention) = config.kept() {
            kept::retain(&pool, retention).await?;
        }
        if let Some(bodies) = config.broadcast_bodies {
            kept::set_bodies(&pool, bodies).await?;
        }
        registry.refresh(&pool).await?;
        let (published, moved) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
        let inbox = Inbox::open(Desk {
            link: Arc::clone(link),
            pool: Arc::clone(&pool),
            registry: Arc::clone(&registry),
            wakes: Arc::clone(&wakes),
            published: Arc::clone(&published),
            moved: Arc::clone(&moved),
            dedup_window: micros(config.dedup_window),
            style: style.clone(),
        });
        let live = Arc::new(Self {
            link: Arc::clone(link),
            pool,
            registry,
            feeds,
            wakes,
            hearing: waiting,
            inbox,
            hollow: Hollow::default(),
            armed: Arms::default(),
            sweep: config.sweep,
            dead_retention: micros(config.dead_retention),
            declared: Declared::new(identity, config),
            channels,
            style,
            may_part: config.large_payloads == LargePayloads::Table,
            dedup_window: micros(config.dedup_window),
            max_dead: signed(config.max_dead),
            max_tombstones: signed(config.max_tombstones),
            published,
            moved,
            end: CancellationToken::new(),
        });
        let cared = Arc::downgrade(&live);
        link.tasks.spawn(async move {
            let mut round = 0;
            while let Some(live) = cared.upgrade() {
                let pause = live.sweep;
                drop(live);
                tokio::time::sleep(pause).await;
                round += 1;
                if let Some(live) = cared.upgrade() {
                    let thorough = round % THOROUGH == 1;
                    // Trouble shows at the next use; care is tried again.
                    let _ = live.maintain(thorough).await;
                    if live.registry.get().keeps {
                        let _ = live.pool.call(&TRIM_KEPT, &[], "").await;
                    }
                    if thorough {
                        let _ = live.look_for_ailments().await;
                    }
                }
            }
        });
        let cleaned = Arc::downgrade(&live);
        link.tasks.spawn(async move {
            let mut left = 0;
            while let Some(live) = cleaned.upgrade() {
                drop(live);
                tokio::time::sleep(CLEANING).await;
                match cleaned.upgrade() {
                    Some(live) if live.moved.load(Ordering::Relaxed) >= WORN => {
                        live.moved.store(0, Ordering::Relaxed);
                        // Autovacuum does it otherwise.
                        let _ = live.clean(&mut left).await;
                    }
                    _ => {}
                }
            }
        });
        Ok(live)
    }

    /// Whether a message is broadcast by table, where `DataKnobs` originals do not find it.
    pub(super) fn goes_apart(&self, message: &Message) -> bool {
        let fits = |names: &Arc<Names>| names.fits(&message.topic, &message.body);
        message.is_heard() && !self.style.foreign.as_ref().is_none_or(fits)
    }

    /// Refuses what may not go by table.
    pub(super) fn sendable(&self, message: &Message) -> Result<()> {
        match &self.style.foreign {
            Some(names) if !self.may_part && self.goes_apart(message) => Err(Error::TooLong {
                topic: message.topic.chars().take(80).collect(),
                size: names.size(&message.topic, &message.body) as u64,
                limit: MOST_TEXT as u64,
            }),
            _ => Ok(()),
        }
    }

    /// Takes care of the tables.
    pub(super) async fn maintain(&self, full: bool) -> Result<()> {
        let published = self.published.swap(0, Ordering::Relaxed);
        let arguments: [Argument<'_>; 5] =
            [&published, &full, &self.dead_retention, &self.max_dead, &self.max_tombstones];
        let done = self.pool.call(&MAINTAIN, &arguments, "").await;
        done.map(drop).inspect_err(|_| {
            self.published.fetch_add(published, Ordering::Relaxed);
        })
    }

    /// Removes dead rows of the messages when there are many: claims read past their index entries,
    /// and autovacuum may come once a minute only. What `left` says stays while a transaction holds it.
    async fn clean(&self, left: &mut i64) -> Result<()> {
        if self.dead_messages().await? < left.saturating_add(WORN) {
            return Ok(());
        }
        // On a connection of its own, as it takes as long as it takes. Whoever cleans already, or
        // autovacuum, is not waited for.
        let text = "vacuum (skip_locked, truncate off, index_cleanup on) @schema@.messages";
        let session = self.link.open().await?;
        let cleaned = session.client().batch_execute(&self.link.schema.sql(text)).await;
        cleaned.map_err(|error| self.link.connector.failed(&fault::text(&error)))?;
        *left = self.dead_messages().await?;
        Ok(())
    }

    /// Returns how many dead rows the messages have, 0 where this role may not remove them.
    async fn dead_messages(&self) -> Result<i64> {
        let rows = self.pool.call(&DEAD_MESSAGES, &[], "").await?;
        let dead = rows.first().map(|row| column::<Option<i64>>(row, 0)).transpose()?;
        Ok(dead.flatten().unwrap_or(0))
    }

    /// Looks for what makes the server slow, or will.
    async fn look_for_ailments(&self) -> Result<()> {
        let rows = self.pool.call(&AILMENTS, &[], "").await?;
        let Some(row) = rows.first() else { return Ok(()) };
        let mut ailments = Vec::new();
        let dead: i64 = column(row, 0)?;
        if dead > MANY_DEAD_ROWS {
            ailments.push(format!(
                "the table messages has {dead} dead rows, so claims are slow: end the transaction \
                 that keeps them (see backend_xmin in pg_stat_activity and pg_replication_slots)"
            ));
        }
        let usage: f64 = column(row, 1)?;
        if usage > 0.1 {
            ailments.push(format!(
                "the notification queue is {:.0} % full: end the listening session that is in a \
                 transaction",
                usage * 100.0
            ));
        }
        *self.link.ailments.lock() = ailments;
        Ok(())
    }

    /// Returns how many messages are accepted and not yet counted on the server.
    pub(super) fn uncounted(&self) -> u64 {
        u64::try_from(self.published.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Returns the id of a group.
    pub(super) async fn group_id(&self, name: &str) -> Result<i32> {
        if let Some(id) = self.registry.get().id(name) {
            return Ok(id);
        }
        let fresh = self.registry.refresh(&self.pool).await?;
        fresh.id(name).ok_or_else(|| Error::NotFound { what: "group", name: name.to_owned() })
    }

    /// Returns a registry that knows the groups of leases, as far as they exist.
    pub(super) async fn registry_for(&self, leases: &[Lease]) -> Arc<Registry> {
        let registry = self.registry.get();
        if leases.iter().all(|lease| registry.id(&lease.group).is_some()) {
            return registry;
        }
        self.registry.refresh(&self.pool).await.unwrap_or(registry)
    }

    /// Has the listening connection listen, by these statements; one that is made later will anyway.
    pub(super) async fn attend(&self, statements: &str) {
        self.wakes.need();
        let _turn = self.channels.turn.read().await;
        let hearing = self.hearing.borrow().clone();
        if let Hearing::Live(client) = hearing {
            // A connection that does not answer is made again.
            let _ =
                tokio::time::timeout(self.link.op_timeout, client.simple_query(statements)).await;
        }
        self.wakes.set_arriving();
    }

    /// Waits for the end of the backend.
    pub(super) async fn ended(&self) {
        self.end.cancelled().await;
    }

    pub(super) fn is_ended(&self) -> bool {
        self.end.is_cancelled()
    }

    pub(super) fn state(&self) -> ConnectionState {
        if !self.link.unusable().is_empty() {
            return ConnectionState::Connecting;
        }
        match &*self.hearing.borrow() {
            Hearing::Deaf => ConnectionState::Connecting,
            Hearing::Live(_) => ConnectionState::Live,
            Hearing::Pooled => ConnectionState::Degraded,
        }
    }

    /// Ends everything.
    pub(super) async fn close(&self) {
        if !self.is_ended() && self.uncounted() > 0 {
            // Figures only: a server that is away is not waited for long.
            let _ = tokio::time::timeout(CLOSE_GRACE, self.maintain(false)).await;
        }
        self.abort();
        self.link.tasks.stop(CLOSE_GRACE).await;
    }

    /// Ends everything without waiting.
    pub(super) fn abort(&self) {
        self.end.cancel();
        self.feeds.close();
        self.pool.close();
        self.link.tasks.abort();
    }
}

/// Looks at the server: returns what it is, and what an operator should know.
pub(super) async fn examine(
    connector: &Connector,
    client: &Client,
) -> Result<(String, Vec<String>)> {
    const TEXT: &str = "select current_setting('server_version'), \
         current_setting('server_version_num')::integer >= 130000, \
         current_setting('server_encoding'), current_setting('fsync'), \
         current_setting('synchronous_commit'), current_setting('full_page_writes'), \
         pg_is_in_recovery()";
    let answers = client.simple_query(TEXT).await;
    let answers = answers.map_err(|error| connector.failed(&fault::text(&error)))?;
    let row = answers.iter().find_map(|answer| match answer {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let Some(row) = row else { return Ok(Default::default()) };
    let value = |index: usize| row.get(index).unwrap_or_default();
    let mut problems = Vec::new();
    if value(1) != "t" {
        problems.push(format!("PostgreSQL {} is too old; 13 or newer is needed", value(0)));
    }
    if value(2) != "UTF8" {
        let remedy = "create the database with encoding UTF8";
        problems.push(format!("the database's encoding is {}; {remedy}", value(2)));
    }
    if value(6) == "t" {
        problems.push("the server is a standby; connect to the primary".into());
    }
    if !problems.is_empty() {
        return Err(Error::Config { problems });
    }
    let mut warnings = Vec::new();
    if value(3) == "off" {
        warnings.push(
            "fsync is off: a crash of the machine can destroy the database; switch it on".into(),
        );
    }
    if value(4) == "off" {
        warnings.push(
            "synchronous_commit is off: a crash loses what was accepted last; switch it on".into(),
        );
    }
    if value(5) == "off" {
        warnings.push(
            "full_page_writes is off: a crash of the machine can destroy pages; switch it on"
                .into(),
        );
    }
    Ok((format!("PostgreSQL {}", value(0)), warnings))
}
