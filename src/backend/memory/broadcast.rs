//! Broadcasts: one bounded ring per listener.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::Shared;
use super::wait::Wakes;
use crate::backend::replay::Hint;
use crate::backend::{Frame, ListenRequest, Listener};
use crate::ring::Ring;
use crate::topic::RouteId;

/// What one listener has not taken yet.
#[derive(Debug)]
pub(super) struct Feed {
    ring: Arc<Ring<Frame>>,
    /// Position of the newest frame offered: a message that matches twice is offered twice.
    newest: AtomicU64,
    /// Of one that reads what is kept: it is told to look, and offered nothing.
    hint: Option<Arc<Hint>>,
}

impl Feed {
    pub(super) fn new(request: &ListenRequest) -> Self {
        let ring = Arc::new(Ring::new(request.buffer, request.overflow));
        Self { ring, newest: AtomicU64::new(0), hint: None }
    }

    /// One that is filled from what is kept.
    pub(super) fn replaying(ring: Arc<Ring<Frame>>, hint: Arc<Hint>) -> Self {
        Self { ring, newest: AtomicU64::new(0), hint: Some(hint) }
    }

    /// Offers a frame; called under the backend's lock, so the positions come in order.
    pub(super) fn push(&self, topic: &Arc<str>, body: &Bytes, position: u64, wakes: &mut Wakes) {
        if let Some(hint) = &self.hint {
            wakes.push(hint.note());
        } else if self.newest.swap(position, Ordering::Relaxed) != position {
            let frame = Frame { topic: Arc::clone(topic), body: body.clone(), position };
            let (_, wakers) = self.ring.push_quietly(frame);
            wakes.extend(wakers);
        }
    }

    /// Ends it: what is buffered can still be taken.
    pub(super) fn close(&self) {
        self.ring.close();
        if let Some(hint) = &self.hint {
            hint.raise();
        }
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
    fn buffer(&self) -> &Arc<Ring<Frame>> {
        &self.feed.ring
    }
}

impl Drop for MemoryListener {
    fn drop(&mut self) {
        self.feed.close();
        self.shared.forget(self.id, &self.routes);
    }
}
