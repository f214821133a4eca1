//! Adapters as their blocks will hold them, written into pinned host memory by whoever fetches them, so that the engine's
//! thread has nothing to copy: it only says from where to where. Not here: the way from there to the device
//! (`adapters.rs`).
//!
//! The memory is bounded. It is taken in chunks of equal size when they are first needed, and then kept: a chunk goes from
//! one adapter to the next when the first has been uploaded, or nobody waits for it. An adapter that finds none is still
//! loaded, by a copy on the engine's thread.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use engine::Slot;
use kernels::cuda::{CudaError, DeviceRange, Pinned, PinnedMemory, Stream};

use super::pieces::Placement;
use super::window::{Window, fill};
use crate::LoraAdapter;

/// Bytes of a chunk, if a block is smaller.
const CHUNK_BYTES: usize = 1 << 20;

/// Where adapters are made ready for a CUDA device, off the engine's thread. Cheap to clone.
#[derive(Clone)]
pub struct AdapterStaging {
    shared: Arc<Shared>,
}

/// What was made ready, and how much of it there is room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StagingStats {
    /// Pinned host memory that was taken.
    pub bytes: u64,
    /// The most that is taken.
    pub bytes_max: u64,
    /// Adapters that lie there.
    pub adapters: usize,
    /// Adapters that were written there.
    pub prepared: u64,
    /// Adapters that found no room.
    pub refused: u64,
}

impl fmt::Debug for AdapterStaging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterStaging").field("stats", &self.stats()).finish()
    }
}

struct Shared {
    memory: PinnedMemory,
    block_bytes: usize,
    chunk_blocks: usize,
    chunks_max: usize,
    state: Mutex<State>,
    /// Something was prepared, or was not.
    prepared: Condvar,
}

#[derive(Default)]
struct State {
    /// Chunks that were taken, wherever they are.
    chunks: usize,
    /// The one given back for longest first: its last copy has most likely ended.
    free: VecDeque<Pinned<u8>>,
    /// Those used for longest first.
    images: Vec<Kept>,
    /// On their way into `images`.
    begun: Vec<Weak<LoraAdapter>>,
    /// In the runner's slots: what lies there needs no image.
    slots: Vec<Weak<LoraAdapter>>,
    stats: StagingStats,
}

struct Kept {
    adapter: Weak<LoraAdapter>,
    image: Arc<StagedImage>,
}

/// An adapter's blocks, one after the other.
pub(super) struct StagedImage {
    pub(super) placement: Placement,
    chunk_blocks: usize,
    block_bytes: usize,
    chunks: Mutex<Vec<Pinned<u8>>>,
    is_uploaded: AtomicBool,
}

impl StagedImage {
    /// Has the copy stream bring a block of it. Until that has ended nobody writes there, whoever lets go of this.
    pub(super) fn send_block(&self, copy: &Stream, block: usize, target: DeviceRange) -> Result<(), CudaError> {
        let mut chunks = lock(&self.chunks);
        let first = block % self.chunk_blocks * self.block_bytes;
        match chunks.get_mut(block / self.chunk_blocks) {
            Some(chunk) => copy.upload(chunk, first..first + self.block_bytes, target),
            None => Err(CudaError::Range { what: "a prepared adapter", needed: block + 1, bytes: 0 }),
        }
    }

    /// Its memory may be another's when the copies have ended.
    pub(super) fn note_uploaded(&self) {
        self.is_uploaded.store(true, Ordering::Relaxed);
    }
}

impl AdapterStaging {
    pub(super) fn new(memory: PinnedMemory, block_bytes: usize, bytes_max: u64, slots: usize) -> Self {
        let chunk_blocks = (CHUNK_BYTES / block_bytes.max(1)).max(1);
        let chunk_bytes = (chunk_blocks * block_bytes).max(1) as u64;
        let chunks_max = usize::try_from(bytes_max / chunk_bytes).unwrap_or(usize::MAX);
        let stats = StagingStats { bytes_max: chunks_max as u64 * chunk_bytes, ..StagingStats::default() };
        let state = State { slots: (0..slots).map(|_| Weak::new()).collect(), stats, ..State::default() };
        let (state, prepared) = (Mutex::new(state), Condvar::new());
        Self { shared: Arc::new(Shared { memory, block_bytes, chunk_blocks, chunks_max, state, prepared }) }
    }

    /// Whether [`Self::prepare`] would have something to do: a look, for whoever must not wait.
    #[must_use]
    pub fn is_wanted(&self, adapter: &Arc<LoraAdapter>) -> bool {
        self.shared.chunks_max > 0 && adapter.device_factors().is_some() && !lock(&self.shared.state).touch(adapter)
    }

    /// Makes an adapter ready, if it is not and there is room: takes as long as a copy of it, and waits for another thread
    /// that does the same. Whether it is ready, or lies on the device anyway.
    pub fn prepare(&self, adapter: &Arc<LoraAdapter>) -> bool {
        let shared = &*self.shared;
        let Some(factors) = adapter.device_factors() else { return false };
        let Some(placement) = Placement::of(factors, shared.block_bytes) else { return false };
        let chunks = placement.blocks.div_ceil(shared.chunk_blocks);
        if chunks == 0 || chunks > shared.chunks_max {
            return false;
        }
        let mut state = lock(&shared.state);
        loop {
            if state.touch(adapter) {
                return true;
            }
            if !state.begun.iter().any(|begun| is(begun, adapter)) {
                break;
            }
            state = shared.prepared.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let mut claim = Claim { shared, adapter, chunks: Vec::with_capacity(chunks), reserved: 0, has_begun: false };
        if !state.claim(&mut claim, chunks, shared.chunks_max) {
            state.stats.refused += 1;
            drop(state);
            return false;
        }
        state.begun.push(Arc::downgrade(adapter));
        claim.has_begun = true;
        drop(state);
        let written = claim.write(factors, &placement);
        if let Err(error) = &written {
            tracing::warn!(%error, "an adapter was not prepared in pinned memory");
            return false;
        }
        claim.keep(placement);
        true
    }

    /// What there is.
    #[must_use]
    pub fn stats(&self) -> StagingStats {
        let state = lock(&self.shared.state);
        let chunk_bytes = self.shared.chunk_blocks * self.shared.block_bytes;
        let bytes = state.chunks as u64 * chunk_bytes as u64;
        StagingStats { bytes, adapters: state.images.len(), ..state.stats }
    }

    /// What was prepared of an adapter.
    pub(super) fn find(&self, adapter: &Arc<LoraAdapter>) -> Option<Arc<StagedImage>> {
        let state = lock(&self.shared.state);
        state.images.iter().find(|kept| is(&kept.adapter, adapter)).map(|kept| Arc::clone(&kept.image))
    }

    /// A slot has this adapter now, or none.
    pub(super) fn note_slot(&self, slot: Slot, adapter: Option<&Arc<LoraAdapter>>) {
        if let Some(place) = lock(&self.shared.state).slots.get_mut(slot.0 as usize) {
            *place = adapter.map(Arc::downgrade).unwrap_or_default();
        }
    }
}

impl State {
    /// Whether nothing has to be done for it. If it is prepared it counts as used.
    fn touch(&mut self, adapter: &Arc<LoraAdapter>) -> bool {
        let found = self.images.iter().position(|kept| is(&kept.adapter, adapter));
        if let Some(index) = found {
            let kept = self.images.remove(index);
            self.images.push(kept);
        }
        found.is_some() || self.slots.iter().any(|slot| is(slot, adapter))
    }

    /// Takes chunks that are free, the right to new ones, and those of adapters that nobody waits for. If they are too few it
    /// takes none.
    fn claim(&mut self, claim: &mut Claim<'_>, count: usize, chunks_max: usize) -> bool {
        let spent = |kept: &Kept| {
            // The memory that keeps adapters has it, and nobody else.
            let is_idle = kept.adapter.strong_count() <= 1;
            (is_idle || kept.image.is_uploaded.load(Ordering::Relaxed)) && Arc::strong_count(&kept.image) == 1
        };
        let there = self.free.len() + chunks_max.saturating_sub(self.chunks);
        let mut missing = count.saturating_sub(there);
        let of = |kept: &Kept| lock(&kept.image.chunks).len();
        if self.images.iter().filter(|kept| spent(kept)).map(of).sum::<usize>() < missing {
            return false;
        }
        while missing > 0
            && let Some(index) = self.images.iter().position(spent)
        {
            let Some(image) = Arc::into_inner(self.images.remove(index).image) else { continue };
            let chunks = image.chunks.into_inner().unwrap_or_else(PoisonError::into_inner);
            missing = missing.saturating_sub(chunks.len());
            self.free.extend(chunks);
        }
        if missing > 0 {
            // Somebody came for one of them since they were counted.
            return false;
        }
        let reused = count.min(self.free.len());
        claim.chunks.extend(self.free.drain(..reused));
        claim.reserved = count - reused;
        self.chunks += claim.reserved;
        true
    }
}

/// Memory on its way to an image; goes back if that is not to be.
struct Claim<'a> {
    shared: &'a Shared,
    adapter: &'a Arc<LoraAdapter>,
    chunks: Vec<Pinned<u8>>,
    /// Chunks that may be taken anew.
    reserved: usize,
    /// Whether it stands among those that have begun. Another thread's entry is not its to take out.
    has_begun: bool,
}

impl Claim<'_> {
    fn write(&mut self, factors: &crate::adapter::DeviceFactors, placement: &Placement) -> Result<(), CudaError> {
        let (block_bytes, chunk_blocks) = (self.shared.block_bytes, self.shared.chunk_blocks);
        while self.reserved > 0 {
            self.chunks.push(self.shared.memory.take(chunk_blocks * block_bytes)?);
            self.reserved -= 1;
        }
        let mut pieces = placement.pieces.iter().peekable();
        for (index, chunk) in self.chunks.iter_mut().enumerate() {
            let first = index * chunk_blocks;
            let end = (first + chunk_blocks).min(placement.blocks);
            // Waits for what an earlier adapter still uploads from here.
            let bytes = chunk.as_mut_slice()?;
            bytes.fill(0);
            fill(Window { bytes, block_bytes, first, end }, factors, placement, &mut pieces);
        }
        Ok(())
    }

    fn keep(mut self, placement: Placement) {
        let image = StagedImage {
            placement,
            chunk_blocks: self.shared.chunk_blocks,
            block_bytes: self.shared.block_bytes,
            chunks: Mutex::new(std::mem::take(&mut self.chunks)),
            is_uploaded: AtomicBool::new(false),
        };
        let mut state = lock(&self.shared.state);
        state.stats.prepared += 1;
        state.images.push(Kept { adapter: Arc::downgrade(self.adapter), image: Arc::new(image) });
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.chunks -= self.reserved;
        state.free.extend(self.chunks.drain(..));
        if self.has_begun {
            state.begun.retain(|begun| !is(begun, self.adapter));
        }
        drop(state);
        self.shared.prepared.notify_all();
    }
}

fn is(weak: &Weak<LoraAdapter>, adapter: &Arc<LoraAdapter>) -> bool {
    std::ptr::eq(weak.as_ptr(), Arc::as_ptr(adapter))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
