//! A bucket of tokens: what others can cause as often as they like happens so often only.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Lets a burst pass at once, and what comes beyond it at a rate.
#[derive(Debug)]
pub(super) struct Bucket {
    burst: u32,
    interval: Duration,
    /// When the bucket would be full again.
    full_at: Mutex<Option<Instant>>,
}

impl Bucket {
    /// Makes a full one; a token comes back every `interval`.
    pub(super) const fn new(burst: u32, interval: Duration) -> Self {
        Self { burst, interval, full_at: Mutex::new(None) }
    }

    /// Takes a token, waiting for one. One that is waited for in vain is gone.
    pub(super) async fn take(&self) {
        let (now, mut until) = (Instant::now(), None);
        {
            let mut full_at = self.full_at.lock();
            let full = full_at.filter(|at| *at > now).unwrap_or(now) + self.interval;
            *full_at = Some(full);
            let owed = full.duration_since(now);
            let most = self.interval * self.burst;
            if owed > most {
                until = Some(now + (owed - most));
            }
        }
        if let Some(until) = until {
            tokio::time::sleep_until(until).await;
        }
    }

    /// Fills it: what was taken was worth it.
    pub(super) fn fill(&self) {
        *self.full_at.lock() = None;
    }
}

/// Work that is asked for as often as others like, and done so often only: many times become once.
#[derive(Debug)]
pub(super) struct Paced {
    asked: Notify,
    bucket: Bucket,
}

impl Paced {
    /// As [`Bucket::new`].
    pub(super) const fn new(burst: u32, interval: Duration) -> Self {
        Self { asked: Notify::const_new(), bucket: Bucket::new(burst, interval) }
    }

    /// Asks for it; it is done once after this.
    pub(super) fn ask(&self) {
        self.asked.notify_one();
    }

    /// Waits until it is to be done.
    pub(super) async fn turn(&self) {
        self.asked.notified().await;
        self.bucket.take().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_at_once_and_the_rest_at_a_rate() {
        let bucket = Bucket::new(10, Duration::from_millis(20));
        let start = Instant::now();
        for _ in 0..10 {
            bucket.take().await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        for _ in 0..50 {
            bucket.take().await;
        }
        assert!(start.elapsed() >= Duration::from_millis(1000), "{:?}", start.elapsed());
        bucket.fill();
        let again = Instant::now();
        bucket.take().await;
        assert_eq!(again.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_many_times_is_done_once_after_the_last() {
        let paced = Paced::new(2, Duration::from_millis(100));
        for _ in 0..1000 {
            paced.ask();
        }
        paced.turn().await;
        let again = tokio::time::timeout(Duration::from_secs(1), paced.turn()).await;
        assert!(again.is_err());
    }
}
