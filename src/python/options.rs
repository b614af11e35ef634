//! Arguments from Python → core values, and core values → plain Python ones.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDateTime, PyDelta, PyDeltaAccess, PyDict, PyInt, PyList, PyString};

use super::convert::{self, time};
use super::errors::DecodeError;
use super::event::{PyEvent, event_id_of};
use crate::backend::{
    DeadLetter, Due, EventKey, Message, MessageId, MessageInfo, Op, Overflow, Record, Since,
};
use crate::bus::{Bus, ConsumeOptions, fresh_defaults};
use crate::codec::{self, Limits, Wire};
use crate::error::{Error, Result};
use crate::event::{EventId, Field, WallTime};
use crate::retry::RetryPolicy;
use crate::topic::{self, Binding};

/// Longest key, dedup id or unique key in bytes.
const MAX_KEY: usize = 255;
/// Longest record key in bytes.
const MAX_RECORD_KEY: usize = 1024;
/// Most messages and bytes of one `publish_many`.
const MAX_BATCH: usize = 1_000;
const MAX_BATCH_BYTES: usize = 8 << 20;

/// The keyword arguments of `publish` as they came.
pub(crate) struct RawOptions {
    pub(crate) key: Option<Py<PyAny>>,
    pub(crate) delay: Option<Py<PyAny>>,
    pub(crate) at: Option<Py<PyAny>>,
    pub(crate) priority: Option<Py<PyAny>>,
    pub(crate) dedup_id: Option<Py<PyAny>>,
    pub(crate) unique: Option<Py<PyAny>>,
    pub(crate) expires_after: Option<Py<PyAny>>,
    pub(crate) correlation_id: Option<Py<PyAny>>,
    pub(crate) source: Option<Py<PyAny>>,
    pub(crate) metadata: Option<Py<PyAny>>,
    pub(crate) event_id: Option<Py<PyAny>>,
}

/// The keyword arguments of `publish`, checked.
pub(crate) struct PublishOptions {
    key: Option<Box<str>>,
    pub(crate) due: Due,
    priority: i16,
    pub(crate) dedup_id: Option<Box<str>>,
    unique: Option<Box<str>>,
    expires_after: Option<Duration>,
    correlation_id: Option<Py<PyAny>>,
    source: Option<Py<PyAny>>,
    metadata: Option<Py<PyAny>>,
    event_id: Option<Py<PyAny>>,
}

/// How many keyword arguments `publish` takes.
pub(crate) const OPTIONS: usize = 11;

impl RawOptions {
    const NAMES: [&str; OPTIONS] = [
        "key",
        "delay",
        "at",
        "priority",
        "dedup_id",
        "unique",
        "expires_after",
        "correlation_id",
        "source",
        "metadata",
        "event_id",
    ];

    /// Takes the values in the order of `NAMES`.
    pub(crate) fn from_values(given: [Option<Bound<'_, PyAny>>; OPTIONS]) -> Self {
        let [
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
        ] = given.map(|value| value.map(Bound::unbind));
        Self {
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
        }
    }

    /// Returns the values in the order of `NAMES` as keyword arguments.
    pub(crate) fn to_dict<'py>(
        py: Python<'py>,
        given: [Option<Bound<'py, PyAny>>; OPTIONS],
    ) -> PyResult<Bound<'py, PyDict>> {
        let options = PyDict::new(py);
        for (name, value) in Self::NAMES.iter().zip(given) {
            if let Some(value) = value {
                options.set_item(name, value)?;
            }
        }
        Ok(options)
    }

    pub(crate) fn from_dict(options: &Bound<'_, PyDict>) -> PyResult<Self> {
        let mut given = [const { None }; OPTIONS];
        for (name, value) in options {
            let name: String = name.extract()?;
            let Some(place) = Self::NAMES.iter().position(|known| *known == name) else {
                let valid = Self::NAMES.join(", ");
                return Err(PyTypeError::new_err(format!(
                    "publish() got an unexpected keyword argument '{name}'; valid: {valid}"
                )));
            };
            given[place] = Some(value).filter(|value| !value.is_none());
        }
        Ok(Self::from_values(given))
    }

    pub(crate) fn parse(self, py: Python<'_>) -> PyResult<PublishOptions> {
        let due = match (&self.delay, &self.at) {
            (None, None) => Due::Now,
            (Some(delay), None) => Due::After(seconds("delay", delay.bind(py))?),
            (None, Some(at)) => Due::At(epoch_micros("at", at.bind(py))?),
            (Some(_), Some(_)) => {
                return Err(PyTypeError::new_err("give delay or at, not both"));
            }
        };
        let priority = match &self.priority {
            None => 0,
            Some(priority) => {
                let priority = priority.bind(py);
                if !priority.is_instance_of::<PyInt>() {
                    return Err(wrong_type("priority", "an int", priority));
                }
                priority.extract::<i16>().map_err(|_| Error::InvalidArgument {
                    what: "priority",
                    value: priority.to_string(),
                    rule: "must be from -32768 to 32767",
                })?
            }
        };
        let expires_after = match &self.expires_after {
            None => None,
            Some(expires) => Some(seconds("expires_after", expires.bind(py))?),
        };
        for (what, value) in [("source", &self.source), ("correlation_id", &self.correlation_id)] {
            if let Some(value) = value
                && !value.bind(py).is_instance_of::<PyString>()
            {
                return Err(wrong_type(what, "a str", value.bind(py)));
            }
        }
        if let Some(metadata) = &self.metadata
            && !metadata.bind(py).is_instance_of::<PyDict>()
        {
            return Err(wrong_type("metadata", "a dict", metadata.bind(py)));
        }
        Ok(PublishOptions {
            key: text_option(py, "key", self.key.as_ref())?,
            due,
            priority,
            dedup_id: text_option(py, "dedup_id", self.dedup_id.as_ref())?,
            unique: text_option(py, "unique", self.unique.as_ref())?,
            expires_after,
            correlation_id: self.correlation_id,
            source: self.source,
            metadata: self.metadata,
            event_id: event_id_option(py, self.event_id)?,
        })
    }
}

impl PublishOptions {
    /// Whether fields of the event are replaced.
    pub(crate) fn overrides(&self) -> bool {
        self.fields().iter().any(|field| field.is_some())
    }

    /// Returns event id, source, correlation id and metadata.
    fn fields(&self) -> [&Option<Py<PyAny>>; 4] {
        [&self.event_id, &self.source, &self.correlation_id, &self.metadata]
    }

    /// Returns them as bound to the interpreter.
    pub(crate) fn replaced<'py>(&self, py: Python<'py>) -> [Option<Bound<'py, PyAny>>; 4] {
        self.fields().map(|value| value.as_ref().map(|value| value.bind(py).clone()))
    }
}

/// The error for an argument of another type.
pub(crate) fn wrong_type(what: &str, wanted: &str, value: &Bound<'_, PyAny>) -> PyErr {
    let class = value.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string());
    PyTypeError::new_err(format!("{what} must be {wanted}, not {class}"))
}

fn text_option(
    py: Python<'_>,
    what: &'static str,
    value: Option<&Py<PyAny>>,
) -> PyResult<Option<Box<str>>> {
    let Some(value) = value else { return Ok(None) };
    let value = value.bind(py);
    let text = value.cast::<PyString>().map_err(|_| wrong_type(what, "a str", value))?;
    Ok(Some(short_text(what, text.to_str()?)?.into()))
}

fn short_text<'a>(what: &'static str, text: &'a str) -> Result<&'a str> {
    if text.is_empty() || text.len() > MAX_KEY {
        let value = format!("of {} bytes", text.len());
        return Err(Error::InvalidArgument { what, value, rule: "must be 1 to 255 bytes" });
    }
    Ok(text)
}

/// Reads an event id as text: as it is, or of a `uuid.UUID`.
fn event_id_option(py: Python<'_>, value: Option<Py<PyAny>>) -> PyResult<Option<Py<PyAny>>> {
    let Some(value) = value else { return Ok(None) };
    let value = value.bind(py);
    let text = match value.cast::<PyString>() {
        Ok(text) => text.clone(),
        Err(_) if is_uuid(value)? => value.str()?,
        Err(_) => return Err(wrong_type("event_id", "a str or a UUID", value)),
    };
    short_text("event_id", text.to_str()?)?;
    Ok(Some(text.into_any().unbind()))
}

fn is_uuid(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    let class = value.get_type();
    Ok(class.name()? == "UUID" && class.module()? == "uuid")
}

/// Reads which event is meant: an event, or its id as text or UUID.
pub(crate) fn event_key(value: &Bound<'_, PyAny>, limits: &Limits) -> PyResult<EventKey> {
    let refused = |value: String| {
        let rule = "must be the event_id of a published event, and not empty";
        Error::InvalidArgument { what: "event_id", value, rule }
    };
    if let Ok(text) = value.cast::<PyString>() {
        let shown = || format!("{:?}", text.to_string_lossy().chars().take(80).collect::<String>());
        let text = text.to_str().map_err(|_| refused(shown()))?;
        if text.is_empty() {
            return Err(refused(shown()).into());
        }
        return Ok(EventId::of(Field::Text(text.into())).key());
    }
    if is_uuid(value)? {
        return Ok(EventId::of(Field::Text(value.str()?.to_str()?.into())).key());
    }
    let Some(id) = value.getattr_opt(pyo3::intern!(value.py(), "event_id"))? else {
        return Err(wrong_type("event", "an Event, its event_id or a UUID", value));
    };
    if id.is_none() || id.eq("").unwrap_or(false) {
        return Err(refused(id.repr()?.to_string()).into());
    }
    Ok(event_id_of(&id, limits, Wire::Native)?.key())
}

/// Builds the message of a publish.
pub(crate) fn message(
    topic: &Arc<str>,
    (id, event, body): (MessageId, EventKey, Bytes),
    options: Option<&PublishOptions>,
    broadcast: bool,
) -> Message {
    let mut message = Message {
        id,
        topic: Arc::clone(topic),
        event,
        body,
        key: None,
        priority: 0,
        due: Due::Now,
        expires_after: None,
        dedup_id: None,
        unique: None,
        broadcast,
    };
    if let Some(options) = options {
        message.key.clone_from(&options.key);
        message.priority = options.priority;
        message.due = options.due;
        message.expires_after = options.expires_after;
        message.dedup_id.clone_from(&options.dedup_id);
        message.unique.clone_from(&options.unique);
    }
    message
}

/// Refuses a batch that is too large to be one transaction.
pub(crate) fn check_batch(ops: &[Op]) -> Result<()> {
    let bytes: usize = ops
        .iter()
        .map(|op| match op {
            Op::Publish(message) => message.body.len(),
            _ => 0,
        })
        .sum();
    let too_large = |what, size: usize, limit: usize| Error::TooLarge {
        what,
        size: size as u64,
        limit: limit as u64,
        remedy: "split the batch: each call of publish_many is one transaction",
    };
    if ops.len() > MAX_BATCH {
        return Err(too_large("batch messages", ops.len(), MAX_BATCH));
    }
    if bytes > MAX_BATCH_BYTES {
        return Err(too_large("batch bytes", bytes, MAX_BATCH_BYTES));
    }
    Ok(())
}

/// Returns a topic or pattern as str.
#[inline]
pub(crate) fn topic_text<'a, 'py>(
    topic: &'a Bound<'py, PyAny>,
    what: &str,
) -> PyResult<&'a Bound<'py, PyString>> {
    topic.cast::<PyString>().map_err(|_| wrong_type(what, "a str", topic))
}

/// Returns its UTF-8 text.
#[inline]
pub(crate) fn topic_str<'a>(text: &'a Bound<'_, PyString>) -> Result<&'a str> {
    text.to_str().map_err(|error| Error::Topic {
        what: "topic",
        name: text.to_string_lossy().chars().take(80).collect(),
        rule: format!("cannot be encoded in UTF-8: {error}"),
    })
}

/// Reads a number of seconds or a timedelta.
pub(crate) fn seconds(what: &'static str, value: &Bound<'_, PyAny>) -> PyResult<Duration> {
    if let Ok(delta) = value.cast::<PyDelta>() {
        let whole = f64::from(delta.get_days()) * 86_400.0 + f64::from(delta.get_seconds());
        return Ok(seconds_value(what, whole + f64::from(delta.get_microseconds()) / 1e6)?);
    }
    let number: f64 =
        value.extract().map_err(|_| wrong_type(what, "seconds or a timedelta", value))?;
    Ok(seconds_value(what, number)?)
}

/// Checks a number of seconds.
pub(crate) fn seconds_value(what: &'static str, number: f64) -> Result<Duration> {
    // 100 years: far beyond any use, and far below what overflows.
    if !(0.0..=3_155_760_000.0).contains(&number) {
        return Err(Error::InvalidArgument {
            what,
            value: number.to_string(),
            rule: "must be seconds from 0 to 3155760000 (100 years)",
        });
    }
    Ok(Duration::from_secs_f64(number))
}

/// Reads an aware datetime as microseconds since the epoch.
pub(crate) fn epoch_micros(what: &'static str, value: &Bound<'_, PyAny>) -> PyResult<i64> {
    if !value.is_instance_of::<PyDateTime>() {
        let class = value.get_type().name()?;
        return Err(PyTypeError::new_err(format!("{what} must be a datetime, not {class}")));
    }
    match time::wall_time(value)? {
        Some(WallTime { micros, offset_micros: Some(offset) }) => Ok(micros - offset),
        _ => Err(Error::InvalidArgument {
            what,
            value: value.to_string(),
            rule: "must have a time zone, as datetime.now(timezone.utc) has",
        }
        .into()),
    }
}

/// Reads where a replay begins: `"beginning"`, an event's id as text or UUID, or an aware datetime.
pub(crate) fn since(value: &Bound<'_, PyAny>) -> PyResult<Since> {
    let event = |text: &str| Since::Event(EventId::of(Field::Text(text.into())).key());
    if let Ok(text) = value.cast::<PyString>() {
        let unreadable = |_| Error::InvalidArgument {
            what: "since",
            value: text.to_string_lossy().chars().take(80).collect(),
            rule: "must be text that can be encoded in UTF-8",
        };
        return match text.to_str().map_err(unreadable)? {
            "beginning" => Ok(Since::Beginning),
            "" => Err(Error::InvalidArgument {
                what: "since",
                value: "''".into(),
                rule: "must be 'beginning', an event_id or a datetime",
            }
            .into()),
            id => Ok(event(id)),
        };
    }
    if value.is_instance_of::<PyDateTime>() {
        return Ok(Since::Time(epoch_micros("since", value)?));
    }
    if is_uuid(value)? {
        return Ok(event(value.str()?.to_str()?));
    }
    let class = value.get_type().name()?;
    let text = format!("since must be 'beginning', an event_id or a datetime, not {class}");
    Err(PyTypeError::new_err(text))
}

/// Reads an overflow policy.
pub(crate) fn overflow(name: &str) -> Result<Overflow> {
    match name {
        "drop_oldest" => Ok(Overflow::DropOldest),
        "drop_newest" => Ok(Overflow::DropNewest),
        "close" => Ok(Overflow::Close),
        other => Err(Error::InvalidArgument {
            what: "overflow",
            value: format!("{other:?}"),
            rule: "must be 'drop_oldest', 'drop_newest' or 'close'",
        }),
    }
}

/// Checks a record key.
pub(crate) fn record_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > MAX_RECORD_KEY {
        return Err(Error::InvalidArgument {
            what: "record key",
            value: format!("of {} bytes", key.len()),
            rule: "must be 1 to 1024 bytes",
        });
    }
    Ok(())
}

/// The options of `consume`, mirrored from `eventbus.config.ConsumeOptions`.
#[derive(FromPyObject)]
pub(crate) struct PyConsumeOptions {
    group: String,
    concurrency: usize,
    batch: Option<usize>,
    lease: f64,
    max_lease: f64,
    max_length: Option<u64>,
    retry: PyRetryPolicy,
}

/// `eventbus.RetryPolicy`.
#[derive(FromPyObject)]
struct PyRetryPolicy {
    max_attempts: u32,
    max_deliveries: u32,
    base: f64,
    cap: f64,
    factor: f64,
}

impl PyConsumeOptions {
    /// Converts; the Python class checked ranges when it was made.
    pub(crate) fn into_core(self, bindings: Vec<Binding>, ahead: bool) -> Result<ConsumeOptions> {
        topic::validate_group(&self.group)?;
        Ok(ConsumeOptions {
            group: self.group.into(),
            bindings,
            // A batch is one call's worth: it must fit into the hands.
            concurrency: self.concurrency.max(self.batch.unwrap_or(0)),
            lease: seconds_value("lease", self.lease)?,
            max_lease: seconds_value("max_lease", self.max_lease)?,
            retry: RetryPolicy {
                max_attempts: self.retry.max_attempts,
                max_deliveries: self.retry.max_deliveries,
                base: seconds_value("base", self.retry.base)?,
                cap: seconds_value("cap", self.retry.cap)?,
                factor: self.retry.factor,
            },
            max_length: self.max_length,
            ahead,
        })
    }
}

/// Renders a record as (key, version, value).
pub(crate) fn record(py: Python<'_>, record: &Record, limits: &Limits) -> PyResult<Py<PyAny>> {
    let value = convert::decode_value(py, &record.value, limits)?;
    Ok((&*record.key, record.version, value).into_pyobject(py)?.into_any().unbind())
}

/// Renders a record of a page as (key, version, value, why it has none): one that cannot be decoded
/// keeps nobody from the others.
pub(crate) fn scanned(py: Python<'_>, record: &Record, limits: &Limits) -> PyResult<Py<PyAny>> {
    let (value, error) = match convert::decode_value(py, &record.value, limits) {
        Ok(value) => (value.into_any(), None),
        Err(error) if error.is_instance_of::<DecodeError>(py) => {
            (py.None().into_bound(py), Some(error.into_value(py)))
        }
        Err(error) => return Err(error),
    };
    Ok((&*record.key, record.version, value, error).into_pyobject(py)?.into_any().unbind())
}

/// Renders a count.
pub(crate) fn number(py: Python<'_>, count: u64) -> PyResult<Py<PyAny>> {
    Ok(count.into_pyobject(py)?.into_any().unbind())
}

/// Renders a message id as the text of a UUID.
pub(crate) fn id_text(id: &MessageId) -> String {
    uuid::Uuid::from_bytes(*id).hyphenated().to_string()
}

/// Reads a message id.
pub(crate) fn message_id(text: &str) -> Result<MessageId> {
    let id = uuid::Uuid::try_parse(text).map_err(|_| Error::InvalidArgument {
        what: "message id",
        value: format!("{text:?}"),
        rule: "must be the text of a UUID, as in delivery.message_id",
    })?;
    Ok(*id.as_bytes())
}

/// Renders microseconds since the epoch as an aware datetime.
pub(crate) fn utc_time(py: Python<'_>, micros: i64) -> PyResult<Py<PyAny>> {
    Ok(time::datetime(py, &WallTime { micros, offset_micros: Some(0) })?.unbind())
}

/// Renders messages as dicts.
pub(crate) fn message_infos(py: Python<'_>, copies: &[MessageInfo]) -> PyResult<Py<PyAny>> {
    let list = PyList::empty(py);
    for copy in copies {
        let dict = PyDict::new(py);
        dict.set_item("group", &*copy.group)?;
        dict.set_item("message_id", id_text(&copy.message))?;
        dict.set_item("topic", &*copy.topic)?;
        dict.set_item("state", pythonize::pythonize(py, &copy.state)?)?;
        dict.set_item("at", utc_time(py, copy.at)?)?;
        dict.set_item("attempts", copy.attempts)?;
        dict.set_item("priority", copy.priority)?;
        list.append(dict)?;
    }
    Ok(list.into_any().unbind())
}

/// Renders dead letters as dicts; `event` is `None` when the body cannot be decoded, or has no
/// signature where the bus wants one.
pub(crate) fn dead_letters(
    py: Python<'_>,
    letters: Vec<DeadLetter>,
    bus: &Bus,
) -> PyResult<Py<PyAny>> {
    let list = PyList::empty(py);
    for letter in letters {
        let dict = PyDict::new(py);
        dict.set_item("group", &*letter.group)?;
        dict.set_item("message_id", id_text(&letter.message))?;
        dict.set_item("topic", &*letter.topic)?;
        dict.set_item("reason", pythonize::pythonize(py, &letter.reason)?)?;
        dict.set_item("error", letter.error)?;
        dict.set_item("attempts", letter.attempts)?;
        dict.set_item("crashes", letter.crashes)?;
        dict.set_item("died_at", utc_time(py, letter.died_at)?)?;
        dict.set_item("body", PyBytes::new(py, &letter.body))?;
        let trusted = bus.trusts(&letter.topic, &letter.body);
        let decode = || codec::decode(&letter.body, bus.limits(), fresh_defaults);
        let event = match trusted.then(decode) {
            Some(Ok(event)) => Some(Py::new(py, PyEvent::received(py, event, *bus.limits())?)?),
            Some(Err(_)) | None => None,
        };
        dict.set_item("event", event)?;
        list.append(dict)?;
    }
    Ok(list.into_any().unbind())
}
