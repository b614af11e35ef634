//! One logged-in connection, and the statements it has prepared.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use super::calls::Call;
use super::link::Link;
use crate::nudge::Nudge;

/// An argument of a call.
pub(super) type Argument<'a> = &'a (dyn ToSql + Sync);

/// One connection to the server.
pub(super) struct Session {
    client: Client,
    nudge: Nudge,
    link: Arc<Link>,
    /// How often the server had fallen silent when it was made.
    born: u64,
    /// Statements by the name of their function; empty where a pooler forbids them.
    prepared: Mutex<HashMap<&'static str, Statement>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}

impl Session {
    pub(super) fn new(client: Client, nudge: Nudge, link: Arc<Link>, born: u64) -> Self {
        Self { client, nudge, link, born, prepared: Mutex::default() }
    }

    /// Whether it is not known to be dead.
    pub(super) fn is_usable(&self) -> bool {
        !self.client.is_closed() && self.born == self.link.silences()
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
            return self.nudge.ask(0, self.client.query(&statement, arguments)).await;
        }
        let text = self.link.schema.sql(&call.text());
        let typed: Vec<(Argument<'_>, Type)> =
            arguments.iter().copied().zip(call.types.iter().cloned()).collect();
        self.client.query_typed(&text, &typed).await
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
