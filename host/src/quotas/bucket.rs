//! One rate: what may be used in a minute, refilled evenly (the token bucket of traffic shaping; ITU-T I.371 calls it the leaky
//! bucket). What is used beyond is a debt that is paid back first. Not here: whose it is, and what happens when it is empty.

use std::time::{Duration, Instant};

const MINUTE_SECONDS: f64 = 60.0;

/// A minute's worth, full at first.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    per_minute: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    /// With this much in a minute, all of it there.
    pub(super) fn full(per_minute: u64, now: Instant) -> Self {
        let per_minute = number(per_minute);
        Self { per_minute, level: per_minute, at: now }
    }

    /// Another amount in a minute from now on. What was used stays used.
    pub(super) fn set(&mut self, per_minute: u64, now: Instant) {
        self.refill(now);
        let used = self.per_minute - self.level;
        self.per_minute = number(per_minute);
        self.level = self.per_minute - used;
    }

    fn refill(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.level = self.per_second().mul_add(seconds, self.level).min(self.per_minute);
    }

    fn per_second(&self) -> f64 {
        self.per_minute / MINUTE_SECONDS
    }

    /// How long until there is one to take; `None` if there is.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.refill(now);
        (self.level < 1.0).then(|| seconds((1.0 - self.level) / self.per_second()))
    }

    /// Uses so much, whether it is there or not.
    pub(super) fn take(&mut self, amount: u64, now: Instant) {
        self.refill(now);
        self.level -= number(amount);
    }

    /// What is there, and how long until it is full.
    pub(super) fn remaining(&mut self, now: Instant) -> (u64, Duration) {
        self.refill(now);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and at most a u64")]
        let whole = self.level.max(0.0).floor() as u64;
        (whole, seconds((self.per_minute - self.level) / self.per_second()))
    }
}

#[expect(clippy::cast_precision_loss, reason = "quotas are far below 2^53")]
const fn number(amount: u64) -> f64 {
    amount as f64
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_s_worth_comes_back_evenly() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut bucket = Bucket::full(60, start);
        for _ in 0..60 {
            assert_eq!(bucket.wait(start), None);
            bucket.take(1, start);
        }
        assert_eq!(bucket.wait(start), Some(Duration::from_secs(1)));
        assert_eq!(bucket.wait(at(0.5)), Some(Duration::from_secs_f64(0.5)));
        assert_eq!(bucket.wait(at(1.0)), None);
        assert_eq!(bucket.remaining(at(10.0)), (10, Duration::from_secs(50)));
        assert_eq!(bucket.remaining(at(1000.0)), (60, Duration::ZERO), "no more than a minute's worth");
    }

    #[test]
    fn what_is_used_beyond_is_paid_back() {
        let start = Instant::now();
        let mut bucket = Bucket::full(60, start);
        bucket.take(120, start);
        assert_eq!(bucket.remaining(start), (0, Duration::from_secs(120)));
        assert_eq!(bucket.wait(start), Some(Duration::from_secs(61)));
        assert_eq!(bucket.wait(start + Duration::from_secs(61)), None);
    }

    #[test]
    fn another_amount_keeps_what_was_used() {
        let start = Instant::now();
        let mut bucket = Bucket::full(60, start);
        bucket.take(50, start);
        bucket.set(40, start);
        assert_eq!(bucket.remaining(start), (0, Duration::from_secs(75)), "40 a minute, 10 in debt");
        bucket.set(100, start);
        assert_eq!(bucket.remaining(start).0, 50);
    }

    #[test]
    fn a_clock_that_steps_back_gives_nothing() {
        let start = Instant::now();
        let mut bucket = Bucket::full(60, start + Duration::from_secs(10));
        bucket.take(60, start + Duration::from_secs(10));
        assert_eq!(bucket.remaining(start).0, 0);
        assert_eq!(bucket.remaining(start + Duration::from_secs(10)).0, 0);
    }
}
