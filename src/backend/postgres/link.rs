//! What all connections of one backend share: how they are made, and how the server is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::Instant;

use super::calls::Call;
use super::connect::Connector;
use super::fault::Fault;
use super::schema::Schema;
use super::session::{Argument, Session};
use crate::error::{Error, Result};
use crate::nudge::Nudge;
use crate::shutdown::Tasks;

/// Longest pause between two attempts of a waiting operation.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What is shared by the connections of one backend.
pub(super) struct Link {
    pub(super) connector: Connector,
    pub(super) schema: Schema,
    pub(super) tasks: Tasks,
    pub(super) op_timeout: Duration,
    /// How often the server fell silent: connections made before the last time are given up, as a
    /// peer that is gone answers on none of them, and no other sign comes.
    silences: watch::Sender<u64>,
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
            silences: watch::Sender::default(),
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

    /// Gives up every connection that there is: the server did not answer in time on one of them.
    pub(super) fn give_up(&self) {
        self.silences.send_modify(|count| *count += 1);
    }

    pub(super) fn silences(&self) -> u64 {
        *self.silences.borrow()
    }

    pub(super) fn note(&self, trouble: &str) {
        *self.failed_at.lock() = Some(Instant::now());
        trouble.clone_into(&mut self.last_error.lock());
    }

    /// Opens a session whose connection a task drives.
    pub(super) async fn open(self: &Arc<Self>) -> Result<Session> {
        let born = self.silences();
        let opened = self.connector.open().await;
        let (client, wire) = opened.inspect_err(|error| self.note(&error.to_string()))?;
        let mut silences = self.silences.subscribe();
        let (nudge, wire) = Nudge::around(|_| async move { drop(wire.await) });
        self.tasks.spawn(async move {
            // Whoever uses the session learns of its end by its own calls. A wire that waits for an
            // answer ends with the silence, or it would wait for as long as TCP does.
            tokio::select! {
                () = wire => {}
                _ = silences.wait_for(|count| *count != born) => {}
            }
        });
        Ok(Session::new(client, nudge, Arc::clone(self), born))
    }

    /// Opens a session, again and again until the deadline.
    pub(super) async fn open_by(self: &Arc<Self>, deadline: Instant) -> Result<Session> {
        let mut attempt = 0;
        loop {
            let error = match tokio::time::timeout_at(deadline, self.open()).await {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(error)) => error,
                Err(_) => {
                    let reason = format!("no connection within {:?}", self.op_timeout);
                    return Err(self.connector.failed(&reason));
                }
            };
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
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => {
                let fault = Fault::of(&error, &self.connector.endpoint());
                if let Fault::Lost(said) | Fault::Again(said) = &fault {
                    self.note(said);
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
