//! Products of prompts' rows in bf16 by AMX's tiles.

use std::arch::asm;
use std::arch::x86_64::*;

use super::vnni::{least_of, scale_of, unpack};
use super::{Results, place};
use crate::packed::{Layout, PANEL, PackedMatrix, formats};
use crate::pool::SharedMut;
use crate::quantised::{BLOCK_VALUES, BlockFormat};
use crate::{Buffer, Team};

const STORE_AHEAD: usize = 2;
const TILE_ROWS: usize = 16;
const TILE_WORDS: usize = 256;
/// Inputs whose weights of a panel stay in the first-level cache.
const SLAB_BLOCKS: usize = 48;

#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const CONFIG: TileConfig = {
    let mut config = TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        (config.rows[tile], config.row_bytes[tile]) = (16, 64);
        tile += 1;
    }
    config
};

/// Spike.
pub fn request() -> bool {
    let result: isize;
    // SAFETY: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA) changes nothing but what the process may use.
    unsafe {
        asm!("syscall", inlateout("rax") 158isize => result, in("rdi") 0x1023usize, in("rsi") 18usize,
            out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

/// Rows in bf16: `[tile of 16 rows][block of 32 inputs][row of tile][pair of inputs]`.
#[derive(Default)]
pub struct TileRows {
    rows: usize,
    width: usize,
    words: Buffer<u32>,
}

impl TileRows {
    /// Spike.
    pub fn fill(&mut self, team: &Team<'_>, x: &[f32], rows: usize, width: usize) {
        (self.rows, self.width) = (rows, width);
        let blocks = width / BLOCK_VALUES;
        let tiles = rows.div_ceil(2 * TILE_ROWS) * 2;
        self.words.resize(tiles * blocks * TILE_WORDS);
        let words = SharedMut::new(&mut self.words);
        team.tiles(tiles, |_, tile| {
            let words = unsafe { words.slice(tile * blocks * TILE_WORDS..(tile + 1) * blocks * TILE_WORDS) };
            for row in 0..TILE_ROWS {
                let index = tile * TILE_ROWS + row;
                let x = if index < rows { Some(&x[index * width..(index + 1) * width]) } else { None };
                unsafe { round_row(x, row, blocks, words) };
            }
        });
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn round_row(x: Option<&[f32]>, row: usize, blocks: usize, words: &mut [u32]) {
    for block in 0..blocks {
        let to = &mut words[block * TILE_WORDS + row * 16..][..16];
        unsafe {
            let pairs = match x {
                Some(x) => {
                    let x = x[block * 32..][..32].as_ptr();
                    std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x.add(16)), _mm512_loadu_ps(x)))
                }
                None => _mm512_setzero_si512(),
            };
            _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs);
        }
    }
}

/// Spike.
#[derive(Default)]
pub struct TileScratch {
    panels: Buffer<u32>,
    sums: Buffer<f32>,
}

/// Spike.
pub fn matmul_tiles(
    team: &Team<'_>,
    matrices: &[&PackedMatrix],
    x: &TileRows,
    scratch: &mut TileScratch,
    out: &mut [f32],
) {
    let width: usize = matrices.iter().map(|matrix| matrix.outputs()).sum();
    let panels: usize = matrices.iter().map(|matrix| matrix.panels()).sum();
    let blocks = x.width / BLOCK_VALUES;
    let pairs = x.rows.div_ceil(32);
    let each = SLAB_BLOCKS * 2 * TILE_WORDS;
    scratch.panels.resize(team.threads() * each);
    scratch.sums.resize(team.threads() * pairs * 32 * PANEL);
    let sums_each = pairs * 32 * PANEL;
    let (scratch_panels, sums) = (SharedMut::new(&mut scratch.panels), SharedMut::new(&mut scratch.sums));
    let out = SharedMut::new(out);
    // About even.
    let slabs = blocks.div_ceil(SLAB_BLOCKS);
    let slab = blocks.div_ceil(slabs).next_multiple_of(8);
    let isa = crate::Isa::detect();
    team.tiles(panels, |worker, panel| {
        let Some(at) = super::locate(matrices, panel) else { return };
        let buffer = unsafe { scratch_panels.slice(worker * each..(worker + 1) * each) };
        let sums = unsafe { sums.slice(worker * sums_each..(worker + 1) * sums_each) };
        let sums = sums.as_mut_ptr();
        unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, preserves_flags)) };
        let mut first = 0;
        while first < blocks {
            let count = slab.min(blocks - first);
            let (weights, stride, next) = match at.matrix.format() {
                BlockFormat::Bf16 => (unsafe { at.matrix.panel(at.panel).as_ptr().add(first * 2048) }, 128usize, 64usize),
                format => {
                    unsafe { widen(format, at.matrix.panel(at.panel), first, count, buffer.as_mut_ptr()) };
                    (buffer.as_ptr().cast::<u8>(), 64, 1024)
                }
            };
            for pair in 0..pairs {
                let a = unsafe { x.words.as_ptr().add((pair * 2 * blocks + first) * TILE_WORDS) };
                unsafe {
                    dots(a.cast(), blocks * 1024, weights, stride, next, count, sums.add(pair * 32 * PANEL), first > 0, out.slice(0..1).as_ptr().wrapping_add(pair * 32 * width + at.column + at.outputs.start).cast(), width * 4);
                }
            }
            first += count;
        }
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    });
}

/// 32 rows x 32 outputs x `count` blocks.
#[inline]
unsafe fn dots(a: *const u8, down: usize, b: *const u8, stride: usize, next: usize, count: usize, sums: *mut f32, go_on: bool, to: *const u8, to_down: usize) {
    unsafe {
        if go_on {
            asm!(
                "tileloadd tmm0, [{s} + {l}]", "tileloadd tmm1, [{s} + {l} + 64]",
                "tileloadd tmm2, [{s} + {l} + 2048]", "tileloadd tmm3, [{s} + {l} + 2112]",
                s = in(reg) sums, l = in(reg) 128usize, options(nostack, preserves_flags),
            );
        } else {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, preserves_flags));
        }
        asm!(
            "2:",
            "tileloadd tmm4, [{a} + {l}]",
            "tileloadd tmm6, [{b} + {stride}]",
            "tileloadd tmm7, [{b2} + {stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a2} + {l}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 1024",
            "add {a2}, 1024",
            "add {b}, 2048",
            "add {b2}, 2048",
            "prefetchw [{to}]",
            "prefetchw [{to} + 64]",
            "prefetchw [{to} + {down}]",
            "prefetchw [{to} + {down} + 64]",
            "lea {to}, [{to} + 2 * {down}]",
            "dec {count}",
            "jnz 2b",
            a = inout(reg) a => _, a2 = inout(reg) a.wrapping_add(down) => _, b = inout(reg) b => _, b2 = inout(reg) b.wrapping_add(next) => _,
            count = inout(reg) count => _, l = in(reg) 64usize, stride = in(reg) stride, to = inout(reg) to => _, down = in(reg) to_down, options(nostack),
        );
        asm!(
            "tilestored [{s} + {l}], tmm0", "tilestored [{s} + {l} + 64], tmm1",
            "tilestored [{s2} + {l}], tmm2", "tilestored [{s2} + {l} + 64], tmm3",
            s = in(reg) to, s2 = in(reg) to.wrapping_add(16 * to_down), l = in(reg) to_down, options(nostack, preserves_flags),
        );
    }
}

unsafe fn widen(format: BlockFormat, panel: &[u8], first: usize, count: usize, to: *mut u32) {
    unsafe {
        match format {
            BlockFormat::Q4_0 => integers::<formats::Q40>(panel, first, count, to),
            BlockFormat::Q4_1 => integers::<formats::Q41>(panel, first, count, to),
            BlockFormat::Q5_0 => integers::<formats::Q50>(panel, first, count, to),
            BlockFormat::Q5_1 => integers::<formats::Q51>(panel, first, count, to),
            BlockFormat::Q8_0 => integers::<formats::Q80>(panel, first, count, to),
            BlockFormat::Q4_K => integers::<formats::Q4K>(panel, first, count, to),
            BlockFormat::Q5_K => integers::<formats::Q5K>(panel, first, count, to),
            BlockFormat::Q6_K => integers::<formats::Q6K>(panel, first, count, to),
            _ => unimplemented!(),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
unsafe fn integers<F: Layout>(panel: &[u8], first: usize, count: usize, mut to: *mut u32) {
    let shape = F::SHAPE;
    #[rustfmt::skip]
    let weave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    unsafe {
        for block in first..first + count {
            let packed = panel.as_ptr().add(shape.block_at(block));
            let scales = packed.add(2 * shape.codes_bytes());
            let header = packed.wrapping_sub(block % shape.shared * shape.block_bytes() + shape.header_bytes());
            for vector in 0..2 {
                let codes = packed.add(vector * shape.codes_bytes());
                let least = if shape.minima { least_of::<F>(header, scales, vector) } else { _mm512_setzero_ps() };
                macro_rules! group {
                    ($half:literal: $($group:literal)*) => {
                        let scale = scale_of::<F, $half>(header, scales, vector);
                        // Exact: few bits.
                        let least = if shape.minima { least } else { _mm512_mul_ps(scale, _mm512_set1_ps(-(shape.offset as f32))) };
                        $(
                        let quads = unpack::<F, $group>(codes);
                        let value = |codes: __m512i| _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(codes), least);
                        let byte = _mm512_set1_epi32(255);
                        let k0 = value(_mm512_and_si512(quads, byte));
                        let k1 = value(_mm512_and_si512(_mm512_srli_epi32::<8>(quads), byte));
                        let k2 = value(_mm512_and_si512(_mm512_srli_epi32::<16>(quads), byte));
                        let k3 = value(_mm512_srli_epi32::<24>(quads));
                        for (pair, (even, odd)) in [(k0, k1), (k2, k3)].into_iter().enumerate() {
                            let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(odd, even));
                            let both = _mm512_permutexvar_epi16(weave, both);
                            _mm_prefetch::<_MM_HINT_ET0>(to.wrapping_add((vector + 2 * STORE_AHEAD) * TILE_WORDS + ($group * 2 + pair) * 16).cast());
                            _mm512_store_si512(to.add(vector * TILE_WORDS + ($group * 2 + pair) * 16).cast(), both);
                        })*
                    };
                }
                group!(0: 0 1 2 3);
                if shape.bits == 6 {
                    group!(1: 4 5 6 7);
                } else {
                    group!(0: 4 5 6 7);
                }
            }
            to = to.add(2 * TILE_WORDS);
        }
    }
}
/// Spike.
pub fn widen_all(matrix: &PackedMatrix, scratch: &mut TileScratch, slab: usize) {
    scratch.panels.resize(1 << 16);
    let blocks = matrix.inputs() / 32;
    for panel in 0..matrix.panels() {
        for first in (0..blocks).step_by(slab) {
            unsafe { widen(matrix.format(), matrix.panel(panel), first, slab.min(blocks - first), scratch.panels.as_mut_ptr()) };
        }
    }
}
