//! What guests together may compute of the machine. Priority alone does not bound it where the processor's time is rationed by a
//! quota, which counts a thread of any priority; and guests that compute all the time would keep the few threads from those that
//! need a moment. Not here: what one call may compute (`meter.rs`).
//!
//! A leaky bucket in one number: the time at which all that was computed so far would have been earned. A guest that has computed to
//! the end of an epoch waits while that time lies ahead; one that answers before that never does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::meter::wall_ns;

/// One in so many cores is what guests may compute on average.
const CORES_PER_SHARE: u64 = 4;
/// The least, in thousandths of a core.
const LEAST: u64 = 500;
/// How long they may compute at any speed before that.
const BURST: Duration = Duration::from_millis(100);
/// The longest that a guest waits before it goes on for an epoch: as many guests as a host may have stay below half a core then.
/// What was computed beyond is forgotten, so that nobody waits for what others did long ago.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The share of all guests of one host.
#[derive(Debug)]
pub(crate) struct CpuShare {
    /// By the clock on the wall.
    earned_at_ns: AtomicU64,
    /// Thousandths of a core.
    rate: u64,
}

impl CpuShare {
    /// For a machine of so many cores.
    pub(crate) fn of(cores: usize) -> Self {
        let cores = u64::try_from(cores).unwrap_or(u64::MAX);
        let rate = (cores.saturating_mul(1000) / CORES_PER_SHARE).max(LEAST);
        Self { earned_at_ns: AtomicU64::new(0), rate }
    }

    /// Whether guests have computed more than their share.
    pub(crate) fn is_over(&self) -> bool {
        self.pause().is_some()
    }

    /// How long a guest that would go on computing has to wait.
    pub(crate) fn pause(&self) -> Option<Duration> {
        self.pause_at(wall_ns())
    }

    /// A guest has computed for so long until now.
    pub(crate) fn took(&self, now_ns: u64, cpu_ns: u64) {
        let earned_in = cpu_ns.saturating_mul(1000) / self.rate.max(1);
        let most = now_ns.saturating_add(u64::try_from((BURST + PAUSE_MAX).as_nanos()).unwrap_or(u64::MAX));
        let later = |earned_at: u64| Some(earned_at.max(now_ns).saturating_add(earned_in).min(most));
        // It always gives a value, so it never fails.
        let _before = self.earned_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
    }

    fn pause_at(&self, now_ns: u64) -> Option<Duration> {
        let ahead = self.earned_at_ns.load(Ordering::Relaxed).saturating_sub(now_ns);
        let over = Duration::from_nanos(ahead).checked_sub(BURST).filter(|over| !over.is_zero())?;
        Some(over.min(PAUSE_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// What guests on so many threads compute in ten seconds, each for 2 ms and then as long as it has to wait, in milliseconds.
    fn computed_ms(cores: usize, threads: u64) -> u64 {
        let share = CpuShare::of(cores);
        let (mut now_ns, mut computed_ns) = (0, 0);
        while now_ns < 10_000 * MS {
            now_ns += 2 * MS;
            for _ in 0..threads {
                share.took(now_ns, 2 * MS);
                computed_ns += 2 * MS;
            }
            now_ns += share.pause_at(now_ns).map_or(0, |pause| u64::try_from(pause.as_nanos()).expect("short"));
        }
        computed_ns / MS
    }

    #[test]
    fn guests_that_compute_all_the_time_have_their_share_and_no_more() {
        for (cores, threads, expected_ms) in
            [(1, 1, 5_000), (2, 1, 5_000), (4, 2, 10_000), (16, 8, 40_000), (4, 100, 10_000)]
        {
            let computed = computed_ms(cores, threads);
            assert!((expected_ms..expected_ms + expected_ms / 10).contains(&computed), "{cores} cores: {computed} ms");
        }
        // Who needs less than that never waits.
        let computed = computed_ms(8, 1);
        assert!((9_900..=10_100).contains(&computed), "{computed}");
    }

    #[test]
    fn a_burst_costs_nothing_and_what_is_idle_is_not_saved_up() {
        let share = CpuShare::of(4);
        share.took(1000 * MS, 100 * MS);
        assert_eq!(share.pause_at(1000 * MS), None);
        share.took(1000 * MS, 10 * MS);
        assert_eq!(share.pause_at(1000 * MS), Some(Duration::from_millis(10)));
        share.took(1000 * MS, 500 * MS);
        assert_eq!(share.pause_at(1000 * MS), Some(Duration::from_millis(510)));
        assert_eq!(share.pause_at(1610 * MS), None);
        share.took(9000 * MS, 101 * MS);
        assert_eq!(share.pause_at(9000 * MS), Some(Duration::from_millis(1)));
    }

    #[test]
    fn what_was_computed_long_ago_is_forgotten() {
        let share = CpuShare::of(4);
        // A minute at twice the rate, in calls that never wait.
        for ms in 0..60_000 {
            share.took(ms * MS, 2 * MS);
        }
        assert_eq!(share.pause_at(60_000 * MS).map(|pause| pause <= PAUSE_MAX), Some(true));
        assert_eq!(share.pause_at(61_001 * MS), None);
    }
}
