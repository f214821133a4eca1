//! How fast the engine is, measured as it goes from the times that it is told. Not here: a clock, and what is done with it.

use std::time::Duration;

/// Steps that lie this far back count for a third.
const MEMORY_SECONDS: f64 = 30.0;
/// Starts that must have been seen before a wait is foretold.
const STARTS_MIN: f64 = 3.0;
/// By how much the fastest row seen is forgotten at each step, so that an estimate can recover from one that was too good.
const BEST_DECAY: f64 = 1.000_5;

/// What is foretold from what was measured. `None` before enough was.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Estimates {
    /// From one start of a waiting request to the next.
    pub(crate) start_interval: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    began: Duration,
    rows: usize,
    starts: usize,
    had_queue: bool,
}

/// Measures steps.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Fewer rows say nothing of how fast many are: what a step costs whatever its rows would count for each of them.
    rows_min: usize,
    under_way: Option<Step>,
    /// Of the fastest row, in steps that were at least half full.
    row_seconds: Option<f64>,
    /// While somebody waited, the newest counting most.
    queue_seconds: f64,
    queue_starts: f64,
}

impl Pace {
    /// Nothing measured yet, of steps of at most `rows_max` rows.
    pub(crate) const fn new(rows_max: usize) -> Self {
        let rows_min = rows_max.div_ceil(2);
        Self { rows_min, under_way: None, row_seconds: None, queue_seconds: 0.0, queue_starts: 0.0 }
    }

    /// A step begins now, and with it the one before ends.
    pub(crate) fn begin(&mut self, now: Duration) {
        let Some(Step { began, rows, starts, had_queue }) = self.under_way.take() else { return };
        let seconds = now.saturating_sub(began).as_secs_f64();
        if rows >= self.rows_min.max(1) {
            let row = seconds / rows as f64;
            self.row_seconds = Some(self.row_seconds.map_or(row, |best| row.min(best * BEST_DECAY)));
        }
        if had_queue {
            let kept = (-seconds / MEMORY_SECONDS).exp();
            self.queue_seconds = self.queue_seconds * kept + seconds;
            self.queue_starts = self.queue_starts * kept + starts as f64;
        }
    }

    /// The step that began at this time computes these rows, `starts` requests begin in it, and somebody waited before it.
    pub(crate) fn note(&mut self, began: Duration, rows: usize, starts: usize, had_queue: bool) {
        self.under_way = Some(Step { began, rows, starts, had_queue });
    }

    /// Nothing is to be learnt from the last step: nobody knows when it ended.
    pub(crate) fn forget(&mut self) {
        self.under_way = None;
    }

    /// The time that this many rows take at least.
    pub(crate) fn time_of(&self, rows: usize) -> Duration {
        self.row_seconds.map_or(Duration::ZERO, |seconds| duration(seconds * rows as f64))
    }

    pub(crate) fn estimates(&self) -> Estimates {
        let known = self.queue_starts >= STARTS_MIN;
        Estimates { start_interval: known.then(|| duration(self.queue_seconds / self.queue_starts)) }
    }
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: Duration, expected_ms: f64) -> bool {
        (found.as_secs_f64() * 1e3 / expected_ms - 1.0).abs() < 0.05
    }

    #[test]
    fn rows_are_foretold_from_the_fastest_and_starts_from_the_usual() {
        let mut pace = Pace::new(100);
        assert_eq!((pace.time_of(1000), pace.estimates().start_interval), (Duration::ZERO, None));
        let mut now = Duration::ZERO;
        for step in 0..100u64 {
            pace.begin(now);
            let rows = if step % 2 == 0 { 100 } else { 1 };
            pace.note(now, rows, usize::from(step % 5 == 0), true);
            now += Duration::from_millis(10);
        }
        pace.begin(now);
        assert!(near(pace.time_of(1000), 100.0), "{:?}", pace.time_of(1000));
        let interval = pace.estimates().start_interval.expect("known");
        assert!(near(interval, 50.0), "{interval:?}");
    }

    #[test]
    fn a_step_of_few_rows_says_nothing_of_many() {
        let mut pace = Pace::new(100);
        pace.note(Duration::ZERO, 49, 0, false);
        pace.begin(Duration::from_secs(1));
        assert_eq!(pace.time_of(1000), Duration::ZERO);
        pace.note(Duration::from_secs(1), 50, 0, false);
        pace.begin(Duration::from_secs(2));
        assert!(near(pace.time_of(1000), 20_000.0));
    }

    #[test]
    fn a_pause_and_an_empty_queue_do_not_count() {
        let mut pace = Pace::new(20);
        for start in 0..10 {
            let now = Duration::from_secs(start * 100);
            pace.begin(now);
            pace.note(now, 10, 1, start % 2 == 0);
            pace.begin(now + Duration::from_millis(20));
            pace.note(now + Duration::from_millis(20), 10, 1, true);
            pace.forget();
        }
        assert!(near(pace.time_of(1), 2.0), "{:?}", pace.time_of(1));
        assert!(near(pace.estimates().start_interval.expect("known"), 20.0));
    }
}
