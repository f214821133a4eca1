//! Cases of attention: decode, prefill and both in one batch, each computed in several ways that must agree to the bit.
//! Whatever no row may see holds NaN.

use half::{bf16, f16};

use super::{
    Attention, AttentionArgs, AttentionPartials, AttentionTile, attention_row, rows_tile_rows, split_tile_rows,
};
use crate::cuda::selftest::{Buffers, Case, Random, worst};
use crate::cuda::{CudaError, Device, KvFormat, KvLayout};

/// bf16 rounds by up to 2^-8 of a value, weights in f16 by 2^-11 each, keys and values of the short forms by 2^-12.
const TOLERANCE: f64 = 0.005;
const LAYERS: usize = 2;
const LAYER: usize = 1;

#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_tokens: usize,
    format: KvFormat,
    /// Positions before the batch, and rows in it, of each sequence.
    sequences: &'static [(usize, usize)],
}

impl Shape {
    fn rows(&self) -> usize {
        self.sequences.iter().map(|(_, rows)| rows).sum()
    }

    /// Tiles of at most so many rows, and the units of partial sums that they take.
    fn tiles(&self, rows_max: usize) -> (Vec<AttentionTile>, u32) {
        let (mut tiles, mut row, mut table, mut units) = (Vec::new(), 0, 0, 0);
        for (before, rows) in self.sequences {
            for first in (0..*rows).step_by(rows_max) {
                let count = rows_max.min(rows - first) as u32;
                tiles.push(AttentionTile {
                    row_begin: row + first as u32,
                    row_count: count,
                    table_begin: table,
                    partial_begin: units,
                });
                units += AttentionTile::units(count, (before + first) as u32 + count - 1);
            }
            row += *rows as u32;
            table += (before + rows).div_ceil(self.block_tokens) as u32;
        }
        (tiles, units)
    }
}

pub(crate) fn cases() -> Vec<Case> {
    use KvFormat::{F16, Fp8, Int8};
    let shape = |heads, kv_heads, head_dim, block_tokens, format, sequences| Shape {
        heads,
        kv_heads,
        head_dim,
        block_tokens,
        format,
        sequences,
    };
    let shapes = [
        ("one position", shape(1, 1, 32, 1, F16, &[(0, 1)])),
        ("decode around tiles", shape(3, 1, 64, 4, F16, &[(62, 1), (63, 1), (64, 1), (2, 1)])),
        ("decode around chunks", shape(8, 2, 32, 16, F16, &[(254, 1), (255, 1), (256, 1), (700, 1)])),
        ("decode wide heads", shape(4, 1, 128, 16, F16, &[(300, 1)])),
        ("drafts", shape(6, 2, 96, 8, F16, &[(255, 5), (10, 2)])),
        ("prefill over prefixes", shape(2, 2, 32, 32, F16, &[(0, 30), (250, 40), (500, 20), (7, 1)])),
        ("prefill wide heads", shape(4, 1, 128, 256, F16, &[(240, 33)])),
        ("decode and prefill in int8", shape(4, 2, 64, 16, Int8, &[(260, 1), (40, 21)])),
        ("decode and prefill in fp8", shape(3, 1, 32, 2, Fp8, &[(270, 3), (50, 17)])),
        ("more heads than queries of a block", shape(129, 1, 32, 4, F16, &[(2, 1), (0, 2)])),
    ];
    let case = |(name, shape): (&str, Shape)| {
        let name = format!("{name}: {}:{} x {}", shape.heads, shape.kv_heads, shape.head_dim);
        Case::new("attention", name, TOLERANCE, move |device, seed| run(device, seed, shape))
    };
    let hostile = Case::new("attention", "NaN in one sequence, no tiles", 0.0, hostile);
    shapes.into_iter().map(case).chain([hostile]).collect()
}

/// The inputs of a case, on the device.
struct Inputs {
    args: AttentionArgs,
    q: Vec<f16>,
    pool: Vec<u8>,
    tables: Vec<u32>,
}

fn run(device: &Device, seed: u64, shape: Shape) -> Result<f64, CudaError> {
    let (op, mut random, mut buffers) =
        (Attention::load(device, shape.head_dim)?, Random::new(seed), Buffers::new(device));
    let mut inputs = inputs(&mut random, &mut buffers, shape)?;
    let (heads, kv_heads) = (shape.heads as u32, shape.kv_heads as u32);
    let split_rows = split_tile_rows(heads, kv_heads) as usize;
    let rows_rows = rows_tile_rows(heads, kv_heads) as usize;
    let first = split(&op, &mut buffers, &mut inputs, shape, split_rows, 3)?;
    // The same bits in every way of cutting the work.
    let others = [
        split(&op, &mut buffers, &mut inputs, shape, 1, 1)?,
        rows(&op, &mut buffers, &mut inputs, shape, rows_rows)?,
        rows(&op, &mut buffers, &mut inputs, shape, 3.min(rows_rows))?,
    ];
    if others.iter().any(|other| *other != first) {
        return Ok(f64::INFINITY);
    }
    let width = shape.heads * shape.head_dim;
    let got = first[..shape.rows() * width].iter().map(|bits| bf16::from_bits(*bits).to_f64());
    if first[shape.rows() * width..].iter().any(|bits| *bits != 0xffff) {
        return Ok(f64::INFINITY);
    }
    Ok(worst(got, reference(&inputs, shape)))
}

fn inputs(random: &mut Random, buffers: &mut Buffers<'_>, shape: Shape) -> Result<Inputs, CudaError> {
    let Shape { heads, kv_heads, head_dim, block_tokens, format, sequences } = shape;
    let no_layout = CudaError::Shape { what: "a layout of the self-test", value: head_dim };
    let kv = KvLayout::new(LAYERS, kv_heads, head_dim, block_tokens, format).ok_or(no_layout)?;
    let blocks: usize = sequences.iter().map(|(before, rows)| (before + rows).div_ceil(block_tokens)).sum();
    let mut tables: Vec<u32> = (0..blocks as u32).collect();
    (1..blocks).rev().for_each(|at| tables.swap(at, random.below(at + 1)));
    let mut pool = vec![0xff_u8; blocks * kv.block_bytes()];
    let mut table = 0;
    for (before, rows) in sequences {
        for position in 0..before + rows {
            let block = tables[table + position / block_tokens];
            for (head, is_value) in (0..kv_heads).flat_map(|head| [(head, false), (head, true)]) {
                write(random, &kv, &mut pool, (block, head, position % block_tokens), is_value);
            }
        }
        table += (before + rows).div_ceil(block_tokens);
    }
    let (rows, rows_max) = (shape.rows(), shape.rows() + 3);
    let q: Vec<f16> = (0..rows * heads * head_dim).map(|_| f16::from_f32(random.normal(2.0))).collect();
    let positions: Vec<u32> =
        sequences.iter().flat_map(|(before, rows)| *before as u32..(before + rows) as u32).collect();
    let args = AttentionArgs {
        out: buffers.empty::<bf16>(rows_max * heads * head_dim)?,
        q: buffers.with_room(&q, rows_max * heads * head_dim)?,
        pool: buffers.with(&pool)?,
        kv,
        layer: LAYER as u32,
        heads: heads as u32,
        positions: buffers.with_room(&positions, rows_max)?,
        block_tables: buffers.with(&tables)?,
        tiles: buffers.empty::<AttentionTile>(0)?,
        tiles_count: buffers.empty::<u32>(1)?,
        tiles_max: 0,
        rows_max: rows_max as u32,
    };
    Ok(Inputs { args, q, pool, tables })
}

/// Any numbers as a position's key or value.
fn write(random: &mut Random, kv: &KvLayout, pool: &mut [u8], (block, head, at): (u32, usize, usize), is_value: bool) {
    let start = kv.value_at(block, LAYER, is_value, head, at);
    let bytes = &mut pool[start..start + kv.head_bytes()];
    match kv.format() {
        KvFormat::F16 => {
            let values = bytes.as_chunks_mut::<2>().0;
            values.iter_mut().for_each(|value| *value = f16::from_f32(random.normal(1.0)).to_le_bytes());
            return;
        }
        KvFormat::Int8 => bytes.iter_mut().for_each(|code| *code = (random.below(255) as i32 - 127) as u8),
        // Up to 7.5, whatever the sign.
        KvFormat::Fp8 => bytes.iter_mut().for_each(|code| *code = random.below(256) as u8 & 0xcf),
    }
    let scale = (0.5 + random.unit() as f32) * if kv.format() == KvFormat::Int8 { 0.01 } else { 0.2 };
    let start = kv.scale_at(block, LAYER, is_value, head, at);
    pool[start..start + 4].copy_from_slice(&scale.to_le_bytes());
}

fn set_tiles(buffers: &mut Buffers<'_>, inputs: &mut Inputs, tiles: &[AttentionTile]) -> Result<(), CudaError> {
    inputs.args.tiles_max = tiles.len() as u32 + 2;
    inputs.args.tiles = buffers.with_room(tiles, tiles.len() + 2)?;
    inputs.args.tiles_count = buffers.with(&[tiles.len() as u32])?;
    let values = inputs.args.rows_max as usize * inputs.args.heads as usize * inputs.args.kv.head_dim();
    inputs.args.out = buffers.empty::<bf16>(values)?;
    Ok(())
}

fn split(
    op: &Attention,
    buffers: &mut Buffers<'_>,
    inputs: &mut Inputs,
    shape: Shape,
    tile_rows: usize,
    chunk_blocks: u32,
) -> Result<Vec<u16>, CudaError> {
    let (tiles, units) = shape.tiles(tile_rows);
    set_tiles(buffers, inputs, &tiles)?;
    let partials = AttentionPartials {
        values: buffers.empty::<f32>(units as usize * shape.heads * shape.head_dim)?,
        sums: buffers.empty::<f32>(units as usize * shape.heads * 2)?,
        units,
    };
    op.split(buffers.stream(), &inputs.args, partials, chunk_blocks)?;
    buffers.read(inputs.args.out, inputs.args.out.bytes() / 2)
}

fn rows(
    op: &Attention,
    buffers: &mut Buffers<'_>,
    inputs: &mut Inputs,
    shape: Shape,
    tile_rows: usize,
) -> Result<Vec<u16>, CudaError> {
    let (tiles, _) = shape.tiles(tile_rows);
    set_tiles(buffers, inputs, &tiles)?;
    op.rows(buffers.stream(), &inputs.args)?;
    buffers.read(inputs.args.out, inputs.args.out.bytes() / 2)
}

fn reference(inputs: &Inputs, shape: Shape) -> Vec<f64> {
    let (kv, width) = (&inputs.args.kv, shape.heads * shape.head_dim);
    let (mut out, mut row, mut table) = (Vec::new(), 0, 0);
    for (before, rows) in shape.sequences {
        let tokens = before + rows;
        let read = |is_value| -> Vec<Vec<Vec<f32>>> {
            let position = |position: usize| {
                let (block, at) = (inputs.tables[table + position / shape.block_tokens], position % shape.block_tokens);
                (0..shape.kv_heads).map(|head| kv.read(&inputs.pool, block, LAYER, is_value, head, at)).collect()
            };
            (0..tokens).map(position).collect()
        };
        let (keys, values) = (read(false), read(true));
        for position in *before..tokens {
            let q = &inputs.q[row * width..][..width];
            out.extend(attention_row(q, shape.heads, &keys[..=position], &values[..=position]));
            row += 1;
        }
        table += tokens.div_ceil(shape.block_tokens);
    }
    out
}

/// A key and a value that are NaN spoil what sees them and nothing else; without tiles nothing is written.
fn hostile(device: &Device, seed: u64) -> Result<f64, CudaError> {
    let shape = Shape {
        heads: 2,
        kv_heads: 1,
        head_dim: 32,
        block_tokens: 8,
        format: KvFormat::F16,
        sequences: &[(70, 1), (300, 1), (5, 3)],
    };
    let (op, mut random, mut buffers) =
        (Attention::load(device, shape.head_dim)?, Random::new(seed), Buffers::new(device));
    let mut inputs = inputs(&mut random, &mut buffers, shape)?;
    let clean = split(&op, &mut buffers, &mut inputs, shape, 1, 1)?;
    let width = shape.heads * shape.head_dim;
    // The second sequence's table begins behind the 9 blocks of the first.
    for (position, is_value) in [(20, false), (290, true)] {
        let block = inputs.tables[9 + position / 8];
        let at = inputs.args.kv.value_at(block, LAYER, is_value, 0, position % 8);
        let mut spoilt = inputs.pool.clone();
        spoilt[at..at + 64].fill(0xff);
        buffers.stream().upload_now(&spoilt, inputs.args.pool)?;
        let ways =
            [split(&op, &mut buffers, &mut inputs, shape, 1, 2)?, rows(&op, &mut buffers, &mut inputs, shape, 3)?];
        let is_right = |(at, (spoilt, clean)): (usize, (&u16, &u16))| match at / width {
            1 => bf16::from_bits(*spoilt).is_nan(),
            _ => spoilt == clean,
        };
        if !ways.iter().all(|way| way.iter().zip(&clean).enumerate().all(is_right)) {
            return Ok(f64::INFINITY);
        }
    }
    set_tiles(&mut buffers, &mut inputs, &[])?;
    op.rows(buffers.stream(), &inputs.args)?;
    let untouched: Vec<u16> = buffers.read(inputs.args.out, inputs.args.out.bytes() / 2)?;
    Ok(if untouched.iter().all(|bits| *bits == 0xffff) { 0.0 } else { f64::INFINITY })
}
