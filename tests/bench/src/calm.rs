//! The CPUs that the sides of a comparison share, and whether they are near each other at the moment. Not here: what is
//! measured on them (`rounds`).
//!
//! A virtual machine's CPUs float over its host's cores: for seconds at a time two of them have a cache in common, or have
//! none. A cache line goes from one to the other and back in 55 ns or in 90 to 360 ns, and a step of 32 rows, whose threads
//! hand activations to each other at each operation, takes 18 ms or 27 ms with it. Which side of a comparison that hits is
//! chance, so a value is taken again if the CPUs were far from each other before or after it. All sides run on the same
//! CPUs, as many as each has threads: what the machine's other CPUs could do for one of them does not count.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Round trips of a probe: about 0.2 ms.
const ROUND_TRIPS: u32 = 2_000;
/// CPUs whose round trip takes longer than the fastest by this factor are far from each other.
const FAR: f64 = 1.35;
/// How often a probe is tried before the machine is taken as it is.
const PROBES_MAX: usize = 40;
const PROBE_PAUSE: Duration = Duration::from_millis(25);
/// How long a run waits for near CPUs in all, what it measured in vain included. After that it takes the machine as it is, and
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

    /// Waits until the CPUs are near each other, for a second at most; whether they are.
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

    /// Whether the CPUs are near each other. The best of three probes, as anything may disturb a short one.
    pub(crate) fn is_calm(&mut self) -> bool {
        let Some(best) = (0..3).filter_map(|_| self.probe()).min() else { return true };
        self.fastest = self.fastest.min(best);
        best.as_secs_f64() < self.fastest.as_secs_f64() * FAR
    }

    /// How long a word goes back and forth between the first CPU and the furthest of the others; `None` if there are no two.
    fn probe(&self) -> Option<Duration> {
        let (first, others) = self.cpus.split_first()?;
        others.iter().map(|other| round_trips(first, other)).collect::<Option<Vec<_>>>()?.into_iter().max()
    }
}

/// [`ROUND_TRIPS`] of one word between two CPUs; `None` where threads cannot be kept to them.
fn round_trips(one: &CpuSet, other: &CpuSet) -> Option<Duration> {
    let word = AtomicU32::new(0);
    // Even turns are the first thread's. Who cannot go to its CPU plays all the same: the other one waits for it.
    let play = |cpu: &CpuSet, mine: u32| {
        let is_there = sched_setaffinity(None, cpu).is_ok();
        let started = Instant::now();
        for turn in (0..2 * ROUND_TRIPS).filter(|turn| turn % 2 == mine) {
            let mut spins = 0u32;
            while word.load(Ordering::Acquire) != turn {
                spins += 1;
                // The other one may want this very CPU.
                if spins.is_multiple_of(1 << 12) {
                    std::thread::yield_now();
                }
                std::hint::spin_loop();
            }
            word.store(turn + 1, Ordering::Release);
        }
        is_there.then(|| started.elapsed())
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(|| play(one, 0)), scope.spawn(|| play(other, 1))];
        let times = threads.map(|thread| thread.join().ok().flatten());
        // The second begins late at most, and its time is of all round trips but the first.
        times.into_iter().collect::<Option<Vec<_>>>()?.into_iter().min()
    })
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
