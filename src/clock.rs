//! The time source: the system's, or one that a test turns by hand.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

/// Where a backend reads the time and waits for it.
#[async_trait]
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Returns microseconds since the Unix epoch.
    fn now(&self) -> i64;

    /// Waits until [`Clock::now`] has reached `micros`. Cancel safe.
    async fn sleep_until(&self, micros: i64);
}

/// The system's clock; waits on tokio's timer, so it must be polled inside a runtime.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> i64 {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX)
    }

    async fn sleep_until(&self, micros: i64) {
        // The wall clock may jump: sleep in slices, so that a due time is met within a second.
        loop {
            let left = micros.saturating_sub(self.now());
            let Ok(left) = u64::try_from(left) else { return };
            if left == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_micros(left.min(1_000_000))).await;
        }
    }
}

/// A clock that stands still until a test advances it.
#[derive(Debug, Clone)]
pub struct ManualClock {
    now: Arc<Mutex<watch::Sender<i64>>>,
}

impl ManualClock {
    /// Creates a clock that shows `micros` since the Unix epoch.
    #[must_use]
    pub fn new(micros: i64) -> Self {
        Self { now: Arc::new(Mutex::new(watch::Sender::new(micros))) }
    }

    /// Moves the time forward and wakes everything that became due.
    pub fn advance(&self, by: Duration) {
        let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        self.now.lock().send_modify(|now| *now = now.saturating_add(micros));
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> i64 {
        *self.now.lock().borrow()
    }

    async fn sleep_until(&self, micros: i64) {
        let mut seen = self.now.lock().subscribe();
        // The sender lives as long as `self`, so the error cannot occur while this is polled.
        let _ = seen.wait_for(|now| *now >= micros).await;
    }
}
