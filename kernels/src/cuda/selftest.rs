//! Every kernel against its reference, on whatever device there is: a GPU (`tenon selftest --cuda`), or the emulation
//! in tests (`kernels/emulation`). The same code runs on both.
//!
//! A case makes seeded inputs, launches, reads back and compares. Each operation has its own (`ops::<op>::cases`).

use std::fmt;
use std::io::Write;

use super::{CudaError, Device, DeviceMemory, DeviceRange, Plain, Stream, ops};

type Run = dyn Fn(&Device, u64) -> Result<f64, CudaError> + Send + Sync;

/// One comparison.
pub struct Case {
    op: &'static str,
    name: String,
    tolerance: f64,
    run: Box<Run>,
}

impl Case {
    /// `run` is given the device and a seed, and returns the error: of the worst value, infinite if something is wrong in
    /// another way. It passes if that is at most `tolerance`; 0 asks for equal bits.
    pub(crate) fn new(
        op: &'static str,
        name: impl Into<String>,
        tolerance: f64,
        run: impl Fn(&Device, u64) -> Result<f64, CudaError> + Send + Sync + 'static,
    ) -> Self {
        Self { op, name: name.into(), tolerance, run: Box::new(run) }
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.op, self.name)
    }
}

/// How a case went, over all seeds.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseResult {
    /// The operation.
    pub op: &'static str,
    /// Which of its cases.
    pub case: String,
    /// The largest error, or why there is none.
    pub error: Result<f64, CudaError>,
    /// The largest that passes.
    pub tolerance: f64,
}

impl CaseResult {
    /// Whether it passes.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.error.as_ref().is_ok_and(|error| *error <= self.tolerance)
    }
}

/// One line of the table.
impl fmt::Display for CaseResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_ok() { "ok" } else { "MISS" };
        write!(f, "{verdict:<5}{:<16}{:<48}", self.op, self.case)?;
        match &self.error {
            Ok(error) => write!(f, "{error:>10.2e}  at most {:.2e}", self.tolerance),
            Err(error) => write!(f, "{error}"),
        }
    }
}

/// All cases, operation by operation.
fn cases() -> Vec<Case> {
    [
        ops::embed::cases(),
        ops::rms_norm::cases(),
        ops::rope_append::cases(),
        ops::attention::cases(),
        ops::swiglu::cases(),
        ops::linear::cases(),
        ops::dense::cases(),
        ops::lora::cases(),
        ops::sample::cases(),
        ops::copy_wipe::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Runs every case whose operation or name contains `filter`, once for each seed, and prints a line for each to `table`
/// as it is known.
///
/// # Errors
/// If the table cannot be written. What a device refuses is in the results.
pub fn run(
    device: &Device,
    seeds: std::ops::Range<u64>,
    filter: &str,
    table: &mut dyn Write,
) -> std::io::Result<Vec<CaseResult>> {
    let mut results = Vec::new();
    for case in cases().into_iter().filter(|case| format!("{case:?}").contains(filter)) {
        let mut error = Ok(0.0_f64);
        for seed in seeds.clone() {
            match (&mut error, (case.run)(device, seed)) {
                // Not `max`, which would let a NaN pass.
                (Ok(worst), Ok(error)) => *worst = if error <= *worst { *worst } else { error },
                (error, Err(failure)) => *error = Err(failure),
                (Err(_), Ok(_)) => {}
            }
        }
        let result = CaseResult { op: case.op, case: case.name, error, tolerance: case.tolerance };
        writeln!(table, "{result}")?;
        results.push(result);
    }
    Ok(results)
}

/// The largest error of `got`: its distance from `want`, in parts of the larger of 1 and |want|. Infinite if the lengths
/// differ, or one has a NaN or an infinity where the other has not.
pub(crate) fn worst(got: impl IntoIterator<Item = f64>, want: impl IntoIterator<Item = f64>) -> f64 {
    let (mut got, mut want) = (got.into_iter(), want.into_iter());
    let mut worst = 0.0_f64;
    loop {
        let error = match (got.next(), want.next()) {
            (None, None) => return worst,
            (Some(got), Some(want)) if got == want || (got.is_nan() && want.is_nan()) => 0.0,
            (Some(got), Some(want)) if got.is_finite() && want.is_finite() => (got - want).abs() / want.abs().max(1.0),
            _ => f64::INFINITY,
        };
        worst = worst.max(error);
    }
}

/// Seeded numbers: the same inputs on every machine (splitmix64, Steele et al., 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// About normal, with this deviation: the sum of twelve uniform numbers.
    pub(crate) fn normal(&mut self, deviation: f32) -> f32 {
        let sum: f64 = (0..12).map(|_| self.unit()).sum();
        (sum - 6.0) as f32 * deviation
    }

    pub(crate) fn normals(&mut self, count: usize, deviation: f32) -> Vec<f32> {
        (0..count).map(|_| self.normal(deviation)).collect()
    }
}

/// The device memory of one case: an allocation for each buffer, so that the emulation sees a kernel leave it. What is
/// not given values holds 0xff, which is NaN and an index that is nowhere.
#[derive(Debug)]
pub(crate) struct Buffers<'a> {
    device: &'a Device,
    memory: Vec<DeviceMemory>,
}

impl<'a> Buffers<'a> {
    pub(crate) fn new(device: &'a Device) -> Self {
        Self { device, memory: Vec::new() }
    }

    /// Where everything runs.
    pub(crate) fn stream(&self) -> &'a Stream {
        self.device.compute()
    }

    /// Where it lies.
    pub(crate) fn device(&self) -> &'a Device {
        self.device
    }

    /// Room for `count` values.
    pub(crate) fn empty<T: Plain>(&mut self, count: usize) -> Result<DeviceRange, CudaError> {
        let memory = self.device.allocate(count * size_of::<T>())?;
        self.device.compute().fill(memory.range(), 0xff)?;
        let range = memory.range();
        self.memory.push(memory);
        Ok(range)
    }

    /// The values, and no room behind them.
    pub(crate) fn with<T: Plain>(&mut self, values: &[T]) -> Result<DeviceRange, CudaError> {
        self.with_room(values, values.len())
    }

    /// The values in front of room for `count` in all.
    pub(crate) fn with_room<T: Plain>(&mut self, values: &[T], count: usize) -> Result<DeviceRange, CudaError> {
        let range = self.empty::<T>(count)?;
        self.device.compute().upload_now(values, range)?;
        Ok(range)
    }

    /// The first `count` values of a range, after everything that was launched.
    pub(crate) fn read<T: Plain + Default>(&self, range: DeviceRange, count: usize) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::default(); count];
        self.device.compute().download_now(range, &mut values)?;
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_or_a_missing_value_is_never_close() {
        assert_eq!(worst([1.0, f64::NAN], [1.0, f64::NAN]), 0.0);
        assert_eq!(worst([1.0, f64::NAN], [1.0, 2.0]), f64::INFINITY);
        assert_eq!(worst([1.0], [1.0, 2.0]), f64::INFINITY);
        assert_eq!(worst([f64::INFINITY], [f64::NEG_INFINITY]), f64::INFINITY);
        assert!((worst([0.5, 101.0], [0.0, 100.0]) - 0.5).abs() < 1e-12);
        let result = |error| CaseResult { op: "", case: String::new(), error, tolerance: 0.0 };
        assert!(result(Ok(0.0)).is_ok() && !result(Ok(f64::NAN)).is_ok());
    }

    #[test]
    fn seeds_differ_and_repeat() {
        let draw = |seed| Random::new(seed).normals(1000, 2.0);
        assert!(draw(1) == draw(1) && draw(1) != draw(2));
        let mean = draw(3).iter().sum::<f32>() / 1000.0;
        assert!(mean.abs() < 0.3, "{mean}");
    }
}
