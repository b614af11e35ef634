//! Limits on what a server can make this process hold: streams that measure what they read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes that a server may send before the login is over.
pub const BEFORE_LOGIN: usize = 64 << 10;
/// Most bytes of one answer, unless messages may be larger or more was asked for.
const ANSWER: usize = 64 << 20;
/// Most bytes of an answer beside the largest message, where that decides.
const BESIDE: usize = 8 << 20;
/// Most parts of one answer, unless more was asked for.
const PARTS: usize = 1_000_000;
/// Most messages that one question makes room for.
const MOST_ASKED: usize = 1 << 20;
/// Most parts that stand for one message.
const PARTS_OF_ONE: usize = 16;

/// How much a server may answer: shared by the connections of one backend.
#[derive(Debug)]
pub struct Room {
    most: usize,
    message: usize,
    /// Messages that are asked for at the moment, beyond what every answer may hold.
    asked: AtomicUsize,
    overruns: AtomicU64,
    told: Mutex<String>,
}

/// What an answer may be at the moment.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// Bytes of all of it.
    pub bytes: usize,
    /// Values or rows.
    pub parts: usize,
}

impl Room {
    /// Returns the room for answers when no message is larger than this, in bytes.
    #[must_use]
    pub fn new(message: usize) -> Arc<Self> {
        let most = ANSWER.max(message.saturating_mul(2).saturating_add(BESIDE));
        let (asked, overruns, told) = Default::default();
        Arc::new(Self { most, message, asked, overruns, told })
    }

    /// Makes room for so many messages until the answer was taken.
    pub fn ask(self: &Arc<Self>, messages: usize) -> Asked {
        let messages = messages.min(MOST_ASKED);
        self.asked.fetch_add(messages, Ordering::Relaxed);
        Asked(Arc::clone(self), messages)
    }

    fn limit(&self) -> Limit {
        let asked = self.asked.load(Ordering::Relaxed);
        Limit {
            bytes: self.most.saturating_add(asked.saturating_mul(self.message)),
            parts: PARTS.saturating_add(asked.saturating_mul(PARTS_OF_ONE)),
        }
    }

    /// Returns how many connections were given up because the server sent too much.
    pub fn overruns(&self) -> u64 {
        self.overruns.load(Ordering::Relaxed)
    }

    /// Says what an operator should know of a server that sent too much.
    pub fn warning(&self) -> Option<String> {
        let told = self.told.lock().clone();
        (!told.is_empty())
            .then(|| format!("a connection was given up: {told}; look who answers there"))
    }

    fn overrun(&self, said: &str) {
        self.overruns.fetch_add(1, Ordering::Relaxed);
        let mut told = self.told.lock();
        if told.is_empty() {
            said.clone_into(&mut told);
        }
    }
}

/// Room for an answer while it is waited for.
#[derive(Debug)]
pub struct Asked(Arc<Room>, usize);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.asked.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// Whether the login of one connection is over.
#[derive(Debug)]
pub struct LoginGate {
    room: Arc<Room>,
    is_open: AtomicBool,
}

impl LoginGate {
    /// Returns the gate of a new connection.
    pub fn new(room: &Arc<Room>) -> Arc<Self> {
        Arc::new(Self { room: Arc::clone(room), is_open: AtomicBool::new(false) })
    }

    /// Says that the login is over: from now on answers may be as large as what is asked for.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }
}

/// Follows the frames of a protocol without keeping them.
pub trait Meter: Unpin {
    /// Measures the next bytes.
    ///
    /// # Errors
    /// What is larger than the limit, for a person.
    fn measure(&mut self, bytes: &[u8], limit: Limit) -> Result<(), String>;
}

/// A stream that fails as soon as a server sends more than it may.
#[derive(Debug)]
pub struct Guarded<S, M> {
    inner: S,
    /// What measures; `None`: what is inside is measured elsewhere.
    meter: Option<(M, Arc<LoginGate>)>,
    /// Bytes that came before the login was over.
    early: usize,
    broken: bool,
}

impl<S, M: Meter> Guarded<S, M> {
    /// Measures what is read from a stream.
    pub fn new(inner: S, meter: M, gate: Arc<LoginGate>) -> Self {
        Self { inner, meter: Some((meter, gate)), early: 0, broken: false }
    }

    /// Passes a stream through whose contents are measured further up.
    pub fn off(inner: S) -> Self {
        Self { inner, meter: None, early: 0, broken: false }
    }

    /// Returns the stream.
    pub fn into_inner(self) -> S {
        self.inner
    }

    fn measure(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some((meter, gate)) = &mut self.meter else { return Ok(()) };
        let limit = if gate.is_open.load(Ordering::Relaxed) {
            gate.room.limit()
        } else {
            self.early = self.early.saturating_add(bytes.len());
            Limit { bytes: BEFORE_LOGIN, parts: BEFORE_LOGIN }
        };
        let measured = if self.early > BEFORE_LOGIN && !gate.is_open.load(Ordering::Relaxed) {
            Err(format!("the server sent more than {BEFORE_LOGIN} bytes before the login was over"))
        } else {
            meter.measure(bytes, limit)
        };
        measured.map_err(|said| {
            self.broken = true;
            gate.room.overrun(&said);
            io::Error::new(io::ErrorKind::ConnectionAborted, said)
        })
    }
}

impl<S: AsyncRead + Unpin, M: Meter> AsyncRead for Guarded<S, M> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        let new = buffer.filled().get(before..).unwrap_or_default();
        Poll::Ready(self.measure(new))
    }
}

impl<S: AsyncWrite + Unpin, M: Meter> AsyncWrite for Guarded<S, M> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
