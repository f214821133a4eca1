//! Causal attention over paged keys and values, in decode and in prefill with equal bits: `cuda/attention.cu`.

mod cases;

use half::f16;

use crate::cuda::kernel::{argument, fatbin};
use crate::cuda::{
    CudaError, Device, DevicePtr, DeviceRange, HEAD_DIMS, Kernel, KvLayout, Launch, Module, Plain, Stream,
};

pub(crate) use cases::cases;

/// Positions of which `attention_split` makes one partial sum.
pub const CHUNK_TOKENS: usize = 256;
const TILE_TOKENS: u32 = 64;
const SPLIT_THREADS: u32 = 128;
const SPLIT_STAGES: u32 = 2;
const SPLIT_QUERIES: u32 = 16;
const ROWS_THREADS: u32 = 256;
const ROWS_QUERIES: u32 = 128;
const COMBINE_WARPS: u32 = 4;

/// Rows of one sequence, next to each other in the batch and in position, that a block works on together.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttentionTile {
    /// The first row.
    pub row_begin: u32,
    /// How many there are: at most [`split_tile_rows`] or [`rows_tile_rows`].
    pub row_count: u32,
    /// Where in the block tables that of the sequence begins.
    pub table_begin: u32,
    /// The first of its [`AttentionTile::units`]; of no meaning to [`Attention::rows`].
    pub partial_begin: u32,
}

// SAFETY: four u32, of which every pattern is a value, without padding.
unsafe impl Plain for AttentionTile {}

impl AttentionTile {
    /// Units of partial sums that a tile takes whose last row has this position: one for each row and chunk, none if there is
    /// but one chunk.
    #[must_use]
    pub const fn units(row_count: u32, last_position: u32) -> u32 {
        let chunks = last_position / CHUNK_TOKENS as u32 + 1;
        if chunks == 1 { 0 } else { chunks * row_count }
    }
}

/// The most rows of a tile of [`Attention::split`].
#[must_use]
pub fn split_tile_rows(heads: u32, kv_heads: u32) -> u32 {
    (SPLIT_QUERIES / (heads / kv_heads)).max(1)
}

/// The most rows of a tile of [`Attention::rows`].
#[must_use]
pub fn rows_tile_rows(heads: u32, kv_heads: u32) -> u32 {
    (ROWS_QUERIES / (heads / kv_heads)).max(1)
}

/// The kernels on one device, for one width of heads.
#[derive(Debug)]
pub struct Attention {
    head_dim: u32,
    split: Kernel,
    rows: Kernel,
    combine: Kernel,
}

/// What both ways take.
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs {
    /// bf16 `[rows, heads · head_dim]`, written.
    pub out: DeviceRange,
    /// f16 `[rows, heads, head_dim]`, rotated.
    pub q: DeviceRange,
    /// The pool of blocks; keys and values of all positions up to a row's own are in place.
    pub pool: DeviceRange,
    /// Its layout.
    pub kv: KvLayout,
    /// Which layer.
    pub layer: u32,
    /// Query heads: a multiple of the layout's key heads.
    pub heads: u32,
    /// u32 `[rows]`.
    pub positions: DeviceRange,
    /// u32: the tables of all sequences.
    pub block_tables: DeviceRange,
    /// [`AttentionTile`]s.
    pub tiles: DeviceRange,
    /// One u32: how many tiles there are, at most `tiles_max`.
    pub tiles_count: DeviceRange,
    /// Tiles that there is room for.
    pub tiles_max: u32,
    /// Rows that there is room for.
    pub rows_max: u32,
}

/// Where [`Attention::split`] leaves partial sums.
#[derive(Clone, Copy, Debug)]
pub struct AttentionPartials {
    /// f32 `[units, heads, head_dim]`
    pub values: DeviceRange,
    /// f32 `[units, heads, 2]`
    pub sums: DeviceRange,
    /// Units that there is room for: all tiles' [`AttentionTile::units`] must be below it.
    pub units: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    out: DevicePtr,
    q: DevicePtr,
    pool: DevicePtr,
    positions: DevicePtr,
    block_tables: DevicePtr,
    tiles: DevicePtr,
    tiles_count: DevicePtr,
    partials: DevicePtr,
    partial_sums: DevicePtr,
    layer: u32,
    heads: u32,
    scale: f32,
    unused: u32,
}

argument!(Arguments);

impl Attention {
    /// # Errors
    /// If there are no kernels for this width or the device cannot run them.
    pub fn load(device: &Device, head_dim: usize) -> Result<Self, CudaError> {
        if !HEAD_DIMS.contains(&head_dim) {
            return Err(CudaError::Shape { what: "attention: a width of heads that no kernel has", value: head_dim });
        }
        let module = Module::load(device, fatbin!("attention"))?;
        let head_dim = head_dim as u32;
        Ok(Self {
            head_dim,
            split: module.kernel(&format!("attention_split_{head_dim}"), split_shared_bytes(head_dim))?,
            rows: module.kernel(&format!("attention_rows_{head_dim}"), rows_shared_bytes(head_dim))?,
            combine: module.kernel("attention_combine", 0)?,
        })
    }

    /// For few rows of many sequences (decode). Each tile's chunks are shared among `chunk_blocks` blocks: the result does not
    /// depend on how many.
    ///
    /// # Errors
    /// If a buffer is too short, a shape is wrong or the driver refuses.
    pub fn split(
        &self,
        stream: &Stream,
        op: &AttentionArgs,
        partials: AttentionPartials,
        chunk_blocks: u32,
    ) -> Result<(), CudaError> {
        let mut arguments = self.arguments(op)?;
        let units = partials.units as usize * op.heads as usize;
        arguments.partials =
            partials.values.for_kernel("attention: partial sums", units * self.head_dim as usize * 4, 16)?;
        arguments.partial_sums = partials.sums.for_kernel("attention: sums of weights", units * 8, 8)?;
        let (kv_heads, group) = self.groups(op);
        let grid = [chunk_blocks.max(1), kv_heads * group.div_ceil(SPLIT_QUERIES), op.tiles_max];
        let shared_bytes = split_shared_bytes(self.head_dim);
        let launch = Launch { grid: in_limits(grid)?, block: [SPLIT_THREADS, 1, 1], shared_bytes };
        // SAFETY: buffers are as long as `rows_max` rows, `tiles_max` tiles and `units` partial sums take; what tables and
        // positions name exists by the batch's rules.
        unsafe { stream.launch(&self.split, launch, &[&arguments, &op.kv]) }?;
        if partials.units == 0 {
            return Ok(());
        }
        let items = split_tile_rows(op.heads, kv_heads) * op.heads;
        let grid = in_limits([items.div_ceil(COMBINE_WARPS), op.tiles_max, 1])?;
        let launch = Launch { grid, block: [32 * COMBINE_WARPS, 1, 1], shared_bytes: 0 };
        // SAFETY: as above.
        unsafe { stream.launch(&self.combine, launch, &[&arguments, &op.kv]) }
    }

    /// For many rows (prefill).
    ///
    /// # Errors
    /// If a buffer is too short, a shape is wrong or the driver refuses.
    pub fn rows(&self, stream: &Stream, op: &AttentionArgs) -> Result<(), CudaError> {
        let arguments = self.arguments(op)?;
        let (kv_heads, group) = self.groups(op);
        let grid = in_limits([kv_heads * group.div_ceil(ROWS_QUERIES), op.tiles_max, 1])?;
        let launch = Launch { grid, block: [ROWS_THREADS, 1, 1], shared_bytes: rows_shared_bytes(self.head_dim) };
        // SAFETY: buffers are as long as `rows_max` rows and `tiles_max` tiles take; what tables and positions name exists by
        // the batch's rules.
        unsafe { stream.launch(&self.rows, launch, &[&arguments, &op.kv]) }
    }

    fn groups(&self, op: &AttentionArgs) -> (u32, u32) {
        let kv_heads = op.kv.kv_heads() as u32;
        (kv_heads, op.heads / kv_heads)
    }

    fn arguments(&self, op: &AttentionArgs) -> Result<Arguments, CudaError> {
        let (rows, width) = (op.rows_max as usize, op.heads as usize * self.head_dim as usize);
        if op.kv.head_dim() != self.head_dim as usize {
            return Err(CudaError::Shape {
                what: "attention: kernels of another width of heads",
                value: op.kv.head_dim(),
            });
        }
        if op.heads == 0 || !(op.heads as usize).is_multiple_of(op.kv.kv_heads()) || op.layer as usize >= op.kv.layers()
        {
            return Err(CudaError::Shape { what: "attention: heads or layer", value: op.heads as usize });
        }
        Ok(Arguments {
            out: op.out.for_kernel("attention: out", rows * width * 2, 16)?,
            q: op.q.for_kernel("attention: queries", rows * width * 2, 16)?,
            pool: op.pool.for_kernel("attention: pool", op.kv.block_bytes(), 256)?,
            positions: op.positions.for_kernel("attention: positions", rows * 4, 4)?,
            block_tables: op.block_tables.for_kernel("attention: block tables", 4, 4)?,
            tiles: op.tiles.for_kernel("attention: tiles", op.tiles_max as usize * 16, 4)?,
            tiles_count: op.tiles_count.for_kernel("attention: number of tiles", 4, 4)?,
            partials: DevicePtr::NULL,
            partial_sums: DevicePtr::NULL,
            layer: op.layer,
            heads: op.heads,
            scale: std::f32::consts::LOG2_E / (self.head_dim as f32).sqrt(),
            unused: 0,
        })
    }
}

fn in_limits(grid: [u32; 3]) -> Result<[u32; 3], CudaError> {
    match grid[1].max(grid[2]) {
        most @ 65_536.. => {
            Err(CudaError::Shape { what: "attention: tiles or heads of one launch", value: most as usize })
        }
        _ => Ok(grid),
    }
}

const fn split_shared_bytes(head_dim: u32) -> u32 {
    SPLIT_STAGES * 2 * 2 * TILE_TOKENS * head_dim + 2 * SPLIT_QUERIES * TILE_TOKENS + 4 * (SPLIT_THREADS / 32) * SPLIT_QUERIES
}

const fn rows_shared_bytes(head_dim: u32) -> u32 {
    2 * 2 * TILE_TOKENS * head_dim + 4 * ROWS_QUERIES * head_dim
}

/// The reference, in f64: `q` `[heads, head_dim]` of one row that sees `keys` and `values` `[positions]`, each
/// `[kv_heads][head_dim]`.
#[must_use]
pub fn attention_row(q: &[f16], heads: usize, keys: &[Vec<Vec<f32>>], values: &[Vec<Vec<f32>>]) -> Vec<f64> {
    let head_dim = q.len() / heads;
    let kv_heads = keys.first().map_or(1, Vec::len);
    let mut out = Vec::with_capacity(q.len());
    for (head, query) in q.chunks_exact(head_dim).enumerate() {
        let kv_head = head / (heads / kv_heads);
        let score = |key: &Vec<Vec<f32>>| {
            let products = query.iter().zip(&key[kv_head]).map(|(q, k)| q.to_f64() * f64::from(*k));
            products.sum::<f64>() / (head_dim as f64).sqrt()
        };
        let scores: Vec<f64> = keys.iter().map(score).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
        let total: f64 = weights.iter().sum();
        out.extend((0..head_dim).map(|dim| {
            let terms = weights.iter().zip(values).map(|(weight, value)| weight * f64::from(value[kv_head][dim]));
            terms.sum::<f64>() / total
        }));
    }
    out
}
