//! The broadcasts that the server keeps, as replays read them.

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use redis::{Cmd, Value};

use super::registry::text;
use super::scripts::Calling;
use super::session::Session;
use super::{message, micros, scripts};
use crate::backend::replay::{Cursor, Kept, PAGE_BYTES, Page, Start};
use crate::backend::{Broadcast, Gap, GapCause, Since};
use crate::config::{RedisConfig, Retention};
use crate::error::{Error, Result};
use crate::topic::Binding;

/// A session's kept broadcasts; keeps no session alive.
pub(super) struct Reader(pub(super) Weak<Session>);

/// Adds what a bus shall keep, as the scripts take it.
pub(super) fn add_retention(command: &mut Cmd, retention: Retention) {
    let age = retention.age.map(|age| micros(age).div_ceil(1000).to_string());
    command.arg(age.unwrap_or_default()).arg(retention.max.min(1 << 52));
}

/// Returns the command that makes the server keep broadcasts, when the configuration says so.
pub(super) fn configure(config: &RedisConfig, calling: Calling, prefix: &str) -> Option<Cmd> {
    let mut command = scripts::DECLARE.call(calling, prefix);
    command.arg("retain").arg("");
    add_retention(&mut command, config.kept()?);
    Some(command)
}

fn nonsense() -> Error {
    Error::Internal { reason: "the replay script gave an answer that cannot be read".into() }
}

fn number(value: Option<Value>) -> Result<u64> {
    value.and_then(text).and_then(|text| text.parse().ok()).ok_or_else(nonsense)
}

impl Reader {
    async fn ask(
        &self,
        operation: &'static str,
        arguments: impl FnOnce(&mut Cmd),
    ) -> Result<std::vec::IntoIter<Value>> {
        let session = self.0.upgrade().ok_or(Error::Closed { what: "bus" })?;
        let own = session.config.kept().unwrap_or(Retention { age: None, max: 0 });
        let answer = session
            .script("replay", &scripts::REPLAY, |command| {
                command.arg(operation);
                add_retention(command, own);
                arguments(command);
            })
            .await?;
        match answer {
            Value::Array(parts) => Ok(parts.into_iter()),
            _ => Err(nonsense()),
        }
    }
}

#[async_trait]
impl Kept for Reader {
    async fn find(&self, since: Since) -> Result<Start> {
        let mut parts = self
            .ask("find", |command| {
                match since {
                    Since::Beginning => command.arg("beginning").arg(""),
                    Since::After(position) => command.arg("after").arg(position.min(1 << 52)),
                    Since::Event(event) => command.arg("event").arg(&event[..]),
                    Since::Time(at) => command.arg("time").arg(at),
                };
            })
            .await?;
        let cursor = Cursor { position: number(parts.next())?, time: number(parts.next())? };
        Ok(Start { cursor, cut: parts.next().is_some() })
    }

    async fn page(&self, after: Cursor, bindings: &[Binding], most: usize) -> Result<Page> {
        let mut parts = self
            .ask("page", |command| {
                command.arg(after.position).arg(after.time).arg(most).arg(PAGE_BYTES);
                for binding in bindings {
                    match binding {
                        Binding::Topic(topic) => command.arg("t").arg(topic.as_bytes()),
                        Binding::Pattern(pattern) => command.arg("p").arg(pattern.prefix()),
                    };
                }
            })
            .await?;
        let end = Cursor { position: number(parts.next())?, time: number(parts.next())? };
        let more = number(parts.next())? == 1;
        let mut page = Page { items: Vec::new(), end, more };
        while let Some(position) = parts.next() {
            let position = number(Some(position))?;
            let Some(Value::BulkString(bytes)) = parts.next() else { return Err(nonsense()) };
            if position == 0 {
                page.items.push(Broadcast::Gap(Gap { cause: GapCause::Retention, count: None }));
                continue;
            }
            let (stored, _) = message::read(&Bytes::from(bytes)).ok_or_else(nonsense)?;
            if bindings.iter().any(|binding| binding.matches(&stored.topic)) {
                let (topic, body) = (Arc::clone(&stored.topic), stored.body);
                page.items.push(Broadcast::Frame { topic, body, position });
            }
        }
        Ok(page)
    }
}
