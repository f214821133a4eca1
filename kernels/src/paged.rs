//! The paged keys and values of all layers, in the order that [`crate::paged_attention`] reads: 16 positions are the lanes
//! of a register (pages as in vLLM, Kwon et al., 2023; pairs of 16-bit numbers for a dot product of pairs). Storing rows
//! stands in `paged_write`. Not here: which block belongs to whom.
//!
//! A *group* is 16 neighbouring positions of one block, layer and head, in lines of 64 bytes:
//!
//! | format | keys | values | scales |
//! |---|---|---|---|
//! | bf16 | `[head_dim / 2][16 positions][2]` | `[8 pairs of positions][head_dim][2]` | |
//! | int8 | `[head_dim / 4][16 positions][4]` | `[4 fours of positions][head_dim][4]` | two lines of f32: each position's for its key and its value |
//!
//! Invariant: a value in here is always finite, so that what an earlier owner left behind a sequence's end adds exact zeros
//! when its probability is zero; the key of a value that was not finite is NaN, so that whoever sees it learns of it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::Range;
use std::ptr::NonNull;

/// Positions in a group: the lanes of a 512-bit register.
pub(crate) const GROUP_POSITIONS: usize = 16;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvFormat {
    /// 16 bits a value: f32's range, 8 bits of precision.
    Bf16,
    /// 8 bits a value, and a scale for each position's key and value of each head.
    Int8,
}

/// A cache line, as 16 words.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u32; 16]);

impl Line {
    pub(crate) const ZERO: Self = Self([0; 16]);
}

/// Keys and values of all layers, `[layers, blocks, kv_heads, block_tokens / 16]` groups. Zeroed memory that the system
/// hands out as it is touched.
pub struct PagedKv {
    pub(crate) shape: Shape,
    lines: Lines,
}

/// What a [`PagedKv`] was made for.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) format: KvFormat,
    pub(crate) layers: usize,
    pub(crate) blocks: usize,
    /// Groups of a block.
    pub(crate) block_groups: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl PagedKv {
    /// Room for `blocks` blocks of `block_tokens` positions in each of `layers` layers. None if the machine has no such
    /// memory, or if `block_tokens` or `head_dim` is not a multiple of 16, or anything is zero.
    #[must_use]
    pub fn new(
        format: KvFormat,
        layers: usize,
        blocks: usize,
        block_tokens: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Option<Self> {
        let whole = |count: usize| count > 0 && count.is_multiple_of(16);
        if !whole(block_tokens) || !whole(head_dim) || u32::try_from(blocks).is_err() {
            return None;
        }
        let shape = Shape { format, layers, blocks, block_groups: block_tokens / GROUP_POSITIONS, kv_heads, head_dim };
        let counts = [blocks, kv_heads, shape.block_groups, shape.group_lines()];
        let lines = counts.into_iter().try_fold(layers, usize::checked_mul)?;
        Some(Self { shape, lines: Lines::zeroed(lines)? })
    }

    /// Bytes of the whole.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of_val(self.lines.as_slice())
    }

    /// Positions in a block.
    #[must_use]
    pub fn block_tokens(&self) -> usize {
        self.shape.block_groups * GROUP_POSITIONS
    }

    /// Copies a block of every layer.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        for layer in 0..self.shape.layers {
            let (from, to) = (self.shape.block_lines(layer, from), self.shape.block_lines(layer, to));
            self.lines.as_mut_slice().copy_within(from, to.start);
        }
    }

    /// Zeroes a block of every layer.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn wipe_block(&mut self, block: u32) {
        for layer in 0..self.shape.layers {
            let lines = self.shape.block_lines(layer, block);
            self.lines.as_mut_slice()[lines].fill(Line::ZERO);
        }
    }

    /// The lines of a group: keys, values, and scales where the format has them.
    pub(crate) fn group(&self, layer: usize, block: u32, kv_head: usize, group: usize) -> &[Line] {
        &self.lines.as_slice()[self.shape.group_range(layer, block, kv_head, group)]
    }

    /// All lines, for [`Shape::group_range`].
    pub(crate) fn lines_mut(&mut self) -> &mut [Line] {
        self.lines.as_mut_slice()
    }
}

impl Shape {
    /// Lines of a group's keys, and of its values.
    pub(crate) const fn half_lines(&self) -> usize {
        match self.format {
            KvFormat::Bf16 => self.head_dim / 2,
            KvFormat::Int8 => self.head_dim / 4,
        }
    }

    const fn group_lines(&self) -> usize {
        match self.format {
            KvFormat::Bf16 => 2 * self.half_lines(),
            KvFormat::Int8 => 2 * self.half_lines() + 2,
        }
    }

    /// Where the lines of a group lie.
    pub(crate) fn group_range(&self, layer: usize, block: u32, kv_head: usize, group: usize) -> Range<usize> {
        assert!(kv_head < self.kv_heads && group < self.block_groups);
        let lines = self.group_lines();
        let first = self.block_lines(layer, block).start + (kv_head * self.block_groups + group) * lines;
        first..first + lines
    }

    fn block_lines(&self, layer: usize, block: u32) -> Range<usize> {
        let block = block as usize;
        assert!(layer < self.layers && block < self.blocks, "block {block} of {}", self.blocks);
        let lines = self.kv_heads * self.block_groups * self.group_lines();
        let first = (layer * self.blocks + block) * lines;
        first..first + lines
    }
}

/// Zeroed lines. `vec!` would write all of them at once: this takes them from the system as they are touched, in huge
/// pages where it has them (every tile of a long context lies on a page of its own).
struct Lines {
    memory: NonNull<u8>,
    layout: Layout,
    first: NonNull<Line>,
    count: usize,
}

// SAFETY: it owns its memory, as a `Box<[Line]>` does.
unsafe impl Send for Lines {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Lines {}

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

impl Lines {
    fn zeroed(count: usize) -> Option<Self> {
        let bytes = count.checked_mul(size_of::<Line>()).filter(|bytes| *bytes > 0)?;
        let align = if bytes >= 2 * HUGE_PAGE { HUGE_PAGE } else { align_of::<Line>() };
        // A layout with a larger alignment would be zeroed by writing it.
        let layout = Layout::from_size_align(bytes.checked_add(align)?, 16).ok()?;
        // SAFETY: the layout's size is not zero.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let offset = memory.addr().get().wrapping_neg() % align;
        // SAFETY: the offset is less than `align`, and that many bytes were added to the size.
        let first = unsafe { memory.add(offset) };
        if align == HUGE_PAGE {
            advise_huge_pages(first, bytes);
        }
        Some(Self { memory, layout, first: first.cast(), count })
    }

    fn as_slice(&self) -> &[Line] {
        // SAFETY: `count` lines lie at `first`, with their alignment; zero bytes are a `Line`.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }

    fn as_mut_slice(&mut self) -> &mut [Line] {
        // SAFETY: as in `as_slice`; borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.count) }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(first: NonNull<u8>, bytes: usize) {
    unsafe extern "C" {
        fn madvise(address: *mut std::ffi::c_void, bytes: usize, advice: std::ffi::c_int) -> std::ffi::c_int;
    }
    const MADV_HUGEPAGE: std::ffi::c_int = 14;
    // SAFETY: libc's function, which std links; the advice leaves what the memory holds as it is, and the range begins at a
    // multiple of the page size inside one allocation. Refused advice costs speed only.
    let _ = unsafe { madvise(first.as_ptr().cast(), bytes, MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: NonNull<u8>, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let kv = PagedKv::new(KvFormat::Bf16, 30, 10, 16, 3, 64).unwrap();
        assert_eq!(kv.memory_bytes(), 30 * 10 * 16 * 3 * 64 * 2 * 2);
        let kv = PagedKv::new(KvFormat::Int8, 2, 10, 32, 3, 64).unwrap();
        assert_eq!(kv.memory_bytes(), 2 * 10 * 32 * 3 * (64 * 2 + 8));
        assert_eq!(kv.block_tokens(), 32);
        for (blocks, tokens, heads, dim) in [(0, 16, 1, 16), (1, 24, 1, 16), (1, 16, 1, 40), (1, 16, 0, 16)] {
            assert!(PagedKv::new(KvFormat::Bf16, 1, blocks, tokens, heads, dim).is_none());
        }
        assert!(PagedKv::new(KvFormat::Bf16, usize::MAX / 4, 1000, 16, 1, 16).is_none());
    }

    #[test]
    fn groups_do_not_overlap_and_fill_the_whole() {
        let mut kv = PagedKv::new(KvFormat::Int8, 2, 3, 32, 2, 48).unwrap();
        let mut next = 0;
        for (layer, block) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] {
            for (head, group) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let range = kv.shape.group_range(layer, block, head, group);
                assert_eq!(range.start, next);
                next = range.end;
            }
        }
        assert_eq!(next, kv.lines_mut().len());
    }

    #[test]
    fn copies_and_wipes_every_layer_of_one_block() {
        let mut kv = PagedKv::new(KvFormat::Bf16, 2, 3, 16, 1, 16).unwrap();
        let lines = kv.lines_mut().len();
        for (index, line) in kv.lines_mut().iter_mut().enumerate() {
            line.0 = [index as u32; 16];
        }
        kv.copy_block(0, 2);
        kv.wipe_block(1);
        let block = lines / 6;
        for (index, line) in kv.lines_mut().iter().enumerate() {
            let expected = match index / block % 3 {
                0 => index,
                1 => 0,
                _ => index - 2 * block,
            };
            assert_eq!(line.0, [expected as u32; 16]);
        }
    }
}
