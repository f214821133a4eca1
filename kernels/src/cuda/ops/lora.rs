//! What adapters add to a linear layer: y += Σᵢ wᵢ·sᵢ·Bᵢ(Aᵢx) over runs of rows, in the order of the entries, and DoRA's form
//! of it. Kernels: `kernels/cuda/lora.cu`; the tables: `lora_tables.rs`. Not here: Wx (`linear.rs`).

use crate::cuda::kernel::fatbin;
use crate::cuda::selftest::Case;
use crate::cuda::{
    CudaError, Device, DevicePtr, DeviceRange, Kernel, LORA_GROUPS, Launch, LoraEntry, LoraGroupId, LoraItem,
    LoraPiece, LoraTile, Module, Stream,
};

const THREADS: u32 = 256;
/// What outputs of a module are multiples of.
const OUTPUTS_MULTIPLE: usize = 32;
/// Parts of a sum over the inputs, at most.
const PARTS_MAX: usize = 4;

/// Into how many parts Ax is cut between blocks: of the inputs alone, as it decides the bits.
#[must_use]
pub fn shrink_parts(inputs: usize) -> usize {
    match inputs / 1024 {
        0 | 1 => 1,
        2 | 3 => 2,
        _ => PARTS_MAX,
    }
}

/// Bytes of [`LoraArgs::tmp`] for this many values of Ax in a part.
#[must_use]
pub fn tmp_bytes(tmp_floats: usize) -> usize {
    tmp_floats * PARTS_MAX * size_of::<f32>()
}

/// What one launch works on: the modules of one group in one layer.
#[derive(Clone, Copy, Debug)]
pub struct LoraArgs {
    /// [`LoraPiece`]s: `slots * layers * 4` first ones, then the others.
    pub pieces: DeviceRange,
    /// Slots that there are; each has its first pieces.
    pub slots: usize,
    /// Layers of the base.
    pub layers: usize,
    /// [`LoraEntry`]s.
    pub entries: DeviceRange,
    /// [`LoraItem`]s, with room for `items_max`. Each row is in one of them at most.
    pub items: DeviceRange,
    /// u32: how many items there are.
    pub item_count: DeviceRange,
    /// Items of the launch.
    pub items_max: usize,
    /// Rows of an item.
    pub tile: LoraTile,
    /// Which layer.
    pub layer: usize,
    /// Which of its groups.
    pub group: LoraGroupId,
    /// bf16 `[rows_max, inputs]`.
    pub x: DeviceRange,
    /// Columns of `x`, a multiple of 32.
    pub inputs: usize,
    /// f32 `[rows_max, y_stride]`, which holds Wx and nothing else when `expand` begins.
    pub y: DeviceRange,
    /// Columns of `y`.
    pub y_stride: usize,
    /// Outputs of each module, multiples of 32; 0 for those that the group does not have.
    pub outputs: [usize; 3],
    /// Their first columns in `y`.
    pub columns: [usize; 3],
    /// Rows of the launch.
    pub rows_max: usize,
    /// [`tmp_bytes`] of f32: Ax. Launches of one stream may share it.
    pub tmp: DeviceRange,
    /// Values of a part, a multiple of 4; entries stay below it.
    pub tmp_floats: usize,
}

/// The kernels on a device.
#[derive(Clone, Debug)]
pub struct Lora {
    shrink: [Kernel; 2],
    expand: [Kernel; 2],
}

/// What both kernels are given.
struct Checked {
    pieces: DevicePtr,
    entries: DevicePtr,
    items: DevicePtr,
    item_count: DevicePtr,
    tmp: DevicePtr,
    items_max: u32,
    tmp_floats: u32,
    layer: u32,
    layers: u32,
    group: i32,
}

impl Lora {
    /// Loads the kernels.
    ///
    /// # Errors
    /// If the device cannot run them.
    pub fn load(device: &Device) -> Result<Self, CudaError> {
        let module = Module::load(device, fatbin!("lora"))?;
        let kernel = |name: &str| module.kernel(name, 0);
        Ok(Self {
            shrink: [kernel("lora_shrink_8")?, kernel("lora_shrink_32")?],
            expand: [kernel("lora_expand_8")?, kernel("lora_expand_32")?],
        })
    }

    /// Ax of every entry's rows, into `tmp`.
    ///
    /// # Errors
    /// If a buffer is too short or a shape is none that the kernels have.
    pub fn shrink(&self, stream: &Stream, args: &LoraArgs) -> Result<(), CudaError> {
        let checked = Checked::new(args)?;
        if args.inputs == 0 || !args.inputs.is_multiple_of(32) {
            return Err(CudaError::Shape { what: "lora: inputs that are no multiple of 32", value: args.inputs });
        }
        let x = args.x.for_kernel("lora: x", args.rows_max * args.inputs * 2, 16)?;
        let inputs = number(args.inputs)?.cast_signed();
        // Tiles of ranks go round over blocks: many where items are few, so that one adapter alone is soon read.
        let lanes = (256 / args.items_max.max(1)).clamp(3, 12);
        let grid = [checked.items_max, number(lanes)?, number(shrink_parts(args.inputs))?];
        let Checked { pieces, entries, items, item_count, tmp, tmp_floats, layer, layers, group, .. } = checked;
        // SAFETY: the kernel's parameters in order; buffers are long enough for what the host knows. Slots, rows and
        // addresses in the tables are the caller's duty (see `cuda`).
        unsafe {
            stream.launch(
                &self.shrink[args.tile as usize],
                Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 },
                &[&pieces, &entries, &items, &item_count, &x, &tmp, &tmp_floats, &inputs, &layer, &layers, &group],
            )
        }
    }

    /// Adds every entry's term to `y`, after [`Lora::shrink`] of the same arguments: once for each layer and group, as DoRA
    /// takes what it finds in `y` for Wx.
    ///
    /// # Errors
    /// As [`Lora::shrink`].
    pub fn expand(&self, stream: &Stream, args: &LoraArgs) -> Result<(), CudaError> {
        let checked = Checked::new(args)?;
        let y = args.y.for_kernel("lora: y", args.rows_max * args.y_stride * 4, 4)?;
        let mut tiles = 0;
        for (module, (outputs, column)) in args.outputs.into_iter().zip(args.columns).enumerate() {
            let fits = column.checked_add(outputs).is_some_and(|end| end <= args.y_stride);
            let is_absent = module >= args.group.modules();
            if !outputs.is_multiple_of(OUTPUTS_MULTIPLE) || !fits || is_absent && outputs > 0 {
                return Err(CudaError::Shape { what: "lora: outputs", value: outputs });
            }
            tiles += outputs.div_ceil(expand_outputs(args.tile));
        }
        if checked.items_max > 65_535 {
            return Err(CudaError::Shape { what: "lora: too many items", value: args.items_max });
        }
        let [parts, y_stride] =
            [shrink_parts(args.inputs), args.y_stride].map(number).map(|value| value.map(u32::cast_signed));
        let (parts, y_stride) = (parts?, y_stride?);
        let int = |value| number(value).map(u32::cast_signed);
        let [outputs0, outputs1, outputs2] = args.outputs;
        let (outputs0, outputs1, outputs2) = (int(outputs0)?, int(outputs1)?, int(outputs2)?);
        let [column0, column1, column2] = args.columns;
        let (column0, column1, column2) = (int(column0)?, int(column1)?, int(column2)?);
        let grid = [number(tiles)?, checked.items_max, 1];
        let Checked { pieces, entries, items, item_count, tmp, tmp_floats, layer, layers, group, .. } = checked;
        // SAFETY: as in `shrink`.
        unsafe {
            stream.launch(
                &self.expand[args.tile as usize],
                Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 },
                &[
                    &pieces,
                    &entries,
                    &items,
                    &item_count,
                    &tmp,
                    &tmp_floats,
                    &parts,
                    &y,
                    &y_stride,
                    &outputs0,
                    &outputs1,
                    &outputs2,
                    &column0,
                    &column1,
                    &column2,
                    &layer,
                    &layers,
                    &group,
                ],
            )
        }
    }
}

impl Checked {
    fn new(args: &LoraArgs) -> Result<Self, CudaError> {
        if args.layer >= args.layers {
            return Err(CudaError::Shape { what: "lora: a layer that is not there", value: args.layer });
        }
        if !args.tmp_floats.is_multiple_of(4) {
            return Err(CudaError::Shape { what: "lora: values of a part", value: args.tmp_floats });
        }
        let first_pieces = args.slots * args.layers * LORA_GROUPS;
        Ok(Self {
            pieces: args.pieces.for_kernel("lora: pieces", first_pieces * size_of::<LoraPiece>(), 16)?,
            entries: args.entries.for_kernel("lora: entries", 0, align_of::<LoraEntry>())?,
            items: args.items.for_kernel("lora: items", args.items_max * size_of::<LoraItem>(), 4)?,
            item_count: args.item_count.for_kernel("lora: count of items", 4, 4)?,
            tmp: args.tmp.for_kernel("lora: Ax", tmp_bytes(args.tmp_floats), 16)?,
            items_max: number(args.items_max)?,
            tmp_floats: number(args.tmp_floats)?,
            layer: number(args.layer)?,
            layers: number(args.layers)?,
            group: args.group as i32,
        })
    }
}

/// Outputs of a block of `expand`.
const fn expand_outputs(tile: LoraTile) -> usize {
    match tile {
        LoraTile::Rows8 => 512,
        LoraTile::Rows32 => 256,
    }
}

/// As the kernels take numbers; below 2^31.
fn number(value: usize) -> Result<u32, CudaError> {
    let too_large = CudaError::Shape { what: "lora: too large", value };
    u32::try_from(value).ok().filter(|value| *value <= i32::MAX.cast_unsigned()).ok_or(too_large)
}

mod cases;

pub(crate) fn cases() -> Vec<Case> {
    cases::cases()
}
