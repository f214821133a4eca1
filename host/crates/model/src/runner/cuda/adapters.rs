//! Adapters on the device: their factors go into the blocks that they were given, block by block on the copy stream, and
//! their descriptors into the kernels' table. Steps may begin before an upload has ended: layers wait for their own part of
//! it. What was prepared (`staging.rs`) is only sent; everything else is copied here first, by the engine's thread. Not here:
//! how an adapter is cut (`pieces.rs`), and whose blocks are whose (the engine).

use engine::{RunnerError, Slot};
use kernels::cuda::{CudaError, Device, DeviceRange, Event, Pinned, Stream};

use super::pieces::{ALL_GROUPS, GROUP_MODULES, Piece, Placement};
use super::plan::PIECE_WORDS;
use super::staging::StagedImage;
use super::step_failed;
use super::window::{Window, fill};
use crate::adapter::DeviceFactors;

/// Buffers that uploads of what was not prepared go through in turn, and their size if blocks are smaller.
const STAGES: usize = 2;
const STAGE_BYTES: usize = 8 << 20;
/// Uploads that may be under way before a load waits for the first of them.
const UPLOADS_MAX: usize = 32;
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
    /// Where it lies.
    blocks: Vec<u32>,
}

/// An upload on its way.
struct Upload {
    /// Reached when so many eighths of the layers are there.
    parts: Vec<Event>,
    slot: Option<usize>,
    /// Whether the step that is being given to the device uses the slot.
    is_used: bool,
    /// On their way too.
    descriptors: Pinned<u32>,
}

/// The slots, and the way into them.
pub(super) struct Adapters {
    slots: Vec<Option<Resident>>,
    uploads: Vec<Upload>,
    /// The upload that was begun longest ago.
    next: usize,
    stages: Vec<Pinned<u8>>,
    stage: usize,
    /// Reached when the blocks of all that was unloaded are wiped.
    wiped: Event,
    /// Bytes that the engine's thread has copied itself.
    copied_bytes: u64,
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
            let descriptors = device.pinned(layers * 4 * pieces_max * PIECE_WORDS)?;
            Ok(Upload { parts, slot: None, is_used: false, descriptors })
        };
        Ok(Self {
            slots: (0..slots).map(|_| None).collect(),
            uploads: (0..UPLOADS_MAX.min(slots as usize)).map(upload).collect::<Result<_, CudaError>>()?,
            next: 0,
            stages: (0..stages).map(|_| device.pinned(stage)).collect::<Result<_, _>>()?,
            stage: 0,
            wiped: Event::new(device)?,
            copied_bytes: 0,
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

    /// Bytes that loads had to copy on the thread that asked for them.
    pub(super) const fn copied_bytes(&self) -> u64 {
        self.copied_bytes
    }

    /// Begins to put an adapter into an empty slot and these blocks. What was given to `compute` before reads the blocks no
    /// more when `free` is reached. With an image nothing is copied here.
    pub(super) fn load(
        &mut self,
        device: &Device,
        slot: Slot,
        (factors, image): (&DeviceFactors, Option<&StagedImage>),
        blocks: &[u32],
        free: &Event,
    ) -> Result<(), RunnerError> {
        match self.slots.get(slot.0 as usize) {
            None => return Err(RunnerError::Malformed(format!("there is no slot {}", slot.0))),
            Some(Some(_)) => return Err(RunnerError::Malformed(format!("slot {} is not empty", slot.0))),
            Some(None) => {}
        }
        let too_large = || RunnerError::Adapter("a matrix of it is larger than a block, or its rank above 256".into());
        let own = if image.is_none() { Placement::of(factors, self.block_bytes) } else { None };
        let placement = image.map(|image| &image.placement).or(own.as_ref()).ok_or_else(too_large)?;
        if placement.pieces_of_a_group_max() > self.pieces_max {
            return Err(too_large());
        }
        if placement.blocks != blocks.len() {
            let (needed, given) = (placement.blocks, blocks.len());
            return Err(RunnerError::Malformed(format!("{given} blocks for an adapter of {needed}")));
        }
        let copy = device.copy();
        let upload = self.next;
        self.next = (self.next + 1) % self.uploads.len().max(1);
        self.make_free(upload).map_err(step_failed)?;
        let stride = self.describe(upload, factors, placement, blocks)?;
        copy.wait(free).map_err(step_failed)?;
        copy.wait(&self.wiped).map_err(step_failed)?;
        let sent = self.send_descriptors(copy, upload, slot);
        let sent = sent.and_then(|()| match image {
            Some(image) => self.send_image(copy, upload, image, blocks),
            None => self.send_blocks(copy, upload, factors, placement, blocks),
        });
        if let Err(error) = sent {
            // The blocks are somebody else's from now on: what was sent must not arrive there later, nor stay.
            let ended = copy.synchronize().and_then(|()| self.wipe(device.compute(), blocks));
            return Err(step_failed(ended.err().unwrap_or(error)));
        }
        image.into_iter().for_each(StagedImage::note_uploaded);
        if let Some(place) = self.slots.get_mut(slot.0 as usize) {
            *place = Some(Resident { stride, upload: Some(upload), blocks: blocks.to_vec() });
        }
        if let Some(upload) = self.uploads.get_mut(upload) {
            upload.slot = Some(slot.0 as usize);
        }
        Ok(())
    }

    /// Empties a slot and has its blocks wiped, in the order of `compute`: what that is given from now on may have them.
    pub(super) fn unload(&mut self, slot: Slot, compute: &Stream) -> Result<(), CudaError> {
        let Some(resident) = self.slots.get_mut(slot.0 as usize).and_then(Option::take) else { return Ok(()) };
        if let Some(upload) = resident.upload.and_then(|upload| self.uploads.get_mut(upload)) {
            upload.slot = None;
            upload.parts.last().map_or(Ok(()), |end| compute.wait(end))?;
        }
        self.wipe(compute, &resident.blocks)
    }

    /// Neighbours at once: it costs calls, and no more of the device than it takes to write so much.
    fn wipe(&self, compute: &Stream, blocks: &[u32]) -> Result<(), CudaError> {
        for neighbours in blocks.chunk_by(|one, two| one + 1 == *two) {
            let Some(first) = neighbours.first() else { continue };
            let bytes = neighbours.len() * self.block_bytes;
            compute.fill(self.pool.part(*first as usize * self.block_bytes, bytes)?, 0)?;
        }
        compute.record(&self.wiped)
    }

    /// Notes which uploads have ended and which go into a slot that `is_used`; says whether one of those is under way.
    pub(super) fn is_arriving(&mut self, is_used: impl Fn(Slot) -> bool) -> Result<bool, CudaError> {
        let mut arriving = false;
        for upload in &mut self.uploads {
            upload.is_used = false;
            let Some(slot) = upload.slot else { continue };
            if upload.parts.last().map_or(Ok(true), Event::is_reached)? {
                upload.slot = None;
                if let Some(Some(resident)) = self.slots.get_mut(slot) {
                    resident.upload = None;
                }
            } else {
                upload.is_used = is_used(Slot(u32::try_from(slot).unwrap_or(u32::MAX)));
                arriving |= upload.is_used;
            }
        }
        Ok(arriving)
    }

    /// Has `compute` wait for what this layer needs of the uploads that were found to be under way and used.
    pub(super) fn wait_for_layer(&self, layer: usize, compute: &Stream) -> Result<(), CudaError> {
        let part = self.part_of(layer);
        for upload in self.uploads.iter().filter(|upload| upload.slot.is_some() && upload.is_used) {
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
    fn describe(
        &mut self,
        upload: usize,
        factors: &DeviceFactors,
        placement: &Placement,
        blocks: &[u32],
    ) -> Result<u32, RunnerError> {
        let (block_bytes, pool, extra) = (self.block_bytes as u64, self.pool.start().address(), self.pieces_max - 1);
        let address = |place: super::pieces::Place| {
            let block = blocks.get(place.block).map_or(0, |block| u64::from(*block));
            pool + block * block_bytes + place.offset as u64
        };
        let first_extra = self.layers * 4;
        let no_place = || RunnerError::Failed("a piece has no place".into());
        let upload = self.uploads.get_mut(upload).ok_or_else(no_place)?;
        let words = upload.descriptors.as_mut_slice().map_err(step_failed)?;
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
                *descriptors.get_mut(index).ok_or_else(no_place)? = fields.words();
            }
            stride = stride.max(row);
        }
        Ok(stride)
    }

    /// First pieces lie slot after slot at the start of the table, all others behind those of all slots.
    fn send_descriptors(&mut self, copy: &Stream, upload: usize, slot: Slot) -> Result<(), CudaError> {
        let (slot, slots) = (slot.0 as usize, self.slots.len());
        let groups = self.layers * 4;
        let others = groups * (self.pieces_max - 1);
        let base = u32::try_from(slots * groups + slot * others).unwrap_or(NO_NEXT);
        let Some(upload) = self.uploads.get_mut(upload) else { return Ok(()) };
        let words = upload.descriptors.as_mut_slice()?;
        for piece in words.as_chunks_mut::<PIECE_WORDS>().0 {
            let is_there = piece[PieceFields::RANK_WORDS].iter().any(|rank| *rank > 0);
            let next = &mut piece[PieceFields::NEXT_WORD];
            *next = if is_there && *next != NO_NEXT { *next + base } else { NO_NEXT };
        }
        let piece_bytes = PIECE_WORDS * size_of::<u32>();
        let first = self.table.part(slot * groups * piece_bytes, groups * piece_bytes)?;
        copy.upload(&mut upload.descriptors, 0..groups * PIECE_WORDS, first)?;
        let rest = self.table.part(base as usize * piece_bytes, others * piece_bytes)?;
        copy.upload(&mut upload.descriptors, groups * PIECE_WORDS..(groups + others) * PIECE_WORDS, rest)
    }

    /// As [`Self::send_blocks`], of what lies in pinned memory already.
    fn send_image(&self, copy: &Stream, upload: usize, image: &StagedImage, blocks: &[u32]) -> Result<(), CudaError> {
        let last_blocks = self.last_blocks(&image.placement);
        let mut recorded = 0;
        for (place, number) in blocks.iter().enumerate() {
            image.send_block(copy, place, self.pool.part(*number as usize * self.block_bytes, self.block_bytes)?)?;
            while last_blocks.get(recorded).is_some_and(|last| *last <= place) {
                record(copy, &self.uploads, upload, recorded)?;
                recorded += 1;
            }
        }
        (recorded..UPLOAD_PARTS).try_for_each(|part| record(copy, &self.uploads, upload, part))
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
            self.copied_bytes += bytes.len() as u64;
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
