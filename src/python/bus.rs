//! The class `CoreBus`: what `eventbus.Bus` is made on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, OnceLock, Weak};

use parking_lot::Mutex;
use pyo3::PyTraverseError;
use pyo3::exceptions::PyTypeError;
use pyo3::gc::PyVisit;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};

use super::consumer::CoreConsumer;
use super::event::{PyEvent, adopted};
use super::exit;
use super::hub::{Hub, Receiver, Route, Subscriber};
use super::mailbox::{self, Pending};
use super::options::{self, PublishOptions};
use super::publish::{Broadcast, Prepared, Publish, method_name};
use super::runtime::{self, Origin};
use super::stream::CoreSubscription;
use crate::backend::{
    Backend, Due, EventKey, ListenRequest, MessageAction, MessageId, Op, Transaction,
};
use crate::bus::{self, Bus};
use crate::clock::{Clock, ManualClock, SystemClock};
use crate::codec::{Limits, Wire};
use crate::config::{self, MemoryConfig, PostgresConfig, RedisConfig};
use crate::error::Error;
use crate::ring::Ring;
use crate::shutdown::Tasks;
use crate::topic::{self, Binding, RouteId};

/// What the buses of one in-process backend share.
#[derive(Clone)]
struct Home {
    backend: Arc<dyn Backend>,
    hub: Arc<Hub>,
}

type Named = (Weak<dyn Backend>, Weak<Hub>);

/// Buses shared by name in this process; a forked child begins without any.
static NAMED: LazyLock<Mutex<HashMap<(u32, String), Named>>> = LazyLock::new(Mutex::default);

/// The parts of an open bus.
pub(crate) struct Shared {
    pub(crate) bus: Arc<Bus>,
    pub(crate) hub: Arc<Hub>,
    strict_topics: bool,
    strict_payloads: bool,
    /// Publisher and subscriber meet at a server, so everything is encoded and sent there.
    is_broker: bool,
    /// Broadcasts are kept by a backend in this process, so that it must be given them.
    keeps: bool,
    wire: Wire,
    origin: Origin,
    clock: Option<ManualClock>,
}

/// The compiled part of a bus; make a `eventbus.Bus` or `eventbus.InMemoryEventBus` instead.
#[pyclass(subclass, frozen, weakref, module = "eventbus._eventbus")]
pub(crate) struct CoreBus {
    shared: OnceLock<Arc<Shared>>,
    live: AtomicBool,
    /// The inline subscriptions made here; the hub may belong to several buses of one name.
    own: Mutex<HashMap<RouteId, Arc<Subscriber>>>,
}

impl CoreBus {
    /// Returns the parts; `_open` runs in the constructor of every subclass.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        #[allow(clippy::expect_used)] // a subclass that skips __init__ is a bug of that subclass
        self.shared.get().expect("the bus was not opened: call super().__init__()")
    }

    /// Returns the parts after the checks every call makes.
    ///
    /// # Errors
    /// `ForkedError`; what the subclass says about a bus that is not connected, or closed.
    #[inline]
    pub(crate) fn ready(&self, slf: &Bound<'_, Self>, operation: &str) -> PyResult<&Arc<Shared>> {
        exit::register_thread();
        let Some(shared) = self.shared.get() else {
            let text = "the bus was not opened: call super().__init__()";
            return Err(PyTypeError::new_err(text));
        };
        shared.origin.check()?;
        if !self.live.load(Ordering::Acquire) {
            slf.call_method1(intern!(slf.py(), "_not_live"), (operation,))?;
        }
        Ok(shared)
    }

    /// Prepares the hot path: a publish without options; adds a step when groups want a copy.
    #[inline]
    pub(crate) fn prepare_plain(
        shared: &Shared,
        topic: &Bound<'_, PyAny>,
        event: &Bound<'_, PyAny>,
        ops: &mut Vec<Op>,
    ) -> PyResult<(Py<PyAny>, Arc<Route>)> {
        let (text, route) = shared.route(topic)?;
        let event = event_of(text, event, None)?;
        let broadcast = shared.is_broker || shared.keeps;
        if broadcast || shared.bus.backend().has_queue(&route.topic) {
            let body = shared.encode(event.bind(topic.py()), &route.topic)?;
            ops.push(Op::Publish(options::message(&route.topic, body, None, broadcast)));
        } else if shared.strict_payloads {
            shared.encode(event.bind(topic.py()), &route.topic)?;
        }
        Ok((event.into_any(), route))
    }

    /// Prepares one publish: its group copies and its broadcast.
    pub(crate) fn prepare_one(
        shared: &Shared,
        topic: &Bound<'_, PyAny>,
        event: &Bound<'_, PyAny>,
        options: Option<&PublishOptions>,
        prepared: &mut Prepared,
    ) -> PyResult<()> {
        let py = topic.py();
        let (text, route) = shared.route(topic)?;
        let event = event_of(text, event, options)?;
        let due = options.map_or(Due::Now, |options| options.due);
        let broadcast = shared.is_broker || shared.keeps;
        let wanted = broadcast
            || options.is_some_and(|options| options.dedup_id.is_some())
            || due != Due::Now
            || shared.bus.backend().has_queue(&route.topic);
        let op = if wanted {
            let body = shared.encode(event.bind(py), &route.topic)?;
            let message = options::message(&route.topic, body, options, broadcast);
            prepared.ops.push(Op::Publish(message));
            Some(prepared.ops.iter().filter(|op| matches!(op, Op::Publish(_))).count() - 1)
        } else {
            if shared.strict_payloads {
                shared.encode(event.bind(py), &route.topic)?;
            }
            None
        };
        match (due, op) {
            (Due::Now, op) => {
                prepared.broadcasts.push(Broadcast { event: event.into_any(), route, op });
            }
            (_, Some(op)) => prepared.delayed.push((op, topic.clone().unbind())),
            (_, None) => {}
        }
        Ok(())
    }
}

impl Shared {
    /// Returns the topic's text and its subscribers; a topic is validated when first seen.
    #[inline]
    fn route<'a, 'py>(
        &self,
        topic: &'a Bound<'py, PyAny>,
    ) -> PyResult<(&'a Bound<'py, PyString>, Arc<Route>)> {
        let text = options::topic_text(topic, "topic")?;
        if let Some(route) = self.hub.route(text)? {
            return Ok((text, route));
        }
        let name = options::topic_str(text)?;
        if self.strict_topics {
            topic::validate_topic(name)?;
        }
        Ok((text, self.hub.find_route(name)))
    }

    /// Encodes an event for the backend, which finds it again by the id of its message and its key.
    fn encode(
        &self,
        event: &Bound<'_, PyEvent>,
        topic: &Arc<str>,
    ) -> PyResult<(MessageId, EventKey, bytes::Bytes)> {
        let limits = self.bus.limits();
        let event = PyEvent::plain(event)?;
        let core = event.get().to_core(event.py(), limits, self.wire, topic)?;
        let body = self.bus.encode(&core, self.wire, topic)?;
        let key = core.event_id.key();
        Ok((event.get().message_id(&key), key, body))
    }

    /// Returns the topics of broadcasts that foreign processes of this wire do not see.
    pub(crate) fn apart(&self, transaction: &Transaction) -> Vec<Arc<str>> {
        if self.wire == Wire::Native {
            return Vec::new();
        }
        let mut topics = Vec::new();
        for op in &transaction.ops {
            match op {
                Op::Publish(message) if self.bus.backend().goes_apart(message) => {
                    topics.push(Arc::clone(&message.topic));
                }
                _ => {}
            }
        }
        topics
    }

    pub(crate) fn binding(&self, text: &str, is_pattern: bool) -> PyResult<Binding> {
        if is_pattern {
            return Ok(Binding::pattern(text)?);
        }
        if self.strict_topics {
            topic::validate_topic(text)?;
        }
        Ok(Binding::Topic(text.into()))
    }

    pub(crate) fn bindings(&self, texts: &[(String, bool)]) -> PyResult<Vec<Binding>> {
        texts.iter().map(|(text, is_pattern)| self.binding(text, *is_pattern)).collect()
    }
}

/// Returns the event to publish: the very object, or one made around a plain payload.
#[inline]
fn event_of(
    topic: &Bound<'_, PyString>,
    event: &Bound<'_, PyAny>,
    options: Option<&PublishOptions>,
) -> PyResult<Py<PyEvent>> {
    let py = topic.py();
    let event = match event.cast::<PyEvent>() {
        Ok(event) => event.clone(),
        Err(_) => match adopted(event)? {
            Some(event) => event,
            None => Bound::new(py, PyEvent::of_payload(py, topic, event)?)?,
        },
    };
    match options {
        Some(options) if options.overrides() => {
            Py::new(py, PyEvent::with(&event, options.replaced(py))?)
        }
        _ => Ok(event.unbind()),
    }
}

#[pymethods]
impl CoreBus {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyAny>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self { shared: OnceLock::new(), live: AtomicBool::new(false), own: Mutex::default() }
    }

    /// Opens a backend: `memory`, where a name shares it with every bus of that name in the
    /// process, `redis` or `postgres`.
    #[pyo3(signature = (
        kind, name, config, *, strict_topics, strict_payloads, max_bytes, max_depth, max_elements,
        manual_clock=None
    ))]
    #[allow(clippy::too_many_arguments)]
    fn _open(
        &self,
        kind: &str,
        name: Option<String>,
        config: &Bound<'_, PyDict>,
        strict_topics: bool,
        strict_payloads: bool,
        max_bytes: usize,
        max_depth: usize,
        max_elements: usize,
        manual_clock: Option<i64>,
    ) -> PyResult<()> {
        exit::register_thread();
        let clock = manual_clock.map(ManualClock::new);
        let mut wire = Wire::Native;
        let home = match kind {
            "redis" => {
                let config: RedisConfig = read_config(config)?;
                wire = config.wire.into();
                Home { backend: bus::open_redis(config)?, hub: Arc::default() }
            }
            "postgres" => {
                let config: PostgresConfig = read_config(config)?;
                wire = config.wire.into();
                Home { backend: bus::open_postgres(config)?, hub: Arc::default() }
            }
            "memory" => home(name, read_config(config)?, clock.as_ref())?,
            other => {
                let problems = vec![format!("unknown backend {other:?}")];
                return Err(Error::Config { problems }.into());
            }
        };
        let tasks = Tasks::new(runtime::runtime()?.handle().clone());
        let limits = Limits { max_bytes, max_depth, max_elements };
        let is_broker = home.backend.in_process().is_none();
        let keeps = !is_broker && home.backend.capabilities().replay;
        let bus = Bus::new(home.backend, tasks, limits);
        let shared = Shared {
            bus,
            hub: home.hub,
            strict_topics,
            strict_payloads,
            is_broker,
            keeps,
            wire,
            origin: Origin::here(),
            clock,
        };
        let _ = self.shared.set(Arc::new(shared));
        Ok(())
    }

    /// Reaches the server; a bus in this process is always ready.
    fn _connect(&self) -> PyResult<Pending> {
        let shared = Arc::clone(self.shared());
        shared.origin.check()?;
        Ok(Pending::nothing(async move { shared.bus.backend().connect().await }))
    }

    /// Returns how many commits have begun, and how many are under way.
    fn _commits(&self) -> (u64, usize) {
        self.shared().bus.commits()
    }

    /// Waits until no commit is under way.
    fn _finish_commits(&self) -> PyResult<Pending> {
        let shared = Arc::clone(self.shared());
        shared.origin.check()?;
        Ok(Pending::nothing(async move {
            shared.bus.finish_commits().await;
            Ok(())
        }))
    }

    /// Waits until the listeners have what was published before.
    fn _heard(&self) -> PyResult<Pending> {
        let shared = Arc::clone(self.shared());
        shared.origin.check()?;
        Ok(Pending::nothing(async move { shared.bus.backend().heard().await }))
    }

    /// Leaves the server; a backend in this process stays, others may share it.
    fn _disconnect(&self) -> PyResult<Pending> {
        let shared = Arc::clone(self.shared());
        shared.origin.check()?;
        Ok(Pending::nothing(async move {
            let backend = shared.bus.backend();
            match backend.in_process() {
                Some(_) => Ok(()),
                None => backend.close().await,
            }
        }))
    }

    /// Returns how the backend and its servers are.
    fn _health<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(pythonize::pythonize(py, &self.shared().bus.backend().health())?)
    }

    /// Whether calls are served; otherwise each asks `_not_live` first.
    fn _set_live(&self, live: bool) {
        self.live.store(live, Ordering::Release);
    }

    fn _check_origin(&self) -> PyResult<()> {
        Ok(self.shared().origin.check()?)
    }

    /// Refuses transactions of the caller's where the backend is no database.
    fn _check_joins(&self) -> PyResult<()> {
        self.shared().bus.backend().joins()?;
        Ok(())
    }

    /// Returns what the backend can do.
    fn _capabilities<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(pythonize::pythonize(py, self.shared().bus.backend().capabilities())?)
    }

    /// Returns the counters.
    fn _counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(pythonize::pythonize(py, &self.shared().bus.counts())?)
    }

    /// Whether the bus signs and verifies.
    fn _is_signing(&self) -> bool {
        self.shared().bus.backend().gate().is_some()
    }

    /// Waits until more than `known` messages without valid signature came; returns how many.
    fn _refused(&self, known: u64) -> PyResult<Pending> {
        let shared = self.shared();
        shared.origin.check()?;
        let gate = shared.bus.backend().gate().map(Arc::clone);
        Ok(Pending::new(move |_py| {
            let refused = async move {
                match gate {
                    Some(gate) => Ok(gate.refused(known).await),
                    None => std::future::pending().await,
                }
            };
            Ok(Pending::run(refused, options::number))
        }))
    }

    /// Counts an event that a handler could not read.
    fn _count_malformed(&self) {
        if let Some(shared) = self.shared.get() {
            shared.bus.counters().malformed.add(1);
        }
    }

    /// Counts events whose handler ran in a task of its own.
    fn _count(&self, delivered: u64, failed: u64, dropped: u64, gaps: u64) {
        let shared = self.shared();
        let counters = shared.bus.counters();
        counters.delivered.add(delivered);
        counters.failed.add(failed);
        counters.dropped.add(dropped);
        counters.gaps.add(gaps);
    }

    /// Moves a manual clock forward.
    fn _advance(&self, seconds: f64) -> PyResult<()> {
        let by = options::seconds_value("seconds", seconds)?;
        match &self.shared().clock {
            Some(clock) => {
                clock.advance(by);
                Ok(())
            }
            None => Err(Error::Unsupported {
                operation: "advancing the clock",
                backend: "memory",
                remedy: "make the bus with eventbus.testing.manual_bus()",
            }
            .into()),
        }
    }

    /// Publish an event or a plain payload.
    ///
    /// First every group that is bound to the topic stores a copy, then the subscriptions are
    /// called, in the order they were made. When this returns, the event is accepted and inline
    /// handlers have run; when it raises, no group stored it and nobody was called.
    ///
    /// Args:
    ///     topic: 1 to 255 bytes of UTF-8 without control characters.
    ///     event: An ``Event``, or any value as the payload of a new one.
    ///     key: 1 to 255 bytes; a group handles the events of one key one at a time, in order.
    ///     delay: Seconds or a timedelta, at most 100 years, until groups get it; it is not
    ///         broadcast.
    ///     at: Aware datetime, instead of ``delay``.
    ///     priority: From -32768 to 32767, 0 by default; groups take higher ones first.
    ///     dedup_id: 1 to 255 bytes; a second publish of it on this topic is accepted and dropped
    ///         while the bus remembers it (24 hours by default).
    ///     unique: 1 to 255 bytes; a group drops the event while it holds another one of it.
    ///     expires_after: Seconds or a timedelta; a group that did not start with it by then moves
    ///         it to its dead letters.
    ///     correlation_id: Replaces the event's.
    ///     source: Replaces the event's.
    ///     metadata: Replaces the event's.
    ///     event_id: Replaces the event's: 1 to 255 bytes, or a UUID; ``cancel_message`` and its
    ///         siblings find what was published by it.
    ///     connection: An asyncpg ``Connection``, a psycopg ``AsyncConnection`` or ``Connection``, or
    ///         an ``AsyncSession``, ``AsyncConnection``, ``Session`` or ``Connection`` of SQLAlchemy,
    ///         to the database of a Postgres bus: the event is published when the caller's
    ///         transaction on it commits, and never when that is rolled back.
    ///
    /// Raises:
    ///     TopicError: The topic breaks a rule.
    ///     TypeError: The topic is no str, an option is of another type, or ``delay`` and ``at``.
    ///     InvalidArgumentError: An option is out of range; also a ``ValueError``.
    ///     EncodeError: A group is bound, or the bus is strict, and the payload cannot be encoded.
    ///     PayloadTooLarge: The copy is larger than ``max_message_bytes``.
    ///     QueueFull: A group is full.
    ///     NoTransactionError: ``connection`` has no transaction open.
    ///     SerializationError: The caller's transaction collided with another; run it again.
    ///     BusClosedError: The bus was closed; ``NotConnectedError`` before it is connected.
    ///     ForkedError: The bus was made before a fork.
    ///
    /// Arguments are checked when it is awaited, not at the call. Cancelling it leaves every copy
    /// whole or absent; an inline handler that is running is cancelled, the ones after it are not
    /// called.
    #[pyo3(
        signature = (
            topic, event, *, key=None, delay=None, at=None, priority=None, dedup_id=None,
            unique=None, expires_after=None, correlation_id=None, source=None, metadata=None,
            event_id=None, connection=None
        ),
        text_signature = "($self, topic, event, *, key=None, delay=None, at=None, priority=0, \
                          dedup_id=None, unique=None, expires_after=None, correlation_id=None, \
                          source=None, metadata=None, event_id=None, connection=None)"
    )]
    #[allow(clippy::too_many_arguments)] // the public signature; a dict would cost a tuple per call
    fn publish<'py>(
        slf: Bound<'py, Self>,
        topic: Bound<'py, PyAny>,
        event: Bound<'py, PyAny>,
        key: Option<Bound<'py, PyAny>>,
        delay: Option<Bound<'py, PyAny>>,
        at: Option<Bound<'py, PyAny>>,
        priority: Option<Bound<'py, PyAny>>,
        dedup_id: Option<Bound<'py, PyAny>>,
        unique: Option<Bound<'py, PyAny>>,
        expires_after: Option<Bound<'py, PyAny>>,
        correlation_id: Option<Bound<'py, PyAny>>,
        source: Option<Bound<'py, PyAny>>,
        metadata: Option<Bound<'py, PyAny>>,
        event_id: Option<Bound<'py, PyAny>>,
        connection: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let given = [
            key,
            delay,
            at,
            priority,
            dedup_id,
            unique,
            expires_after,
            correlation_id,
            source,
            metadata,
            event_id,
        ];
        if let Some(connection) = connection {
            let options = options::RawOptions::to_dict(py, given)?;
            let name = intern!(py, "_publish_joined");
            let joined = slf.call_method1(name, (connection, topic, event, options))?;
            return named(&slf, joined, "publish");
        }
        let (topic, event) = (topic.unbind(), event.unbind());
        if given.iter().all(Option::is_none) {
            return Ok(Bound::new(py, Publish::one(slf.unbind(), topic, event))?.into_any());
        }
        let raw = options::RawOptions::from_values(given);
        let publish = Publish::prepare(
            slf.unbind(),
            "publish",
            Box::new(move |py, bus| {
                let options = raw.parse(py)?;
                let mut prepared = Prepared::default();
                Self::prepare_one(
                    bus.get().shared(),
                    topic.bind(py),
                    event.bind(py),
                    Some(&options),
                    &mut prepared,
                )?;
                Ok(prepared)
            }),
        );
        Ok(Bound::new(py, publish)?.into_any())
    }

    /// Publish several events as one transaction: groups store all of them or none.
    ///
    /// Args:
    ///     items: Pairs of topic and event or payload; at most 1,000 copies or 8 MiB.
    ///     connection: As for ``publish``.
    ///
    /// Raises:
    ///     TypeError: An item is no pair.
    ///     PayloadTooLarge: There are more; split them.
    ///
    /// Everything else as for ``publish``.
    #[pyo3(signature = (items, *, connection=None))]
    fn publish_many<'py>(
        slf: Bound<'py, Self>,
        items: Py<PyAny>,
        connection: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        if let Some(connection) = connection {
            let name = intern!(py, "_publish_many_joined");
            let joined = slf.call_method1(name, (connection, items))?;
            return named(&slf, joined, "publish_many");
        }
        let publish = Publish::prepare(
            slf.unbind(),
            "publish_many",
            Box::new(move |py, bus| {
                let mut prepared = Prepared::default();
                for item in items.bind(py).try_iter()? {
                    let item = item?;
                    let (topic, event) =
                        item.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>().map_err(|_| {
                            options::wrong_type("each item", "a (topic, event) pair", &item)
                        })?;
                    let shared = bus.get().shared();
                    Self::prepare_one(shared, &topic, &event, None, &mut prepared)?;
                }
                options::check_batch(&prepared.ops)?;
                Ok(prepared)
            }),
        );
        Ok(Bound::new(py, publish)?.into_any())
    }

    /// Adds a subscription whose handler runs in the publisher's task; returns its number.
    fn _subscribe_inline(
        slf: &Bound<'_, Self>,
        text: &Bound<'_, PyAny>,
        is_pattern: bool,
        handler: Py<PyAny>,
        report: Py<PyAny>,
        id: Py<PyAny>,
    ) -> PyResult<u64> {
        let shared = slf.get().ready(slf, "subscribe")?;
        let text = options::topic_text(text, if is_pattern { "pattern" } else { "topic" })?;
        let binding = shared.binding(options::topic_str(text)?, is_pattern)?;
        let subscriber = Subscriber::new(Receiver::Inline { handler, report, id });
        let number = shared.hub.insert(binding, Arc::clone(&subscriber));
        slf.get().own.lock().insert(number, subscriber);
        Ok(number)
    }

    /// Adds a subscription with a bounded buffer of its own.
    fn _subscribe_queued(
        slf: &Bound<'_, Self>,
        text: &Bound<'_, PyAny>,
        is_pattern: bool,
        buffer: usize,
        overflow: &str,
    ) -> PyResult<CoreSubscription> {
        let shared = slf.get().ready(slf, "subscribe")?;
        let text = options::topic_text(text, if is_pattern { "pattern" } else { "topic" })?;
        let binding = shared.binding(options::topic_str(text)?, is_pattern)?;
        let ring = Arc::new(Ring::new(buffer, options::overflow(overflow)?));
        let event_loop = mailbox::running_loop(slf.py())?.unbind();
        let subscriber = Subscriber::new(Receiver::Queued { ring: Arc::clone(&ring), event_loop });
        let id = shared.hub.insert(binding, subscriber);
        Ok(CoreSubscription::of_hub(Arc::clone(&shared.hub), id, ring, shared.origin))
    }

    /// Adds a subscription with a bounded buffer of its own at the server; waits for its
    /// confirmation. `malformed` is called with a topic and what is wrong with a frame of it;
    /// `since` is where a replay begins.
    #[pyo3(signature = (text, is_pattern, buffer, overflow, malformed, since=None, near=None))]
    #[allow(clippy::too_many_arguments)] // each is one of the caller's
    fn _listen(
        slf: &Bound<'_, Self>,
        text: &Bound<'_, PyAny>,
        is_pattern: bool,
        buffer: usize,
        overflow: &str,
        malformed: Py<PyAny>,
        since: Option<&Bound<'_, PyAny>>,
        near: Option<String>,
    ) -> PyResult<Pending> {
        let shared = Arc::clone(slf.get().ready(slf, "subscribe")?);
        let since = since.map(options::since).transpose()?;
        let text = options::topic_text(text, if is_pattern { "pattern" } else { "topic" })?;
        let bindings = vec![shared.binding(options::topic_str(text)?, is_pattern)?];
        let overflow = options::overflow(overflow)?;
        Ok(Pending::new(move |_py| {
            let backend = Arc::clone(shared.bus.backend());
            let request = ListenRequest { bindings, buffer, overflow, since };
            let listen = async move {
                match near {
                    Some(topic) => backend.listen_near(request, &topic).await,
                    None => backend.listen(request).await,
                }
            };
            Ok(Pending::run(listen, move |py, listener| {
                let (bus, origin) = (Arc::clone(&shared.bus), shared.origin);
                let made = CoreSubscription::of_broker(bus, listener, malformed, origin);
                Ok(Py::new(py, made)?.into_any())
            }))
        }))
    }

    /// Removes an inline subscription.
    fn _unsubscribe(&self, id: u64) -> bool {
        let removed = self.own.lock().remove(&id);
        drop(removed);
        self.shared().hub.remove(id)
    }

    /// Declares a group and returns its consumer; whether it claims before somebody waits.
    fn _consume(
        slf: &Bound<'_, Self>,
        bindings: Vec<(String, bool)>,
        options: options::PyConsumeOptions,
        ahead: bool,
    ) -> PyResult<Pending> {
        let shared = Arc::clone(slf.get().ready(slf, "consume")?);
        let options = options.into_core(shared.bindings(&bindings)?, ahead)?;
        Ok(Pending::new(move |_py| {
            let origin = shared.origin;
            let bus = Arc::clone(&shared.bus);
            Ok(Pending::run(
                async move { crate::bus::Consumer::start(&bus, options).await },
                move |py, consumer| {
                    let consumer = CoreConsumer::new(consumer, origin);
                    Ok(Py::new(py, consumer)?.into_any())
                },
            ))
        }))
    }

    /// Reads records; a list with a (key, version, value) or `None` per key.
    fn _read(slf: &Bound<'_, Self>, keys: Vec<String>) -> PyResult<Pending> {
        let shared = Arc::clone(slf.get().ready(slf, "read")?);
        Ok(Pending::new(move |_py| {
            let (backend, limits) = (Arc::clone(shared.bus.backend()), *shared.bus.limits());
            let keys: Vec<Arc<str>> = keys.into_iter().map(Into::into).collect();
            Ok(Pending::run(async move { backend.read(&keys).await }, move |py, records| {
                let records = records
                    .into_iter()
                    .map(|record| record.map(|one| options::record(py, &one, &limits)).transpose())
                    .collect::<PyResult<Vec<_>>>()?;
                Ok(PyList::new(py, records)?.into_any().unbind())
            }))
        }))
    }

    /// Reads records by prefix, in key order; as (key, version, value, why it has none).
    fn _scan(
        slf: &Bound<'_, Self>,
        prefix: String,
        after: Option<String>,
        limit: usize,
    ) -> PyResult<Pending> {
        let shared = Arc::clone(slf.get().ready(slf, "scan")?);
        Ok(Pending::new(move |_py| {
            let (backend, limits) = (Arc::clone(shared.bus.backend()), *shared.bus.limits());
            let scan = async move { backend.scan(&prefix, after.as_deref(), limit).await };
            Ok(Pending::run(scan, move |py, records| {
                let records = records
                    .iter()
                    .map(|record| options::scanned(py, record, &limits))
                    .collect::<PyResult<Vec<_>>>()?;
                Ok(PyList::new(py, records)?.into_any().unbind())
            }))
        }))
    }

    /// Returns the figures of the bus as a dict.
    fn _inspect(slf: &Bound<'_, Self>) -> PyResult<Pending> {
        let shared = Arc::clone(slf.get().ready(slf, "inspect")?);
        Ok(Pending::new(move |_py| {
            let backend = Arc::clone(shared.bus.backend());
            Ok(Pending::run(async move { backend.inspect().await }, |py, figures| {
                Ok(pythonize::pythonize(py, &figures)?.unbind())
            }))
        }))
    }

    /// Declares a group without consuming.
    fn _declare_group(
        slf: &Bound<'_, Self>,
        group: String,
        bindings: Vec<(String, bool)>,
        max_length: Option<u64>,
    ) -> PyResult<Pending> {
        let shared = Arc::clone(slf.get().ready(slf, "declare_group")?);
        let bindings = shared.bindings(&bindings)?;
        Ok(Pending::new(move |_py| {
            topic::validate_group(&group)?;
            let spec =
                crate::backend::GroupSpec { name: group.as_str().into(), bindings, max_length };
            let backend = Arc::clone(shared.bus.backend());
            Ok(Pending::run(async move { backend.declare_group(spec).await }, move |py, ()| {
                Ok(py.None())
            }))
        }))
    }

    /// Removes bindings (`unbind`), a group (`delete`), what waits in it (`purge`), or stops and
    /// resumes its claims (`pause`, `resume`).
    #[pyo3(signature = (action, group, bindings=None))]
    fn _group_action(
        slf: &Bound<'_, Self>,
        action: String,
        group: String,
        bindings: Option<Vec<(String, bool)>>,
    ) -> PyResult<Pending> {
        let shared = Arc::clone(slf.get().ready(slf, "group operation")?);
        let bindings = match bindings {
            Some(bindings) => shared.bindings(&bindings)?,
            None => Vec::new(),
        };
        Ok(Pending::new(move |_py| {
            let backend = Arc::clone(shared.bus.backend());
            let act = async move {
                match action.as_str() {
                    "unbind" => backend.unbind(&group, &bindings).await,
                    "delete" => backend.delete_group(&group).await,
                    "purge" => backend.purge(&group).await,
                    _ => backend.pause(&group, action == "pause").await.map(|()| 0),
                }
            };
            Ok(Pending::run(act, options::number))
        }))
    }

    /// Lists the waiting and active copies of an event, of one group or of all.
    fn _messages(
        slf: &Bound<'_, Self>,
        event: &Bound<'_, PyAny>,
        group: Option<String>,
    ) -> PyResult<Pending> {
        let shared = Arc::clone(slf.get().ready(slf, "message")?);
        let event = options::event_key(event, shared.bus.limits())?;
        Ok(Pending::new(move |_py| {
            let backend = Arc::clone(shared.bus.backend());
            let list = async move { backend.message(group.as_deref(), event).await };
            Ok(Pending::run(list, |py, copies| options::message_infos(py, &copies)))
        }))
    }

    /// Cancels, promotes or reschedules what waits of an event, in one group or in all; returns how
    /// many copies changed.
    fn _message_action(
        slf: &Bound<'_, Self>,
        event: &Bound<'_, PyAny>,
        group: Option<String>,
        action: String,
        at: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Pending> {
        let shared = Arc::clone(slf.get().ready(slf, "message operation")?);
        let event = options::event_key(event, shared.bus.limits())?;
        let action = match (action.as_str(), at) {
            ("cancel", _) => MessageAction::Cancel,
            ("promote", _) => MessageAction::Promote,
            (_, Some(at)) => MessageAction::Reschedule(options::epoch_micros("at", at)?),
            (_, None) => return Err(PyTypeError::new_err("reschedule needs a time")),
        };
        Ok(Pending::new(move |_py| {
            let backend = Arc::clone(shared.bus.backend());
            let act = async move { backend.act_on(group.as_deref(), event, action).await };
            Ok(Pending::run(act, options::number))
        }))
    }

    /// Lists dead letters of a group.
    fn _dead_letters(
        slf: &Bound<'_, Self>,
        group: String,
        after: Option<String>,
        limit: usize,
    ) -> PyResult<Pending> {
        let shared = Arc::clone(slf.get().ready(slf, "dead_letters")?);
        Ok(Pending::new(move |_py| {
            let after = after.as_deref().map(options::message_id).transpose()?;
            let (backend, bus) = (Arc::clone(shared.bus.backend()), Arc::clone(&shared.bus));
            let list = async move { backend.dead_letters(&group, after, limit).await };
            Ok(Pending::run(list, move |py, letters| options::dead_letters(py, letters, &bus)))
        }))
    }

    /// Retries (`true`) or discards dead letters; returns how many were found.
    fn _settle_dead(
        slf: &Bound<'_, Self>,
        group: String,
        ids: Vec<String>,
        retry: bool,
    ) -> PyResult<Pending> {
        let shared = Arc::clone(slf.get().ready(slf, "dead_letters")?);
        Ok(Pending::new(move |_py| {
            let ids =
                ids.iter().map(|id| options::message_id(id)).collect::<Result<Vec<_>, _>>()?;
            let backend = Arc::clone(shared.bus.backend());
            let settle = async move {
                if retry {
                    backend.retry_dead(&group, &ids).await
                } else {
                    backend.discard_dead(&group, &ids).await
                }
            };
            Ok(Pending::run(settle, options::number))
        }))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Nobody else runs while the collector looks; a held lock only means "not this time".
        let Some(own) = self.own.try_lock() else { return Ok(()) };
        own.values().try_for_each(|subscriber| subscriber.traverse(&visit))
    }

    fn __clear__(&self) {
        self.unsubscribe_own();
    }
}

impl CoreBus {
    /// Ends the inline subscriptions made here.
    fn unsubscribe_own(&self) {
        let own = std::mem::take(&mut *self.own.lock());
        if let Some(shared) = self.shared.get() {
            own.keys().for_each(|id| {
                shared.hub.remove(*id);
            });
        }
    }
}

impl Drop for CoreBus {
    fn drop(&mut self) {
        self.unsubscribe_own();
        // A forked child must not touch what belongs to its parent's runtime.
        if let Some(shared) = self.shared.get().filter(|shared| shared.origin.check().is_ok()) {
            shared.bus.tasks().abort();
        }
    }
}

/// Names a coroutine after the method that was called, for whoever forgets to await it.
fn named<'py>(
    bus: &Bound<'py, CoreBus>,
    coroutine: Bound<'py, PyAny>,
    method: &str,
) -> PyResult<Bound<'py, PyAny>> {
    coroutine.setattr(intern!(bus.py(), "__qualname__"), method_name(bus, method)?)?;
    Ok(coroutine)
}

/// Reads the options of a backend.
///
/// # Errors
/// `Config` naming what is unknown or of another type.
pub(crate) fn read_config<C: serde::de::DeserializeOwned>(
    config: &Bound<'_, PyDict>,
) -> Result<C, Error> {
    pythonize::depythonize(config)
        .map_err(|error| Error::Config { problems: vec![error.to_string()] })
}

impl From<config::Wire> for Wire {
    fn from(wire: config::Wire) -> Self {
        match wire {
            config::Wire::Native => Self::Native,
            config::Wire::Dataknobs => Self::DataKnobs,
        }
    }
}

/// Finds the named in-process backend, or makes one.
fn home(
    name: Option<String>,
    config: MemoryConfig,
    clock: Option<&ManualClock>,
) -> Result<Home, Error> {
    let clock: Arc<dyn Clock> = match clock {
        Some(clock) => Arc::new(clock.clone()),
        None => Arc::new(SystemClock),
    };
    let Some(name) = name else {
        return Ok(Home { backend: bus::open_memory(config, clock)?, hub: Arc::default() });
    };
    let mut named = NAMED.lock();
    named.retain(|_, (backend, _)| backend.strong_count() > 0);
    let key = (runtime::forks(), name);
    if let Some((backend, hub)) = named.get(&key)
        && let (Some(backend), Some(hub)) = (backend.upgrade(), hub.upgrade())
    {
        return Ok(Home { backend, hub });
    }
    let home = Home { backend: bus::open_memory(config, clock)?, hub: Arc::default() };
    named.insert(key, (Arc::downgrade(&home.backend), Arc::downgrade(&home.hub)));
    Ok(home)
}
