//! Verifies the signatures of messages on a bus with signing keys, and counts those it refuses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::signing::Keys;

/// The gate of one backend; one without keys has none.
#[derive(Debug)]
pub struct Gate {
    keys: Keys,
    /// Whether JSON that is stored counts as what the SQL function `publish` stored.
    accepts_sql: bool,
    unsigned: AtomicU64,
    refused: Notify,
}

impl Gate {
    /// Makes the gate of a backend with keys.
    #[must_use]
    pub fn of(keys: &Keys, accepts_sql: bool) -> Option<Arc<Self>> {
        let (unsigned, refused) = (AtomicU64::new(0), Notify::new());
        (!keys.is_empty())
            .then(|| Arc::new(Self { keys: keys.clone(), accepts_sql, unsigned, refused }))
    }

    /// Returns the keys.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Whether what the SQL function stored is let in.
    #[must_use]
    pub fn accepts_sql(&self) -> bool {
        self.accepts_sql
    }

    /// Whether a broadcast is let in that came live; one that is not is counted.
    #[must_use]
    pub fn admits(&self, topic: &str, body: &[u8]) -> bool {
        self.counted(self.keys.verify(topic, body))
    }

    /// Whether something is let in that the backend had stored: a queue entry, or a broadcast that was
    /// kept. One that is not is counted.
    #[must_use]
    pub fn admits_stored(&self, topic: &str, body: &[u8]) -> bool {
        self.counted(self.is_good(topic, body))
    }

    fn counted(&self, admitted: bool) -> bool {
        if !admitted {
            self.refuse();
        }
        admitted
    }

    /// Whether it is let in, for who only looks at it.
    #[must_use]
    pub fn is_good(&self, topic: &str, body: &[u8]) -> bool {
        // No native frame begins so.
        (self.accepts_sql && body.first() == Some(&b'{')) || self.keys.verify(topic, body)
    }

    /// Counts something that is not let in.
    pub fn refuse(&self) {
        self.unsigned.fetch_add(1, Ordering::Relaxed);
        self.refused.notify_one();
    }

    /// Returns how much was not let in.
    #[must_use]
    pub fn unsigned(&self) -> u64 {
        self.unsigned.load(Ordering::Relaxed)
    }

    /// Waits until more than `known` was not let in; returns how much it is. Cancel safe.
    pub async fn refused(&self, known: u64) -> u64 {
        loop {
            let found = self.unsigned();
            if found > known {
                return found;
            }
            self.refused.notified().await;
        }
    }
}
