//! The classes `RedisClient` and `RedisSubscription`: single commands and channels of a server.

use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::exceptions::{PyStopAsyncIteration, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use super::bus::read_config;
use super::mailbox::Pending;
use super::runtime::{self, Origin};
use crate::backend::{Frame, Listener};
use crate::bus::{self, Reply};
use crate::ring::{Item, Ring};

/// One connection for commands and one for channels, made anew when they break.
#[pyclass(frozen, module = "eventbus._eventbus")]
pub(crate) struct RedisClient {
    client: Arc<bus::RedisClient>,
    origin: Origin,
}

/// Returns an argument of a command as the bytes that are sent.
fn argument(value: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Ok(bytes.as_bytes().to_vec());
    }
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(text.to_str()?.as_bytes().to_vec());
    }
    if value.is_instance_of::<PyInt>() || value.is_instance_of::<PyFloat>() {
        return Ok(value.str()?.to_str()?.as_bytes().to_vec());
    }
    let kind = value.get_type();
    let text = format!("an argument of a command must be str, bytes, int or float, not {kind}");
    Err(PyTypeError::new_err(text))
}

fn arguments(values: &Bound<'_, PyAny>) -> PyResult<Vec<Vec<u8>>> {
    values.try_iter()?.map(|value| argument(&value?)).collect()
}

fn to_py(py: Python<'_>, reply: Reply) -> PyResult<Py<PyAny>> {
    Ok(match reply {
        Reply::Nil => py.None(),
        Reply::Int(number) => number.into_pyobject(py)?.into_any().unbind(),
        Reply::Double(number) => number.into_pyobject(py)?.into_any().unbind(),
        Reply::Bytes(bytes) => PyBytes::new(py, &bytes).into_any().unbind(),
        Reply::List(replies) => {
            let items =
                replies.into_iter().map(|one| to_py(py, one)).collect::<PyResult<Vec<_>>>()?;
            PyList::new(py, items)?.into_any().unbind()
        }
    })
}

#[pymethods]
impl RedisClient {
    #[new]
    fn new(config: &Bound<'_, PyDict>) -> PyResult<Self> {
        let client = Arc::new(bus::redis_client(read_config(config)?)?);
        Ok(Self { client, origin: Origin::here() })
    }

    /// Connects; idempotent.
    fn connect(&self) -> PyResult<Pending> {
        self.origin.check()?;
        runtime::runtime()?;
        let client = Arc::clone(&self.client);
        Ok(Pending::nothing(async move { client.connect().await }).named("RedisClient.connect"))
    }

    /// Runs one command.
    #[pyo3(signature = (*args))]
    fn command(&self, args: &Bound<'_, PyTuple>) -> PyResult<Pending> {
        self.origin.check()?;
        let (client, args) = (Arc::clone(&self.client), arguments(args)?);
        Ok(Pending::new(move |_py| {
            Ok(Pending::run(async move { client.command(&args).await }, to_py))
        })
        .named("RedisClient.command"))
    }

    /// Runs a Lua script, by its digest after the first time.
    fn script(
        &self,
        text: String,
        keys: &Bound<'_, PyAny>,
        args: &Bound<'_, PyAny>,
    ) -> PyResult<Pending> {
        self.origin.check()?;
        let client = Arc::clone(&self.client);
        let (keys, args) = (arguments(keys)?, arguments(args)?);
        Ok(Pending::new(move |_py| {
            let run = async move { client.script(&text, &keys, &args).await };
            Ok(Pending::run(run, to_py))
        })
        .named("RedisClient.script"))
    }

    /// Subscribes to a channel; returns once the server confirmed it.
    fn subscribe(&self, channel: String, ring: usize) -> PyResult<Pending> {
        self.origin.check()?;
        let (client, origin) = (Arc::clone(&self.client), self.origin);
        Ok(Pending::new(move |_py| {
            let subscribe = async move { client.subscribe(&channel, ring).await };
            Ok(Pending::run(subscribe, move |py, listener| {
                let ring = Arc::clone(listener.buffer());
                let listener = Mutex::new(Some(listener));
                Ok(Py::new(py, RedisSubscription { ring, listener, origin })?.into_any())
            }))
        })
        .named("RedisClient.subscribe"))
    }

    /// Drops what comes on a channel with another first entry.
    fn keep(&self, channel: &str, keys: Vec<String>, values: Vec<String>) -> PyResult<()> {
        self.origin.check()?;
        self.client.keep(channel, keys, values);
        Ok(())
    }

    /// Disconnects. Idempotent.
    fn close(&self) -> PyResult<Pending> {
        self.origin.check()?;
        let client = Arc::clone(&self.client);
        Ok(Pending::nothing(async move {
            client.close().await;
            Ok(())
        })
        .named("RedisClient.close"))
    }
}

/// The messages of a channel, buffered, as an async iterator.
#[pyclass(frozen, module = "eventbus._eventbus")]
pub(crate) struct RedisSubscription {
    ring: Arc<Ring<Frame>>,
    listener: Mutex<Option<Box<dyn Listener>>>,
    origin: Origin,
}

#[pymethods]
impl RedisSubscription {
    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// Returns channel and message, or `None` for a gap; a cancelled wait loses nothing.
    fn __anext__(&self) -> PyResult<Pending> {
        self.origin.check()?;
        let ring = Arc::clone(&self.ring);
        Ok(Pending::new(move |_py| {
            let waited = Arc::clone(&ring);
            let ready = async move {
                waited.ready().await;
                Ok(())
            };
            Ok(Pending::run(ready, move |py, ()| match ring.pop() {
                Some(Item::Value(frame)) => {
                    let body = PyBytes::new(py, &frame.body);
                    Ok((&*frame.topic, body).into_pyobject(py)?.into_any().unbind())
                }
                Some(Item::Gap(_)) => Ok(py.None()),
                None => Err(PyStopAsyncIteration::new_err(())),
            }))
        })
        .named("RedisSubscription.__anext__"))
    }

    /// Ends it; what is buffered is dropped.
    fn close(&self) -> Pending {
        self.ring.close();
        drop(self.ring.drain());
        let listener = self.listener.lock().take();
        drop(listener);
        Pending::nothing(async { Ok(()) }).named("RedisSubscription.close")
    }
}
