//! The machine's own limits, and the least time that a piece of work can take within them. Not here: the loops that find
//! them (`kernels::limits`).

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::gguf_file::Content;
use kernels::limits::{Peak, peak, read_bandwidth};
use model::ModelConfig;
use serde_json::{Value, json};
use types::Module;

use crate::Outcome;
use crate::calm::Calm;
use crate::report::rounded;

const MIB: usize = 1 << 20;
/// Working sets: within a core's share of the cache, the base, and adapters beyond every cache.
const SETS_BYTES: [usize; 5] = [8 * MIB, 64 * MIB, 96_000_000, 160 * MIB, 320 * MIB];

/// Measured in this run.
pub(crate) struct Limits {
    /// Operations a second of all threads; a multiplication and an addition are two.
    pub(crate) int8: Option<f64>,
    bf16: Option<f64>,
    f32: Option<f64>,
    single: [Option<f64>; 3],
    /// Working set in bytes, bytes a second of one thread and of all.
    reads: Vec<(usize, f64, f64)>,
    threads: usize,
}

impl Limits {
    /// Takes some seconds.
    pub(crate) fn measure(threads: usize, is_quick: bool, calm: &mut Calm) -> Self {
        let peaks = [Peak::Int8, Peak::Bf16, Peak::F32];
        let [int8, bf16, f32] = peaks.map(|kind| {
            calm.settle();
            peak(kind, threads)
        });
        let sets = SETS_BYTES.iter().filter(|bytes| !is_quick || **bytes <= 160 * MIB);
        let reads: Vec<_> = sets
            .filter_map(|&bytes| {
                calm.settle();
                Some((bytes, read_bandwidth(bytes, 1)?, read_bandwidth(bytes, threads)?))
            })
            .collect();
        Self { int8, bf16, f32, single: peaks.map(|kind| peak(kind, 1)), reads, threads }
    }

    /// Bytes a second that all threads read from a working set of about this size.
    pub(crate) fn read_bytes_per_s(&self, set_bytes: f64) -> Option<f64> {
        let distance = |bytes: usize| (bytes as f64 / set_bytes).ln().abs();
        let nearest = self.reads.iter().min_by(|one, other| distance(one.0).total_cmp(&distance(other.0)))?;
        Some(nearest.2)
    }

    /// Rows of the report.
    pub(crate) fn rows(&self) -> Vec<Value> {
        let peaks = [("int8", self.int8), ("bf16", self.bf16), ("f32", self.f32)];
        let peaks = peaks.into_iter().zip(self.single).map(|((name, all), single)| {
            let giga = |value: Option<f64>| value.map_or(Value::Null, |value| rounded(value / 1e9));
            json!({"limit": format!("{name} peak"), "gop_per_s_1_thread": giga(single),
                format!("gop_per_s_{}_threads", self.threads): giga(all)})
        });
        let reads = self.reads.iter().map(|(bytes, single, all)| {
            json!({"limit": "read", "set_mb": rounded(*bytes as f64 / 1e6), "gb_per_s_1_thread": rounded(single / 1e9),
                format!("gb_per_s_{}_threads", self.threads): rounded(all / 1e9)})
        });
        peaks.chain(reads).collect()
    }
}

/// What a base costs by its sizes alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BaseCost {
    /// Of all weights in the file's own formats: what a decode step reads at least once.
    pub(crate) weight_bytes: f64,
    /// A token in all linear layers.
    linear_operations: f64,
    /// A token in the LM head.
    head_operations: f64,
}

impl BaseCost {
    /// # Errors
    /// If the file is not GGUF.
    pub(crate) fn of(path: &Path, config: &ModelConfig) -> Outcome<Self> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let content = Content::read(&mut BufReader::new(file))?;
        let weight_bytes = bytes.saturating_sub(content.tensor_data_offset) as f64;
        let module = |module: Module| {
            let (inputs, outputs) = config.module_shape(module);
            2.0 * inputs as f64 * outputs as f64
        };
        let layer: f64 = Module::ALL.into_iter().map(module).sum();
        Ok(Self {
            weight_bytes,
            linear_operations: layer * config.layers as f64,
            head_operations: 2.0 * config.hidden as f64 * config.vocabulary as f64,
        })
    }

    /// Operations of a step of so many rows of which so many have logits, without attention.
    pub(crate) fn operations(&self, rows: usize, samples: usize) -> f64 {
        self.linear_operations * rows as f64 + self.head_operations * samples as f64
    }

    /// The least seconds for such a step: to read all weights once, at so many bytes a second if that was measured beside
    /// it, or to multiply them in int8, whichever takes longer.
    pub(crate) fn floor_seconds(
        &self,
        rows: usize,
        samples: usize,
        bandwidth: Option<f64>,
        limits: &Limits,
    ) -> Option<Floor> {
        let read = self.weight_bytes / bandwidth.or_else(|| limits.read_bytes_per_s(self.weight_bytes))?;
        let compute = limits.int8.map_or(0.0, |int8| self.operations(rows, samples) / int8);
        Some(Floor { read, compute })
    }
}

/// The two parts of a floor, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Floor {
    pub(crate) read: f64,
    pub(crate) compute: f64,
}

impl Floor {
    /// What cannot be beaten even if both overlap perfectly.
    pub(crate) fn seconds(&self) -> f64 {
        self.read.max(self.compute)
    }

    /// Which of the two.
    pub(crate) fn what(&self) -> &'static str {
        if self.read > self.compute { "read" } else { "int8" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        let reads = vec![(8 * MIB, 100e9, 200e9), (96_000_000, 30e9, 60e9), (320 * MIB, 20e9, 40e9)];
        Limits { int8: Some(900e9), bf16: None, f32: None, single: [None; 3], reads, threads: 2 }
    }

    #[test]
    fn the_nearest_working_set_decides() {
        assert_eq!(limits().read_bytes_per_s(98e6), Some(60e9));
        assert_eq!(limits().read_bytes_per_s(1e6), Some(200e9));
        assert_eq!(limits().read_bytes_per_s(1e9), Some(40e9));
    }

    #[test]
    fn small_steps_are_bound_by_reading_and_large_ones_by_computing() {
        let cost = BaseCost { weight_bytes: 96e6, linear_operations: 0.2e9, head_operations: 0.06e9 };
        let one = cost.floor_seconds(1, 1, None, &limits()).expect("a floor");
        assert!(one.what() == "read" && (one.seconds() - 96e6 / 60e9).abs() < 1e-9);
        let many = cost.floor_seconds(512, 1, None, &limits()).expect("a floor");
        assert!(many.what() == "int8" && (many.seconds() - (0.2e9 * 512.0 + 0.06e9) / 900e9).abs() < 1e-9);
    }
}
