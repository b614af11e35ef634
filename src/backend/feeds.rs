//! Feeds of a broker's listeners: one bounded ring each, found by topic or pattern.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::AHashMap;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{Frame, Gap, ListenRequest, Listener};
use crate::ring::Ring;
use crate::topic::{RouteId, Router};

#[derive(Debug)]
struct Feed {
    ring: Arc<Ring<Frame>>,
    /// Position of the newest frame offered: a message that matches twice is offered twice.
    newest: AtomicU64,
}

/// The listeners of one backend.
#[derive(Debug, Default)]
pub(super) struct Feeds(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    routes: Router<Arc<Feed>>,
    feeds: AHashMap<u64, Arc<Feed>>,
    next_id: u64,
    position: u64,
}

impl Feeds {
    /// Adds a listener; `kept` is dropped with it, to end what it needed on the server.
    pub(super) fn add(
        &self,
        request: ListenRequest,
        kept: Box<dyn Any + Send + Sync>,
    ) -> FeedListener {
        let ring = Arc::new(Ring::new(request.buffer, request.overflow));
        let feed = Arc::new(Feed { ring, newest: AtomicU64::new(0) });
        let mut state = self.0.lock();
        state.next_id += 1;
        let id = state.next_id;
        state.feeds.insert(id, Arc::clone(&feed));
        let bindings = request.bindings.into_iter();
        let routes =
            bindings.map(|binding| state.routes.insert(binding, Arc::clone(&feed))).collect();
        FeedListener { feed, id, routes, feeds: Arc::clone(&self.0), _kept: kept }
    }

    /// Offers a frame to every listener that wants its topic, once.
    pub(super) fn deliver(&self, topic: &Arc<str>, body: &Bytes) {
        let mut wakers = Vec::new();
        let mut state = self.0.lock();
        state.position += 1;
        let position = state.position;
        state.routes.for_each_match(topic, |_, feed| {
            if feed.newest.swap(position, Ordering::Relaxed) != position {
                let frame = Frame { topic: Arc::clone(topic), body: body.clone(), position };
                wakers.extend(feed.ring.push_quietly(frame).1);
            }
        });
        drop(state);
        wakers.into_iter().for_each(std::task::Waker::wake);
    }

    /// Whether nobody listens.
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().feeds.is_empty()
    }

    /// Whether any listener wants a topic: what has to be fetched first need not be, else.
    pub(super) fn wants(&self, topic: &str) -> bool {
        self.0.lock().routes.has_match(topic)
    }

    /// Tells every listener of a hole.
    pub(super) fn gap(&self, gap: Gap) {
        let feeds: Vec<_> = self.0.lock().feeds.values().cloned().collect();
        feeds.iter().for_each(|feed| feed.ring.push_gap(gap));
    }

    /// Ends every listener: what is buffered can still be taken.
    pub(super) fn close(&self) {
        let feeds = std::mem::take(&mut self.0.lock().feeds);
        feeds.values().for_each(|feed| feed.ring.close());
    }
}

/// The receiving end of a feed.
pub(super) struct FeedListener {
    feed: Arc<Feed>,
    id: u64,
    routes: Vec<RouteId>,
    feeds: Arc<Mutex<State>>,
    _kept: Box<dyn Any + Send + Sync>,
}

#[async_trait]
impl Listener for FeedListener {
    fn buffer(&self) -> &Arc<Ring<Frame>> {
        &self.feed.ring
    }
}

impl Drop for FeedListener {
    fn drop(&mut self) {
        self.feed.ring.close();
        let mut state = self.feeds.lock();
        for route in &self.routes {
            state.routes.remove(*route);
        }
        state.feeds.remove(&self.id);
    }
}
