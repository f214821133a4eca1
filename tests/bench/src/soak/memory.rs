//! A process's resident memory over time, and whether it grows. Not here: what it is used for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::machine::resident_bytes;

const EVERY: Duration = Duration::from_millis(500);

/// Seconds since the start, and bytes.
type Sample = (f64, f64);

/// A thread that looks every now and then.
pub(super) struct Memory {
    is_over: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Sample>>>,
    thread: JoinHandle<()>,
}

impl Memory {
    /// Begins.
    pub(super) fn watch(pid: u32) -> Self {
        let (is_over, samples) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (over, into) = (Arc::clone(&is_over), Arc::clone(&samples));
        let thread = std::thread::spawn(move || {
            let started = Instant::now();
            while !over.load(Ordering::Relaxed) {
                if let Some(bytes) = resident_bytes(pid) {
                    let sample = (started.elapsed().as_secs_f64(), bytes as f64);
                    into.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                }
                std::thread::sleep(EVERY);
            }
        });
        Self { is_over, samples, thread }
    }

    /// Ends, and gives what was seen.
    pub(super) fn stop(self) -> Vec<Sample> {
        self.is_over.store(true, Ordering::Relaxed);
        // A watcher that died leaves the samples that it has.
        drop(self.thread.join());
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How a line through samples runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Growth {
    /// Bytes where the second half begins.
    pub(super) start: f64,
    /// Bytes added from there to the end.
    pub(super) bytes: f64,
}

/// The least-squares line through the second half; `None` of fewer than ten samples. The first half may fill caches.
pub(super) fn growth_of_second_half(samples: &[Sample]) -> Option<Growth> {
    let last = samples.last()?.0;
    let half: Vec<Sample> = samples.iter().copied().filter(|sample| sample.0 >= last / 2.0).collect();
    if half.len() < 10 {
        return None;
    }
    let count = half.len() as f64;
    let (mean_x, mean_y) = (
        half.iter().map(|sample| sample.0).sum::<f64>() / count,
        half.iter().map(|sample| sample.1).sum::<f64>() / count,
    );
    let above: f64 = half.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let below: f64 = half.iter().map(|(x, _)| (x - mean_x) * (x - mean_x)).sum();
    let slope = if below > 0.0 { above / below } else { 0.0 };
    let first = half.first()?.0;
    Some(Growth { start: mean_y + slope * (first - mean_x), bytes: slope * (last - first) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_shows_and_a_cache_that_fills_at_first_does_not() {
        let leak: Vec<Sample> = (0..100u8).map(|at| (at.into(), 1e6 + 1e4 * f64::from(at))).collect();
        let growth = growth_of_second_half(&leak).expect("samples");
        assert!((growth.bytes - 49e4).abs() < 2e4 && (growth.start - 1.5e6).abs() < 2e4, "{growth:?}");
        let cache: Vec<Sample> = (0..100u8).map(|at| (at.into(), 1e6 + 1e5 * f64::from(at.min(40)))).collect();
        assert!(growth_of_second_half(&cache).expect("samples").bytes.abs() < 1.0);
        assert_eq!(growth_of_second_half(&leak[..5]), None);
        assert_eq!(growth_of_second_half(&[]), None);
    }

    #[test]
    fn a_running_process_is_seen() {
        let memory = Memory::watch(std::process::id());
        std::thread::sleep(Duration::from_millis(50));
        let samples = memory.stop();
        assert!(!cfg!(target_os = "linux") || samples.first().is_some_and(|sample| sample.1 > 0.0));
    }
}
