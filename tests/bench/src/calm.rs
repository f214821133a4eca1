//! The CPUs that the sides of a comparison share, and whether they are cores of their own at the moment. Not here: what is
//! measured on them (`rounds`).
//!
//! A virtual machine's CPUs share cores and caches with what else its host runs: for seconds at a time each does two thirds of
//! what it could (seen as steps of 27 ms among steps of 18 ms, even of two processes of one thread each that share
//! nothing). Which side that hits is chance, so a value is taken again if a product that fits into the second-level cache
//! is slow before or after it: a loop in registers alone is not disturbed. All sides run on the same CPUs, as many as each has threads: what the machine's other CPUs could
//! do for one of them does not count.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use kernels::{BlockFormat, Isa, PackedMatrix, QuantisedRows, Team, matmul_packed};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Products of a probe: about 3 ms.
const PROBE_PRODUCTS: usize = 30;
/// Rows, inputs and outputs of one: half of a second-level cache.
const PRODUCT: [usize; 3] = [32, 576, 768];
/// A probe that takes longer than the fastest by this factor was disturbed; a disturbed one takes 1.4 to 2 times as long.
const SLOW: f64 = 1.25;
/// How often a probe is tried before the machine is taken as it is.
const PROBES_MAX: usize = 200;
const PROBE_PAUSE: Duration = Duration::from_millis(25);
/// How often one value is measured at most.
pub(crate) const TRIES_MAX: usize = 6;

/// Keeps the calling thread, and every thread and process that it starts, to a few CPUs until it is dropped.
pub(crate) struct Calm {
    cpus: Vec<CpuSet>,
    before: Option<CpuSet>,
    fastest: Duration,
    weights: Option<PackedMatrix>,
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
        let [_, inputs, outputs] = PRODUCT;
        let format = BlockFormat::Q8_0;
        let blocks = vec![17u8; outputs * inputs / format.block_values() * format.block_bytes()];
        let weights = PackedMatrix::pack(outputs, inputs, format, &blocks);
        Self { cpus: Vec::new(), before: None, fastest: Duration::ZERO, weights, repeated: 0, disturbed: 0 }
    }

    /// Waits until the CPUs are cores of their own, for some seconds at most; whether they are.
    pub(crate) fn settle(&mut self) -> bool {
        (0..PROBES_MAX).any(|_| {
            let is_calm = self.is_calm();
            if !is_calm {
                std::thread::sleep(PROBE_PAUSE);
            }
            is_calm
        })
    }

    /// Whether the CPUs are cores of their own. The best of three probes, as anything may disturb a short one.
    pub(crate) fn is_calm(&mut self) -> bool {
        let Some(best) = (0..3).filter_map(|_| self.probe()).min() else { return true };
        self.fastest = self.fastest.min(best);
        best.as_secs_f64() < self.fastest.as_secs_f64() * SLOW
    }

    /// How long the slowest of the CPUs takes while all are busy.
    fn probe(&self) -> Option<Duration> {
        let weights = self.weights.as_ref()?;
        let ready = Barrier::new(self.cpus.len().max(1));
        let one = |cpu: &CpuSet| {
            let is_there = sched_setaffinity(None, cpu).is_ok();
            let (team, isa, [rows, inputs, outputs]) = (Team::alone(), Isa::detect(), PRODUCT);
            let mut x = QuantisedRows::for_formats([weights.format()]);
            x.fill(&team, isa, &vec![0.25; rows * inputs], rows, inputs);
            let mut out = vec![0.0; rows * outputs];
            matmul_packed(&team, isa, &[weights], &x, &mut out, false);
            ready.wait();
            let started = Instant::now();
            for _ in 0..PROBE_PRODUCTS {
                matmul_packed(&team, isa, &[weights], &x, black_box(&mut out), false);
            }
            is_there.then(|| started.elapsed())
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
}
