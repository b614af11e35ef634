//! Failed attempt → the delay before the next one, or the end. Pure: randomness is an argument.

use std::time::Duration;

/// When and how often a failed delivery is tried again.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Handler errors until the delivery becomes a dead letter (default 5; at least 1).
    pub max_attempts: u32,
    /// Claims that ended without settle or release until it becomes one (default 5; at least 1).
    pub max_deliveries: u32,
    /// Upper bound of the first delay (default 1 s).
    pub base: Duration,
    /// Upper bound of every delay (default 10 min).
    pub cap: Duration,
    /// Growth of the bound per attempt (default 2.0).
    pub factor: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            max_deliveries: 5,
            base: Duration::from_secs(1),
            cap: Duration::from_secs(600),
            factor: 2.0,
        }
    }
}

impl RetryPolicy {
    /// Returns the delay after the `attempt`-th error (1-based), or `None` when it was the last.
    ///
    /// Full jitter: `fraction` (0.0 ..= 1.0, from the caller's random source) of the exponential
    /// bound, so that failures do not come back in lockstep.
    #[must_use]
    pub fn delay(&self, attempt: u32, fraction: f64) -> Option<Duration> {
        if attempt >= self.max_attempts {
            return None;
        }
        let exponent = f64::from(attempt.saturating_sub(1));
        let bound = self.base.as_secs_f64() * self.factor.powf(exponent);
        let bound = bound.min(self.cap.as_secs_f64());
        Some(Duration::from_secs_f64(bound * fraction.clamp(0.0, 1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_attempt_has_no_delay() {
        let policy = RetryPolicy { max_attempts: 3, ..RetryPolicy::default() };
        assert!(policy.delay(2, 0.5).is_some());
        assert_eq!(policy.delay(3, 0.5), None);
        assert_eq!(policy.delay(400, 0.5), None);
    }

    #[test]
    fn delays_grow_to_the_cap_and_are_spread_over_the_whole_interval() {
        let policy = RetryPolicy { max_attempts: 100, ..RetryPolicy::default() };
        assert_eq!(policy.delay(1, 1.0), Some(Duration::from_secs(1)));
        assert_eq!(policy.delay(4, 1.0), Some(Duration::from_secs(8)));
        assert_eq!(policy.delay(4, 0.25), Some(Duration::from_secs(2)));
        assert_eq!(policy.delay(90, 1.0), Some(Duration::from_secs(600)));
        assert_eq!(policy.delay(1, 0.0), Some(Duration::ZERO));
    }
}
