//! Groups, and what operators see and do.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use redis::{Cmd, Value};
use tokio::time::Instant;

use super::link::Trouble;
use super::message::{self, HEAD};
use super::registry::{read_binding, text, write_binding};
use super::session::Session;
use super::{checks, context, dead_reason, scripts};
use crate::backend::{DeadLetter, GroupSpec, GroupStats, Inspection, MessageId, Record};
use crate::error::{Error, Result};
use crate::topic::{self, Binding};

/// Most messages removed by one run of a script.
const AT_ONCE: u64 = 5000;
/// Most dead letters that one look for new ones brings; the script knows the same number.
const MOST_NEWS: usize = 100;

pub(super) fn nonsense() -> Error {
    Error::Internal { reason: "a script gave an answer that cannot be read".into() }
}

pub(super) fn array(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(parts) => Ok(parts),
        _ => Err(nonsense()),
    }
}

pub(super) fn number<T: std::str::FromStr>(value: Option<Value>) -> Result<T> {
    value.and_then(text).and_then(|text| text.parse().ok()).ok_or_else(nonsense)
}

pub(super) fn bytes(value: Option<Value>) -> Result<Bytes> {
    match value {
        Some(Value::BulkString(bytes)) => Ok(Bytes::from(bytes)),
        _ => Err(nonsense()),
    }
}

impl Session {
    /// Runs an operation on a group; returns the parts behind `ok`.
    async fn operate(
        &self,
        operation: &'static str,
        group: &str,
        arguments: impl FnOnce(&mut Cmd),
    ) -> Result<std::vec::IntoIter<Value>> {
        self.operate_by(&scripts::ADMIN, operation, group, arguments).await
    }

    /// As `operate`, by another script.
    pub(super) async fn operate_by(
        &self,
        script: &'static scripts::Script,
        operation: &'static str,
        group: &str,
        arguments: impl FnOnce(&mut Cmd),
    ) -> Result<std::vec::IntoIter<Value>> {
        let answer = self
            .script(operation, script, |command| {
                command.arg(operation).arg(group.as_bytes());
                arguments(command);
            })
            .await?;
        let mut parts = array(answer)?.into_iter();
        match parts.next().and_then(text).as_deref() {
            Some("ok") => Ok(parts),
            Some("nogroup") => Err(Error::NotFound { what: "group", name: group.to_owned() }),
            Some("full") => {
                Err(Error::QueueFull { queue: group.to_owned(), limit: number(parts.next())? })
            }
            _ => Err(nonsense()),
        }
    }

    /// Reads the bindings anew after they changed here.
    pub(super) async fn refresh(&self) -> Result<()> {
        let deadline = Instant::now() + self.config.net.op_timeout;
        loop {
            match self.context.refresh(deadline).await {
                Ok(()) => return Ok(()),
                Err(Trouble::NoScript) => self.context.prepare(deadline).await?,
                Err(Trouble::Lost) if Instant::now() < deadline => {}
                Err(Trouble::Away) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(trouble) => return Err(self.failed("reading the groups", trouble)),
            }
        }
    }

    pub(super) async fn declare(&self, spec: GroupSpec) -> Result<()> {
        topic::validate_group(&spec.name)?;
        if spec.max_length == Some(0) {
            let rule = "must be at least 1 message";
            return Err(Error::InvalidArgument { what: "max_length", value: "0".into(), rule });
        }
        self.hear_lost().await;
        let calling = self.commands.calling();
        self.run("declare", |_| context::declare(calling, &self.prefix, &spec)).await?;
        self.refresh().await?;
        self.remember(spec);
        if !self.knows_persistence.swap(true, Ordering::Relaxed) {
            checks::look_at_persistence(self).await;
        }
        Ok(())
    }

    /// Remembers what this process has declared, beside what it has declared before.
    fn remember(&self, spec: GroupSpec) {
        let mut declared = self.context.declared.lock();
        match declared.get_mut(&spec.name) {
            Some(known) => {
                let new = spec.bindings.into_iter().filter(|one| !known.bindings.contains(one));
                known.bindings.extend(new.collect::<Vec<_>>());
                known.max_length = spec.max_length.or(known.max_length);
            }
            None => drop(declared.insert(Arc::clone(&spec.name), spec)),
        }
    }

    /// Hears from now on who has noticed lost data.
    async fn hear_lost(&self) {
        let mut hears = self.hears_lost.lock().await;
        if hears.is_none() {
            let name = self.receiver.names.lost.clone().into_bytes();
            let deadline = Instant::now() + self.config.net.op_timeout;
            // Without the right to subscribe the next claim or publish of this process notices.
            *hears = self.subscribe(vec![(name, false)], deadline).await.ok();
        }
    }

    pub(super) async fn unbind(&self, group: &str, bindings: &[Binding]) -> Result<u64> {
        let mut parts = self
            .operate("unbind", group, |command| {
                for binding in bindings {
                    command.arg(write_binding(binding));
                }
            })
            .await?;
        if let Some(known) = self.context.declared.lock().get_mut(group) {
            known.bindings.retain(|bound| !bindings.contains(bound));
        }
        self.refresh().await?;
        number(parts.next())
    }

    pub(super) async fn delete(&self, group: &str) -> Result<u64> {
        let mut parts = self.operate("delete", group, |_| {}).await?;
        self.context.declared.lock().remove(group);
        self.refresh().await?;
        // Who waits here learns that the group is gone.
        self.waits.wake(group);
        number(parts.next())
    }

    /// Removes what waits, some thousand at a time, so that the server serves others in between.
    pub(super) async fn purge(&self, group: &str) -> Result<u64> {
        let mut total = 0;
        loop {
            let mut parts = self
                .operate("purge", group, |command| {
                    command.arg(AT_ONCE);
                })
                .await?;
            let removed: u64 = number(parts.next())?;
            total += removed;
            if removed < AT_ONCE {
                return Ok(total);
            }
        }
    }

    pub(super) async fn pause(&self, group: &str, paused: bool) -> Result<()> {
        self.operate("pause", group, |command| {
            command.arg(u8::from(paused));
        })
        .await?;
        Ok(())
    }

    pub(super) async fn inspect(&self) -> Result<Inspection> {
        let answer = self.script("inspect", &scripts::ADMIN, |command| {
            command.arg("inspect").arg("");
        });
        let mut parts = array(answer.await?)?.into_iter();
        let mut inspection = Inspection {
            backend: "redis".into(),
            published: number(parts.next())?,
            duplicates: number(parts.next())?,
            records: number(parts.next())?,
            groups: Vec::new(),
        };
        let now: i64 = number(parts.next())?;
        for group in parts {
            inspection.groups.push(stats(group, now)?);
        }
        inspection.groups.sort_by(|a, b| a.group.cmp(&b.group));
        Ok(inspection)
    }

    pub(super) async fn dead_letters(
        &self,
        group: &str,
        after: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        let name: Arc<str> = group.into();
        let _room = self.status.room.ask(limit);
        let letters = self
            .operate("dead", group, |command| {
                command.arg(after.as_ref().map_or(&[][..], |id| &id[..])).arg(limit);
            })
            .await?;
        letters.map(|letter| dead_letter(&name, letter)).collect()
    }

    pub(super) async fn dead_news(&self, group: &str) -> Result<Vec<DeadLetter>> {
        let name: Arc<str> = group.into();
        let _room = self.status.room.ask(MOST_NEWS);
        let letters = self.operate("dead_news", group, |_| {}).await?;
        letters.map(|letter| dead_letter(&name, letter)).collect()
    }

    pub(super) async fn on_dead(
        &self,
        operation: &'static str,
        group: &str,
        ids: &[MessageId],
    ) -> Result<u64> {
        let mut parts = self
            .operate(operation, group, |command| {
                for id in ids {
                    command.arg(id);
                }
            })
            .await?;
        number(parts.next())
    }

    pub(super) async fn read(&self, keys: &[Arc<str>]) -> Result<Vec<Option<Record>>> {
        let _room = self.status.room.ask(keys.len());
        let answer = self
            .script("read", &scripts::READ, |command| {
                command.arg("read");
                for key in keys {
                    command.arg(key.as_bytes());
                }
            })
            .await?;
        let found = array(answer)?.into_iter();
        keys.iter().zip(found).map(|(key, value)| record(key, value)).collect()
    }

    pub(super) async fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Record>> {
        let _room = self.status.room.ask(limit);
        let answer = self
            .script("scan", &scripts::READ, |command| {
                command
                    .arg("scan")
                    .arg(prefix.as_bytes())
                    .arg(after.unwrap_or_default().as_bytes())
                    .arg(limit);
            })
            .await?;
        let mut parts = array(answer)?.into_iter();
        let mut found = Vec::new();
        while let (Some(key), Some(value)) = (parts.next(), parts.next()) {
            let key: Arc<str> = text(key).ok_or_else(nonsense)?.into();
            found.extend(record(&key, value)?);
        }
        Ok(found)
    }
}

/// Reads `version:value`; nothing when the record is absent.
fn record(key: &Arc<str>, value: Value) -> Result<Option<Record>> {
    let Value::BulkString(stored) = value else { return Ok(None) };
    let stored = Bytes::from(stored);
    let colon = stored.iter().position(|byte| *byte == b':').ok_or_else(nonsense)?;
    let version = std::str::from_utf8(&stored[..colon]).ok().and_then(|text| text.parse().ok());
    let version = version.ok_or_else(nonsense)?;
    Ok(Some(Record { key: Arc::clone(key), version, value: stored.slice(colon + 1..) }))
}

#[expect(clippy::cast_precision_loss, reason = "an age in seconds needs no microsecond")]
fn stats(group: Value, now: i64) -> Result<GroupStats> {
    let mut parts = array(group)?.into_iter();
    let name = parts.next().and_then(text).ok_or_else(nonsense)?;
    let paused = parts.next().and_then(text).as_deref() == Some("1");
    let mut next = || number::<u64>(parts.next());
    let (accepted, acked, retried) = (next()?, next()?, next()?);
    let (expired_leases, removed, dead) = (next()?, next()?, next()?);
    let (copies, delayed, in_flight) = (next()?, next()?, next()?);
    let oldest: i64 = number(parts.next())?;
    let mut queues = array(parts.next().ok_or_else(nonsense)?)?.into_iter();
    let mut bindings = Vec::new();
    while let (Some(binding), Some(queue)) = (queues.next(), queues.next()) {
        // One that cannot be read matches nothing.
        let Some(binding) = text(binding).as_deref().and_then(read_binding) else { continue };
        let shown = match binding {
            Binding::Topic(topic) => topic.to_string(),
            Binding::Pattern(pattern) => pattern.as_str().to_owned(),
        };
        bindings.push((number::<u32>(Some(queue))?, shown));
    }
    bindings.sort();
    let ready = copies.saturating_sub(delayed).saturating_sub(in_flight);
    let oldest_age =
        if ready > 0 && oldest >= 0 { now.saturating_sub(oldest).max(0) as f64 / 1e6 } else { 0.0 };
    Ok(GroupStats {
        group: name,
        bindings: bindings.into_iter().map(|(_, shown)| shown).collect(),
        paused,
        ready,
        delayed,
        in_flight,
        dead,
        oldest_age,
        accepted,
        acked,
        retried,
        expired_leases,
        removed,
    })
}

fn dead_letter(group: &Arc<str>, letter: Value) -> Result<DeadLetter> {
    let mut parts = array(letter)?.into_iter();
    let id = bytes(parts.next())?;
    let binding = number(parts.next())?;
    let reason = parts.next().and_then(text).ok_or_else(nonsense)?;
    let error = bytes(parts.next())?;
    let (attempts, crashes) = (number(parts.next())?, number(parts.next())?);
    let died_at = number(parts.next())?;
    let stored = bytes(parts.next())?;
    // What is no message is kept as it was found.
    let found = message::read(&stored.slice(HEAD.min(stored.len())..));
    let (topic, body) = match found {
        Some((message, _)) => (message.topic, message.body),
        None => ("".into(), stored),
    };
    Ok(DeadLetter {
        group: Arc::clone(group),
        binding,
        message: MessageId::try_from(&id[..]).unwrap_or_default(),
        topic,
        body,
        reason: dead_reason::read(&reason),
        error: String::from_utf8_lossy(&error).into_owned(),
        attempts,
        crashes,
        died_at,
    })
}
