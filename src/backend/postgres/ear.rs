//! The one listening connection: broadcasts, wake-ups, and proof that they arrive.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::RngExt;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_postgres::{AsyncMessage, Client};
use uuid::Uuid;

use super::connect::Wire;
use super::fault;
use super::foreign::{self, Channels};
use super::heard::Heard;
use super::link::Link;
use super::pool::Pool;
use super::registry::Cache;
use super::wake::Wakes;
use crate::backend::bucket::Paced;
use crate::backend::feeds::Feeds;
use crate::backend::gate::Gate;
use crate::backend::{Gap, GapCause};

/// How long a notification to ourselves may take; a transaction pooler never delivers it.
const SELF_TEST: Duration = Duration::from_secs(2);
/// How often it is tried again whether notifications arrive.
const RETEST: Duration = Duration::from_secs(60);
/// Lifts a limit that servers before 14 do not have.
const NEVER_TOO_IDLE: &str = "select set_config(name, '0', false) from pg_settings \
     where name = 'idle_session_timeout' and setting <> '0'";

/// Whether notifications arrive.
#[derive(Debug, Clone)]
pub(super) enum Hearing {
    /// Not now.
    Deaf,
    /// On this connection.
    Live(Arc<Client>),
    /// Never: a transaction pooler stands between.
    Pooled,
}

/// Whether a reconnect is still to be announced to the subscriptions.
struct Hole(AtomicBool);

/// The listener of one backend.
#[derive(Debug)]
pub(super) struct Ear {
    pub(super) link: Arc<Link>,
    pub(super) pool: Arc<Pool>,
    pub(super) registry: Arc<Cache>,
    pub(super) feeds: Arc<Feeds>,
    pub(super) channels: Arc<Channels>,
    pub(super) wakes: Arc<Wakes>,
    pub(super) hearing: watch::Sender<Hearing>,
    pub(super) heartbeat: Duration,
    pub(super) connect_timeout: Duration,
    /// The self-test that is under way; empty once it has arrived.
    pub(super) awaited: watch::Sender<String>,
    pub(super) gate: Option<Arc<Gate>>,
    pub(super) heard: Heard,
    /// To read the registry.
    pub(super) changed: Paced,
    /// To look at what is kept, for those who read that.
    pub(super) hinted: Paced,
}

impl Ear {
    /// Listens for ever.
    pub(super) async fn run(self: Arc<Self>) {
        let mut lost: Option<Instant> = None;
        let mut attempt = 0;
        loop {
            let begun = Instant::now();
            let ended = self.session(lost.is_some()).await;
            let was_live = matches!(*self.hearing.borrow(), Hearing::Live(_));
            if self.link.is_pooled() {
                tokio::time::sleep(RETEST).await;
                continue;
            }
            self.hearing.send_replace(Hearing::Deaf);
            self.link.note(&ended);
            if was_live {
                self.link.reconnects.fetch_add(1, Ordering::Relaxed);
                // Where an address leads to two servers in turn, none is kept for long.
                attempt = if begun.elapsed() < Duration::from_secs(1) { attempt } else { 0 };
                lost = Some(Instant::now());
            }
            let since = *lost.get_or_insert_with(Instant::now);
            tokio::time::sleep(next_attempt(attempt, since.elapsed())).await;
            attempt += 1;
        }
    }

    /// Listens until the connection ends; returns why it did.
    async fn session(&self, again: bool) -> String {
        let (client, wire, origin) = match self.link.connect().await {
            Ok(opened) => opened,
            Err(error) => return error.to_string(),
        };
        let hole = Hole(AtomicBool::new(again));
        tokio::select! {
            biased;
            ended = self.drive(wire, &hole) => ended,
            ended = self.attend(Arc::new(client), again, &hole) => ended,
            () = self.link.superseded(origin.age) => {
                "another connection led to another server, or was not answered".into()
            }
        }
    }

    /// Announces the hole of a reconnect once: when everything is heard again, but before the first
    /// thing that is. Earlier, what is published between the announcement and the LISTEN would be
    /// missed by those who looked after themselves at the announcement.
    fn announce(&self, hole: &Hole) {
        if hole.0.swap(false, Ordering::Relaxed) {
            self.feeds.gap(Gap { cause: GapCause::Reconnect, count: None });
        }
    }

    /// Polls the connection and does what notifications say.
    async fn drive(&self, mut wire: Wire, hole: &Hole) -> String {
        loop {
            match poll_fn(|context| wire.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notification(notification))) => {
                    if notification.channel() == self.link.schema.channel() {
                        // That it arrives proves that the LISTEN holds.
                        self.announce(hole);
                        self.notice(notification.payload()).await;
                    } else {
                        self.announce(hole);
                        self.foreign(notification.channel(), notification.payload()).await;
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return fault::text(&error),
                None => return "the listening connection was closed".into(),
            }
        }
    }

    /// Starts listening, and proves again and again that it goes on.
    async fn attend(&self, client: Arc<Client>, again: bool, hole: &Hole) -> String {
        if let Err(said) = self.answer("LISTEN", self.connect_timeout, self.listen(&client)).await {
            return said;
        }
        self.announce(hole);
        match self.self_test().await {
            Ok(true) => self.link.set_pooled(false),
            Ok(false) => {
                self.link.set_pooled(true);
                self.hearing.send_replace(Hearing::Pooled);
                return "notifications do not arrive".into();
            }
            Err(said) => return said,
        }
        if again {
            // A failure shows at the next use.
            let _ = self.registry.refresh(&self.pool).await;
        }
        if let Err(said) = self.go_live(&client).await {
            return said;
        }
        if again {
            self.wakes.all();
            self.feeds.look();
        }
        loop {
            tokio::time::sleep(self.heartbeat).await;
            match self.answer("a heartbeat", self.heartbeat, self.is_listening(&client)).await {
                Ok(true) => {}
                Ok(false) => return "the server stopped to listen for this client".into(),
                Err(said) => return said,
            }
        }
    }

    /// Says that notifications arrive. A process that only publishes needs none: each would wake its
    /// session on the server, so it stops listening until somebody subscribes or waits.
    async fn go_live(&self, client: &Arc<Client>) -> Result<(), String> {
        // Who needs them from now on waits for this turn, and then finds this connection. Whoever
        // has the turn needs them.
        let turn = self.channels.turn.try_write();
        if turn.is_ok() && !self.wakes.is_needed() {
            let text = self.link.schema.listen(false);
            self.answer("UNLISTEN", self.connect_timeout, client.batch_execute(&text)).await?;
        }
        // It is idle by its nature. No pooler stands between, so nobody else gets this setting.
        let awake = client.batch_execute(NEVER_TOO_IDLE);
        self.answer("a setting", self.connect_timeout, awake).await?;
        self.hearing.send_replace(Hearing::Live(Arc::clone(client)));
        Ok(())
    }

    /// Returns what was answered in time, else what to say of a connection that is given up.
    async fn answer<T>(
        &self,
        what: &str,
        limit: Duration,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, String> {
        match timeout(limit, answer).await {
            Ok(answered) => answered.map_err(|error| fault::text(&error)),
            Err(_) => {
                self.link.give_up();
                Err(format!("no answer to {what} within {limit:?}"))
            }
        }
    }

    async fn listen(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        // One transaction: what arrives proves all. The channels are made from validated names:
        // nothing in them needs escaping.
        let foreign = foreign::statements("listen", self.channels.all().iter());
        // A pooler would keep the lock on a connection that others use.
        let idle = self.feeds.is_empty() || self.link.is_pooled();
        let hear = if idle { String::new() } else { self.link.schema.hear() };
        let own = self.link.schema.listen(true);
        client.batch_execute(&format!("{foreign}{own}{hear}")).await
    }

    /// Whether a notification arrives that another session sends while this one is idle. A pooler
    /// of transactions would pass on one of this session, if the same connection served it again.
    async fn self_test(&self) -> Result<bool, String> {
        let nonce = Uuid::new_v4().simple().to_string();
        let channel = self.link.schema.channel();
        self.awaited.send_replace(nonce.clone());
        let mut awaited = self.awaited.subscribe();
        let other = self.link.open().await.map_err(|error| error.to_string())?;
        let text = format!("select pg_notify('{channel}', 't{nonce}')");
        let told = timeout(self.connect_timeout, other.client().batch_execute(&text)).await;
        match told {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(fault::text(&error)),
            Err(_) => return Err(format!("no answer to NOTIFY within {:?}", self.connect_timeout)),
        }
        let arrived = timeout(SELF_TEST, awaited.wait_for(String::is_empty)).await;
        Ok(arrived.is_ok())
    }

    async fn is_listening(&self, client: &Client) -> Result<bool, tokio_postgres::Error> {
        let should = self.wakes.are_arriving();
        let channel = self.link.schema.channel();
        let text = format!("select c from pg_listening_channels() c where c = '{channel}'");
        let answers = client.simple_query(&text).await?;
        let is_row = |part| matches!(part, &tokio_postgres::SimpleQueryMessage::Row(_));
        Ok(!should || answers.iter().any(is_row))
    }

    /// Stops listening to channels that nobody needs any more, for ever.
    pub(super) async fn tend(self: Arc<Self>, mut over: UnboundedReceiver<Vec<String>>) {
        while let Some(names) = over.recv().await {
            let _turn = self.channels.turn.write().await;
            let names = self.channels.unwanted(names);
            let live = match &*self.hearing.borrow() {
                Hearing::Live(client) if !names.is_empty() => Some(Arc::clone(client)),
                _ => None,
            };
            if let Some(client) = live {
                let text = foreign::statements("unlisten", names.iter());
                // A connection that breaks listens to nothing.
                let _ = timeout(self.heartbeat, client.batch_execute(&text)).await;
            }
        }
    }
}

/// Returns the pause before an attempt to reconnect: none at first, then full jitter up to 30 s, but
/// short while the outage is young.
fn next_attempt(attempt: u32, since: Duration) -> Duration {
    if attempt == 0 {
        return Duration::ZERO;
    }
    let longest = if since < Duration::from_secs(60) { 4 } else { 30 };
    let bound = Duration::from_secs(1u64 << attempt.min(5)).min(Duration::from_secs(longest));
    rand::rng().random_range(Duration::from_millis(10)..=bound)
}
