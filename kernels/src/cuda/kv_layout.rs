//! Where the keys and values of a position lie in the pool of blocks, and the forms they are kept in.
//!
//! One block of `block_tokens` positions holds, one after the other: for each layer, K `[kv_heads, block_tokens, head_dim]`
//! and V the same; then, where the form has scales, those, `[layers, 2, kv_heads, block_tokens]` f32. Its twin for kernels is
//! in `cuda/kv.cuh`.
//!
//! Not here: which block belongs to whom; adapters, which lie in blocks of the same size.

use half::f16;

use super::kernel::argument;

/// How a key or value is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// 16-bit floats.
    #[default]
    F16,
    /// Whole numbers up to 127, and a scale for each position and head.
    Int8,
    /// e4m3, and a scale for each position and head.
    Fp8,
}

impl KvFormat {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F16, Self::Int8, Self::Fp8];

    const fn value_bytes(self) -> u64 {
        match self {
            Self::F16 => 2,
            Self::Int8 | Self::Fp8 => 1,
        }
    }

    const fn has_scales(self) -> bool {
        !matches!(self, Self::F16)
    }
}

/// Widths of a head that the kernels are built for.
pub const HEAD_DIMS: [usize; 4] = [32, 64, 96, 128];
/// Positions of one block, at most; a power of two.
pub const BLOCK_TOKENS_MAX: usize = 256;
/// A block's size is a multiple of this.
const BLOCK_MULTIPLE: u64 = 256;

/// The layout of a block.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    block_bytes: u64,
    layer_bytes: u64,
    kv_bytes: u64,
    scales_begin: u64,
    block_tokens_log2: u32,
    kv_heads: u32,
    head_dim: u32,
    format: u32,
}

argument!(KvLayout);

impl KvLayout {
    /// `None` if the kernels know no such shape or a block would not fit any memory.
    #[must_use]
    pub fn new(layers: usize, kv_heads: usize, head_dim: usize, block_tokens: usize, format: KvFormat) -> Option<Self> {
        let is_known = HEAD_DIMS.contains(&head_dim)
            && block_tokens.is_power_of_two()
            && block_tokens <= BLOCK_TOKENS_MAX
            && layers > 0
            && kv_heads > 0;
        if !is_known {
            return None;
        }
        let tokens = (kv_heads as u64).checked_mul(block_tokens as u64)?;
        let kv_bytes = tokens.checked_mul(head_dim as u64 * format.value_bytes())?;
        let scales_begin = kv_bytes.checked_mul(2)?.checked_mul(layers as u64)?;
        let scales = if format.has_scales() { tokens.checked_mul(8)?.checked_mul(layers as u64)? } else { 0 };
        let block_bytes = scales_begin.checked_add(scales)?.checked_next_multiple_of(BLOCK_MULTIPLE)?;
        (block_bytes < i64::MAX as u64).then_some(())?;
        Some(Self {
            block_bytes,
            layer_bytes: 2 * kv_bytes,
            kv_bytes,
            scales_begin,
            block_tokens_log2: block_tokens.trailing_zeros(),
            kv_heads: u32::try_from(kv_heads).ok()?,
            head_dim: u32::try_from(head_dim).ok()?,
            format: format as u32,
        })
    }

    /// Bytes of one block.
    #[must_use]
    pub const fn block_bytes(&self) -> usize {
        self.block_bytes as usize
    }

    /// Positions of one block.
    #[must_use]
    pub const fn block_tokens(&self) -> usize {
        1 << self.block_tokens_log2
    }

    /// Key and value heads.
    #[must_use]
    pub const fn kv_heads(&self) -> usize {
        self.kv_heads as usize
    }

    /// Values of a head.
    #[must_use]
    pub const fn head_dim(&self) -> usize {
        self.head_dim as usize
    }

    /// Bytes of one position of one head of K, without its scale.
    #[must_use]
    pub const fn head_bytes(&self) -> usize {
        (self.head_dim as u64 * self.format().value_bytes()) as usize
    }

    /// Layers that a block holds.
    #[must_use]
    pub const fn layers(&self) -> usize {
        (self.scales_begin / self.layer_bytes) as usize
    }

    /// How values are kept.
    #[must_use]
    pub const fn format(&self) -> KvFormat {
        match self.format {
            0 => KvFormat::F16,
            1 => KvFormat::Int8,
            _ => KvFormat::Fp8,
        }
    }

    /// Byte of the pool at which a position's head of K (or V) of a layer begins.
    #[must_use]
    pub fn value_at(&self, block: u32, layer: usize, is_value: bool, head: usize, offset: usize) -> usize {
        let row = ((head << self.block_tokens_log2) + offset) as u64 * u64::from(self.head_dim);
        let kv = if is_value { self.kv_bytes } else { 0 };
        (u64::from(block) * self.block_bytes + layer as u64 * self.layer_bytes + kv + row * self.format().value_bytes())
            as usize
    }

    /// Byte of the pool at which the scale of a position's head lies.
    #[must_use]
    pub fn scale_at(&self, block: u32, layer: usize, is_value: bool, head: usize, offset: usize) -> usize {
        let plane = (layer * 2 + usize::from(is_value)) * self.kv_heads() + head;
        let scales = u64::from(block) * self.block_bytes + self.scales_begin;
        scales as usize + ((plane << self.block_tokens_log2) + offset) * 4
    }

    /// Reads a position's head out of a copy of the pool: what the kernels see.
    #[must_use]
    pub fn read(&self, pool: &[u8], block: u32, layer: usize, is_value: bool, head: usize, offset: usize) -> Vec<f32> {
        let bytes = &pool[self.value_at(block, layer, is_value, head, offset)..];
        let bytes = &bytes[..self.head_bytes()];
        let scale = || {
            let at = self.scale_at(block, layer, is_value, head, offset);
            pool[at..].first_chunk().map_or(f32::NAN, |scale| f32::from_le_bytes(*scale))
        };
        match self.format() {
            KvFormat::F16 => bytes.as_chunks().0.iter().map(|value| f16::from_le_bytes(*value).to_f32()).collect(),
            KvFormat::Int8 => {
                let scale = scale();
                bytes.iter().map(|code| f32::from(code.cast_signed()) * scale).collect()
            }
            KvFormat::Fp8 => {
                let scale = scale();
                bytes.iter().map(|code| e4m3_to_f32(*code) * scale).collect()
            }
        }
    }
}

/// The number that an e4m3 code is.
#[must_use]
pub fn e4m3_to_f32(code: u8) -> f32 {
    if code & 0x7f == 0x7f {
        return f32::NAN;
    }
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = if exponent == 0 { mantissa * 2f32.powi(-9) } else { (8.0 + mantissa) * 2f32.powi(exponent - 10) };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_block_has_one_place() {
        for format in KvFormat::ALL {
            let (layers, kv_heads, head_dim, tokens) = (3, 5, 32, 4);
            let layout = KvLayout::new(layers, kv_heads, head_dim, tokens, format).expect("known");
            assert_eq!((layout.layers(), layout.block_tokens(), layout.format()), (layers, tokens, format));
            let mut uses = vec![0; layout.block_bytes()];
            let each = (0..layers).flat_map(|layer| (0..kv_heads).map(move |head| (layer, head)));
            for (layer, head) in each {
                for (is_value, offset) in (0..tokens).flat_map(|offset| [(false, offset), (true, offset)]) {
                    let at = layout.value_at(0, layer, is_value, head, offset);
                    let bytes = head_dim * format.value_bytes() as usize;
                    uses[at..at + bytes].iter_mut().for_each(|uses| *uses += 1);
                    if format.has_scales() {
                        let at = layout.scale_at(0, layer, is_value, head, offset);
                        uses[at..at + 4].iter_mut().for_each(|uses| *uses += 1);
                    }
                }
            }
            let used = uses.iter().position(|uses| *uses == 0).unwrap_or(uses.len());
            assert!(uses[..used].iter().all(|uses| *uses == 1) && uses[used..].iter().all(|uses| *uses == 0));
            assert!(uses.len() - used < BLOCK_MULTIPLE as usize, "{format:?}");
        }
    }

    #[test]
    fn shapes_that_no_kernel_knows_are_refused() {
        for (layers, heads, dim, tokens) in
            [(0, 1, 32, 4), (1, 0, 32, 4), (1, 1, 80, 4), (1, 1, 32, 12), (1, 1, 32, 512)]
        {
            assert_eq!(KvLayout::new(layers, heads, dim, tokens, KvFormat::F16), None);
        }
        assert_eq!(KvLayout::new(usize::MAX / 8, 1 << 40, 128, 256, KvFormat::F16), None);
    }
}
