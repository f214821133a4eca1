//! Adapters on the device: their factors go into the blocks that they were given, block by block on the copy stream, and
//! their descriptors into the kernels' table. Steps may begin before an upload has ended: layers wait for their own part of
//! it. Not here: how an adapter is cut (`pieces.rs`), and whose blocks are whose (the engine).

use engine::{RunnerError, Slot};
use kernels::cuda::{CudaError, Device, DeviceRange, Event, Pinned, Stream};

use super::pieces::{ALL_GROUPS, GROUP_MODULES, Piece, Placement};
use super::plan::PIECE_WORDS;
use super::step_failed;
use crate::adapter::DeviceFactors;

/// Buffers that uploads go through in turn, and their size if blocks are smaller.
const STAGES: usize = 2;
const STAGE_BYTES: usize = 8 << 20;
/// Uploads that may be under way.
const UPLOADS: usize = 4;
/// Parts of an upload that layers wait for.
const UPLOAD_PARTS: usize = 8;
/// No further piece of a group.
const NO_NEXT: u32 = u32::MAX;

/// An adapter in its slot.
struct Resident {
    /// Values of A x of one row, at most.
    stride: u32,
    /// Which of [`Adapters::uploads`] brings it, until that has ended.
    upload: Option<usize>,
}

/// An upload on its way.
struct Upload {
    /// Reached when so many eighths of the layers are there.
    parts: Vec<Event>,
    slot: Option<usize>,
}

/// The slots, and the way into them.
pub(super) struct Adapters {
    slots: Vec<Option<Resident>>,
    uploads: Vec<Upload>,
    /// The upload that was begun longest ago.
    next: usize,
    stages: Vec<Pinned<u8>>,
    stage: usize,
    descriptors: Pinned<u32>,
    layers: usize,
    pieces_max: usize,
    block_bytes: usize,
    /// Descriptors of all slots.
    table: DeviceRange,
    pool: DeviceRange,
}

impl Adapters {
    pub(super) fn new(
        device: &Device,
        slots: u32,
        layers: usize,
        pieces_max: usize,
        block_bytes: usize,
        [table, pool]: [DeviceRange; 2],
    ) -> Result<Self, CudaError> {
        let stage = STAGE_BYTES.max(block_bytes).min(pool.bytes()) / block_bytes * block_bytes;
        let (stages, stage) = if slots == 0 { (0, 0) } else { (STAGES, stage) };
        let upload = |_| {
            let parts = (0..UPLOAD_PARTS).map(|_| Event::new(device)).collect::<Result<_, _>>()?;
            Ok(Upload { parts, slot: None })
        };
        Ok(Self {
            slots: (0..slots).map(|_| None).collect(),
            uploads: (0..UPLOADS).map(upload).collect::<Result<_, CudaError>>()?,
            next: 0,
            stages: (0..stages).map(|_| device.pinned(stage)).collect::<Result<_, _>>()?,
            stage: 0,
            descriptors: device.pinned(if slots == 0 { 0 } else { layers * 4 * pieces_max * PIECE_WORDS })?,
            layers,
            pieces_max,
            block_bytes,
            table,
            pool,
        })
    }

    /// Slots in all.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_loaded(&self, slot: Slot) -> bool {
        self.slots.get(slot.0 as usize).is_some_and(Option::is_some)
    }

    /// Values of A x of one row of a slot's adapter, at most; 0 if it changes nothing.
    pub(super) fn stride(&self, slot: Slot) -> u32 {
        self.slots.get(slot.0 as usize).and_then(Option::as_ref).map_or(0, |resident| resident.stride)
    }

    /// Begins to put an adapter into an empty slot and these blocks. What was given to `compute` before reads the blocks no
    /// more when `free` is reached.
    pub(super) fn load(
        &mut self,
        device: &Device,
        slot: Slot,
        factors: &DeviceFactors,
        blocks: &[u32],
        free: &Event,
    ) -> Result<(), RunnerError> {
        match self.slots.get(slot.0 as usize) {
            None => return Err(RunnerError::Malformed(format!("there is no slot {}", slot.0))),
            Some(Some(_)) => return Err(RunnerError::Malformed(format!("slot {} is not empty", slot.0))),
            Some(None) => {}
        }
        let too_large = || RunnerError::Adapter("a matrix of it is larger than a block, or its rank above 256".into());
        let placement = Placement::of(factors, self.block_bytes).ok_or_else(too_large)?;
        if placement.pieces_of_a_group_max() > self.pieces_max {
            return Err(too_large());
        }
        if placement.blocks != blocks.len() {
            let (needed, given) = (placement.blocks, blocks.len());
            return Err(RunnerError::Malformed(format!("{given} blocks for an adapter of {needed}")));
        }
        let stride = self.describe(factors, &placement, blocks)?;
        let copy = device.copy();
        let upload = self.next;
        self.next = (self.next + 1) % self.uploads.len().max(1);
        self.make_free(upload).map_err(step_failed)?;
        copy.wait(free).map_err(step_failed)?;
        let sent = self.send_descriptors(copy, slot);
        let sent = sent.and_then(|()| self.send_blocks(copy, upload, factors, &placement, blocks));
        if let Err(error) = sent {
            // The blocks are somebody else's from now on: what was sent must not arrive there later.
            return Err(step_failed(copy.synchronize().err().unwrap_or(error)));
        }
        if let Some(place) = self.slots.get_mut(slot.0 as usize) {
            *place = Some(Resident { stride, upload: Some(upload) });
        }
        if let Some(upload) = self.uploads.get_mut(upload) {
            upload.slot = Some(slot.0 as usize);
        }
        Ok(())
    }

    /// Empties a slot. What `compute` is given from now on may have its blocks.
    pub(super) fn unload(&mut self, slot: Slot, compute: &Stream) -> Result<(), CudaError> {
        let resident = self.slots.get_mut(slot.0 as usize).and_then(Option::take);
        let Some(upload) = resident.and_then(|resident| resident.upload) else { return Ok(()) };
        let Some(upload) = self.uploads.get_mut(upload) else { return Ok(()) };
        upload.slot = None;
        upload.parts.last().map_or(Ok(()), |end| compute.wait(end))
    }

    /// Notes which uploads have ended, and says whether one is under way into a slot that `is_used`.
    pub(super) fn is_arriving(&mut self, is_used: impl Fn(Slot) -> bool) -> Result<bool, CudaError> {
        let mut arriving = false;
        for upload in &mut self.uploads {
            let Some(slot) = upload.slot else { continue };
            if upload.parts.last().map_or(Ok(true), Event::is_reached)? {
                upload.slot = None;
                if let Some(Some(resident)) = self.slots.get_mut(slot) {
                    resident.upload = None;
                }
            } else {
                arriving |= is_used(Slot(u32::try_from(slot).unwrap_or(u32::MAX)));
            }
        }
        Ok(arriving)
    }

    /// Has `compute` wait for what this layer needs of all uploads under way.
    pub(super) fn wait_for_layer(&self, layer: usize, compute: &Stream) -> Result<(), CudaError> {
        let part = self.part_of(layer);
        for upload in self.uploads.iter().filter(|upload| upload.slot.is_some()) {
            if let Some(event) = upload.parts.get(part) {
                compute.wait(event)?;
            }
        }
        Ok(())
    }

    fn part_of(&self, layer: usize) -> usize {
        layer / self.layers.div_ceil(UPLOAD_PARTS).max(1)
    }

    /// Waits for the upload that last had these events.
    fn make_free(&mut self, upload: usize) -> Result<(), CudaError> {
        let Some(upload) = self.uploads.get_mut(upload) else { return Ok(()) };
        let Some(slot) = upload.slot.take() else { return Ok(()) };
        upload.parts.last().map_or(Ok(()), Event::synchronize)?;
        if let Some(Some(resident)) = self.slots.get_mut(slot) {
            resident.upload = None;
        }
        Ok(())
    }

    /// Writes the descriptors of a slot: those of each group's first piece, then all others. How many values A x of a row has.
    fn describe(&mut self, factors: &DeviceFactors, placement: &Placement, blocks: &[u32]) -> Result<u32, RunnerError> {
        let (block_bytes, pool, extra) = (self.block_bytes as u64, self.pool.start().address(), self.pieces_max - 1);
        let address = |place: super::pieces::Place| {
            let block = blocks.get(place.block).map_or(0, |block| u64::from(*block));
            pool + block * block_bytes + place.offset as u64
        };
        let first_extra = self.layers * 4;
        let words = self.descriptors.as_mut_slice().map_err(step_failed)?;
        words.fill(0);
        let descriptors = words.as_chunks_mut::<PIECE_WORDS>().0;
        let mut stride = 0;
        let alike = |one: &Piece, two: &Piece| one.layer == two.layer && one.group == two.group;
        for pieces in placement.pieces.chunk_by(alike) {
            let mut row = 0;
            for (place, piece) in pieces.iter().enumerate() {
                let group = piece.layer * 4 + piece.group as usize;
                let index = if place == 0 { group } else { first_extra + group * extra + place - 1 };
                let mut fields = PieceFields { a: address(piece.a), row, next: NO_NEXT, ..PieceFields::default() };
                for (module, own) in piece.modules.iter().enumerate() {
                    let Some((own, term)) = own.as_ref().and_then(|own| Some((own, factors.terms().get(own.term)?)))
                    else {
                        continue;
                    };
                    let rank = u32::try_from(own.ranks.len()).unwrap_or(0);
                    fields.b[module] = address(own.b);
                    fields.growth[module] = own.growth.map_or(0, address);
                    fields.scale[module] = term.scale;
                    fields.rank[module] = rank;
                    row += rank;
                }
                // Relative to the slot: made absolute when it is known which slot.
                if place + 1 < pieces.len() {
                    fields.next = u32::try_from(group * extra + place).unwrap_or(NO_NEXT);
                }
                let to =
                    descriptors.get_mut(index).ok_or_else(|| RunnerError::Failed("a piece has no place".into()))?;
                *to = fields.words();
            }
            stride = stride.max(row);
        }
        Ok(stride)
    }

    /// First pieces lie slot after slot at the start of the table, all others behind those of all slots.
    fn send_descriptors(&mut self, copy: &Stream, slot: Slot) -> Result<(), CudaError> {
        let (slot, slots) = (slot.0 as usize, self.slots.len());
        let groups = self.layers * 4;
        let others = groups * (self.pieces_max - 1);
        let base = u32::try_from(slots * groups + slot * others).unwrap_or(NO_NEXT);
        let words = self.descriptors.as_mut_slice()?;
        for piece in words.as_chunks_mut::<PIECE_WORDS>().0 {
            let is_there = piece[PieceFields::RANK_WORDS].iter().any(|rank| *rank > 0);
            let next = &mut piece[PieceFields::NEXT_WORD];
            *next = if is_there && *next != NO_NEXT { *next + base } else { NO_NEXT };
        }
        let piece_bytes = PIECE_WORDS * size_of::<u32>();
        let first = self.table.part(slot * groups * piece_bytes, groups * piece_bytes)?;
        copy.upload(&mut self.descriptors, 0..groups * PIECE_WORDS, first)?;
        let rest = self.table.part(base as usize * piece_bytes, others * piece_bytes)?;
        copy.upload(&mut self.descriptors, groups * PIECE_WORDS..(groups + others) * PIECE_WORDS, rest)
    }

    /// Block by block; a part's event is recorded as soon as the last block of its layers was sent.
    fn send_blocks(
        &mut self,
        copy: &Stream,
        upload: usize,
        factors: &DeviceFactors,
        placement: &Placement,
        blocks: &[u32],
    ) -> Result<(), CudaError> {
        let last_blocks = self.last_blocks(placement);
        let block_bytes = self.block_bytes;
        let stage_blocks = self.stages.first().map_or(1, |stage| stage.len() / block_bytes).max(1);
        let mut recorded = 0;
        let mut pieces = placement.pieces.iter().peekable();
        for (chunk, numbers) in blocks.chunks(stage_blocks).enumerate() {
            let first = chunk * stage_blocks;
            let stages = self.stages.len().max(1);
            self.stage = (self.stage + 1) % stages;
            let Some(stage) = self.stages.get_mut(self.stage) else { continue };
            let bytes = stage.as_mut_slice()?;
            let bytes = bytes.get_mut(..numbers.len() * block_bytes).unwrap_or_default();
            bytes.fill(0);
            let window = Window { bytes, block_bytes, first, end: first + numbers.len() };
            fill(window, factors, placement, &mut pieces);
            for (place, number) in numbers.iter().enumerate() {
                let target = self.pool.part(*number as usize * block_bytes, block_bytes)?;
                copy.upload(stage, place * block_bytes..(place + 1) * block_bytes, target)?;
                while last_blocks.get(recorded).is_some_and(|last| *last <= first + place) {
                    record(copy, &self.uploads, upload, recorded)?;
                    recorded += 1;
                }
            }
        }
        // Those whose layers have nothing, and all of an adapter that changes nothing.
        (recorded..UPLOAD_PARTS).try_for_each(|part| record(copy, &self.uploads, upload, part))
    }

    /// The last block that each part of the layers, with those before it, has something in.
    fn last_blocks(&self, placement: &Placement) -> [usize; UPLOAD_PARTS] {
        let mut last = [0; UPLOAD_PARTS];
        for piece in &placement.pieces {
            let modules = piece.modules.iter().flatten();
            let places = modules.flat_map(|module| [Some(module.b), module.growth]).flatten().chain([piece.a]);
            let block = places.map(|place| place.block).max().unwrap_or(0);
            for own in last.iter_mut().skip(self.part_of(piece.layer)) {
                *own = block.max(*own);
            }
        }
        last
    }
}

fn record(copy: &Stream, uploads: &[Upload], upload: usize, part: usize) -> Result<(), CudaError> {
    uploads.get(upload).and_then(|upload| upload.parts.get(part)).map_or(Ok(()), |event| copy.record(event))
}

/// The blocks of an adapter that are in the host buffer now.
struct Window<'a> {
    bytes: &'a mut [u8],
    block_bytes: usize,
    first: usize,
    end: usize,
}

impl Window<'_> {
    /// The bytes at a place, if it is in one of these blocks.
    fn at(&mut self, place: super::pieces::Place, bytes: usize) -> Option<&mut [u8]> {
        let start = place.block.checked_sub(self.first)? * self.block_bytes + place.offset;
        self.bytes.get_mut(start..start + bytes)
    }
}

/// Writes what lies in these blocks. Pieces that begin in a later block stay for the next window; one that ends there too.
fn fill<'a>(
    mut window: Window<'_>,
    factors: &DeviceFactors,
    placement: &'a Placement,
    pieces: &mut std::iter::Peekable<std::slice::Iter<'a, Piece>>,
) {
    debug_assert!(window.end <= placement.blocks, "a window is of the adapter's blocks");
    while let Some(piece) = pieces.peek() {
        let mut ends_later = false;
        let mut a_at = piece.a;
        for own in piece.modules.iter().flatten() {
            let Some(term) = factors.terms().get(own.term) else { continue };
            let a = factors.a_rows(term, own.ranks.start, own.ranks.len());
            if let Some(to) = window.at(a_at, a.len()) {
                to.copy_from_slice(a);
            }
            a_at.offset += a.len();
            let columns = own.ranks.len();
            if let Some(to) = window.at(own.b, term.outputs * columns * size_of::<u16>()) {
                factors.copy_b_columns(term, own.ranks.start, columns, to);
            }
            if let Some((place, growth)) = own.growth.zip(factors.growth(term))
                && let Some(to) = window.at(place, growth.len())
            {
                to.copy_from_slice(growth);
            }
            let places = [Some(piece.a), Some(own.b), own.growth];
            ends_later |= places.into_iter().flatten().any(|place| place.block >= window.end);
        }
        if ends_later {
            return;
        }
        pieces.next();
    }
}

/// A `LoraPiece` before it is words.
#[derive(Default)]
struct PieceFields {
    a: u64,
    b: [u64; GROUP_MODULES],
    growth: [u64; GROUP_MODULES],
    scale: [f32; GROUP_MODULES],
    rank: [u32; GROUP_MODULES],
    row: u32,
    next: u32,
}

impl PieceFields {
    const RANK_WORDS: std::ops::Range<usize> = 17..20;
    const NEXT_WORD: usize = 21;

    fn words(&self) -> [u32; PIECE_WORDS] {
        let addresses = [self.a].into_iter().chain(self.b).chain(self.growth);
        // Little-endian, as every device that this runs beside.
        let halves = addresses.flat_map(|address| [(address & u64::from(u32::MAX)) as u32, (address >> 32) as u32]);
        let rest = self.scale.map(f32::to_bits).into_iter().chain(self.rank).chain([self.row, self.next]);
        let mut words = [0; PIECE_WORDS];
        words.iter_mut().zip(halves.chain(rest)).for_each(|(word, value)| *word = value);
        words
    }
}

/// The blocks that an adapter takes; none if it does not fit, which its load then says.
pub(super) fn blocks_of(factors: &DeviceFactors, block_bytes: usize) -> u32 {
    let placement = Placement::of(factors, block_bytes);
    placement.map_or(0, |placement| u32::try_from(placement.blocks).unwrap_or(u32::MAX))
}

const _: () = assert!(ALL_GROUPS.len() == 4, "descriptors have four groups for each layer");
