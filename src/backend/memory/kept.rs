//! The broadcasts kept for replay: a ring by count and age.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Shared, micros};
use crate::backend::replay::{Cursor, Kept, PAGE_BYTES, Page, Start};
use crate::backend::{Broadcast, EventKey, Gap, GapCause, Since};
use crate::config::Retention;
use crate::error::{Error, Result};
use crate::topic::Binding;

#[derive(Debug)]
struct Entry {
    at: i64,
    event: EventKey,
    topic: Arc<str>,
    body: Bytes,
}

/// What is kept; positions are consecutive.
#[derive(Debug)]
pub(super) struct Log {
    retention: Retention,
    entries: VecDeque<Entry>,
    /// The position of the newest one, kept or not.
    newest: u64,
}

impl Log {
    pub(super) fn new(retention: Retention) -> Self {
        Self { retention, entries: VecDeque::new(), newest: 0 }
    }

    /// Keeps a broadcast; called for each, so that `position` goes on by one.
    pub(super) fn add(
        &mut self,
        (position, now): (u64, i64),
        (event, topic, body): (EventKey, &Arc<str>, &Bytes),
    ) {
        self.newest = position;
        let (topic, body) = (Arc::clone(topic), body.clone());
        self.entries.push_back(Entry { at: now, event, topic, body });
        while self.entries.len() as u64 > self.retention.max {
            self.entries.pop_front();
        }
        self.trim(now);
    }

    fn is_full(&self) -> bool {
        self.entries.len() as u64 >= self.retention.max
    }

    /// The time since which everything is kept, as far as age goes.
    fn horizon(&self, now: i64) -> i64 {
        self.retention.age.map_or(i64::MIN, |age| now.saturating_sub(micros(age)))
    }

    fn trim(&mut self, now: i64) {
        let horizon = self.horizon(now);
        while self.entries.front().is_some_and(|oldest| oldest.at < horizon) {
            self.entries.pop_front();
        }
    }

    /// The position before the oldest that is kept.
    fn before(&self) -> u64 {
        self.newest - self.entries.len() as u64
    }

    fn find(&mut self, since: Since, now: i64) -> Start {
        self.trim(now);
        let before = self.before();
        let (position, cut) = match since {
            Since::Beginning => (before, false),
            Since::After(position) if (before..=self.newest).contains(&position) => {
                (position, false)
            }
            Since::After(_) => (before, true),
            Since::Event(event) => {
                match self.entries.iter().zip(before + 1..).find(|(entry, _)| entry.event == event)
                {
                    Some((_, position)) => (position, false),
                    None => (before, true),
                }
            }
            Since::Time(at) => {
                let older = self.entries.partition_point(|entry| entry.at < at);
                let lost = at < self.horizon(now) || self.is_full();
                (before + older as u64, before > 0 && older == 0 && lost)
            }
        };
        Start { cursor: Cursor { position, time: 0 }, cut }
    }

    fn page(&mut self, after: Cursor, bindings: &[Binding], most: usize, now: i64) -> Page {
        self.trim(now);
        let before = self.before();
        let mut page = Page { end: after, ..Page::default() };
        if after.position < before {
            page.items.push(Broadcast::Gap(Gap { cause: GapCause::Retention, count: None }));
            page.end.position = before;
        }
        let skipped = usize::try_from(page.end.position - before).unwrap_or(usize::MAX);
        let (mut frames, mut bytes) = (0, 0);
        for entry in self.entries.iter().skip(skipped) {
            if frames >= most || bytes >= PAGE_BYTES {
                page.more = true;
                break;
            }
            page.end.position += 1;
            if bindings.iter().any(|binding| binding.matches(&entry.topic)) {
                frames += 1;
                bytes += entry.body.len();
                page.items.push(Broadcast::Frame {
                    topic: Arc::clone(&entry.topic),
                    body: entry.body.clone(),
                    position: page.end.position,
                });
            }
        }
        page
    }
}

/// What is kept in a backend, as its replays read it.
pub(super) struct Reader(pub(super) Arc<Shared>);

impl Reader {
    pub(super) fn read<R>(&self, run: impl FnOnce(&mut Log, i64) -> R) -> Result<R> {
        let unkept = || Error::Internal { reason: "nothing is kept".into() };
        self.0.with(|state, now, _| state.kept.as_mut().map(|log| run(log, now)).ok_or_else(unkept))
    }
}

#[async_trait]
impl Kept for Reader {
    async fn find(&self, since: Since) -> Result<Start> {
        self.read(|log, now| log.find(since, now))
    }

    async fn page(&self, after: Cursor, bindings: &[Binding], most: usize) -> Result<Page> {
        self.read(|log, now| log.page(after, bindings, most, now))
    }
}
