//! Copies of whole blocks of the pool, in order, and their zeroing: `cuda/copy_wipe.cu`.

use crate::cuda::kernel::fatbin;
use crate::cuda::selftest::{Buffers, Case, Random};
use crate::cuda::{CudaError, Device, DeviceRange, Kernel, Launch, Module, Stream};

const THREADS: u32 = 256;
/// Bytes that a thread has of each block.
const PIECE: u64 = 16;

/// The kernels on one device.
#[derive(Debug)]
pub struct CopyWipe {
    copy: Kernel,
    wipe: Kernel,
}

/// The pool of blocks.
#[derive(Clone, Copy, Debug)]
pub struct BlockPool {
    /// All blocks.
    pub pool: DeviceRange,
    /// Bytes of each: a multiple of 16.
    pub block_bytes: u64,
}

impl CopyWipe {
    /// # Errors
    /// If the device cannot run them.
    pub fn load(device: &Device) -> Result<Self, CudaError> {
        let module = Module::load(device, fatbin!("copy_wipe"))?;
        Ok(Self { copy: module.kernel("copy_blocks", 0)?, wipe: module.kernel("wipe_blocks", 0)? })
    }

    /// Copies blocks in order: `copies` are pairs of u32 (from, to), as many as the u32 at `count` says, at most
    /// `copies_max`. A copy may read what an earlier one wrote.
    ///
    /// # Errors
    /// If a buffer is too short or the driver refuses.
    pub fn copy(
        &self,
        stream: &Stream,
        blocks: BlockPool,
        copies: DeviceRange,
        count: DeviceRange,
        copies_max: u32,
    ) -> Result<(), CudaError> {
        let copies = copies.for_kernel("copies of blocks", copies_max as usize * 8, 8)?;
        let grid = [blocks.pieces()?, u32::from(copies_max > 0), 1];
        blocks.launch(stream, &self.copy, grid, copies, count)
    }

    /// Zeroes the blocks that are in `wipes` (u32), as many as the u32 at `count` says, at most `wipes_max`.
    ///
    /// # Errors
    /// If a buffer is too short or the driver refuses.
    pub fn wipe(
        &self,
        stream: &Stream,
        blocks: BlockPool,
        wipes: DeviceRange,
        count: DeviceRange,
        wipes_max: u32,
    ) -> Result<(), CudaError> {
        let wipes = wipes.for_kernel("blocks to be wiped", wipes_max as usize * 4, 4)?;
        blocks.launch(stream, &self.wipe, [blocks.pieces()?, wipes_max.min(65_535), 1], wipes, count)
    }
}

impl BlockPool {
    fn pieces(self) -> Result<u32, CudaError> {
        if !self.block_bytes.is_multiple_of(PIECE) {
            return Err(CudaError::Alignment { what: "the size of a block", multiple: PIECE as usize });
        }
        let blocks = self.block_bytes.div_ceil(PIECE * u64::from(THREADS));
        u32::try_from(blocks).map_err(|_| CudaError::Shape { what: "the size of a block", value: usize::MAX })
    }

    fn launch(
        self,
        stream: &Stream,
        kernel: &Kernel,
        grid: [u32; 3],
        table: crate::cuda::DevicePtr,
        count: DeviceRange,
    ) -> Result<(), CudaError> {
        let pool = self.pool.for_kernel("the pool of blocks", 0, 16)?;
        let count = count.for_kernel("how many blocks", 4, 4)?;
        let launch = Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 };
        // SAFETY: the table is as long as its maximum; the blocks in it exist by the batch's rules.
        unsafe { stream.launch(kernel, launch, &[&pool, &self.block_bytes, &table, &count]) }
    }
}

/// The reference: copies one after the other, then wipes.
pub fn copy_and_wipe(pool: &mut [u8], block_bytes: usize, copies: &[[u32; 2]], wipes: &[u32]) {
    for [from, to] in copies {
        let from = *from as usize * block_bytes;
        pool.copy_within(from..from + block_bytes, *to as usize * block_bytes);
    }
    for block in wipes {
        pool[*block as usize * block_bytes..][..block_bytes].fill(0);
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let shapes = [(16, 5, 0, 1), (4352, 6, 7, 2), (8192, 4, 1, 0)];
    let case = |(block_bytes, blocks, copies, wipes)| {
        let name = format!("{copies} copies, {wipes} wipes of {block_bytes} bytes");
        Case::new("copy_wipe", name, 0.0, move |device, seed| run(device, seed, block_bytes, blocks, copies, wipes))
    };
    shapes.into_iter().map(case).collect()
}

fn run(
    device: &Device,
    seed: u64,
    block_bytes: usize,
    blocks: usize,
    copies: usize,
    wipes: usize,
) -> Result<f64, CudaError> {
    let (op, mut random, mut buffers) = (CopyWipe::load(device)?, Random::new(seed), Buffers::new(device));
    let mut pool: Vec<u8> = (0..blocks * block_bytes).map(|_| random.bits() as u8).collect();
    // Chains: what a copy wrote is read by the next.
    let mut pairs = Vec::new();
    for copy in 0..copies {
        let from =
            if copy % 2 == 1 { pairs.last().map_or(0, |pair: &[u32; 2]| pair[1]) } else { random.below(blocks) as u32 };
        let to = (from + 1 + random.below(blocks - 1) as u32) % blocks as u32;
        pairs.push([from, to]);
    }
    let wiped: Vec<u32> = (0..wipes as u32).map(|wipe| (wipe * 2 + 1) % blocks as u32).collect();
    let stream = device.compute();
    let block_pool = BlockPool { pool: buffers.with(&pool)?, block_bytes: block_bytes as u64 };
    // More room than there are entries, which hold indices that are nowhere.
    let (table, count) = (buffers.with_room(&pairs.concat(), 2 * copies + 4)?, buffers.with(&[copies as u32])?);
    op.copy(stream, block_pool, table, count, copies as u32 + 2)?;
    let (table, count) = (buffers.with_room(&wiped, wipes + 3)?, buffers.with(&[wipes as u32])?);
    op.wipe(stream, block_pool, table, count, wipes as u32 + 3)?;
    let got: Vec<u8> = buffers.read(block_pool.pool, pool.len())?;
    copy_and_wipe(&mut pool, block_bytes, &pairs, &wiped);
    Ok(if got == pool { 0.0 } else { f64::INFINITY })
}
