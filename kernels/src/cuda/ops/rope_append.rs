//! Rotary embedding of q and k (Su et al., 2021), with the norm of each head before it where the base has one, and the
//! append of k and v to their pages: `cuda/rope_append.cu`.

mod cases;

use half::f16;

use crate::cuda::kernel::fatbin;
use crate::cuda::{CudaError, Device, DevicePtr, DeviceRange, Kernel, KvLayout, Launch, Module, Stream};
use crate::{RopeLayout, RopeTable};

pub(crate) use cases::cases;

const WARPS: u32 = 4;

/// The kernel on one device.
#[derive(Debug)]
pub struct RopeAppend {
    append: Kernel,
}

/// Weights of the norm of each head, f32 `[head_dim]`.
#[derive(Clone, Copy, Debug)]
pub struct DeviceHeadNorms {
    /// Of q.
    pub query: DeviceRange,
    /// Of k.
    pub key: DeviceRange,
    /// Added to the mean of squares.
    pub epsilon: f32,
}

/// One launch.
#[derive(Clone, Copy, Debug)]
pub struct RopeAppendArgs {
    /// f16 `[rows, heads, head_dim]`, written.
    pub q: DeviceRange,
    /// The pool of blocks, written.
    pub pool: DeviceRange,
    /// Its layout.
    pub kv: KvLayout,
    /// Which layer.
    pub layer: u32,
    /// f32 `[rows, qkv_stride]`: the heads of q, of k, of v.
    pub qkv: DeviceRange,
    /// At least `(heads + 2 · kv_heads) · head_dim`.
    pub qkv_stride: u32,
    /// u32 `[rows]`, below `context`.
    pub positions: DeviceRange,
    /// u32 `[rows]`: where in the block tables that of the row's sequence begins.
    pub table_begins: DeviceRange,
    /// u32: the tables of all sequences.
    pub block_tables: DeviceRange,
    /// f32 `[context, 2, head_dim / 2]`: a position's cosines, then its sines ([`turns`]).
    pub turns: DeviceRange,
    /// Positions that there are turns of.
    pub context: u32,
    /// Where the base has them.
    pub norms: Option<DeviceHeadNorms>,
    /// Query heads.
    pub heads: u32,
    /// Which values are turned together.
    pub layout: RopeLayout,
    /// One u32: how many rows there are, at most `rows_max`.
    pub rows: DeviceRange,
    /// Rows that there is room for.
    pub rows_max: u32,
}

impl RopeAppend {
    /// # Errors
    /// If the device cannot run it.
    pub fn load(device: &Device) -> Result<Self, CudaError> {
        let module = Module::load(device, fatbin!("rope_append"))?;
        Ok(Self { append: module.kernel("rope_append", 0)? })
    }

    /// # Errors
    /// If a buffer is too short, a shape is wrong or the driver refuses.
    pub fn launch(&self, stream: &Stream, op: &RopeAppendArgs) -> Result<(), CudaError> {
        let (rows, dim, heads) = (op.rows_max as usize, op.kv.head_dim(), op.heads as usize + 2 * op.kv.kv_heads());
        if (op.qkv_stride as usize) < heads * dim || op.layer as usize >= op.kv.layers() {
            return Err(CudaError::Shape { what: "rotary append: stride or layer", value: op.qkv_stride as usize });
        }
        let q = op.q.for_kernel("rotary append: queries", rows * op.heads as usize * dim * 2, 16)?;
        let pool = op.pool.for_kernel("rotary append: pool", op.kv.block_bytes(), 256)?;
        let read = (rows * op.qkv_stride as usize).saturating_sub(op.qkv_stride as usize - heads * dim);
        let qkv = op.qkv.for_kernel("rotary append: q, k and v", read * 4, 4)?;
        let positions = op.positions.for_kernel("rotary append: positions", rows * 4, 4)?;
        let table_begins = op.table_begins.for_kernel("rotary append: starts of tables", rows * 4, 4)?;
        let block_tables = op.block_tables.for_kernel("rotary append: block tables", 4, 4)?;
        let turns = op.turns.for_kernel("rotary append: turns", op.context as usize * dim * 4, 4)?;
        let (mut query, mut key, mut epsilon) = (DevicePtr::NULL, DevicePtr::NULL, 0.0);
        if let Some(norms) = op.norms {
            query = norms.query.for_kernel("rotary append: norm of q", dim * 4, 4)?;
            key = norms.key.for_kernel("rotary append: norm of k", dim * 4, 4)?;
            epsilon = norms.epsilon;
        }
        let is_halves = u32::from(op.layout == RopeLayout::Halves);
        let count = op.rows.for_kernel("rotary append: rows", 4, 4)?;
        let grid = [op.rows_max, (heads as u32).div_ceil(WARPS), 1];
        let launch = Launch { grid, block: [32 * WARPS, 1, 1], shared_bytes: 0 };
        // SAFETY: buffers are as long as `rows_max` rows take; positions and the blocks of tables exist by the batch's rules.
        unsafe {
            stream.launch(
                &self.append,
                launch,
                &[
                    &q,
                    &pool,
                    &op.kv,
                    &op.layer,
                    &qkv,
                    &op.qkv_stride,
                    &positions,
                    &table_begins,
                    &block_tables,
                    &turns,
                    &query,
                    &key,
                    &epsilon,
                    &op.heads,
                    &is_halves,
                    &count,
                ],
            )
        }
    }
}

/// The cosines and sines of all positions as the kernel reads them: `[positions, 2, head_dim / 2]`. Pair i turns by
/// position · theta^(-2i / head_dim) / divisor i; `divisors` is empty where the base is not scaled.
#[must_use]
pub fn turns(positions: usize, head_dim: usize, theta: f32, divisors: &[f32]) -> Vec<f32> {
    let pairs = head_dim / 2;
    let frequency = |pair: usize| {
        let divisor = divisors.get(pair).map_or(1.0, |divisor| f64::from(*divisor));
        f64::from(theta).powf(-2.0 * pair as f64 / head_dim as f64) / divisor
    };
    let frequencies: Vec<f64> = (0..pairs).map(frequency).collect();
    let mut turns = Vec::with_capacity(positions * head_dim);
    for position in 0..positions {
        turns.extend(frequencies.iter().map(|frequency| (position as f64 * frequency).cos() as f32));
        turns.extend(frequencies.iter().map(|frequency| (position as f64 * frequency).sin() as f32));
    }
    turns
}

/// The reference of a head of q or k, normed where there are weights and turned, in f32 with the norm's mean in f64.
pub fn turn_head(table: &RopeTable, position: usize, norm: Option<(&[f32], f32)>, head: &mut [f32]) {
    if let Some((weight, epsilon)) = norm {
        let plain = head.to_vec();
        crate::rms_norm(&plain, weight, epsilon, head);
    }
    table.apply(position, head);
}

/// To f16 as the kernel rounds: what is beyond its range becomes its largest number.
#[must_use]
pub fn to_f16(value: f32) -> f16 {
    if value.is_nan() { f16::NAN } else { f16::from_f32(value.clamp(-65_504.0, 65_504.0)) }
}
