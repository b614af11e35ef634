//! The Python class `Event`: frozen, its fields made or decoded when first touched.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::PyTraverseError;
use pyo3::basic::CompareOp;
use pyo3::exceptions::{PyAttributeError, PyKeyError, PyTypeError};
use pyo3::gc::PyVisit;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyInt, PyList, PyMapping, PyString, PyTuple, PyType};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::convert;
use super::convert::time;
use super::exit;
use super::lazy::Lazy;
use super::runtime;
use crate::backend::{EventKey, MessageId, identity};
use crate::clock::{Clock, SystemClock};
use crate::codec::{Limits, Wire};
use crate::error::Error;
use crate::event::{Event, EventId, EventType, Field, Timestamp, WallTime};

/// An immutable event.
///
/// Answers the protocol of dataclasses: ``fields``, ``replace``, ``asdict``, ``match``, ``==``,
/// ``copy`` and ``pickle`` work; it cannot be hashed. Fields that were not given are made, and
/// those of a received event are decoded, when they are first touched.
///
/// Attributes:
///     type: Its category.
///     topic: The topic it is about; the one it is published on may be another.
///     payload: What happened: any value that ``eventbus.codec`` carries, usually a dict; ``{}`` by
///         default.
///     timestamp: When it was made, aware, in UTC by default.
///     event_id: Names it: the text of a new UUID by default.
///     source: Who made it, or ``None``.
///     correlation_id: Names what it belongs to, or ``None``.
///     metadata: Further data about it; ``{}`` by default.
///
/// A subclass may have methods, a constructor of its own, or be a frozen dataclass with further fields
/// that have defaults. A wire carries the eight fields: what comes from one is a plain ``Event``.
#[pyclass(frozen, subclass, name = "Event", module = "eventbus")]
pub(crate) struct PyEvent {
    kind: Lazy,
    topic: Lazy,
    payload: Lazy,
    timestamp: Lazy,
    event_id: Lazy,
    source: Lazy,
    correlation_id: Lazy,
    metadata: Lazy,
    origin: Origin,
}

impl Drop for PyEvent {
    fn drop(&mut self) {
        // Events travel between threads, and their payloads may run Python code as they go.
        exit::register_thread();
    }
}

/// Where fields that were not touched yet come from.
enum Origin {
    /// Made in this process: the time of its making, its identity unless that was given, and whether
    /// the next message is the first that carries this identity.
    Made { micros: i64, uuid: [u8; 16], is_first: AtomicBool },
    /// Received: the decoded envelope, and the limits for what it carries.
    Received(Arc<Event>, Limits),
}

/// Returns random bytes for an identity; a forked child draws its own.
pub(crate) fn random_uuid() -> [u8; 16] {
    thread_local! {
        static SOURCE: RefCell<Option<(u32, StdRng)>> = const { RefCell::new(None) };
    }
    let mut bytes = [0; 16];
    SOURCE.with_borrow_mut(|source| {
        let forks = runtime::forks();
        match source {
            Some((made_at, rng)) if *made_at == forks => rng.fill_bytes(&mut bytes),
            _ => {
                exit::register_thread();
                let mut rng = StdRng::from_rng(&mut rand::rng());
                // The child's thread generator is a copy of its parent's: mix in what differs.
                let mut seed = [0_u8; 32];
                rng.fill_bytes(&mut seed);
                let here = (std::process::id(), SystemClock.now());
                for (slot, byte) in seed
                    .iter_mut()
                    .zip(here.0.to_le_bytes().into_iter().chain(here.1.to_le_bytes()))
                {
                    *slot ^= byte;
                }
                let mut rng = StdRng::from_seed(seed);
                rng.fill_bytes(&mut bytes);
                *source = Some((forks, rng));
            }
        }
    });
    *uuid::Builder::from_random_bytes(bytes).as_uuid().as_bytes()
}

/// Returns an identity for what is made at this time: a UUIDv7 (RFC 9562), as an index of such ids
/// grows at its end. The random bits are of our own source, as the crate's would be a system call
/// each.
fn time_uuid(micros: i64) -> [u8; 16] {
    let millis = u64::try_from(micros / 1000).unwrap_or(0);
    let random = random_uuid();
    let mut tail = [0; 10];
    tail.copy_from_slice(&random[..10]);
    *uuid::Builder::from_unix_timestamp_millis(millis, &tail).as_uuid().as_bytes()
}

/// Returns the member of `eventbus.EventType`.
fn member(py: Python<'_>, kind: EventType) -> PyResult<Py<PyAny>> {
    static MEMBERS: PyOnceLock<Vec<Py<PyAny>>> = PyOnceLock::new();
    let members = MEMBERS.get_or_try_init(py, || {
        let class = py.import("eventbus.types")?.getattr("EventType")?;
        EventType::ALL
            .iter()
            .map(|kind| Ok(class.call1((kind.as_str(),))?.unbind()))
            .collect::<PyResult<Vec<_>>>()
    })?;
    Ok(members[kind as usize].clone_ref(py))
}

fn kind_of(py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<EventType> {
    for kind in EventType::ALL {
        if member(py, kind)?.is(value) {
            return Ok(kind);
        }
    }
    Err(Error::Encode {
        path: "$.type".into(),
        reason: format!(
            "'{}' object has no attribute 'value': type must be an EventType member",
            value.get_type().name()?
        ),
    }
    .into())
}

impl PyEvent {
    /// Makes an event from its constructor's arguments: payload, timestamp, event id, source,
    /// correlation id and metadata where they were given.
    #[inline]
    pub(crate) fn made<'py>(
        kind: Bound<'py, PyAny>,
        topic: Bound<'py, PyAny>,
        given: [Option<Bound<'py, PyAny>>; 6],
    ) -> Self {
        let [payload, timestamp, event_id, source, correlation_id, metadata] = given;
        let is_first = event_id.is_none();
        let micros = if timestamp.is_none() || is_first { SystemClock.now() } else { 0 };
        let uuid = if is_first { time_uuid(micros) } else { [0; 16] };
        Self {
            kind: Lazy::filled(Some(kind)),
            topic: Lazy::filled(Some(topic)),
            payload: Lazy::filled(payload),
            timestamp: Lazy::filled(timestamp),
            event_id: Lazy::filled(event_id),
            source: Lazy::filled(source),
            correlation_id: Lazy::filled(correlation_id),
            metadata: Lazy::filled(metadata),
            origin: Origin::Made { micros, uuid, is_first: AtomicBool::new(is_first) },
        }
    }

    /// Makes an event of type CUSTOM around a plain payload.
    pub(crate) fn of_payload(
        py: Python<'_>,
        topic: &Bound<'_, PyString>,
        payload: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let micros = SystemClock.now();
        let uuid = time_uuid(micros);
        Ok(Self {
            kind: Lazy::filled(Some(member(py, EventType::Custom)?.into_bound(py))),
            topic: Lazy::filled(Some(topic.as_any().clone())),
            payload: Lazy::filled(Some(payload.clone())),
            timestamp: Lazy::empty(),
            event_id: Lazy::empty(),
            source: Lazy::empty(),
            correlation_id: Lazy::empty(),
            metadata: Lazy::empty(),
            origin: Origin::Made { micros, uuid, is_first: AtomicBool::new(true) },
        })
    }

    /// Wraps a received event; nothing of it is decoded yet.
    pub(crate) fn received(py: Python<'_>, event: Event, limits: Limits) -> PyResult<Self> {
        Ok(Self {
            kind: Lazy::filled(Some(member(py, event.kind)?.into_bound(py))),
            topic: Lazy::empty(),
            payload: Lazy::empty(),
            timestamp: Lazy::empty(),
            event_id: Lazy::empty(),
            source: Lazy::empty(),
            correlation_id: Lazy::empty(),
            metadata: Lazy::empty(),
            origin: Origin::Received(Arc::new(event), limits),
        })
    }

    /// Returns a plain event in which the given fields are replaced: event id, source, correlation
    /// id, metadata. If it keeps the identity, its message is the first instead of this one's.
    pub(crate) fn with(
        slf: &Bound<'_, Self>,
        [event_id, source, correlation_id, metadata]: [Option<Bound<'_, PyAny>>; 4],
    ) -> PyResult<Self> {
        let py = slf.py();
        let (uuid, is_first) = match &slf.get().origin {
            Origin::Made { uuid, is_first, .. } if event_id.is_none() => {
                (*uuid, is_first.swap(false, Ordering::Relaxed))
            }
            _ => ([0; 16], false),
        };
        let [kind, topic, payload, timestamp, own_id, own_source, own_correlation, own_metadata] =
            Self::fields(slf)?.map(|value| value.into_bound(py));
        let filled = |value| Lazy::filled(Some(value));
        Ok(Self {
            kind: filled(kind),
            topic: filled(topic),
            payload: filled(payload),
            timestamp: filled(timestamp),
            event_id: filled(event_id.unwrap_or(own_id)),
            source: filled(source.unwrap_or(own_source)),
            correlation_id: filled(correlation_id.unwrap_or(own_correlation)),
            metadata: filled(metadata.unwrap_or(own_metadata)),
            origin: Origin::Made { micros: 0, uuid, is_first: AtomicBool::new(is_first) },
        })
    }

    /// Returns the event itself, or a plain one of an event of a subclass: that may keep its fields
    /// elsewhere.
    pub(crate) fn plain<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, Self>> {
        if is_plain(slf) {
            return Ok(slf.clone());
        }
        Bound::new(slf.py(), Self::with(slf, [const { None }; 4])?)
    }

    /// Returns the id of the next message that carries the event, whose key is given.
    #[inline]
    pub(crate) fn message_id(&self, key: &EventKey) -> MessageId {
        match &self.origin {
            Origin::Made { uuid, is_first, .. }
                if uuid == key && is_first.swap(false, Ordering::Relaxed) =>
            {
                *key
            }
            _ => identity::again(key, &random_uuid()),
        }
    }

    /// Encodes every field for a wire.
    ///
    /// # Errors
    /// `EncodeError` naming the field and the path in it.
    pub(crate) fn to_core(
        &self,
        py: Python<'_>,
        limits: &Limits,
        wire: Wire,
        published_on: &Arc<str>,
    ) -> PyResult<Event> {
        if let Origin::Received(event, _) = &self.origin
            && self.payload.get(py).is_none()
            && self.metadata.get(py).is_none()
        {
            return Ok(Event::clone(event));
        }
        let payload = match self.payload.get(py) {
            Some(payload) => convert::encode_value(&payload, limits, wire, "$.payload")?,
            None => convert::empty_map(),
        };
        let metadata = match self.metadata.get(py) {
            Some(metadata) => convert::encode_value(&metadata, limits, wire, "$.metadata")?,
            None => bytes::Bytes::new(),
        };
        let (payload, metadata) = match &self.origin {
            Origin::Received(event, _) => (
                if self.payload.get(py).is_some() { payload } else { event.payload.clone() },
                if self.metadata.get(py).is_some() { metadata } else { event.metadata.clone() },
            ),
            Origin::Made { .. } => (payload, metadata),
        };
        let topic = self.topic(py)?;
        let topic = topic.bind(py).cast::<PyString>().map_err(|_| Error::Encode {
            path: "$.topic".into(),
            reason: "the event's topic must be a str".into(),
        })?;
        let timestamp = match self.timestamp.get(py) {
            None => match &self.origin {
                Origin::Made { micros, .. } => {
                    Timestamp::Time(WallTime { micros: *micros, offset_micros: Some(0) })
                }
                Origin::Received(event, _) => event.timestamp.clone(),
            },
            Some(value) => match time::wall_time(&value)? {
                Some(time) => Timestamp::Time(time),
                None => Timestamp::Other(field(&value, limits, wire, "$.timestamp")?),
            },
        };
        let event_id = match self.event_id.get(py) {
            None => match &self.origin {
                Origin::Made { uuid, .. } => EventId::Uuid(*uuid),
                Origin::Received(event, _) => event.event_id.clone(),
            },
            Some(value) => event_id_of(&value, limits, wire)?,
        };
        Ok(Event {
            kind: kind_of(py, self.r#type(py)?.bind(py))?,
            topic: match topic.to_str().map_err(|_| lone_surrogate("$.topic"))? {
                same if *same == **published_on => Arc::clone(published_on),
                other => other.into(),
            },
            payload,
            timestamp,
            event_id,
            source: self.field_of(
                py,
                &self.source,
                |event| &event.source,
                limits,
                wire,
                "$.source",
            )?,
            correlation_id: self.field_of(
                py,
                &self.correlation_id,
                |event| &event.correlation_id,
                limits,
                wire,
                "$.correlation_id",
            )?,
            metadata,
        })
    }

    fn field_of(
        &self,
        py: Python<'_>,
        cell: &Lazy,
        of: fn(&Event) -> &Field,
        limits: &Limits,
        wire: Wire,
        path: &str,
    ) -> PyResult<Field> {
        match (cell.get(py), &self.origin) {
            (Some(value), _) => field(&value, limits, wire, path),
            (None, Origin::Received(event, _)) => Ok(of(event).clone()),
            (None, Origin::Made { .. }) => Ok(Field::Null),
        }
    }

    fn lazy(&self, py: Python<'_>, cell: &Lazy, of: fn(&Event) -> &Field) -> PyResult<Py<PyAny>> {
        let value = cell.get_or_make(py, || match &self.origin {
            Origin::Made { .. } => Ok(py.None().into_bound(py)),
            Origin::Received(event, limits) => field_to_py(py, of(event), limits),
        })?;
        Ok(value.unbind())
    }

    fn cells(&self) -> [&Lazy; 8] {
        [
            &self.kind,
            &self.topic,
            &self.payload,
            &self.timestamp,
            &self.event_id,
            &self.source,
            &self.correlation_id,
            &self.metadata,
        ]
    }

    /// Returns the eight fields in the order of the contract.
    fn fields(slf: &Bound<'_, Self>) -> PyResult<[Py<PyAny>; 8]> {
        let (py, event) = (slf.py(), slf.get());
        if is_plain(slf) {
            return Ok([
                event.r#type(py)?,
                event.topic(py)?,
                event.payload(py)?,
                event.timestamp(py)?,
                event.event_id(py)?,
                event.source(py)?,
                event.correlation_id(py)?,
                event.metadata(py)?,
            ]);
        }
        let mut fields = [const { None }; 8];
        for (field, name) in fields.iter_mut().zip(NAMES) {
            *field = Some(slf.getattr(name)?.unbind());
        }
        Ok(fields.map(|field| field.unwrap_or_else(|| py.None())))
    }

    /// Begins an event of a subclass.
    fn unfilled() -> Self {
        let micros = SystemClock.now();
        Self {
            kind: Lazy::empty(),
            topic: Lazy::empty(),
            payload: Lazy::empty(),
            timestamp: Lazy::empty(),
            event_id: Lazy::empty(),
            source: Lazy::empty(),
            correlation_id: Lazy::empty(),
            metadata: Lazy::empty(),
            origin: Origin::Made {
                micros,
                uuid: time_uuid(micros),
                is_first: AtomicBool::new(true),
            },
        }
    }

    /// Makes an event of the same class with these fields; `own` is what a subclass keeps besides.
    fn again<'py>(
        slf: &Bound<'py, Self>,
        fields: [Py<PyAny>; 8],
        own: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let fields = PyTuple::new(py, fields)?;
        if is_plain(slf) {
            return slf.get_type().call1(fields);
        }
        let again = py.import("eventbus.types")?.getattr("made_again")?;
        again.call1((slf.get_type(), fields, own))
    }

    /// Fills a cell of an event that is being made; a second value is refused.
    fn fill(slf: &Bound<'_, Self>, index: usize, value: Bound<'_, PyAny>) -> PyResult<()> {
        let cell = slf.get().cells()[index];
        if is_plain(slf) || !cell.fill(value) {
            return Err(frozen(slf.py(), "assign to", NAMES[index])?);
        }
        Ok(())
    }
}

/// The fields in the order of the contract.
const NAMES: [&str; 8] =
    ["type", "topic", "payload", "timestamp", "event_id", "source", "correlation_id", "metadata"];

/// Whether this is an event of the class itself, whose fields stand in its cells.
#[inline]
fn is_plain(event: &Bound<'_, PyEvent>) -> bool {
    event.cast_exact::<PyEvent>().is_ok()
}

/// Returns what an event of a subclass keeps besides its fields: a dict.
fn kept<'py>(event: &Bound<'py, PyEvent>) -> PyResult<Bound<'py, PyAny>> {
    let py = event.py();
    if is_plain(event) {
        return Ok(py.None().into_bound(py));
    }
    py.import("eventbus.types")?.getattr("kept")?.call1((event,))
}

/// Returns which argument fills which field.
///
/// # Errors
/// `TypeError` as for any function: too many, unknown, twice, or missing.
fn arguments<'py>(
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<[Option<Bound<'py, PyAny>>; 8]> {
    let wrong = |what: String| PyTypeError::new_err(format!("Event() {what}"));
    let mut fields = [const { None }; 8];
    if args.len() > fields.len() {
        return Err(wrong(format!("takes 8 arguments but {} were given", args.len())));
    }
    for (field, value) in fields.iter_mut().zip(args.iter()) {
        *field = Some(value);
    }
    for (name, value) in kwargs.into_iter().flat_map(|kwargs| kwargs.iter()) {
        let name = name.extract::<String>()?;
        let Some(index) = NAMES.iter().position(|known| *known == name) else {
            return Err(wrong(format!("got an unexpected keyword argument '{name}'")));
        };
        if fields[index].replace(value).is_some() {
            return Err(wrong(format!("got multiple values for argument '{name}'")));
        }
    }
    if fields[0].is_none() || fields[1].is_none() {
        return Err(wrong("needs at least 'type' and 'topic'".into()));
    }
    Ok(fields)
}

fn lone_surrogate(path: &str) -> Error {
    Error::Encode { path: path.into(), reason: "lone surrogates cannot stand here".into() }
}

fn field(value: &Bound<'_, PyAny>, limits: &Limits, wire: Wire, path: &str) -> PyResult<Field> {
    if value.is_none() {
        return Ok(Field::Null);
    }
    if let Ok(text) = value.cast_exact::<PyString>()
        && let Ok(text) = text.to_str()
    {
        return Ok(Field::Text(text.into()));
    }
    Ok(Field::Value(convert::encode_value(value, limits, wire, path)?))
}

fn field_to_py<'py>(
    py: Python<'py>,
    field: &Field,
    limits: &Limits,
) -> PyResult<Bound<'py, PyAny>> {
    match field {
        Field::Null => Ok(py.None().into_bound(py)),
        Field::Text(text) => Ok(PyString::new(py, text).into_any()),
        Field::Value(bytes) => convert::decode_of_message(py, bytes, limits),
    }
}

pub(crate) fn event_id_of(
    value: &Bound<'_, PyAny>,
    limits: &Limits,
    wire: Wire,
) -> PyResult<EventId> {
    if let Ok(text) = value.cast_exact::<PyString>()
        && let Ok(text) = text.to_str()
        && let Ok(uuid) = uuid::Uuid::try_parse(text)
    {
        // Only the canonical form comes back as the same text.
        let mut buffer = uuid::Uuid::encode_buffer();
        if uuid.hyphenated().encode_lower(&mut buffer) == text {
            return Ok(EventId::Uuid(*uuid.as_bytes()));
        }
    }
    Ok(EventId::Other(field(value, limits, wire, "$.event_id")?))
}

#[pymethods]
impl PyEvent {
    #[new]
    #[classmethod]
    #[pyo3(signature = (*args, **kwargs))]
    fn new<'py>(
        class: &Bound<'py, PyType>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Self> {
        if !class.is(class.py().get_type::<Self>()) {
            // `__init__` fills it: that of a subclass may take other arguments.
            return Ok(Self::unfilled());
        }
        let [kind, topic, given @ ..] = arguments(args, kwargs)?;
        let missing = || class.py().None().into_bound(class.py());
        Ok(Self::made(kind.unwrap_or_else(missing), topic.unwrap_or_else(missing), given))
    }

    /// Fills an event of a subclass; one of the class itself is complete.
    #[pyo3(signature = (*args, **kwargs))]
    fn _fill<'py>(
        slf: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<()> {
        if is_plain(slf) {
            return Ok(());
        }
        for (index, value) in arguments(args, kwargs)?.into_iter().enumerate() {
            if let Some(value) = value {
                Self::fill(slf, index, value)?;
            }
        }
        Ok(())
    }

    #[getter]
    fn r#type(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let unfilled =
            || Err(PyAttributeError::new_err("the event has no type: call super().__init__()"));
        Ok(self.kind.get_or_make(py, unfilled)?.unbind())
    }

    #[getter]
    pub(crate) fn topic(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let topic = self.topic.get_or_make(py, || match &self.origin {
            Origin::Received(event, _) => Ok(PyString::new(py, &event.topic).into_any()),
            Origin::Made { .. } => Ok(py.None().into_bound(py)),
        })?;
        Ok(topic.unbind())
    }

    #[getter]
    fn payload(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let payload = self.payload.get_or_make(py, || match &self.origin {
            Origin::Received(event, limits) => {
                convert::decode_of_message(py, &event.payload, limits)
            }
            Origin::Made { .. } => Ok(PyDict::new(py).into_any()),
        })?;
        Ok(payload.unbind())
    }

    #[getter]
    fn timestamp(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let timestamp = self.timestamp.get_or_make(py, || match &self.origin {
            Origin::Made { micros, .. } => {
                time::datetime(py, &WallTime { micros: *micros, offset_micros: Some(0) })
            }
            Origin::Received(event, limits) => match &event.timestamp {
                Timestamp::Time(wall) => time::datetime(py, wall),
                Timestamp::Other(other) => field_to_py(py, other, limits),
            },
        })?;
        Ok(timestamp.unbind())
    }

    #[getter]
    fn event_id(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let text = |uuid: &[u8; 16]| {
            let mut buffer = uuid::Uuid::encode_buffer();
            let text = uuid::Uuid::from_bytes(*uuid).hyphenated();
            PyString::new(py, text.encode_lower(&mut buffer)).into_any()
        };
        let id = self.event_id.get_or_make(py, || match &self.origin {
            Origin::Made { uuid, .. } => Ok(text(uuid)),
            Origin::Received(event, limits) => match &event.event_id {
                EventId::Uuid(uuid) => Ok(text(uuid)),
                EventId::Other(other) => field_to_py(py, other, limits),
            },
        })?;
        Ok(id.unbind())
    }

    /// Alias of `event_id` (contract D7).
    #[getter]
    fn id(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.event_id(py)
    }

    #[getter]
    fn source(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.lazy(py, &self.source, |event| &event.source)
    }

    #[getter]
    fn correlation_id(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.lazy(py, &self.correlation_id, |event| &event.correlation_id)
    }

    #[getter]
    fn metadata(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let metadata = self.metadata.get_or_make(py, || match &self.origin {
            Origin::Received(event, limits) if !event.metadata.is_empty() => {
                convert::decode_of_message(py, &event.metadata, limits)
            }
            _ => Ok(PyDict::new(py).into_any()),
        })?;
        Ok(metadata.unbind())
    }

    #[setter]
    fn set_type(slf: &Bound<'_, Self>, value: Bound<'_, PyAny>) -> PyResult<()> {
        Self::fill(slf, 0, value)
    }

    #[setter]
    fn set_topic(slf: &Bound<'_, Self>, value: Bound<'_, PyAny>) -> PyResult<()> {
        Self::fill(slf, 1, value)
    }

    #[setter]
    fn set_payload(slf: &Bound<'_, Self>, value: Bound<'_, PyAny>) -> PyResult<()> {
        Self::fill(slf, 2, value)
    }

    #[setter]
    fn set_timestamp(slf: &Bound<'_, Self>, value: Bound<'_, PyAny>) -> PyResult<()> {
        Self::fill(slf, 3, value)
    }

    #[setter]
    fn set_event_id(slf: &Bound<'_, Self>, value: Bound<'_, PyAny>) -> PyResult<()> {
        Self::fill(slf, 4, value)
    }

    #[setter]
    fn set_source(slf: &Bound<'_, Self>, value: Bound<'_, PyAny>) -> PyResult<()> {
        Self::fill(slf, 5, value)
    }

    #[setter]
    fn set_correlation_id(slf: &Bound<'_, Self>, value: Bound<'_, PyAny>) -> PyResult<()> {
        Self::fill(slf, 6, value)
    }

    #[setter]
    fn set_metadata(slf: &Bound<'_, Self>, value: Bound<'_, PyAny>) -> PyResult<()> {
        Self::fill(slf, 7, value)
    }

    /// Returns a new dict of the eight fields; `type` is its value, `timestamp` its ISO text.
    fn to_dict<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyDict>> {
        let py = slf.py();
        let [kind, topic, payload, timestamp, event_id, source, correlation_id, metadata] =
            Self::fields(slf)?;
        let dict = PyDict::new(py);
        dict.set_item(intern!(py, "type"), kind.getattr(py, intern!(py, "value"))?)?;
        dict.set_item(intern!(py, "topic"), topic)?;
        dict.set_item(intern!(py, "payload"), payload)?;
        let timestamp = timestamp.call_method0(py, intern!(py, "isoformat"))?;
        dict.set_item(intern!(py, "timestamp"), timestamp)?;
        dict.set_item(intern!(py, "event_id"), event_id)?;
        dict.set_item(intern!(py, "source"), source)?;
        dict.set_item(intern!(py, "correlation_id"), correlation_id)?;
        dict.set_item(intern!(py, "metadata"), metadata)?;
        Ok(dict)
    }

    /// Builds an event from a mapping; only `type` and `topic` are required, unknown keys are
    /// ignored (contract D10).
    #[classmethod]
    fn from_dict<'py>(
        class: &Bound<'py, PyType>,
        data: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = class.py();
        let data = data.cast::<PyMapping>().map_err(|_| {
            PyTypeError::new_err(format!(
                "Event.from_dict needs a mapping, not {}",
                data.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string())
            ))
        })?;
        // The class stands for "absent": no mapping holds it as a value. `get`, because `[]` would
        // run `__missing__` of a defaultdict.
        let get = |key: &Bound<'py, PyString>| -> PyResult<Option<Bound<'py, PyAny>>> {
            let value = data.call_method1(intern!(py, "get"), (key, class))?;
            Ok(Some(value).filter(|value| !value.is(class)))
        };
        let required = |key: &Bound<'py, PyString>| -> PyResult<Bound<'py, PyAny>> {
            get(key)?.ok_or_else(|| PyKeyError::new_err((key.clone().unbind(),)))
        };
        let kind = required(intern!(py, "type"))?;
        let types = py.import(intern!(py, "eventbus.types"))?.getattr(intern!(py, "EventType"))?;
        let kind = types.call1((kind,))?;
        let topic = required(intern!(py, "topic"))?;
        let timestamp = match get(intern!(py, "timestamp"))? {
            Some(text) if text.is_instance_of::<PyString>() => Some(time::from_iso(&text)?),
            other => other,
        };
        let given = [
            get(intern!(py, "payload"))?,
            timestamp,
            get(intern!(py, "event_id"))?,
            get(intern!(py, "source"))?,
            get(intern!(py, "correlation_id"))?,
            get(intern!(py, "metadata"))?,
        ];
        if class.is(py.get_type::<Self>()) {
            return Ok(Bound::new(py, Self::made(kind, topic, given))?.into_any());
        }
        let fields = PyDict::new(py);
        for (name, value) in NAMES.iter().zip([Some(kind), Some(topic)].into_iter().chain(given)) {
            if let Some(value) = value {
                fields.set_item(name, value)?;
            }
        }
        class.call((), Some(&fields))
    }

    /// Returns a copy with another correlation id; everything else is the same object.
    fn with_correlation(slf: &Bound<'_, Self>, correlation_id: Bound<'_, PyAny>) -> PyResult<Self> {
        Self::with(slf, [None, None, Some(correlation_id), None])
    }

    fn __richcmp__(
        slf: &Bound<'_, Self>,
        other: &Bound<'_, PyAny>,
        op: CompareOp,
    ) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        if !matches!(op, CompareOp::Eq | CompareOp::Ne) {
            return Ok(py.NotImplemented());
        }
        let other = match other.cast::<Self>() {
            Ok(other) if other.get_type().is(slf.get_type()) => other.clone(),
            Ok(_) => return Ok(py.NotImplemented()),
            Err(_) => match adopted(other)? {
                Some(other) if is_plain(slf) => other,
                _ => return Ok(py.NotImplemented()),
            },
        };
        let own = PyTuple::new(py, Self::fields(slf)?)?;
        let same = own.eq(PyTuple::new(py, Self::fields(&other)?)?)?;
        let answer = if matches!(op, CompareOp::Eq) { same } else { !same };
        Ok(answer.into_pyobject(py)?.to_owned().into_any().unbind())
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let py = slf.py();
        let mut text = match is_plain(slf) {
            true => String::from("Event"),
            false => slf.get_type().qualname()?.to_string(),
        };
        for (index, (name, value)) in NAMES.iter().zip(Self::fields(slf)?).enumerate() {
            text.push_str(if index == 0 { "(" } else { ", " });
            text.push_str(name);
            text.push('=');
            text.push_str(value.bind(py).repr()?.to_str()?);
        }
        text.push(')');
        Ok(text)
    }

    /// Shows what a cycle may lead through.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.cells().iter().try_for_each(|cell| cell.traverse(&visit))
    }

    fn __clear__(&self) {
        self.cells().iter().for_each(|cell| cell.clear());
    }

    fn __copy__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        if is_plain(slf) {
            let copy = Self::with(slf, [const { None }; 4])?;
            return Ok(Bound::new(slf.py(), copy)?.into_any());
        }
        Self::again(slf, Self::fields(slf)?, kept(slf)?)
    }

    fn __deepcopy__<'py>(
        slf: &Bound<'py, Self>,
        memo: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let deepcopy = py.import("copy")?.getattr("deepcopy")?;
        let mut copied = Self::fields(slf)?;
        for value in &mut copied {
            *value = deepcopy.call1((&*value, memo))?.unbind();
        }
        let own = deepcopy.call1((kept(slf)?, memo))?;
        Self::again(slf, copied, own)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        let fields = PyTuple::new(py, Self::fields(slf)?)?;
        if is_plain(slf) {
            return (slf.get_type(), fields).into_pyobject(py);
        }
        let again = py.import("eventbus.types")?.getattr("made_again")?;
        (again, (slf.get_type(), fields, kept(slf)?)).into_pyobject(py)
    }
}

/// Returns the event that an event of the original DataKnobs package stands for.
pub(crate) fn adopted<'py>(other: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyEvent>>> {
    static ADOPT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = other.py();
    let known = other.is_exact_instance_of::<PyDict>()
        || other.is_exact_instance_of::<PyString>()
        || other.is_exact_instance_of::<PyInt>()
        || other.is_exact_instance_of::<PyList>()
        || other.is_none();
    if known {
        return Ok(None);
    }
    let adopt = ADOPT.get_or_try_init(py, || {
        py.import("eventbus.originals")?.getattr("adopt").map(Bound::unbind)
    })?;
    let event = adopt.bind(py).call1((other,))?;
    Ok(event.cast_into::<PyEvent>().ok())
}

fn frozen(py: Python<'_>, what: &str, name: &str) -> PyResult<PyErr> {
    let class = py.import("dataclasses")?.getattr("FrozenInstanceError")?;
    let text = format!("cannot {what} field '{name}'; use dataclasses.replace(event, …)");
    let error = class.call1((text,))?;
    debug_assert!(error.is_instance_of::<PyAttributeError>());
    Ok(PyErr::from_value(error))
}
