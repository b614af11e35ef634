//! One supervised connection: made again for ever, proven alive by heartbeats, never silently dead.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::{Cmd, RedisError, Value, cmd};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::dial::{Connection, Dialed, ask, pause, says};
use super::identity::{self, ServerId, Servers};
use super::library::{self, Unready};
use super::scripts::{self, Calling};
use crate::backend::{ConnectionState, Health};
use crate::config::Scripts;
use crate::error::{Error, Result};
use crate::guard::Room;

/// What all connections of a backend report.
#[derive(Debug)]
pub(super) struct Status {
    /// How much the servers may answer.
    pub(super) room: Arc<Room>,
    health: Mutex<Health>,
    /// When `last_error` of the health was noted.
    failed_at: Mutex<Option<Instant>>,
    pub(super) malformed: AtomicU64,
    /// Connections that are down at the moment.
    down: Mutex<Vec<&'static str>>,
    /// The server that all connections have to lead to.
    servers: Servers,
}

impl Status {
    pub(super) fn new(room: Arc<Room>) -> Self {
        let (health, failed_at, malformed, down, servers) = Default::default();
        Self { room, health, failed_at, malformed, down, servers }
    }

    pub(super) fn health(&self) -> Health {
        let mut health = self.health.lock().clone();
        health.malformed = self.malformed.load(Ordering::Relaxed) + self.room.overruns();
        health.warnings.extend(self.room.warning());
        health.server_id = self.servers.current();
        health.state = match (self.down.lock().is_empty(), health.warnings.is_empty()) {
            (false, _) => ConnectionState::Connecting,
            (true, false) => ConnectionState::Degraded,
            (true, true) => ConnectionState::Live,
        };
        health
    }

    /// Returns the last error of a connection, unless it is older than that.
    fn recent_error(&self, age: Duration) -> String {
        let recent = self.failed_at.lock().is_some_and(|at| at.elapsed() <= age);
        if recent { self.health.lock().last_error.clone() } else { String::new() }
    }

    pub(super) fn describe(&self, server: String, warnings: Vec<String>) {
        let mut health = self.health.lock();
        health.server = server;
        drop(health);
        warnings.iter().for_each(|warning| self.warn(warning));
    }

    /// Remembers what an operator should know, once.
    pub(super) fn warn(&self, told: &str) {
        let mut health = self.health.lock();
        if health.warnings.iter().all(|warning| warning != told) {
            health.warnings.push(told.to_owned());
        }
    }

    fn lost(&self, name: &'static str, error: &str) {
        let mut down = self.down.lock();
        if !down.contains(&name) {
            down.push(name);
        }
        drop(down);
        *self.failed_at.lock() = Some(Instant::now());
        let mut health = self.health.lock();
        health.last_error = format!("{name}: {error}");
    }

    fn found(&self, name: &'static str, again: bool) {
        self.down.lock().retain(|down| *down != name);
        if again {
            self.health.lock().reconnects += 1;
        }
    }
}

/// A connection in use, and which one it is.
#[derive(Clone)]
struct Live {
    connection: Connection,
    number: u64,
    server: ServerId,
}

/// How a command ended without an answer of use.
#[derive(Debug)]
pub(super) enum Trouble {
    /// There was no connection in time: it was never sent.
    Unsent,
    /// It was sent; whether it took effect is unknown.
    Lost,
    /// The server does not know the script, or the function.
    NoScript,
    /// The server is full; nothing was done.
    Full(Error),
    /// The server cannot serve it now, another attempt (elsewhere) can succeed; nothing was done.
    Away,
    /// The server refuses it; nothing was done.
    Refused(Error),
}

/// Why a connection is not in use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// It broke.
    Broken,
    /// The address leads to another server now.
    Moved,
}

/// One supervised connection.
pub(super) struct Link {
    name: &'static str,
    live: watch::Sender<Option<Live>>,
    broken: Notify,
    made: AtomicU64,
    pub(super) status: Arc<Status>,
    endpoint: Mutex<String>,
    server: Mutex<ServerId>,
    /// Whether scripts are called as functions.
    functions: AtomicBool,
    ended: CancellationToken,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn new(name: &'static str, status: Arc<Status>) -> Self {
        Self {
            name,
            live: watch::Sender::new(None),
            broken: Notify::new(),
            made: AtomicU64::new(0),
            status,
            endpoint: Mutex::default(),
            server: Mutex::default(),
            functions: AtomicBool::new(false),
            ended: CancellationToken::new(),
        }
    }

    /// Returns the address of the server that was reached last.
    pub(super) fn endpoint(&self) -> String {
        self.endpoint.lock().clone()
    }

    /// Returns the id of the server that was reached last, empty when unknown.
    pub(super) fn server_id(&self) -> String {
        self.server.lock().to_string()
    }

    /// Says that the connection does not work any more.
    pub(super) fn break_off(&self) {
        self.broken.notify_one();
    }

    /// Puts a connection that is ready into use.
    ///
    /// When it leads to another server than the other connections of the bus, these are given up
    /// and made again: a listener at the old server would hear nothing of what is published at the
    /// new one.
    pub(super) fn put(&self, dialed: Dialed) {
        let Dialed { connection, endpoint, server } = dialed;
        let number = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        *self.endpoint.lock() = endpoint.to_string();
        *self.server.lock() = server.clone();
        self.status.found(self.name, number > 1);
        if !server.is_known() {
            self.status.warn(identity::UNKNOWN);
        }
        self.live.send_replace(Some(Live { connection, number, server: server.clone() }));
        self.status.servers.newest(server);
    }

    /// Returns the connection in use, waiting for one until the deadline.
    async fn live(&self, deadline: Instant) -> Result<Live, Trouble> {
        let mut live = self.live.subscribe();
        let found = tokio::select! {
            biased;
            () = self.ended.cancelled() => {
                return Err(Trouble::Refused(Error::Closed { what: "bus" }));
            }
            found = timeout_at(deadline, live.wait_for(Option::is_some)) => found,
        };
        match found {
            Ok(Ok(found)) => found.clone().ok_or(Trouble::Unsent),
            _ => Err(Trouble::Unsent),
        }
    }

    /// Returns how scripts are called.
    pub(super) fn calling(&self) -> Calling {
        if self.functions.load(Ordering::Relaxed) { Calling::Functions } else { Calling::Scripts }
    }

    pub(super) fn call_by(&self, calling: Calling) {
        self.functions.store(calling == Calling::Functions, Ordering::Relaxed);
    }

    /// Sends a command once; a function that a full server refuses as a whole is sent a second time,
    /// as one that refuses by itself what needs more memory.
    pub(super) async fn send(&self, command: &Cmd, deadline: Instant) -> Result<Value, Trouble> {
        let other = scripts::recast(command, self.calling());
        let command = other.as_ref().unwrap_or(command);
        let mut answer = self.send_once(command, deadline).await;
        if matches!(answer, Err(Trouble::Full(_)))
            && let Some(command) = scripts::when_full(command)
        {
            answer = self.send_once(&command, deadline).await;
        }
        match answer {
            Err(Trouble::Full(error)) => Err(Trouble::Refused(error)),
            answer => answer,
        }
    }

    async fn send_once(&self, command: &Cmd, deadline: Instant) -> Result<Value, Trouble> {
        let Live { mut connection, number, .. } = self.live(deadline).await?;
        self.answer(ask(&mut connection, command), number, deadline).await
    }

    /// Makes the server ready to run the scripts, which it may have been told to forget.
    ///
    /// # Errors
    /// `Refused` when it cannot be; other trouble shows at the next command.
    pub(super) async fn prepare(&self, wanted: Scripts, deadline: Instant) -> Result<(), Trouble> {
        let Live { mut connection, number, .. } = self.live(deadline).await?;
        let trouble = match timeout_at(deadline, library::prepare(&mut connection, wanted)).await {
            Ok(Ok(calling)) => {
                self.call_by(calling);
                return Ok(());
            }
            Ok(Err(Unready::Refused(error))) => self.trouble(&error, number),
            Ok(Err(Unready::Library(reason))) => {
                let endpoint = self.endpoint();
                Trouble::Refused(Error::Refused { endpoint, reason, remedy: library::REMEDY })
            }
            Err(_) => Trouble::Unsent,
        };
        if matches!(trouble, Trouble::Refused(_)) { Err(trouble) } else { Ok(()) }
    }

    /// Waits for an answer until the deadline, or until the connection was given up.
    async fn answer<T>(
        &self,
        asking: impl Future<Output = Result<T, RedisError>>,
        number: u64,
        deadline: Instant,
    ) -> Result<T, Trouble> {
        let mut live = self.live.subscribe();
        let given_up = live.wait_for(|live| live.as_ref().is_none_or(|live| live.number != number));
        tokio::select! {
            answer = asking => answer.map_err(|error| self.trouble(&error, number)),
            _ = given_up => Err(Trouble::Lost),
            () = tokio::time::sleep_until(deadline) => Err(Trouble::Lost),
        }
    }

    /// Ends it: the connection is closed once the last command on it was answered.
    pub(super) fn end(&self) {
        self.ended.cancel();
        self.live.send_replace(None);
    }

    /// Subscribes to channels or patterns and waits for the server's confirmation of each.
    pub(super) async fn subscribe(
        &self,
        names: &[Vec<u8>],
        patterns: bool,
        deadline: Instant,
    ) -> Result<(), Trouble> {
        let Live { mut connection, number, .. } = self.live(deadline).await?;
        self.answer(subscribe(&mut connection, names, patterns), number, deadline).await
    }

    /// Ends subscriptions; a connection that breaks has ended them as well.
    pub(super) async fn unsubscribe(&self, names: &[Vec<u8>], patterns: bool, deadline: Instant) {
        let Ok(Live { mut connection, .. }) = self.live(deadline).await else { return };
        let ending = async {
            if patterns {
                connection.wire.punsubscribe(names).await
            } else {
                connection.wire.unsubscribe(names).await
            }
        };
        let _ = timeout_at(deadline, ending).await;
    }

    fn trouble(&self, error: &RedisError, number: u64) -> Trouble {
        let current = self.made.load(Ordering::Relaxed) == number;
        let break_off = || {
            if current {
                self.status.lost(self.name, &says(error));
                self.live.send_replace(None);
                self.broken.notify_one();
            }
        };
        match error.code() {
            Some("NOSCRIPT") => Trouble::NoScript,
            Some(_) if library::is_unknown(error) => Trouble::NoScript,
            Some("OOM") => Trouble::Full(self.refused(error)),
            Some(
                "READONLY" | "MASTERDOWN" | "CLUSTERDOWN" | "MOVED" | "ASK" | "TRYAGAIN"
                | "LOADING",
            ) => {
                break_off();
                Trouble::Away
            }
            Some("BUSY") => Trouble::Away,
            Some("NOPERM") => Trouble::Refused(self.denied(error)),
            Some(_) if is_denied(&says(error)) => Trouble::Refused(self.denied(error)),
            Some(_) => Trouble::Refused(self.refused(error)),
            None => {
                break_off();
                Trouble::Lost
            }
        }
    }

    fn denied(&self, error: &RedisError) -> Error {
        let endpoint = self.endpoint();
        let remedy = "grant the rights of the ACL recipe";
        Error::Denied { endpoint, reason: says(error), remedy }
    }

    fn refused(&self, error: &RedisError) -> Error {
        // A script's failure carries the cause inside its text.
        let reason = says(error);
        let remedy = if reason.contains("OOM") {
            "consume what waits, raise maxmemory or free memory, then try again"
        } else if reason.contains("MISCONF") {
            "make room on the server's disk, then try again"
        } else {
            "see the server's log"
        };
        Error::Refused { endpoint: self.endpoint(), reason, remedy }
    }

    /// Returns the error of an operation that had no answer until its deadline.
    pub(super) fn too_late(&self, operation: &'static str, after: Duration, sent: bool) -> Error {
        // What an outage before this operation has left says nothing about it.
        let trouble = self.status.recent_error(after);
        if !sent && !trouble.is_empty() {
            let reason = format!("{operation} waited {after:?} for a connection; last: {trouble}");
            return Error::Connect { endpoint: self.endpoint(), reason };
        }
        Error::Timeout { operation, after, outcome_unknown: sent, trouble }
    }

    /// Returns the error that trouble means for an operation with so much time.
    pub(super) fn failed(
        &self,
        operation: &'static str,
        after: Duration,
        trouble: Trouble,
    ) -> Error {
        match trouble {
            Trouble::Refused(error) | Trouble::Full(error) => error,
            Trouble::Lost => self.too_late(operation, after, true),
            Trouble::Unsent | Trouble::Away | Trouble::NoScript => {
                self.too_late(operation, after, false)
            }
        }
    }

    /// Proves the connection alive until it is not, or was said to be broken, or another connection
    /// of the bus was made to another server.
    pub(super) async fn watch(&self, every: Duration) -> Lost {
        let mut servers = self.status.servers.watch();
        loop {
            let server = self.live.borrow().as_ref().map(|live| live.server.clone());
            let Some(server) = server else { return Lost::Broken };
            let (problem, lost) = tokio::select! {
                newest = servers.other_than(&server) => (newest, Lost::Moved),
                problem = self.fails(every) => (problem, Lost::Broken),
            };
            if let Some(problem) = problem {
                self.status.lost(self.name, &problem);
                self.live.send_replace(None);
                return lost;
            }
        }
    }

    /// Waits until the connection has to be proven alive; returns what is wrong with it.
    async fn fails(&self, every: Duration) -> Option<String> {
        tokio::select! {
            // May be news of an older connection: the ping tells.
            () = self.broken.notified() => {}
            () = tokio::time::sleep(every) => {}
        }
        let live = self.live.borrow().clone();
        let Live { mut connection, .. } = live?;
        let ping = cmd("PING");
        match timeout(every, ask(&mut connection, &ping)).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(says(&error)),
            Err(_) => Some(format!("no heartbeat within {every:?}")),
        }
    }

    /// Runs `make` until it gives a connection that is ready for use, and puts it into use.
    ///
    /// The first attempt is made at once, except after a move: an address that leads to one of
    /// several servers in turn must not make the connections chase each other without a pause.
    pub(super) async fn renew<F>(&self, lost: Lost, mut make: impl FnMut() -> F)
    where
        F: Future<Output = Result<Dialed>>,
    {
        let since = Instant::now();
        let mut attempt = u32::from(lost == Lost::Moved);
        loop {
            let wait = pause(attempt, since.elapsed(), rand::random());
            tokio::time::sleep(wait).await;
            match make().await {
                Ok(dialed) => return self.put(dialed),
                Err(error) => self.status.lost(self.name, &error.to_string()),
            }
            attempt += 1;
        }
    }
}

/// Keeps a connection in use for ever: `lost` runs when it broke, before anything new can arrive,
/// and `found` once another one is in use.
pub(super) async fn keep<F>(
    link: Arc<Link>,
    heartbeat: Duration,
    lost: impl Fn(),
    mut make: impl FnMut() -> F,
    found: impl Fn(),
) where
    F: Future<Output = Result<Dialed>>,
{
    loop {
        let why = link.watch(heartbeat).await;
        lost();
        link.renew(why, &mut make).await;
        found();
    }
}

/// Subscribes on a connection, a thousand names at a time.
pub(super) async fn subscribe(
    connection: &mut Connection,
    names: &[Vec<u8>],
    patterns: bool,
) -> Result<(), RedisError> {
    for some in names.chunks(1000) {
        if patterns {
            connection.wire.psubscribe(some).await?;
        } else {
            connection.wire.subscribe(some).await?;
        }
    }
    Ok(())
}

/// Whether a script was stopped by a right that its user lacks.
pub(super) fn is_denied(reason: &str) -> bool {
    reason.contains("NOPERM") || reason.contains("user executing the script can't")
}
