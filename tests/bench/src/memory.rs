//! A process's resident memory over time, whether it grows, and how far it strays. Not here: what it is used for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::machine::resident_bytes;
use crate::statistics::median;

const EVERY: Duration = Duration::from_millis(500);

/// Seconds since the start, and bytes.
pub(crate) type Sample = (f64, f64);

/// A thread that looks every now and then.
pub(crate) struct Memory {
    is_over: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Sample>>>,
    thread: JoinHandle<()>,
}

impl Memory {
    /// Begins.
    pub(crate) fn watch(pid: u32) -> Self {
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
    pub(crate) fn stop(self) -> Vec<Sample> {
        self.is_over.store(true, Ordering::Relaxed);
        // A watcher that died leaves the samples that it has.
        drop(self.thread.join());
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How a line through samples runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Growth {
    /// Bytes where the second half begins.
    pub(crate) start: f64,
    /// Bytes added from there to the end.
    pub(crate) bytes: f64,
}

/// The least-squares line through the second half; `None` of fewer than ten samples. The first half may fill caches.
pub(crate) fn growth_of_second_half(samples: &[Sample]) -> Option<Growth> {
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

/// How far the samples stray from their median at most, as a share of it; `None` of fewer than ten samples.
pub(crate) fn largest_deviation(samples: &[Sample]) -> Option<f64> {
    let values: Vec<f64> = samples.iter().map(|sample| sample.1).collect();
    let median = median(&values).filter(|median| values.len() >= 10 && *median > 0.0)?;
    values.iter().map(|value| (value - median).abs() / median).reduce(f64::max)
}

/// Some of the samples, evenly spaced, as `[seconds, megabytes]`: what a report shows of them.
pub(crate) fn outline(samples: &[Sample], points_max: usize) -> Vec<[f64; 2]> {
    let step = samples.len().div_ceil(points_max.max(1)).max(1);
    samples.iter().step_by(step).map(|(at, bytes)| [at.round(), (bytes / 1e6).round()]).collect()
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
    fn a_dip_and_a_peak_are_deviations() {
        let flat: Vec<Sample> = (0..20u8).map(|at| (at.into(), 1e6)).collect();
        assert_eq!(largest_deviation(&flat), Some(0.0));
        for odd in [0.9e6, 1.1e6] {
            let mut samples = flat.clone();
            samples[7].1 = odd;
            assert!(largest_deviation(&samples).is_some_and(|share| (share - 0.1).abs() < 1e-9));
        }
        assert_eq!(largest_deviation(&flat[..9]), None);
        assert_eq!(outline(&flat, 5), [[0.0, 1.0], [4.0, 1.0], [8.0, 1.0], [12.0, 1.0], [16.0, 1.0]]);
        assert!(outline(&[], 5).is_empty());
    }

    #[test]
    fn a_running_process_is_seen() {
        let memory = Memory::watch(std::process::id());
        std::thread::sleep(Duration::from_millis(50));
        let samples = memory.stop();
        assert!(!cfg!(target_os = "linux") || samples.first().is_some_and(|sample| sample.1 > 0.0));
    }
}
