//! What all connections of one backend share: how they are made, and how the server is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_postgres::Client;

use super::calls::Call;
use super::connect::{Connector, Wire};
use super::fault::{self, Fault};
use super::schema::Schema;
use super::server::Server;
use super::session::{Argument, Session};
use crate::error::{Error, Result};
use crate::nudge::Nudge;
use crate::shutdown::Tasks;

/// Longest pause between two attempts of a waiting operation.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Where a connection comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    /// How often connections had been given up when it was made.
    pub(super) age: u64,
    /// Whether transactions begin in another isolation than READ COMMITTED there.
    pub(super) is_isolated: bool,
}

/// What is shared by the connections of one backend.
pub(super) struct Link {
    pub(super) connector: Connector,
    pub(super) schema: Schema,
    pub(super) tasks: Tasks,
    pub(super) op_timeout: Duration,
    /// How often all connections were given up: those made before the last time are not used any
    /// more. A peer that is gone answers on none of them, and no other sign comes; a server that the
    /// address has left answers on all of them, beside the one that all others use by now.
    age: watch::Sender<u64>,
    /// Which server the last connection led to; empty before the first.
    known: Mutex<String>,
    /// What is said while the server has no schema of the bus; empty otherwise.
    unusable: Mutex<String>,
    /// Whether that is so, for the way of every call.
    is_unusable: AtomicBool,
    /// Whether notifications do not arrive: a transaction pooler stands between.
    pooled: AtomicBool,
    /// Frames of the wire that could not be read.
    pub(super) malformed: AtomicU64,
    pub(super) reconnects: AtomicU64,
    pub(super) last_error: Mutex<String>,
    /// When `last_error` was noted.
    failed_at: Mutex<Option<Instant>>,
    pub(super) server: Mutex<String>,
    /// What was found when connecting.
    pub(super) warnings: Mutex<Vec<String>>,
    /// What was found by the last thorough look.
    pub(super) ailments: Mutex<Vec<String>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("connector", &self.connector).finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn new(
        connector: Connector,
        schema: Schema,
        tasks: Tasks,
        op_timeout: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            connector,
            schema,
            tasks,
            op_timeout,
            age: watch::Sender::default(),
            known: Mutex::default(),
            unusable: Mutex::default(),
            is_unusable: AtomicBool::new(false),
            pooled: AtomicBool::new(false),
            malformed: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            last_error: Mutex::default(),
            failed_at: Mutex::default(),
            server: Mutex::default(),
            warnings: Mutex::default(),
            ailments: Mutex::default(),
        })
    }

    pub(super) fn is_pooled(&self) -> bool {
        self.pooled.load(Ordering::Relaxed)
    }

    pub(super) fn set_pooled(&self, pooled: bool) {
        self.pooled.store(pooled, Ordering::Relaxed);
    }

    /// Whether a statement prepared now will be there at the next call.
    pub(super) fn may_prepare(&self) -> bool {
        !self.is_pooled()
    }

    /// Gives up every connection that there is: the server did not answer in time on one of them, or
    /// the address leads to another by now.
    pub(super) fn give_up(&self) {
        self.age.send_modify(|count| *count += 1);
    }

    pub(super) fn age(&self) -> u64 {
        *self.age.borrow()
    }

    /// Waits until the connections of an age are given up.
    pub(super) async fn superseded(&self, age: u64) {
        let mut ages = self.age.subscribe();
        // It ends with `self`, which is borrowed.
        let _ = ages.wait_for(|now| *now != age).await;
    }

    /// Connects and logs in, and looks where that led.
    ///
    /// # Errors
    /// `Connect`; also for a standby, when it is not the first connection of all.
    pub(super) async fn connect(&self) -> Result<(Client, Wire, Origin)> {
        let (client, mut wire) = self.connector.open().await?;
        let looked = tokio::select! {
            looked = tokio::time::timeout(self.op_timeout, Server::look(&client)) => looked,
            ended = &mut wire => Ok(Err(match ended {
                Err(error) => error,
                Ok(()) => return Err(self.connector.failed(&"the connection was closed")),
            })),
        };
        let server = match looked {
            Ok(Ok(server)) => server,
            Ok(Err(error)) => return Err(self.connector.failed(&fault::text(&error))),
            Err(_) => return Err(self.connector.failed(&"no answer on a new connection")),
        };
        let age = self.recognise(&server)?;
        Ok((client, wire, Origin { age, is_isolated: server.is_isolated }))
    }

    /// Compares a server with the one that all connections lead to. If it is another, they are given
    /// up: the listener would hear nothing that is published there.
    fn recognise(&self, server: &Server) -> Result<u64> {
        let mut known = self.known.lock();
        let is_first = known.is_empty();
        // A pooler of transactions may serve one session by several servers.
        if !server.identity.is_empty() && *known != server.identity && !self.is_pooled() {
            known.clone_from(&server.identity);
            if !is_first {
                self.note("the address leads to another server, or to one that was restarted");
                self.give_up();
            }
        }
        let age = self.age();
        drop(known);
        if server.is_standby && !is_first {
            return Err(self.connector.failed(&"the server is a standby, which takes no writes"));
        }
        Ok(age)
    }

    /// Returns what keeps the bus from working although the server answers; empty when nothing does.
    pub(super) fn unusable(&self) -> String {
        self.unusable.lock().clone()
    }

    /// Notes whether the schema is there, as a call has shown.
    fn note_schema(&self, fault: Option<&Fault>) {
        match fault {
            Some(Fault::Final(error @ Error::Refused { remedy: fault::NO_SCHEMA, .. })) => {
                *self.unusable.lock() = error.to_string();
                self.is_unusable.store(true, Ordering::Relaxed);
                self.note(&error.to_string());
            }
            None if self.is_unusable.load(Ordering::Relaxed) => {
                self.is_unusable.store(false, Ordering::Relaxed);
                self.unusable.lock().clear();
            }
            _ => {}
        }
    }

    pub(super) fn note(&self, trouble: &str) {
        *self.failed_at.lock() = Some(Instant::now());
        trouble.clone_into(&mut self.last_error.lock());
    }

    /// Opens a session whose connection a task drives.
    pub(super) async fn open(self: &Arc<Self>) -> Result<Session> {
        let opened = self.connect().await;
        let (client, wire, origin) = opened.inspect_err(|error| self.note(&error.to_string()))?;
        let (nudge, wire) = Nudge::around(|_| async move { drop(wire.await) });
        let mut ages = self.age.subscribe();
        self.tasks.spawn(async move {
            // Whoever uses the session learns of its end by its own calls. A wire that waits for an
            // answer ends when the session is given up, or it would wait for as long as TCP does.
            tokio::select! {
                () = wire => {}
                _ = ages.wait_for(|now| *now != origin.age) => {}
            }
        });
        Ok(Session::new(client, nudge, Arc::clone(self), origin))
    }

    /// Opens a session, again and again until the deadline.
    pub(super) async fn open_by(self: &Arc<Self>, deadline: Instant) -> Result<Session> {
        let mut attempt = 0;
        let mut last = None;
        loop {
            let error = match tokio::time::timeout_at(deadline, self.open()).await {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(error)) => error,
                Err(_) => {
                    let reason = match last {
                        Some(error) => format!("no connection in time; the last attempt: {error}"),
                        None => format!("no connection within {:?}", self.op_timeout),
                    };
                    return Err(self.connector.failed(&reason));
                }
            };
            last = Some(error.to_string());
            attempt += 1;
            match pause_before(deadline, attempt, LONGEST_PAUSE) {
                Some(pause) if matches!(error, Error::Connect { .. }) => {
                    tokio::time::sleep(pause).await;
                }
                _ => return Err(error),
            }
        }
    }

    /// Makes one call within the time; a session that does not answer is asked to stop.
    pub(super) async fn attempt(
        &self,
        session: &Session,
        call: &Call,
        arguments: &[Argument<'_>],
        deadline: Instant,
    ) -> Result<Vec<tokio_postgres::Row>, Fault> {
        match tokio::time::timeout_at(deadline, session.call(call, arguments)).await {
            Ok(Ok(rows)) => {
                self.note_schema(None);
                Ok(rows)
            }
            Ok(Err(error)) => {
                let fault = Fault::of(&error, &self.connector.endpoint());
                match &fault {
                    Fault::Lost(said) | Fault::Again(said) => self.note(said),
                    Fault::ReadOnly(error) => self.note(&error.to_string()),
                    _ => self.note_schema(Some(&fault)),
                }
                Err(fault)
            }
            Err(_) => {
                let (token, connector) = (session.client().cancel_token(), self.connector.clone());
                self.tasks.spawn(async move { connector.cancel(token).await });
                Err(Fault::Final(self.timeout(call.operation, true)))
            }
        }
    }

    /// Returns the error of a call that the server undid each time it was made.
    pub(super) fn interrupted(&self, reason: String) -> Error {
        let remedy = "nothing was changed; try again, or raise the limit that the server names";
        Error::Refused { endpoint: self.connector.endpoint(), reason, remedy }
    }

    pub(super) fn timeout(&self, operation: &'static str, outcome_unknown: bool) -> Error {
        let after = self.op_timeout;
        // What an outage before this operation has left says nothing about it.
        let recent = self.failed_at.lock().is_some_and(|at| at.elapsed() <= after);
        let trouble = if recent { self.last_error.lock().clone() } else { String::new() };
        Error::Timeout { operation, after, outcome_unknown, trouble }
    }
}

/// Returns a pause after so many attempts that failed before the last one: none at first, then one
/// with full jitter that grows.
fn pause(attempt: u32, longest: Duration) -> Duration {
    if attempt == 0 {
        return Duration::ZERO;
    }
    let bound = Duration::from_millis(50) * 2u32.saturating_pow(attempt.min(12));
    rand::rng().random_range(Duration::from_millis(1)..=bound.min(longest))
}

/// As [`pause`], but short enough for one more attempt before the deadline; `None` when there is no
/// time for another.
pub(super) fn pause_before(deadline: Instant, attempt: u32, longest: Duration) -> Option<Duration> {
    const LAST: Duration = Duration::from_millis(10);
    let left = deadline.saturating_duration_since(Instant::now());
    (left > LAST * 2).then(|| pause(attempt, longest).min(left.saturating_sub(LAST)))
}
