//! Replay: a listener that is filled from the broadcasts a backend keeps, page by page.
//!
//! It reads on from its last position for ever: what is live is read as well, at once after a hint
//! and at the latest after the backend's sweep interval. So nothing has to be joined with anything:
//! there is no hole and no repeat between what was kept and what is live, nor where a connection
//! was lost, and a slow listener falls behind instead of losing.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::bucket::Bucket;
use super::gate::Gate;
use super::{Broadcast, Frame, Gap, GapCause, Listener, Since};
use crate::error::{Error, Result};
use crate::ring::Ring;
use crate::topic::Binding;

/// Most frames read at once.
const PAGE: usize = 500;
/// About how many bytes of bodies are read at once.
pub(super) const PAGE_BYTES: usize = 1 << 20;
/// How many looks in a row may find nothing at once, and how often one may beyond that: anybody may hint.
const IN_VAIN: (u32, Duration) = (100, Duration::from_millis(20));
/// Pause before what failed is tried again: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A place in what is kept: behind the broadcast at `position`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Cursor {
    pub(super) position: u64,
    /// Its time as the backend orders by it, where it does.
    pub(super) time: u64,
}

/// Where a replay begins, and whether something before it should have been replayed and is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) cursor: Cursor,
    pub(super) cut: bool,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Frames of the asked bindings, and gaps where positions are missing.
    pub(super) items: Vec<Broadcast>,
    /// How far it was read.
    pub(super) end: Cursor,
    /// Whether there may be more already.
    pub(super) more: bool,
}

/// The broadcasts that a backend keeps.
#[async_trait]
pub(super) trait Kept: Send + Sync {
    /// Finds the place where a replay begins.
    async fn find(&self, since: Since) -> Result<Start>;

    /// Reads what matches behind a place, at most `most` frames and about [`PAGE_BYTES`].
    async fn page(&self, after: Cursor, bindings: &[Binding], most: usize) -> Result<Page>;
}

/// Tells a replay to look for more.
#[derive(Debug)]
pub(super) struct Hint {
    notify: Arc<Notify>,
    raised: AtomicU64,
    /// How many of them were followed to the end.
    followed: AtomicU64,
}

impl Default for Hint {
    fn default() -> Self {
        let notify = Arc::new(Notify::new());
        Self { notify, raised: AtomicU64::new(1), followed: AtomicU64::new(0) }
    }
}

impl Hint {
    /// Notes that there is more; the caller notifies what is returned when it holds no lock.
    pub(super) fn note(&self) -> Arc<Notify> {
        self.raised.fetch_add(1, Ordering::AcqRel);
        Arc::clone(&self.notify)
    }

    /// Says that there is more.
    pub(super) fn raise(&self) {
        self.note().notify_one();
    }

    fn is_open(&self) -> bool {
        self.followed.load(Ordering::Acquire) != self.raised.load(Ordering::Acquire)
    }
}

/// A listener that reads what is kept.
pub(super) struct ReplayListener {
    ring: Arc<Ring<Frame>>,
    hint: Arc<Hint>,
    /// Ends it, and what it needed, when dropped.
    _kept: Box<dyn Any + Send + Sync>,
}

impl ReplayListener {
    pub(super) fn new(
        ring: Arc<Ring<Frame>>,
        hint: Arc<Hint>,
        kept: Box<dyn Any + Send + Sync>,
    ) -> Self {
        Self { ring, hint, _kept: kept }
    }
}

#[async_trait]
impl Listener for ReplayListener {
    fn buffer(&self) -> &Arc<Ring<Frame>> {
        &self.ring
    }

    fn is_behind(&self) -> bool {
        self.hint.is_open() && !self.ring.is_closed()
    }
}

/// What fills one listener.
pub(super) struct Replay<K> {
    pub(super) kept: K,
    pub(super) bindings: Vec<Binding>,
    pub(super) ring: Arc<Ring<Frame>>,
    pub(super) hint: Arc<Hint>,
    /// How long to wait for a hint; `None` = every change is hinted at.
    pub(super) sweep: Option<Duration>,
    /// Verifies every frame; none on a bus without keys.
    pub(super) gate: Option<Arc<Gate>>,
}

impl<K: Kept> Replay<K> {
    /// Fills the listener until it ends.
    pub(super) async fn run(self, start: Start) {
        if start.cut {
            self.ring.push_gap(Gap { cause: GapCause::Retention, count: None });
        }
        let mut cursor = start.cursor;
        let mut pause = RETRY.0;
        let in_vain = Bucket::new(IN_VAIN.0, IN_VAIN.1);
        loop {
            let room = self.ring.room().await;
            if room == 0 {
                return;
            }
            let seen = self.hint.raised.load(Ordering::Acquire);
            let page = match self.kept.page(cursor, &self.bindings, room.min(PAGE)).await {
                Ok(page) => page,
                Err(Error::Closed { .. } | Error::NotConnected { .. }) => {
                    return self.ring.close();
                }
                // The connection shows it; what is kept is read when it is there again.
                Err(_) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY.1);
                    continue;
                }
            };
            pause = RETRY.0;
            if page.end == cursor {
                in_vain.take().await;
            } else {
                in_vain.fill();
            }
            cursor = page.end;
            for item in page.items {
                match item {
                    Broadcast::Frame { topic, body, position } => {
                        let gate = self.gate.as_ref();
                        if gate.is_some_and(|gate| !gate.admits_stored(&topic, &body)) {
                            continue;
                        }
                        self.ring.push(Frame { topic, body, position });
                    }
                    Broadcast::Gap(gap) => self.ring.push_gap(gap),
                }
            }
            if page.more {
                continue;
            }
            self.hint.followed.store(seen, Ordering::Release);
            let hinted = self.hint.notify.notified();
            match self.sweep {
                None => hinted.await,
                Some(sweep) => {
                    let _ = tokio::time::timeout(sweep, hinted).await;
                }
            }
        }
    }
}
