//! Handles the notifications that the listening connection receives.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio_postgres::Row;
use uuid::Uuid;

use super::calls::{self, FETCH_LARGE};
use super::ear::Ear;
use super::foreign::Meaning;
use super::wire::{self, Frame, Notice};
use crate::backend::bucket::Paced;
use crate::backend::{Gap, GapCause};
use crate::error::Result;

/// How often what anybody can ask for by a notification happens: so many times at once, then one per
/// interval.
const ASKED: (u32, Duration) = (20, Duration::from_millis(100));
/// Most bodies that are asked for at once.
const MOST_BODIES: usize = 32;

/// Makes what is asked for by notifications.
pub(super) const fn paced() -> Paced {
    Paced::new(ASKED.0, ASKED.1)
}

impl Ear {
    /// Does what a notification of the bus says.
    pub(super) async fn notice(&self, text: &str) {
        match wire::read(text, self.gate.as_deref()) {
            None => {
                self.link.malformed.fetch_add(1, Ordering::Relaxed);
            }
            Some(Notice::Broadcasts(stamp, frames)) => {
                let is_new = match &self.gate {
                    Some(_) => self.heard.is_new(stamp),
                    None => self.heard.is_new_text(stamp, text),
                };
                if is_new {
                    self.deliver(&frames).await;
                }
            }
            Some(Notice::Unsigned) => self.refuse(),
            Some(Notice::Wake(groups)) => self.wakes.wake(&groups),
            Some(Notice::Registry) => self.changed.ask(),
            Some(Notice::Test(nonce)) => {
                // Those of other processes come on the same channel.
                self.awaited.send_if_modified(|awaited| {
                    let is_own = *awaited == nonce;
                    if is_own {
                        awaited.clear();
                    }
                    is_own
                });
            }
        }
    }

    /// Counts broadcasts without signature. The SQL function sends such too: what it kept is let in.
    fn refuse(&self) {
        if let Some(gate) = self.gate.as_ref().filter(|_| !self.feeds.is_empty()) {
            gate.refuse();
            if gate.accepts_sql() {
                self.hinted.ask();
            }
        }
    }

    /// Reads the registry when it was said that it changed; a publisher that uses an old one is told
    /// so by the server.
    pub(super) async fn follow(self: Arc<Self>) {
        loop {
            self.changed.turn().await;
            let _ = self.registry.refresh(&self.pool).await;
        }
    }

    /// Has those look who read what is kept.
    pub(super) async fn hint(self: Arc<Self>) {
        loop {
            self.hinted.turn().await;
            self.feeds.look();
        }
    }

    /// Takes a text of a `DataKnobs` channel.
    pub(super) async fn foreign(&self, channel: &str, text: &str) {
        let body = || Bytes::copy_from_slice(text.as_bytes());
        match self.channels.read(channel, text) {
            Meaning::Broadcast { topic, wide } => self.feeds.deliver_to(&topic, &body(), wide),
            Meaning::Stored { topic, id, wide } => {
                self.deliver_stored(&topic, Uuid::parse_str(&id).ok(), Some(wide)).await;
            }
            Meaning::Malformed(topics) => {
                self.link.malformed.fetch_add(1, Ordering::Relaxed);
                // Who may have been meant is given it all the same, and says what is wrong with it.
                for topic in topics {
                    self.feeds.deliver_to(&topic, &body(), Some(false));
                }
            }
        }
    }

    /// Returns topics and bodies of broadcasts that are stored, as far as they are.
    async fn fetch(&self, ids: &[Uuid]) -> Vec<(Uuid, Option<Arc<str>>, Bytes)> {
        let Ok(rows) = self.pool.call(&FETCH_LARGE, &[&ids], "").await else { return Vec::new() };
        let read = |row: &Row| -> Result<_> {
            let topic = calls::column::<Option<&str>>(row, 1)?.map(Arc::from);
            Ok((calls::column(row, 0)?, topic, Bytes::copy_from_slice(calls::column(row, 2)?)))
        };
        rows.iter().filter_map(|row| read(row).ok()).collect()
    }

    async fn deliver(&self, frames: &[Frame]) {
        let is_named = |frame: &Frame| matches!(frame, Frame::Named { .. });
        for run in frames.chunk_by(|one, next| is_named(one) == is_named(next)) {
            if run.first().is_some_and(is_named) {
                self.deliver_named(run).await;
                continue;
            }
            for frame in run {
                match frame {
                    Frame::Inline { topic, body } => self.feeds.deliver(topic, body),
                    Frame::Stored { topic, id } => {
                        self.deliver_stored(topic, Some(*id), None).await;
                    }
                    Frame::Named { .. } => {}
                }
            }
        }
    }

    /// Delivers broadcasts of which nothing is known but a name.
    async fn deliver_named(&self, frames: &[Frame]) {
        self.feeds.look();
        if !self.feeds.has_live() {
            return;
        }
        for some in frames.chunks(MOST_BODIES) {
            let ids: Vec<Uuid> = some
                .iter()
                .filter_map(|frame| match frame {
                    Frame::Named { id } => Some(*id),
                    _ => None,
                })
                .collect();
            let found = self.fetch(&ids).await;
            for id in ids {
                match found.iter().find(|(found, ..)| *found == id) {
                    Some((_, Some(topic), body)) => self.feeds.deliver(topic, body),
                    _ => self.feeds.gap(Gap { cause: GapCause::Retention, count: Some(1) }),
                }
            }
        }
    }

    /// Delivers a broadcast that is stored, if somebody wants it; what is gone is a gap.
    async fn deliver_stored(&self, topic: &Arc<str>, id: Option<Uuid>, wide: Option<bool>) {
        if !self.feeds.wants(topic) {
            return;
        }
        let body = match id {
            Some(id) => self.fetch(&[id]).await.pop().map(|(_, _, body)| body),
            None => None,
        };
        match body {
            Some(body) => self.feeds.deliver_to(topic, &body, wide),
            None => self.feeds.gap(Gap { cause: GapCause::Retention, count: Some(1) }),
        }
    }
}
