//! One logged-in connection, and the statements it has prepared.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use super::calls::Call;
use super::link::{Link, Origin};
use crate::nudge::Nudge;

/// An argument of a call.
pub(super) type Argument<'a> = &'a (dyn ToSql + Sync);

/// One connection to the server.
pub(super) struct Session {
    client: Client,
    nudge: Nudge,
    link: Arc<Link>,
    origin: Origin,
    /// Statements by the name of their function; empty where a pooler forbids them.
    prepared: Mutex<HashMap<&'static str, Statement>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}

impl Session {
    pub(super) fn new(client: Client, nudge: Nudge, link: Arc<Link>, origin: Origin) -> Self {
        Self { client, nudge, link, origin, prepared: Mutex::default() }
    }

    /// Whether it is not known to be dead.
    pub(super) fn is_usable(&self) -> bool {
        !self.client.is_closed() && self.origin.age == self.link.age()
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Calls a function of the schema: one round trip, one transaction.
    pub(super) async fn call(
        &self,
        call: &Call,
        arguments: &[Argument<'_>],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        if call.hot && self.link.may_prepare() {
            let statement = self.statement(call).await?;
            let asked = self.client.query(&statement, arguments);
            if self.origin.is_isolated {
                return self.nudge.ask(0, self.enclosed(asked)).await;
            }
            return self.nudge.ask(0, asked).await;
        }
        let text = self.link.schema.sql(&call.text());
        let typed: Vec<(Argument<'_>, Type)> =
            arguments.iter().copied().zip(call.types.iter().cloned()).collect();
        let asked = self.client.query_typed(&text, &typed);
        if self.origin.is_isolated { self.enclosed(asked).await } else { asked.await }
    }

    /// Asks in a transaction of READ COMMITTED, whatever the default of the role or the database is.
    /// All three go out at once. A setting of the session would reach others behind a pooler.
    async fn enclosed(
        &self,
        asked: impl Future<Output = Result<Vec<Row>, tokio_postgres::Error>>,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let begun = self.client.batch_execute("begin isolation level read committed");
        let ended = self.client.batch_execute("commit");
        let (begun, rows, ended) = tokio::join!(biased; begun, asked, ended);
        begun?;
        let rows = rows?;
        ended?;
        Ok(rows)
    }

    async fn statement(&self, call: &Call) -> Result<Statement, tokio_postgres::Error> {
        if let Some(known) = self.prepared.lock().get(call.name).cloned() {
            return Ok(known);
        }
        let text = self.link.schema.sql(&call.text());
        let statement = self.client.prepare_typed(&text, call.types).await?;
        self.prepared.lock().insert(call.name, statement.clone());
        Ok(statement)
    }
}
