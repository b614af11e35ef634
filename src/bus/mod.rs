//! The bus over a backend: background tasks, limits, counters and the consumers made from it. The
//! one place that names backends.

mod consumer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio_util::task::TaskTracker;

pub use consumer::{ConsumeOptions, Consumer, News};

use crate::backend::memory::MemoryBackend;
pub use crate::backend::postgres::Migration;
use crate::backend::postgres::{self, PostgresBackend};
use crate::backend::redis::{self, RedisBackend};
pub use crate::backend::redis::{Loaded, RedisClient, Reply, Setup};
use crate::backend::{Backend, Committed, Transaction};
use crate::clock::{Clock, SystemClock};
use crate::codec::json::{self, Defaults};
use crate::codec::{self, Limits, Wire};
use crate::config::{MemoryConfig, PostgresConfig, RedisConfig};
use crate::error::{Error, Result};
use crate::event::{Event, Field, WallTime};
use crate::shutdown::Tasks;
use crate::telemetry::{Counters, Counts};

/// Makes a Redis backend that is not connected yet.
///
/// # Errors
/// `Config` listing every problem of the configuration.
pub fn open_redis(config: RedisConfig) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(RedisBackend::new(config)?))
}

/// Makes a client for single commands of a Redis server, not connected yet.
///
/// # Errors
/// `Config` listing every problem of the configuration.
pub fn redis_client(config: RedisConfig) -> Result<RedisClient> {
    RedisClient::new(config)
}

/// Opens the embedded memory backend.
///
/// # Errors
/// `Config` listing every problem of the configuration.
pub fn open_memory(config: MemoryConfig, clock: Arc<dyn Clock>) -> Result<Arc<dyn Backend>> {
    config.validate()?;
    Ok(Arc::new(MemoryBackend::new(config, clock)))
}

/// Opens the Postgres backend, unconnected.
///
/// # Errors
/// `Config` listing every problem of the configuration.
pub fn open_postgres(config: PostgresConfig) -> Result<Arc<dyn Backend>> {
    let texts = postgres::Texts { read: read_foreign, quote };
    Ok(Arc::new(PostgresBackend::new(config, texts)?))
}

fn quote(text: &str) -> String {
    let mut quoted = Vec::with_capacity(text.len() + 2);
    json::write_string(&mut quoted, text);
    String::from_utf8_lossy(&quoted).into_owned()
}

/// Reads what a backend needs to know of a `DataKnobs` text; who receives it checks the limits.
fn read_foreign(text: &[u8]) -> Option<postgres::Heard> {
    let limits =
        Limits { max_bytes: usize::MAX, max_depth: Limits::DEEPEST, max_elements: usize::MAX };
    let message = json::decode_message(text, &limits, fresh_defaults).ok()?;
    let stored = match message.extras.stored {
        Field::Text(id) => Some(id.into_string()),
        _ => None,
    };
    Some(postgres::Heard {
        bus_topic: message.extras.bus_topic.map(Arc::from),
        stored,
        topic: message.event.map(|event| event.topic),
    })
}

/// Brings the schema of a Postgres bus up to date; see [`postgres::migrate`].
///
/// # Errors
/// As there.
pub async fn migrate_postgres(
    config: &PostgresConfig,
    grant_role: Option<&str>,
    apply: bool,
) -> Result<Migration> {
    postgres::migrate(config, grant_role, apply).await
}

/// Loads the functions of a Redis bus; see [`redis::setup`].
///
/// # Errors
/// As there.
pub async fn setup_redis(config: &RedisConfig, apply: bool) -> Result<Setup> {
    redis::setup(config, apply).await
}

/// Returns the time and identity for a JSON message that has none.
#[must_use]
pub fn fresh_defaults() -> Defaults {
    Defaults {
        now: WallTime { micros: SystemClock.now(), offset_micros: Some(0) },
        event_id: uuid::Uuid::new_v4().into_bytes(),
    }
}

/// A bus: everything above a backend that needs no Python.
#[derive(Debug)]
pub struct Bus {
    backend: Arc<dyn Backend>,
    tasks: Tasks,
    limits: Limits,
    counters: Counters,
    commits: TaskTracker,
    /// How many commits have begun.
    begun: AtomicU64,
}

impl Bus {
    /// Creates a bus over a backend; its tasks run where `tasks` says.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, tasks: Tasks, limits: Limits) -> Arc<Self> {
        let (counters, commits) = (Counters::default(), TaskTracker::new());
        Arc::new(Self { backend, tasks, limits, counters, commits, begun: AtomicU64::new(0) })
    }

    /// Returns the backend.
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Returns the limits for messages.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns the counters.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns the counts of this moment.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counters.snapshot(self.backend.gate().map_or(0, |gate| gate.unsigned()))
    }

    /// Encodes an event that is published on `topic`, and signs it where the bus has keys.
    ///
    /// # Errors
    /// As [`codec::encode`].
    pub fn encode(&self, event: &Event, wire: Wire, topic: &str) -> Result<Bytes> {
        match self.backend.gate() {
            Some(gate) if wire == Wire::Native => {
                codec::encode_signed(event, topic, gate.keys(), &self.limits)
            }
            _ => codec::encode(event, wire, &self.limits),
        }
    }

    /// Whether what the backend has stored may be decoded: it is signed, or the bus has no keys.
    #[must_use]
    pub fn trusts(&self, topic: &str, body: &[u8]) -> bool {
        self.backend.gate().is_none_or(|gate| gate.is_good(topic, body))
    }

    /// Returns the background tasks.
    #[must_use]
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Commits one transaction.
    ///
    /// # Errors
    /// What the backend says of it: `LeaseLost`, `VersionConflict`, `QueueFull`, ….
    ///
    /// # Cancel safety
    /// Dropping it leaves the transaction whole or absent.
    pub async fn commit(&self, transaction: Transaction) -> Result<Committed> {
        if let Some(local) = self.backend.in_process() {
            return local.commit_now(transaction);
        }
        self.begun.fetch_add(1, Ordering::Relaxed);
        let _under_way = self.commits.token();
        let mut results = self.backend.commit(vec![transaction]).await;
        results.pop().unwrap_or_else(|| {
            Err(Error::Internal { reason: "the backend returned no result".into() })
        })
    }

    /// Returns how many commits have begun on a backend elsewhere, and how many are under way.
    #[must_use]
    pub fn commits(&self) -> (u64, usize) {
        (self.begun.load(Ordering::Relaxed), self.commits.len())
    }

    /// Waits until no commit is under way. Who leaves a server earlier makes those fail that it may
    /// have taken. Cancel safe.
    pub async fn finish_commits(&self) {
        self.commits.close();
        self.commits.wait().await;
    }
}
