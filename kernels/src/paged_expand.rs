//! Int8 keys and values as bf16 pairs, for the arithmetic that all formats share. Not here: their scales' use, which is
//! exact on scores and probabilities (`attention_tile`).

use crate::Isa;
use crate::isa::{Level, multiversion};
use crate::paged::{GROUP_POSITIONS, Line};

/// Keys and values of a group as bf16 pairs in the layout of [`KvFormat::Bf16`], and the scales of its positions' keys and
/// values. An int8 code is exact in bf16.
pub(crate) fn expand_group(isa: Isa, lines: &[Line], head_dim: usize, out: &mut [Line]) -> [[f32; 16]; 2] {
    let half = head_dim / 4;
    let (keys, values) = out.split_at_mut(2 * half);
    expand(isa, &lines[..half], 1, keys);
    expand(isa, &lines[half..2 * half], head_dim / 16, values);
    let scales = &lines[2 * half..];
    [0, 1].map(|which: usize| scales[which].0.map(f32::from_bits))
}

/// Codes `[n, vectors]` lines to `[n, 2, vectors]` lines: a word has four codes, two of a pair, and two of the pair after it.
fn expand(isa: Isa, codes: &[Line], vectors: usize, out: &mut [Line]) {
    assert!(codes.len().is_multiple_of(vectors) && out.len() == 2 * codes.len());
    match isa.level() {
        // SAFETY: this level exists only where `Isa::available` (isa.rs) found AVX-512 VBMI.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => unsafe { x86::expand_vbmi(codes, vectors, out) },
        _ => expand_lanes(isa, codes, vectors, out),
    }
}

multiversion! {
    fn expand_lanes(codes: &[Line], vectors: usize, out: &mut [Line]) {
        for (codes, out) in codes.chunks_exact(vectors).zip(out.chunks_exact_mut(2 * vectors)) {
            let (first, second) = out.split_at_mut(vectors);
            for ((codes, first), second) in codes.iter().zip(first).zip(second) {
                for lane in 0..GROUP_POSITIONS {
                    let code = |byte: u32| (((codes.0[lane] << (24 - 8 * byte)).cast_signed() >> 24) as f32).to_bits();
                    first.0[lane] = code(0) >> 16 | code(1);
                    second.0[lane] = code(2) >> 16 | code(3);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Line;

    /// Bytes of two registers.
    #[repr(C, align(64))]
    struct Table([u8; 128]);

    /// The low and the high byte of the bf16 of each number from 0 to 127.
    const BYTES: [Table; 2] = {
        let mut tables = [Table([0; 128]), Table([0; 128])];
        let mut number = 0;
        while number < 128 {
            let bits = (number as f32).to_bits() >> 16;
            tables[0].0[number] = bits as u8;
            tables[1].0[number] = (bits >> 8) as u8;
            number += 1;
        }
        tables
    };

    /// Which bytes make the first and the second pair of each word: from 64 on they are high bytes.
    const PAIRS: Table = {
        let mut table = Table([0; 128]);
        let mut at = 0;
        while at < 128 {
            let (second, byte) = (at / 64, at % 64);
            let code = byte / 4 * 4 + second * 2 + byte % 4 / 2;
            table.0[at] = (code + byte % 2 * 64) as u8;
            at += 1;
        }
        table
    };

    /// # Safety
    /// The machine has AVX-512 F, BW and VBMI.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub(super) unsafe fn expand_vbmi(codes: &[Line], vectors: usize, out: &mut [Line]) {
        let half = |table: &Table, half: usize| {
            // SAFETY: a table is two registers, aligned to 64 bytes.
            unsafe { _mm512_load_si512(table.0.as_ptr().add(half * 64).cast()) }
        };
        let tables = [0, 1].map(|which: usize| [half(&BYTES[which], 0), half(&BYTES[which], 1)]);
        let pairs = [half(&PAIRS, 0), half(&PAIRS, 1)];
        let sign = _mm512_set1_epi8(i8::MIN);
        for (codes, out) in codes.chunks_exact(vectors).zip(out.chunks_exact_mut(2 * vectors)) {
            let (first, second) = out.split_at_mut(vectors);
            for ((codes, first), second) in codes.iter().zip(first).zip(second) {
                // SAFETY: a line is 64 bytes and aligned to them.
                let codes = unsafe { _mm512_load_si512(codes.0.as_ptr().cast()) };
                let magnitude = _mm512_abs_epi8(codes);
                let low = _mm512_permutex2var_epi8(tables[0][0], magnitude, tables[0][1]);
                let high = _mm512_permutex2var_epi8(tables[1][0], magnitude, tables[1][1]);
                // high | codes & sign
                let high = _mm512_ternarylogic_epi32::<0xf8>(high, codes, sign);
                for (out, pairs) in [(first, pairs[0]), (second, pairs[1])] {
                    // SAFETY: as where the codes were read.
                    unsafe {
                        _mm512_store_si512(out.0.as_mut_ptr().cast(), _mm512_permutex2var_epi8(low, pairs, high));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_on_every_machine() {
        // -128 does not occur.
        let code = |at: usize| (at % 255) as i32 - 127;
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| code(4 * at + byte) as u8));
        for vectors in [1, 2, 6] {
            let codes: Vec<Line> =
                (0..12).map(|line| Line(std::array::from_fn(|lane| word(line * 16 + lane)))).collect();
            for isa in Isa::available() {
                let mut out = vec![Line::ZERO; 24];
                expand(isa, &codes, vectors, &mut out);
                for (line, out) in out.iter().enumerate() {
                    let (of, second) = (line / (2 * vectors), line / vectors % 2);
                    let codes_line = of * vectors + line % vectors;
                    for (lane, word) in out.0.iter().enumerate() {
                        let at = 4 * (codes_line * 16 + lane) + 2 * second;
                        let numbers = [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)];
                        assert_eq!(numbers, [code(at) as f32, code(at + 1) as f32], "{isa:?} {vectors}");
                    }
                }
            }
        }
    }
}
