//! Transactions on a connection of the caller's: one statement with one argument, and its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use uuid::Uuid;

use super::answers::Answers;
use super::step::{self, Step};
use super::wire::{Packer, Style};
use super::{PostgresBackend, check};
use crate::backend::{Committed, Joins, Op, Statement, Transaction};
use crate::error::{Error, Result};

/// Tells apart equal broadcasts of one transaction, which the server would send once only.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// What `transact` takes.
#[derive(Serialize)]
struct Parcel<'a> {
    bus: &'a str,
    dedup_window: i64,
    /// Whether notifications only name broadcasts, as far as this process knows.
    parts: bool,
    steps: Vec<Line<'a>>,
}

/// One step as `transact` takes it.
#[derive(Default, Serialize)]
struct Line<'a> {
    kind: i16,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dedup: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<i16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    binding: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<i16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notify: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    large: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<String>,
}

impl<'a> Line<'a> {
    fn of(op: &'a Op, style: &Style, parts: bool) -> Self {
        // No producer: whoever runs the statement sends it once.
        let mut packer =
            Packer::new(Uuid::nil(), NEXT.fetch_add(1, Ordering::Relaxed), style, parts);
        let (step, group) = match op {
            Op::Publish(message) => (step::publish(message, &mut packer), None),
            Op::Settle(lease, outcome) => (step::settle(lease, outcome, None), Some(&*lease.group)),
            Op::Put { key, value, if_version, ttl } => {
                (step::record(key, Some(value), *if_version, *ttl), None)
            }
            Op::Delete { key, if_version } => (step::record(key, None, *if_version, None), None),
        };
        let Step { tx: _, first: _, count: _, group: _, .. } = step;
        Self {
            kind: step.kind,
            id: step.id.map(|id| id.to_string()),
            name: step.name,
            body: step.body.map(|body| STANDARD.encode(body)),
            key: step.key,
            unique: step.unique,
            dedup: step.dedup,
            error: step.error.map(std::borrow::Cow::into_owned),
            priority: step.priority,
            number: step.number,
            group,
            binding: step.binding,
            outcome: step.outcome,
            after: step.after,
            due: step.due,
            ttl: step.ttl,
            notify: step.notify,
            large: step.large.map(|id| id.to_string()),
            event: step.event.map(|id| id.to_string()),
        }
    }
}

impl Joins for PostgresBackend {
    fn statement(&self, transaction: &Transaction) -> Result<Statement> {
        let live = self.live()?;
        check(&live, transaction)?;
        let registry = live.registry.get();
        let line = |op| Line::of(op, &live.style, registry.parts);
        let steps = transaction.ops.iter().map(line).collect();
        let (bus, parts) = (registry.bus.as_str(), registry.parts);
        let parcel = Parcel { bus, dedup_window: live.dedup_window, parts, steps };
        let argument = serde_json::to_string(&parcel)
            .map_err(|error| Error::Internal { reason: error.to_string() })?;
        let text = live.link.schema.sql("select @schema@.transact($1::text)");
        Ok(Statement { text, argument })
    }

    fn answer(&self, transaction: &Transaction, figures: &[i64]) -> Result<Committed> {
        let registry = self.live()?.registry.get();
        let ops: Vec<&Op> = transaction.ops.iter().collect();
        let mut answers = Answers { rest: figures, ops: &ops, registry: &registry };
        answers.next(transaction).unwrap_or_else(|| {
            let reason = "the server's answer to a transaction is not understood".into();
            Err(Error::Internal { reason })
        })
    }

    fn failure(&self, code: &str, said: &str) -> Option<Error> {
        let schema = &self.config.schema;
        let reason = format!("{said} ({code})");
        if matches!(code, "EB007" | "40001") {
            // The schema may have been made anew, or its settings changed.
            if let Ok(live) = self.live() {
                let (registry, pool) = (Arc::clone(&live.registry), Arc::clone(&live.pool));
                live.link.tasks.spawn(async move {
                    let _ = registry.refresh(&pool).await;
                });
            }
        }
        let problem = match code {
            "40001" | "40P01" => {
                return Some(Error::Serialization { reason, code: code.to_owned() });
            }
            "25006" => {
                let endpoint = self.connector.endpoint();
                let remedy = "take a connection to a server that takes writes, in a transaction \
                              that may write";
                return Some(Error::Refused { endpoint, reason, remedy });
            }
            "EB007" => format!(
                "the connection leads elsewhere: {said}; take one to database {:?} of the bus",
                self.config.database
            ),
            "3F000" | "42883" | "42P01" => format!(
                "the database of the connection has no tables of a bus in schema {schema:?} \
                 ({said}); take a connection to database {:?} of the bus",
                self.config.database
            ),
            "42501" => format!(
                "the connection's role may not use schema {schema:?} ({said}); grant it what a \
                 role of the bus has"
            ),
            _ => return None,
        };
        Some(Error::Config { problems: vec![problem] })
    }
}
