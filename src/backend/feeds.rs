//! Feeds of a broker's listeners: one bounded ring each, found by topic or pattern.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::AHashMap;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::gate::Gate;
use super::replay::{Hint, ReplayListener};
use super::{Frame, Gap, ListenRequest, Listener, Overflow};
use crate::ring::Ring;
use crate::topic::{Binding, RouteId, Router};

#[derive(Debug)]
struct Feed {
    ring: Arc<Ring<Frame>>,
    /// Position of the newest frame offered: a message that matches twice is offered twice.
    newest: AtomicU64,
    /// Of one that reads what is kept: it is told to look, and offered nothing.
    hint: Option<Arc<Hint>>,
    /// Whether a pattern is among what it wants.
    wide: bool,
}

impl Feed {
    fn new(request: &ListenRequest, ring: Arc<Ring<Frame>>, hint: Option<Arc<Hint>>) -> Self {
        let wide = request.bindings.iter().any(|one| matches!(one, Binding::Pattern(_)));
        Self { ring, newest: AtomicU64::new(0), hint, wide }
    }

    fn end(&self) {
        self.ring.close();
        if let Some(hint) = &self.hint {
            hint.raise();
        }
    }
}

/// The listeners of one backend.
#[derive(Debug, Default)]
pub(super) struct Feeds {
    state: Arc<Mutex<State>>,
    /// Verifies every frame before a listener is offered it; none on a bus without keys.
    gate: Option<Arc<Gate>>,
}

#[derive(Debug, Default)]
struct State {
    routes: Router<Arc<Feed>>,
    feeds: AHashMap<u64, Arc<Feed>>,
    next_id: u64,
    position: u64,
}

impl Feeds {
    /// Makes one without listeners.
    pub(super) fn new(gate: Option<Arc<Gate>>) -> Self {
        Self { state: Arc::default(), gate }
    }

    /// Adds a listener; `kept` is dropped with it, to end what it needed on the server.
    pub(super) fn add(
        &self,
        request: ListenRequest,
        kept: Box<dyn Any + Send + Sync>,
    ) -> FeedListener {
        let ring = Arc::new(Ring::new(request.buffer, request.overflow));
        let feed = Feed::new(&request, ring, None);
        self.insert(request.bindings, feed, kept)
    }

    /// Adds a listener that is filled from what is kept, by the task that is still to be started.
    pub(super) fn add_replay(
        &self,
        request: &ListenRequest,
        kept: Box<dyn Any + Send + Sync>,
    ) -> (ReplayListener, Arc<Ring<Frame>>, Arc<Hint>) {
        // It is never offered more than it has room for.
        let ring = Arc::new(Ring::new(request.buffer, Overflow::DropOldest));
        let hint = Arc::new(Hint::default());
        let feed = Feed::new(request, Arc::clone(&ring), Some(Arc::clone(&hint)));
        let feed = self.insert(request.bindings.clone(), feed, kept);
        let listener = ReplayListener::new(Arc::clone(&ring), Arc::clone(&hint), Box::new(feed));
        (listener, ring, hint)
    }

    fn insert(
        &self,
        bindings: Vec<Binding>,
        feed: Feed,
        kept: Box<dyn Any + Send + Sync>,
    ) -> FeedListener {
        let feed = Arc::new(feed);
        let mut state = self.state.lock();
        state.next_id += 1;
        let id = state.next_id;
        state.feeds.insert(id, Arc::clone(&feed));
        let bindings = bindings.into_iter();
        let routes =
            bindings.map(|binding| state.routes.insert(binding, Arc::clone(&feed))).collect();
        FeedListener { feed, id, routes, feeds: Arc::clone(&self.state), _kept: kept }
    }

    /// Offers a frame to every listener that wants its topic, once.
    pub(super) fn deliver(&self, topic: &Arc<str>, body: &Bytes) {
        self.deliver_to(topic, body, None);
    }

    /// Offers a frame to the listeners with patterns only, or to those without, or to all.
    pub(super) fn deliver_to(&self, topic: &Arc<str>, body: &Bytes, wide: Option<bool>) {
        if let Some(gate) = &self.gate
            && (!self.has_match(topic) || !gate.admits(topic, body))
        {
            return;
        }
        let (mut wakers, mut hints) = (Vec::new(), Vec::new());
        let mut state = self.state.lock();
        state.position += 1;
        let position = state.position;
        state.routes.for_each_match(topic, |_, feed| {
            let meant = wide.is_none_or(|wide| wide == feed.wide);
            if let Some(hint) = &feed.hint {
                hints.push(Arc::clone(hint));
            } else if meant && feed.newest.swap(position, Ordering::Relaxed) != position {
                let frame = Frame { topic: Arc::clone(topic), body: body.clone(), position };
                wakers.extend(feed.ring.push_quietly(frame).1);
            }
        });
        drop(state);
        wakers.into_iter().for_each(std::task::Waker::wake);
        hints.iter().for_each(|hint| hint.raise());
    }

    fn has_match(&self, topic: &str) -> bool {
        self.state.lock().routes.has_match(topic)
    }

    /// Whether nobody listens.
    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().feeds.is_empty()
    }

    /// Whether anybody listens to what is live.
    pub(super) fn has_live(&self) -> bool {
        self.state.lock().feeds.values().any(|feed| feed.hint.is_none())
    }

    /// Whether any listener wants to be offered a topic: what has to be fetched first need not be,
    /// else. Who reads what is kept is told to look.
    pub(super) fn wants(&self, topic: &str) -> bool {
        let (mut wanted, mut hints) = (false, Vec::new());
        self.state.lock().routes.for_each_match(topic, |_, feed| match &feed.hint {
            Some(hint) => hints.push(Arc::clone(hint)),
            None => wanted = true,
        });
        hints.iter().for_each(|hint| hint.raise());
        wanted
    }

    /// Tells every listener that reads what is kept to look: hints may have been missed.
    pub(super) fn look(&self) {
        let hints: Vec<_> =
            self.state.lock().feeds.values().filter_map(|feed| feed.hint.clone()).collect();
        hints.iter().for_each(|hint| hint.raise());
    }

    /// Tells every listener of a hole.
    pub(super) fn gap(&self, gap: Gap) {
        let feeds: Vec<_> = self.state.lock().feeds.values().cloned().collect();
        feeds.iter().for_each(|feed| match &feed.hint {
            // What it reads has no hole there.
            Some(hint) => hint.raise(),
            None => feed.ring.push_gap(gap),
        });
    }

    /// Ends every listener: what is buffered can still be taken.
    pub(super) fn close(&self) {
        let feeds = std::mem::take(&mut self.state.lock().feeds);
        feeds.values().for_each(|feed| feed.end());
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
        self.feed.end();
        let mut state = self.feeds.lock();
        for route in &self.routes {
            state.routes.remove(*route);
        }
        state.feeds.remove(&self.id);
    }
}
