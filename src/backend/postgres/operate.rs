//! What operators and consumers do to groups, beside claims and commits.

use std::sync::Arc;

use bytes::Bytes;
use tokio_postgres::Row;
use uuid::Uuid;

use super::calls::{self, column};
use super::claims::{split, unsigned};
use super::live::Live;
use super::session::Argument;
use super::step::{reason, signed};
use crate::backend::{DeadLetter, GroupSpec, GroupStats, Inspection, MessageId};
use crate::error::{Error, Result};
use crate::topic::Binding;

/// Most dead letters that one look for new ones brings; the function knows the same number.
const MOST_NEWS: usize = 100;
/// Longest text that an index of the server takes, with room for its neighbours.
pub(super) const MOST_INDEXED: usize = 1_000;

/// Checks a text that is stored as one and indexed.
pub(super) fn storable(what: &'static str, text: &str) -> Result<()> {
    let rule = if text.contains('\0') {
        "must not hold U+0000, which Postgres keeps in no text"
    } else if text.len() > MOST_INDEXED {
        "must not be longer than 1000 bytes"
    } else {
        return Ok(());
    };
    if matches!(what, "topic" | "pattern" | "group") {
        let name = text.chars().take(80).collect();
        return Err(Error::Topic { what, name, rule: rule.to_owned() });
    }
    let value = text.chars().take(80).collect();
    Err(Error::InvalidArgument { what, value, rule })
}

fn first<'a, T: tokio_postgres::types::FromSql<'a>>(rows: &'a [Row]) -> Result<T> {
    let missing = || Error::Internal { reason: "the server answered with nothing".into() };
    column(rows.first().ok_or_else(missing)?, 0)
}

fn count(rows: &[Row]) -> Result<u64> {
    Ok(u64::try_from(first::<i64>(rows)?).unwrap_or(0))
}

fn uuids(ids: &[MessageId]) -> Vec<Uuid> {
    ids.iter().copied().map(Uuid::from_bytes).collect()
}

impl Live {
    pub(super) async fn declare(&self, spec: &GroupSpec) -> Result<()> {
        let name = &*spec.name;
        for binding in &spec.bindings {
            match binding {
                Binding::Topic(topic) => storable("topic", topic)?,
                Binding::Pattern(pattern) => storable("pattern", pattern.as_str())?,
            }
        }
        let (patterns, texts) = split(&spec.bindings);
        let regex = |binding: &Binding| match binding {
            Binding::Topic(_) => None,
            Binding::Pattern(pattern) => Some(pattern.to_regex()),
        };
        let regexes: Vec<Option<String>> = spec.bindings.iter().map(regex).collect();
        let limit = spec.max_length.map(signed);
        let arguments: [Argument<'_>; 5] = [&name, &limit, &patterns, &texts, &regexes];
        let rows = self.pool.call(&calls::DECLARE, &arguments, name).await?;
        self.quiesce(first(&rows)?).await
    }

    /// Waits until everybody publishes by this version of the registry, this client included.
    async fn quiesce(&self, version: i32) -> Result<()> {
        self.pool.call(&calls::QUIESCE, &[&version], "").await?;
        self.registry.refresh(&self.pool).await.map(drop)
    }

    pub(super) async fn unbind(&self, group: &str, bindings: &[Binding]) -> Result<u64> {
        let (patterns, texts) = split(bindings);
        let arguments: [Argument<'_>; 3] = [&group, &patterns, &texts];
        let rows = self.pool.call(&calls::UNBIND, &arguments, group).await?;
        self.quiesce(first(&rows)?).await?;
        count(&self.pool.call(&calls::CLEAR_UNBOUND, &[&group], group).await?)
    }

    pub(super) async fn delete_group(&self, group: &str) -> Result<u64> {
        let rows = self.pool.call(&calls::DELETE_GROUP, &[&group], group).await?;
        let id: i32 = first(&rows)?;
        let version = rows.first().map(|row| column(row, 1)).transpose()?;
        self.quiesce(version.unwrap_or(0)).await?;
        let removed = count(&self.pool.call(&calls::DROP_GROUP, &[&id], group).await?);
        self.wakes.wake(&[id]);
        removed
    }

    pub(super) async fn purge(&self, group: &str) -> Result<u64> {
        count(&self.pool.call(&calls::PURGE, &[&group], group).await?)
    }

    pub(super) async fn pause(&self, group: &str, paused: bool) -> Result<()> {
        self.pool.call(&calls::PAUSE, &[&group, &paused], group).await.map(drop)
    }

    pub(super) async fn dead_letters(
        &self,
        group: &str,
        after: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>> {
        let after = after.map(Uuid::from_bytes);
        let _room = self.link.connector.room.ask(limit);
        let limit = signed(limit as u64);
        let arguments: [Argument<'_>; 5] =
            [&group, &after, &limit, &self.dead_retention, &self.max_dead];
        letters(group, &self.pool.call(&calls::LIST_DEAD, &arguments, group).await?)
    }

    pub(super) async fn dead_news(&self, group: &str) -> Result<Vec<DeadLetter>> {
        let _room = self.link.connector.room.ask(MOST_NEWS);
        letters(group, &self.pool.call(&calls::DEAD_NEWS, &[&group], group).await?)
    }

    pub(super) async fn retry_dead(&self, group: &str, ids: &[MessageId]) -> Result<u64> {
        let ids = uuids(ids);
        let arguments: [Argument<'_>; 4] = [&group, &ids, &self.dead_retention, &self.max_dead];
        count(&self.pool.call(&calls::RETRY_DEAD, &arguments, group).await?)
    }

    pub(super) async fn discard_dead(&self, group: &str, ids: &[MessageId]) -> Result<u64> {
        let ids = uuids(ids);
        let arguments: [Argument<'_>; 4] = [&group, &ids, &self.dead_retention, &self.max_dead];
        count(&self.pool.call(&calls::DISCARD_DEAD, &arguments, group).await?)
    }

    pub(super) async fn inspect(&self) -> Result<Inspection> {
        let arguments: [Argument<'_>; 2] = [&self.dead_retention, &self.max_dead];
        self.pool.call(&calls::SWEEP_ALL, &arguments, "").await?;
        let rows = self.pool.call(&calls::FIGURES, &[], "").await?;
        let mut all = Inspection { backend: "postgres".to_owned(), ..Inspection::default() };
        for row in &rows {
            let figure = |index| Ok(u64::try_from(column::<i64>(row, index)?).unwrap_or(0));
            let Some(group) = column::<Option<String>>(row, 0)? else {
                all.records = figure(3)?;
                all.published = figure(8)? + self.uncounted();
                all.duplicates = figure(12)?;
                continue;
            };
            all.groups.push(GroupStats {
                group,
                bindings: column(row, 1)?,
                paused: column(row, 2)?,
                ready: figure(3)?,
                delayed: figure(4)?,
                in_flight: figure(5)?,
                dead: figure(6)?,
                oldest_age: seconds(column(row, 7)?),
                accepted: figure(8)?,
                acked: figure(9)?,
                retried: figure(10)?,
                expired_leases: figure(11)?,
                removed: figure(12)?,
            });
        }
        all.groups.sort_by(|a, b| a.group.cmp(&b.group));
        Ok(all)
    }
}

/// Reads dead letters.
fn letters(group: &str, rows: &[Row]) -> Result<Vec<DeadLetter>> {
    let group: Arc<str> = group.into();
    let letter = |row: &Row| {
        Ok(DeadLetter {
            group: Arc::clone(&group),
            binding: unsigned(column(row, 0)?),
            message: column::<Uuid>(row, 1)?.into_bytes(),
            topic: column::<&str>(row, 2)?.into(),
            body: Bytes::copy_from_slice(column(row, 3)?),
            reason: reason(column(row, 4)?),
            error: column(row, 5)?,
            attempts: unsigned(column(row, 6)?),
            crashes: unsigned(column(row, 7)?),
            died_at: column(row, 8)?,
        })
    };
    rows.iter().map(letter).collect()
}

#[expect(clippy::cast_precision_loss, reason = "an age in seconds needs no microsecond")]
fn seconds(micros: Option<i64>) -> f64 {
    micros.map_or(0.0, |micros| micros.max(0) as f64 / 1e6)
}
