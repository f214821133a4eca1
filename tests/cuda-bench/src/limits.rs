//! What the device can do, measured in the same run as all that is compared with it: copies within it and into it, and a
//! product of large matrices in bf16, by our kernel and by PyTorch if that is there. Not here: what follows from it.

use kernels::cuda::ops::linear::{Linear, LinearArgs, LinearWeights, workspace_bytes};
use kernels::cuda::{Device, WeightFormat};
use serde_json::{Value, json};

use crate::measure::{Rounds, device_seconds, quantile, rounded};
use crate::peer::Peer;
use crate::record::Record;
use crate::{Given, Outcome};

/// A value of bf16 for both operands: what is multiplied decides what a device draws, and so how fast it may run.
const OPERANDS: [u16; 4] = [0x3c9a, 0xbc31, 0x3d07, 0xbcd5];

/// What was found; 0 is not known.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// Bytes that a copy reads and writes.
    pub(crate) copy_bytes_per_s: f64,
    /// From pinned host memory.
    pub(crate) upload_bytes_per_s: f64,
    /// Of PyTorch's bf16 product.
    pub(crate) library_operations_per_s: f64,
    /// Of our own.
    pub(crate) own_operations_per_s: f64,
}

impl Limits {
    pub(crate) fn from_json(value: &Value) -> Self {
        let number = |name: &str| value[name].as_f64().unwrap_or_default();
        Self {
            copy_bytes_per_s: number("copy_bytes_per_s"),
            upload_bytes_per_s: number("upload_bytes_per_s"),
            library_operations_per_s: number("library_operations_per_s"),
            own_operations_per_s: number("own_operations_per_s"),
        }
    }

    fn json(self) -> Value {
        let known = |value: f64| if value > 0.0 { rounded(value) } else { Value::Null };
        json!({
            "copy_bytes_per_s": known(self.copy_bytes_per_s), "upload_bytes_per_s": known(self.upload_bytes_per_s),
            "library_operations_per_s": known(self.library_operations_per_s),
            "own_operations_per_s": known(self.own_operations_per_s),
        })
    }

    /// The least seconds in which so many bytes are read.
    ///
    /// # Errors
    /// If the bandwidth was not measured.
    pub(crate) fn memory_seconds(self, bytes: f64) -> Outcome<f64> {
        if self.copy_bytes_per_s > 0.0 {
            Ok(bytes / self.copy_bytes_per_s)
        } else {
            Err("no bandwidth was measured".into())
        }
    }

    /// The most operations in a second that this run saw.
    pub(crate) fn peak(self) -> f64 {
        self.library_operations_per_s.max(self.own_operations_per_s)
    }
}

pub(crate) fn run(given: &Given, record: &mut Record) -> Outcome {
    let device = Device::open(0)?;
    let mut limits = Limits::default();
    let (bytes, rounds) = if given.tiny { (1 << 16, 2) } else { (1 << 30, 20) };
    let rounds = Rounds { seconds: 2.0, least: 2, most: rounds };
    let best = |times: &[f64], work: f64| work / quantile(times, 0.1).max(1e-12);
    {
        let memory = device.allocate(2 * bytes)?;
        let (from, to) = (memory.part(0, bytes)?, memory.part(bytes, bytes)?);
        device.compute().fill(memory.range(), 0x3c)?;
        let times = rounds.run(|| device_seconds(&device, device.compute(), || device.compute().copy(from, to)))?;
        limits.copy_bytes_per_s = best(&times, 2.0 * bytes as f64);
        let upload = bytes / 4;
        let mut host = device.pinned::<u8>(upload)?;
        let times = rounds
            .run(|| device_seconds(&device, device.copy(), || device.copy().upload(&mut host, 0..upload, from)))?;
        limits.upload_bytes_per_s = best(&times, upload as f64);
    }
    record.limits(&limits.json());
    let size = if given.tiny { 64 } else { 8192 };
    let times = own_product(&device, size, rounds)?;
    let operations = 2.0 * (size as f64).powi(3);
    limits.own_operations_per_s = best(&times, operations);
    record.limits(&limits.json());
    match Peer::start(&given.peers, 60.0).and_then(|mut peer| peer.ask(&json!({"product": size}), 60.0)) {
        Ok(answer) => {
            limits.library_operations_per_s =
                answer["seconds"].as_f64().map_or(0.0, |seconds| operations / seconds.max(1e-12));
            record.row(&json!({"cell": "PyTorch", "versions": answer["versions"]}));
            record.limits(&limits.json());
        }
        Err(error) => record.row(&json!({"cell": "PyTorch", "absent": error.to_string()})),
    }
    Ok(())
}

/// W x of a square matrix and as many rows.
fn own_product(device: &Device, size: usize, rounds: Rounds) -> Outcome<Vec<f64>> {
    let linear = Linear::load(device)?;
    let weights_bytes = WeightFormat::Bf16.packed_bytes(size, size).ok_or("no such matrix")?;
    let values: Vec<u16> =
        (0..size * size).map(|place| OPERANDS[(place * 7 + place / size) % OPERANDS.len()]).collect();
    let (weights, x) = (device.allocate(weights_bytes)?, device.allocate(size * size * 2)?);
    let (y, rows) = (device.allocate(size * size * 4)?, device.allocate(4)?);
    let workspace = workspace_bytes(size, size, size);
    let workspace = (workspace > 0).then(|| device.allocate(workspace)).transpose()?;
    let stream = device.compute();
    stream.fill(weights.range(), 0x3c)?;
    stream.upload_now(&values, weights.range())?;
    stream.upload_now(&values, x.range())?;
    stream.upload_now(&[crate::rig::small(size)], rows.range())?;
    let args = LinearArgs {
        weights: LinearWeights { format: WeightFormat::Bf16, outputs: size, inputs: size, data: weights.range() },
        x: x.range(),
        y: y.range(),
        y_stride: size,
        y_column: 0,
        rows: rows.range(),
        rows_max: size,
        workspace: workspace.as_ref().map(kernels::cuda::DeviceMemory::range),
    };
    rounds.run(|| device_seconds(device, stream, || linear.launch(stream, &args)))
}
