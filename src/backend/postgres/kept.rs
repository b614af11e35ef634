//! The broadcasts that the database keeps, as replays read them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use super::calls::{FIND_KEPT, QUIESCE, READ_KEPT, RETAIN, SET_BODIES, column};
use super::live::Live;
use super::pool::Pool;
use super::session::Argument;
use super::step::signed;
use super::{closed, micros};
use crate::backend::replay::{Cursor, Kept, PAGE_BYTES, Page, Replay, Start};
use crate::backend::{Broadcast, Gap, GapCause, ListenRequest, Listener, Since};
use crate::config::{Bodies, Retention};
use crate::error::{Error, Result};
use crate::topic::Binding;

/// How often a listener looks that no notification reaches, how long what it looks for is kept, and
/// how much of it.
const POLL: Duration = Duration::from_millis(500);
const POLLED_AGE: Duration = Duration::from_secs(300);
const POLLED_MOST: u64 = 100_000;

/// Makes every publisher keep broadcasts from now on.
pub(super) async fn retain(pool: &Pool, retention: Retention) -> Result<()> {
    let (age, most) = (retention.age.map(micros), signed(retention.max));
    pool.call(&RETAIN, &[&age, &most], "").await.map(drop)
}

/// Says to every publisher where bodies of broadcasts go from now on.
pub(super) async fn set_bodies(pool: &Pool, bodies: Bodies) -> Result<()> {
    pool.call(&SET_BODIES, &[&(bodies == Bodies::Table)], "").await.map(drop)
}

/// Starts a listener where notifications do not arrive: every publisher keeps what it broadcasts from
/// now on, and the listener looks for it often.
pub(super) async fn poll(live: &Arc<Live>, request: &ListenRequest) -> Result<Box<dyn Listener>> {
    let mut registry = live.registry.refresh(&live.pool).await?;
    if !registry.keeps {
        retain(&live.pool, Retention { age: Some(POLLED_AGE), max: POLLED_MOST }).await?;
        registry = live.registry.refresh(&live.pool).await?;
    }
    // Who publishes by an older registry keeps nothing: its transaction ends first.
    live.pool.call(&QUIESCE, &[&registry.version], "").await?;
    listen(live, request, Since::Time(i64::MAX)).await
}

/// Starts a listener that reads what is kept. It needs no notifications: they only make it look
/// sooner.
pub(super) async fn listen(
    live: &Arc<Live>,
    request: &ListenRequest,
    since: Since,
) -> Result<Box<dyn Listener>> {
    let (listener, ring, hint) = live.feeds.add_replay(request, Box::new(()));
    // Hints are sent only while somebody is known to listen; without them it looks every sweep.
    live.attend(&live.link.schema.hear()).await;
    let kept = Reader(Arc::downgrade(live));
    let start = kept.find(since).await?;
    let gate = live.style.gate.clone();
    let sweep = if live.link.is_pooled() { live.sweep.min(POLL) } else { live.sweep };
    let replay =
        Replay { kept, bindings: request.bindings.clone(), ring, hint, sweep: Some(sweep), gate };
    live.link.tasks.spawn(replay.run(start));
    Ok(Box::new(listener))
}

/// The kept broadcasts of an open backend, which it does not keep open.
struct Reader(Weak<Live>);

impl Reader {
    fn live(&self) -> Result<Arc<Live>> {
        self.0.upgrade().filter(|live| !live.is_ended()).ok_or_else(closed)
    }
}

fn place(row: Option<&tokio_postgres::Row>, index: usize) -> Result<Cursor> {
    let missing = || Error::Internal { reason: "a replay was answered with nothing".into() };
    let position: i64 = column(row.ok_or_else(missing)?, index)?;
    Ok(Cursor { position: u64::try_from(position).unwrap_or(0), time: 0 })
}

#[async_trait]
impl Kept for Reader {
    async fn find(&self, since: Since) -> Result<Start> {
        let (kind, value, event) = match since {
            Since::Beginning => (0_i16, None, None),
            Since::After(position) => (1, Some(signed(position)), None),
            Since::Event(event) => (2, None, Some(Uuid::from_bytes(event))),
            Since::Time(at) => (3, Some(at), None),
        };
        let rows = self.live()?.pool.call(&FIND_KEPT, &[&kind, &value, &event], "").await?;
        let cursor = place(rows.first(), 0)?;
        let cut = rows.first().is_some_and(|row| column(row, 1).unwrap_or(false));
        Ok(Start { cursor, cut })
    }

    async fn page(&self, after: Cursor, bindings: &[Binding], most: usize) -> Result<Page> {
        let (mut topics, mut beginnings) = (Vec::new(), Vec::new());
        for binding in bindings {
            match binding {
                Binding::Topic(topic) => topics.push(&**topic),
                Binding::Pattern(pattern) => beginnings.push(pattern.prefix()),
            }
        }
        // What cannot be stored was not.
        topics.retain(|text| !text.contains('\0'));
        beginnings.retain(|text| !text.contains('\0'));
        let position = signed(after.position);
        let most = i32::try_from(most).unwrap_or(i32::MAX);
        let bytes = signed(PAGE_BYTES as u64);
        let arguments: [Argument<'_>; 5] = [&position, &most, &bytes, &topics, &beginnings];
        let rows = self.live()?.pool.call(&READ_KEPT, &arguments, "").await?;
        let mut page = Page { end: after, ..Page::default() };
        for row in &rows {
            match column::<i16>(row, 0)? {
                0 => {
                    let gap = Gap { cause: GapCause::Retention, count: None };
                    page.items.push(Broadcast::Gap(gap));
                }
                1 => {
                    let topic: Arc<str> = column::<&str>(row, 2)?.into();
                    if bindings.iter().any(|binding| binding.matches(&topic)) {
                        let position = place(Some(row), 1)?.position;
                        let body = Bytes::copy_from_slice(column(row, 3)?);
                        page.items.push(Broadcast::Frame { topic, body, position });
                    }
                }
                _ => {
                    page.end = place(Some(row), 1)?;
                    page.more = column(row, 4)?;
                }
            }
        }
        Ok(page)
    }
}
