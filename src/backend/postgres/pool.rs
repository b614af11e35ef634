//! A few connections for everything but commits and notifications.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_postgres::Row;

use super::calls::Call;
use super::fault::Fault;
use super::link::{Link, pause_before};
use super::session::{Argument, Session};
use crate::error::{Error, Result};

/// Sessions used one call at a time; one is given back only when its answer was read to the end.
#[derive(Debug)]
pub(super) struct Pool {
    link: Arc<Link>,
    free: Semaphore,
    idle: Mutex<Vec<Session>>,
}

impl Pool {
    pub(super) fn new(link: Arc<Link>, size: usize) -> Self {
        Self { link, free: Semaphore::new(size), idle: Mutex::default() }
    }

    /// Calls a function, and again where that may help, until `op_timeout`.
    pub(super) async fn call(
        &self,
        call: &Call,
        arguments: &[Argument<'_>],
        about: &str,
    ) -> Result<Vec<Row>> {
        self.call_or(call, arguments, arguments, about).await
    }

    /// As [`Pool::call`], with other arguments once an answer may have been lost.
    pub(super) async fn call_or(
        &self,
        call: &Call,
        arguments: &[Argument<'_>],
        again: &[Argument<'_>],
        about: &str,
    ) -> Result<Vec<Row>> {
        let mut arguments = arguments;
        let deadline = Instant::now() + self.link.op_timeout;
        let permit = tokio::time::timeout_at(deadline, self.free.acquire()).await;
        let permit = permit.map_err(|_| self.link.timeout(call.operation, false))?;
        let _permit = permit.map_err(|_| Error::Closed { what: "bus" })?;
        let mut attempt = 0;
        // Why the server did not do it, when it said so.
        let mut refusal = None;
        loop {
            let session = match (self.session(deadline).await, refusal) {
                (Ok(session), _) => session,
                // There was no time for another connection.
                (Err(Error::Connect { .. }), Some(refusal)) => return Err(refusal),
                (Err(error), _) => return Err(error),
            };
            refusal = None;
            let fault = match self.link.attempt(&session, call, arguments, deadline).await {
                Ok(rows) => {
                    self.idle.lock().push(session);
                    return Ok(rows);
                }
                Err(fault) => fault,
            };
            let failure = match fault {
                Fault::Lost(said) => {
                    arguments = again;
                    self.link.connector.failed(&said)
                }
                Fault::Again(said) => {
                    self.idle.lock().push(session);
                    self.link.interrupted(said)
                }
                Fault::ReadOnly(error) => refusal.insert(error).clone(),
                Fault::Stale => {
                    return Err(Error::Internal { reason: "a stale registry was named".into() });
                }
                Fault::Full(limit) => {
                    self.idle.lock().push(session);
                    return Err(Error::QueueFull { queue: about.to_owned(), limit });
                }
                Fault::NoGroup => {
                    self.idle.lock().push(session);
                    return Err(Error::NotFound { what: "group", name: about.to_owned() });
                }
                Fault::Final(error) => return Err(error),
            };
            // At once at first: mostly a connection was lost while it was idle.
            let Some(pause) = pause_before(deadline, attempt, self.link.op_timeout / 8) else {
                return Err(failure);
            };
            attempt += 1;
            tokio::time::sleep(pause).await;
        }
    }

    /// Takes an idle session that is not known to be dead, or opens one.
    async fn session(&self, deadline: Instant) -> Result<Session> {
        while let Some(session) = self.take() {
            if session.is_usable() {
                return Ok(session);
            }
        }
        self.link.open_by(deadline).await
    }

    fn take(&self) -> Option<Session> {
        self.idle.lock().pop()
    }

    /// Keeps a session that somebody else opened.
    pub(super) fn keep(&self, session: Session) {
        self.idle.lock().push(session);
    }

    /// Ends every session; calls that wait for one fail.
    pub(super) fn close(&self) {
        self.free.close();
        self.idle.lock().clear();
    }
}
