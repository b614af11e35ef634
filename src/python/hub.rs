//! The subscriptions of an in-process bus, and the cached way from a topic to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ahash::AHashMap;
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::options;
use crate::error::Result as CoreResult;
use crate::ring::Ring;
use crate::topic::{Binding, RouteId, Router};

/// Topics whose route is remembered; a burst of fresh topics only costs their look-up.
const CACHED_ROUTES: usize = 4096;

/// Who receives the broadcasts of a subscription.
pub(crate) enum Receiver {
    /// Called in the publisher's task.
    Inline {
        /// The user's handler.
        handler: Py<PyAny>,
        /// Called with (subscription id, exception) when the handler raised.
        report: Py<PyAny>,
        /// The subscription's id, for the report.
        id: Py<PyAny>,
    },
    /// Buffered for a task of its own.
    Queued {
        /// The buffer.
        ring: Arc<Ring<Py<PyAny>>>,
        /// The loop of that task.
        event_loop: Py<PyAny>,
    },
}

/// One subscription.
pub(crate) struct Subscriber {
    pub(crate) receiver: Receiver,
    active: AtomicBool,
}

impl Subscriber {
    pub(crate) fn new(receiver: Receiver) -> Arc<Self> {
        Arc::new(Self { receiver, active: AtomicBool::new(true) })
    }

    /// Whether calls may still start.
    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }
}

/// Where what is published on one topic goes.
pub(crate) struct Route {
    /// The topic, shared by every message on it.
    pub(crate) topic: Arc<str>,
    /// Who receives it, in order of subscription.
    pub(crate) subscribers: Box<[Arc<Subscriber>]>,
}

/// The subscriptions of all buses that share one in-process backend.
#[derive(Default)]
pub(crate) struct Hub {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    router: Router<Arc<Subscriber>>,
    routes: AHashMap<Arc<str>, Arc<Route>>,
    /// The topic object published on last, and its route: programs publish on constants.
    last: Option<(Py<PyString>, Arc<Route>)>,
}

/// Routes that no longer hold; destroyed outside the lock, as they hold handlers.
type Stale = (AHashMap<Arc<str>, Arc<Route>>, Option<(Py<PyString>, Arc<Route>)>);

impl State {
    fn forget_routes(&mut self) -> Stale {
        (std::mem::take(&mut self.routes), self.last.take())
    }
}

impl Hub {
    /// Adds a subscription: it receives what is published from now on.
    pub(crate) fn insert(&self, binding: Binding, subscriber: Arc<Subscriber>) -> RouteId {
        let (id, stale) = {
            let mut state = self.state.lock();
            let id = state.router.insert(binding, subscriber);
            (id, state.forget_routes())
        };
        // Routes hold handlers: destroy them outside the lock.
        drop(stale);
        id
    }

    /// Removes a subscription: no call starts from now on.
    pub(crate) fn remove(&self, id: RouteId) -> bool {
        let (removed, stale) = {
            let mut state = self.state.lock();
            let removed = state.router.remove(id);
            if let Some(subscriber) = &removed {
                subscriber.active.store(false, Ordering::Release);
            }
            (removed, state.forget_routes())
        };
        drop(stale);
        removed.is_some()
    }

    /// Returns the route of a topic that was seen since the last change.
    ///
    /// # Errors
    /// `Topic` for a str that UTF-8 cannot encode.
    #[inline]
    pub(crate) fn route(&self, topic: &Bound<'_, PyString>) -> CoreResult<Option<Arc<Route>>> {
        let mut state = self.state.lock();
        if let Some((last, route)) = &state.last
            && last.is(topic)
        {
            return Ok(Some(Arc::clone(route)));
        }
        let Some(route) = state.routes.get(options::topic_str(topic)?).map(Arc::clone) else {
            return Ok(None);
        };
        let replaced = state.last.replace((topic.clone().unbind(), Arc::clone(&route)));
        drop(state);
        drop(replaced);
        Ok(Some(route))
    }

    /// Looks a topic up that [`Hub::route`] does not know.
    pub(crate) fn find_route(&self, topic: &str) -> Arc<Route> {
        let (route, stale) = {
            let mut state = self.state.lock();
            let mut found = Vec::new();
            state.router.for_each_match(topic, |_, subscriber| found.push(Arc::clone(subscriber)));
            let topic: Arc<str> = topic.into();
            let route = Arc::new(Route { topic: Arc::clone(&topic), subscribers: found.into() });
            let full = state.routes.len() >= CACHED_ROUTES;
            let stale = if full { std::mem::take(&mut state.routes) } else { AHashMap::new() };
            state.routes.insert(topic, Arc::clone(&route));
            (route, stale)
        };
        drop(stale);
        route
    }
}

impl Subscriber {
    /// Shows the handler to the garbage collector; only the bus that subscribed does so.
    pub(crate) fn traverse(
        &self,
        visit: &pyo3::gc::PyVisit<'_>,
    ) -> Result<(), pyo3::PyTraverseError> {
        if let Receiver::Inline { handler, report, id } = &self.receiver {
            visit.call(Some(handler))?;
            visit.call(Some(report))?;
            visit.call(Some(id))?;
        }
        Ok(())
    }
}
