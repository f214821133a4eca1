//! The CPUs that the sides of a comparison share, and whether each is a core of its own at the moment. Not here: what is
//! measured on them (`rounds`).
//!
//! A virtual machine's CPUs float over its host's hardware threads: for seconds at a time two of them are the two threads of
//! one core, and do together little more than one alone (a step of 32 rows takes 28 ms in place of 19, and 34 ms on one
//! thread). Which side of a comparison that hits is chance, so a value is taken again if the CPUs were one core before or
//! after it: a loop that fills a core's units for multiply-add takes twice as long then. All sides run on the same CPUs,
//! as many as each has threads: what the machine's other CPUs could do for one of them does not count.

use std::sync::Barrier;
use std::time::Duration;

use kernels::limits::{Peak, peak_time};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Turns of a probe's loop: some 500 us.
const TURNS: u64 = 100_000;
/// CPUs that take longer than the fastest probe by this factor share a core, with each other or with a stranger.
const SLOW: f64 = 1.4;
/// How often a probe is tried before the machine is taken as it is.
const PROBES_MAX: usize = 40;
const PROBE_PAUSE: Duration = Duration::from_millis(25);
/// How long a run waits for cores in all, what it measured in vain included. After that it takes the machine as it is, and
/// its report says for how many values: a machine that is never calm still gets its bench done.
const PATIENCE: Duration = Duration::from_secs(240);

/// Keeps the calling thread, and every thread and process that it starts, to a few CPUs until it is dropped.
pub(crate) struct Calm {
    cpus: Vec<CpuSet>,
    before: Option<CpuSet>,
    fastest: Duration,
    /// What is left of [`PATIENCE`].
    patience: Duration,
    /// Values that were taken again.
    pub(crate) repeated: usize,
    /// Values that were kept though the machine was not calm.
    pub(crate) disturbed: usize,
}

impl Calm {
    /// On so many CPUs; where the system does not say which there are, on all, and always calm.
    pub(crate) fn on(threads: usize) -> Self {
        let mut calm = Self::never_asked();
        let Ok(all) = sched_getaffinity(None) else { return calm };
        let mut kept = CpuSet::new();
        for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).take(threads) {
            let mut one = CpuSet::new();
            one.set(cpu);
            kept.set(cpu);
            calm.cpus.push(one);
        }
        if sched_setaffinity(None, &kept).is_ok() {
            calm.before = Some(all);
        }
        let probes = (0..40).filter_map(|_| {
            std::thread::sleep(PROBE_PAUSE);
            calm.probe()
        });
        calm.fastest = probes.min().unwrap_or_default();
        calm
    }

    /// Everywhere, and always calm.
    pub(crate) fn never_asked() -> Self {
        Self { cpus: Vec::new(), before: None, fastest: Duration::ZERO, patience: PATIENCE, repeated: 0, disturbed: 0 }
    }

    /// Waits until each CPU is a core of its own, for a second at most; whether they are.
    pub(crate) fn settle(&mut self) -> bool {
        (0..PROBES_MAX).any(|_| {
            let is_calm = self.is_calm();
            if !is_calm {
                std::thread::sleep(PROBE_PAUSE);
            }
            is_calm
        })
    }

    /// So much time was waited or measured in vain.
    pub(crate) fn lost(&mut self, time: Duration) {
        self.patience = self.patience.saturating_sub(time);
    }

    /// Whether the machine is taken as it is from here on.
    pub(crate) const fn has_given_up(&self) -> bool {
        self.patience.is_zero()
    }

    /// Whether each CPU is a core of its own. The best of three probes, as anything may disturb a short one.
    pub(crate) fn is_calm(&mut self) -> bool {
        let Some(best) = (0..3).filter_map(|_| self.probe()).min() else { return true };
        self.fastest = self.fastest.min(best);
        best.as_secs_f64() < self.fastest.as_secs_f64() * SLOW
    }

    /// How long the slowest CPU takes for the loop while all run it; `None` where that cannot be found.
    fn probe(&self) -> Option<Duration> {
        let ready = Barrier::new(self.cpus.len());
        let one = |cpu: &CpuSet| {
            let is_there = sched_setaffinity(None, cpu).is_ok();
            ready.wait();
            peak_time(Peak::F32, TURNS).filter(|_| is_there)
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = self.cpus.iter().map(|cpu| scope.spawn(|| one(cpu))).collect();
            let times = threads.into_iter().map(|thread| thread.join().ok().flatten());
            times.collect::<Option<Vec<_>>>()?.into_iter().max()
        })
    }
}

impl Drop for Calm {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // What cannot be taken back is a narrower machine for the rest of the bench, which its report shows.
            let _ = sched_setaffinity(None, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_kept_to_as_many_cpus_and_let_go_again() {
        std::thread::spawn(|| {
            let Ok(all) = sched_getaffinity(None) else { return };
            let calm = Calm::on(1);
            assert_eq!(sched_getaffinity(None).expect("a set").count(), 1);
            let started = std::thread::spawn(|| sched_getaffinity(None).expect("a set").count());
            assert_eq!(started.join().expect("no panic"), 1, "what it starts is kept there too");
            drop(calm);
            assert_eq!(sched_getaffinity(None).expect("a set").count(), all.count());
        })
        .join()
        .expect("no panic");
    }

    #[test]
    fn who_never_asks_is_always_calm() {
        let mut calm = Calm::never_asked();
        assert!(calm.settle() && calm.is_calm() && calm.probe().is_none());
    }

    #[test]
    fn patience_ends() {
        let mut calm = Calm::never_asked();
        calm.lost(PATIENCE / 2);
        assert!(!calm.has_given_up());
        calm.lost(PATIENCE);
        assert!(calm.has_given_up());
    }
}
