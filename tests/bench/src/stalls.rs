//! How long threads that want nothing but to wake up are kept waiting: on each core one sleeps for a moment again and again, and notes
//! when it woke late. What a slow call and such a thread meet at the same time is not the call's own: other programs, the
//! hypervisor, or too few cores for the server under load. Not here: who is to blame.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::Outcome;

const NAP: Duration = Duration::from_millis(1);
/// Late enough to be noted. A sleeping core of a virtual machine takes less to wake up.
const LATE: Duration = Duration::from_millis(1);

/// A time in which a core did not do what it was asked to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stall {
    began: Instant,
    ended: Instant,
}

impl Stall {
    pub(crate) fn ms(&self) -> f64 {
        (self.ended - self.began).as_secs_f64() * 1e3
    }

    /// Milliseconds of it that lie in between.
    pub(crate) fn ms_within(&self, from: Instant, to: Instant) -> f64 {
        self.ended.min(to).saturating_duration_since(self.began.max(from)).as_secs_f64() * 1e3
    }
}

/// The threads, from start to end.
pub(crate) struct StallMeter {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Stall>>>,
}

impl StallMeter {
    /// One thread on each core that this program may use.
    ///
    /// # Errors
    /// If the system refuses one.
    pub(crate) fn start() -> Outcome<Self> {
        let allowed = sched_getaffinity(None)?;
        let ended = Arc::new(AtomicBool::new(false));
        let cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let watch = |core| {
            let ended = Arc::clone(&ended);
            thread::Builder::new().name(format!("stalls-{core}")).spawn(move || {
                let mut own = CpuSet::new();
                own.set(core);
                // On whichever core it is then: it sees less, and nothing wrong.
                let _elsewhere = sched_setaffinity(None, &own);
                naps(&ended)
            })
        };
        let threads = cores.map(watch).collect::<Result<_, _>>()?;
        Ok(Self { ended, threads })
    }

    /// How many cores are watched.
    pub(crate) fn cores(&self) -> usize {
        self.threads.len()
    }

    /// Ends the threads; what they noted.
    pub(crate) fn end(self) -> Vec<Stall> {
        self.ended.store(true, Ordering::Relaxed);
        self.threads.into_iter().filter_map(|thread| thread.join().ok()).flatten().collect()
    }
}

fn naps(ended: &AtomicBool) -> Vec<Stall> {
    let mut stalls = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        let due = Instant::now() + NAP;
        thread::sleep(NAP);
        let now = Instant::now();
        if now.saturating_duration_since(due) >= LATE {
            stalls.push(Stall { began: due, ended: now });
        }
    }
    stalls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_counts_where_it_and_a_call_overlap() {
        let at = |ms| Instant::now() + Duration::from_millis(ms);
        let start = at(1000);
        let after = |ms| start + Duration::from_millis(ms);
        let stall = Stall { began: after(10), ended: after(14) };
        assert!((stall.ms() - 4.0).abs() < 1e-9);
        for (from, to, within) in [(0, 5, 0.0), (0, 11, 1.0), (12, 13, 1.0), (13, 20, 1.0), (0, 20, 4.0), (14, 20, 0.0)]
        {
            assert!((stall.ms_within(after(from), after(to)) - within).abs() < 1e-9, "{from} to {to}");
        }
    }

    #[test]
    fn every_core_is_watched_and_the_threads_end() {
        let meter = StallMeter::start().expect("threads");
        assert_eq!(meter.cores(), sched_getaffinity(None).expect("cores").count() as usize);
        let began = Instant::now();
        thread::sleep(3 * NAP);
        let stalls = meter.end();
        assert!(
            stalls.iter().all(|stall| stall.ms() >= 1.0 && stall.ms() <= began.elapsed().as_secs_f64() * 1e3 + 1e3)
        );
    }
}
