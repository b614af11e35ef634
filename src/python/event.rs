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
use pyo3::types::{PyDict, PyMapping, PyString, PyTuple, PyType};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::convert;
use super::convert::time;
use super::exit;
use super::lazy::Lazy;
use super::runtime;
use crate::backend::{EventKey, MessageId, identity};
use crate::clock::{Clock, SystemClock};
use crate::codec::Limits;
use crate::error::Error;
use crate::event::{Event, EventId, EventType, Field, Timestamp, WallTime};

/// An argument that may be absent; an explicit `None` is present.
pub(crate) struct Arg<'py>(Option<Bound<'py, PyAny>>);

impl<'py> FromPyObject<'_, 'py> for Arg<'py> {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self(Some(value.to_owned())))
    }
}

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
#[pyclass(frozen, name = "Event", module = "eventbus")]
pub(crate) struct PyEvent {
    kind: Py<PyAny>,
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
            kind: kind.unbind(),
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
            kind: member(py, EventType::Custom)?,
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
            kind: member(py, event.kind)?,
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

    /// Returns a copy in which the given fields are replaced: event id, source, correlation id,
    /// metadata. If it keeps the identity, its message is the first instead of this one's.
    pub(crate) fn with(
        &self,
        py: Python<'_>,
        [event_id, source, correlation_id, metadata]: [Option<Bound<'_, PyAny>>; 4],
    ) -> PyResult<Self> {
        let (uuid, is_first) = match &self.origin {
            Origin::Made { uuid, is_first, .. } if event_id.is_none() => {
                (*uuid, is_first.swap(false, Ordering::Relaxed))
            }
            _ => ([0; 16], false),
        };
        let or = |given: Option<Bound<'_, PyAny>>, own: PyResult<Py<PyAny>>| -> PyResult<Lazy> {
            let value = match given {
                Some(value) => value,
                None => own?.into_bound(py),
            };
            Ok(Lazy::filled(Some(value)))
        };
        Ok(Self {
            kind: self.kind.clone_ref(py),
            topic: or(None, self.topic(py))?,
            payload: or(None, self.payload(py))?,
            timestamp: or(None, self.timestamp(py))?,
            event_id: or(event_id, self.event_id(py))?,
            source: or(source, self.source(py))?,
            correlation_id: or(correlation_id, self.correlation_id(py))?,
            metadata: or(metadata, self.metadata(py))?,
            origin: Origin::Made { micros: 0, uuid, is_first: AtomicBool::new(is_first) },
        })
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
        published_on: &Arc<str>,
    ) -> PyResult<Event> {
        if let Origin::Received(event, _) = &self.origin
            && self.payload.get(py).is_none()
            && self.metadata.get(py).is_none()
        {
            return Ok(Event::clone(event));
        }
        let payload = match self.payload.get(py) {
            Some(payload) => convert::encode_value(&payload, limits, "$.payload")?,
            None => convert::empty_map(),
        };
        let metadata = match self.metadata.get(py) {
            Some(metadata) => convert::encode_value(&metadata, limits, "$.metadata")?,
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
                None => Timestamp::Other(field(&value, limits, "$.timestamp")?),
            },
        };
        let event_id = match self.event_id.get(py) {
            None => match &self.origin {
                Origin::Made { uuid, .. } => EventId::Uuid(*uuid),
                Origin::Received(event, _) => event.event_id.clone(),
            },
            Some(value) => event_id_of(&value, limits)?,
        };
        Ok(Event {
            kind: kind_of(py, self.kind.bind(py))?,
            topic: match topic.to_str().map_err(|_| lone_surrogate("$.topic"))? {
                same if *same == **published_on => Arc::clone(published_on),
                other => other.into(),
            },
            payload,
            timestamp,
            event_id,
            source: self.field_of(py, &self.source, |event| &event.source, limits, "$.source")?,
            correlation_id: self.field_of(
                py,
                &self.correlation_id,
                |event| &event.correlation_id,
                limits,
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
        path: &str,
    ) -> PyResult<Field> {
        match (cell.get(py), &self.origin) {
            (Some(value), _) => field(&value, limits, path),
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

    fn cells(&self) -> [&Lazy; 7] {
        [
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
    fn fields(&self, py: Python<'_>) -> PyResult<[Py<PyAny>; 8]> {
        Ok([
            self.kind.clone_ref(py),
            self.topic(py)?,
            self.payload(py)?,
            self.timestamp(py)?,
            self.event_id(py)?,
            self.source(py)?,
            self.correlation_id(py)?,
            self.metadata(py)?,
        ])
    }
}

fn lone_surrogate(path: &str) -> Error {
    Error::Encode { path: path.into(), reason: "lone surrogates cannot stand here".into() }
}

fn field(value: &Bound<'_, PyAny>, limits: &Limits, path: &str) -> PyResult<Field> {
    if value.is_none() {
        return Ok(Field::Null);
    }
    if let Ok(text) = value.cast_exact::<PyString>()
        && let Ok(text) = text.to_str()
    {
        return Ok(Field::Text(text.into()));
    }
    Ok(Field::Value(convert::encode_value(value, limits, path)?))
}

fn field_to_py<'py>(
    py: Python<'py>,
    field: &Field,
    limits: &Limits,
) -> PyResult<Bound<'py, PyAny>> {
    match field {
        Field::Null => Ok(py.None().into_bound(py)),
        Field::Text(text) => Ok(PyString::new(py, text).into_any()),
        Field::Value(bytes) => convert::decode_value(py, bytes, limits),
    }
}

pub(crate) fn event_id_of(value: &Bound<'_, PyAny>, limits: &Limits) -> PyResult<EventId> {
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
    Ok(EventId::Other(field(value, limits, "$.event_id")?))
}

#[pymethods]
impl PyEvent {
    #[new]
    #[pyo3(signature = (
        r#type, topic, payload=Arg(None), timestamp=Arg(None), event_id=Arg(None),
        source=Arg(None), correlation_id=Arg(None), metadata=Arg(None)
    ))]
    #[allow(clippy::too_many_arguments)]
    fn new<'py>(
        py: Python<'py>,
        r#type: Bound<'py, PyAny>,
        topic: Bound<'py, PyAny>,
        payload: Arg<'py>,
        timestamp: Arg<'py>,
        event_id: Arg<'py>,
        source: Arg<'py>,
        correlation_id: Arg<'py>,
        metadata: Arg<'py>,
    ) -> Self {
        let _ = py;
        let given = [payload.0, timestamp.0, event_id.0, source.0, correlation_id.0, metadata.0];
        Self::made(r#type, topic, given)
    }

    #[getter]
    fn r#type(&self, py: Python<'_>) -> Py<PyAny> {
        self.kind.clone_ref(py)
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
            Origin::Received(event, limits) => convert::decode_value(py, &event.payload, limits),
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
                convert::decode_value(py, &event.metadata, limits)
            }
            _ => Ok(PyDict::new(py).into_any()),
        })?;
        Ok(metadata.unbind())
    }

    /// Returns a new dict of the eight fields; `type` is its value, `timestamp` its ISO text.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item(intern!(py, "type"), self.kind.getattr(py, intern!(py, "value"))?)?;
        dict.set_item(intern!(py, "topic"), self.topic(py)?)?;
        dict.set_item(intern!(py, "payload"), self.payload(py)?)?;
        let timestamp = self.timestamp(py)?.call_method0(py, intern!(py, "isoformat"))?;
        dict.set_item(intern!(py, "timestamp"), timestamp)?;
        dict.set_item(intern!(py, "event_id"), self.event_id(py)?)?;
        dict.set_item(intern!(py, "source"), self.source(py)?)?;
        dict.set_item(intern!(py, "correlation_id"), self.correlation_id(py)?)?;
        dict.set_item(intern!(py, "metadata"), self.metadata(py)?)?;
        Ok(dict)
    }

    /// Builds an event from a mapping; only `type` and `topic` are required, unknown keys are
    /// ignored (contract D10).
    #[classmethod]
    fn from_dict<'py>(class: &Bound<'py, PyType>, data: &Bound<'py, PyAny>) -> PyResult<Self> {
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
        Ok(Self::new(
            py,
            kind,
            topic,
            Arg(get(intern!(py, "payload"))?),
            Arg(timestamp),
            Arg(get(intern!(py, "event_id"))?),
            Arg(get(intern!(py, "source"))?),
            Arg(get(intern!(py, "correlation_id"))?),
            Arg(get(intern!(py, "metadata"))?),
        ))
    }

    /// Returns a copy with another correlation id; everything else is the same object.
    fn with_correlation(&self, py: Python<'_>, correlation_id: Bound<'_, PyAny>) -> PyResult<Self> {
        self.with(py, [None, None, Some(correlation_id), None])
    }

    fn __richcmp__(
        &self,
        py: Python<'_>,
        other: &Bound<'_, PyAny>,
        op: CompareOp,
    ) -> PyResult<Py<PyAny>> {
        let same = match (op, other.cast_exact::<Self>()) {
            (CompareOp::Eq | CompareOp::Ne, Ok(other)) => {
                let (own, others) = (self.fields(py)?, other.get().fields(py)?);
                let own = PyTuple::new(py, own)?;
                own.eq(PyTuple::new(py, others)?)?
            }
            _ => return Ok(py.NotImplemented()),
        };
        let answer = if matches!(op, CompareOp::Eq) { same } else { !same };
        Ok(answer.into_pyobject(py)?.to_owned().into_any().unbind())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        const NAMES: [&str; 8] = [
            "type",
            "topic",
            "payload",
            "timestamp",
            "event_id",
            "source",
            "correlation_id",
            "metadata",
        ];
        let mut text = String::from("Event(");
        for (index, (name, value)) in NAMES.iter().zip(self.fields(py)?).enumerate() {
            if index > 0 {
                text.push_str(", ");
            }
            text.push_str(name);
            text.push('=');
            text.push_str(value.bind(py).repr()?.to_str()?);
        }
        text.push(')');
        Ok(text)
    }

    fn __setattr__(&self, py: Python<'_>, name: &str, _value: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(frozen(py, "assign to", name)?)
    }

    fn __delattr__(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        Err(frozen(py, "delete", name)?)
    }

    /// Shows what a cycle may lead through; type and topic are plain values in practice.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(Some(&self.kind))?;
        self.cells().iter().try_for_each(|cell| cell.traverse(&visit))
    }

    fn __clear__(&self) {
        self.cells().iter().for_each(|cell| cell.clear());
    }

    fn __copy__(slf: Bound<'_, Self>) -> PyResult<Self> {
        slf.get().with(slf.py(), [None, None, None, None])
    }

    fn __deepcopy__<'py>(
        slf: Bound<'py, Self>,
        memo: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let deepcopy = py.import("copy")?.getattr("deepcopy")?;
        let values = slf.get().fields(py)?;
        let copied = values
            .into_iter()
            .map(|value| deepcopy.call1((value, memo)))
            .collect::<PyResult<Vec<_>>>()?;
        slf.get_type().call1(PyTuple::new(py, copied)?)
    }

    fn __reduce__<'py>(
        slf: Bound<'py, Self>,
    ) -> PyResult<(Bound<'py, PyType>, Bound<'py, PyTuple>)> {
        let fields = PyTuple::new(slf.py(), slf.get().fields(slf.py())?)?;
        Ok((slf.get_type(), fields))
    }
}

fn frozen(py: Python<'_>, what: &str, name: &str) -> PyResult<PyErr> {
    let class = py.import("dataclasses")?.getattr("FrozenInstanceError")?;
    let text = format!("cannot {what} field '{name}'; use dataclasses.replace(event, …)");
    let error = class.call1((text,))?;
    debug_assert!(error.is_instance_of::<PyAttributeError>());
    Ok(PyErr::from_value(error))
}
