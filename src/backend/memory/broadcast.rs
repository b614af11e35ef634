//! Broadcasts: one bounded ring per listener.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::Shared;
use super::wait::Wakes;
use crate::backend::{Broadcast, ListenRequest, Listener};
use crate::error::Result;
use crate::ring::{Item, Ring};
use crate::topic::RouteId;

/// What one listener has not taken yet.
#[derive(Debug)]
pub(super) struct Feed {
    ring: Ring<(Arc<str>, Bytes, u64)>,
    /// Position of the newest frame offered: a message that matches twice is offered twice.
    newest: AtomicU64,
}

impl Feed {
    pub(super) fn new(request: &ListenRequest) -> Self {
        Self { ring: Ring::new(request.buffer, request.overflow), newest: AtomicU64::new(0) }
    }

    /// Offers a frame; called under the backend's lock, so the positions come in order.
    pub(super) fn push(&self, topic: &Arc<str>, body: &Bytes, position: u64, wakes: &mut Wakes) {
        if self.newest.swap(position, Ordering::Relaxed) != position {
            let frame = (Arc::clone(topic), body.clone(), position);
            let (_, wakers) = self.ring.push_quietly(frame);
            wakes.extend(wakers);
        }
    }

    /// Ends it: what is buffered can still be taken.
    pub(super) fn close(&self) {
        self.ring.close();
    }
}

/// The receiving end of a feed.
pub(super) struct MemoryListener {
    pub(super) feed: Arc<Feed>,
    pub(super) id: u64,
    pub(super) routes: Vec<RouteId>,
    pub(super) shared: Arc<Shared>,
}

#[async_trait]
impl Listener for MemoryListener {
    async fn next(&self, max: usize) -> Result<Vec<Broadcast>> {
        let taken = self.feed.ring.take(max).await;
        let broadcasts = taken.into_iter().map(|item| match item {
            Item::Value((topic, body, position)) => Broadcast::Frame { topic, body, position },
            Item::Gap(gap) => Broadcast::Gap(gap),
        });
        Ok(broadcasts.collect())
    }
}

impl Drop for MemoryListener {
    fn drop(&mut self) {
        self.feed.close();
        self.shared.forget(self.id, &self.routes);
    }
}
