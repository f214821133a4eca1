//! Cases of the rotary append: every form of keys and values, both layouts, heads with and without norms.

use half::f16;

use super::{DeviceHeadNorms, RopeAppend, RopeAppendArgs, to_f16, turn_head, turns};
use crate::cuda::selftest::{Buffers, Case, Random, worst};
use crate::cuda::{CudaError, Device, KvFormat, KvLayout};
use crate::{RopeLayout, RopeTable};

const CONTEXT: usize = 300;
const THETA: f32 = 10_000.0;
const EPSILON: f32 = 1e-6;
/// Of the largest value of the head: f16 rounds by 2^-11 of a value.
const TOLERANCE_F16: f64 = 5e-4;
/// A code rounds by half a unit, of 127.
const TOLERANCE_INT8: f64 = 0.004_0;
/// A code rounds by 2^-4 of a value, of which the largest is 448.
const TOLERANCE_FP8: f64 = 0.036;

#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_tokens: usize,
    layout: RopeLayout,
    is_normed: bool,
    format: KvFormat,
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (format, tolerance) in
        [(KvFormat::F16, TOLERANCE_F16), (KvFormat::Int8, TOLERANCE_INT8), (KvFormat::Fp8, TOLERANCE_FP8)]
    {
        for (heads, kv_heads, head_dim, layout, is_normed) in [
            (1, 1, 32, RopeLayout::Neighbours, false),
            (3, 1, 64, RopeLayout::Halves, true),
            (4, 4, 96, RopeLayout::Neighbours, false),
            (8, 2, 128, RopeLayout::Halves, true),
        ] {
            let shape =
                Shape { rows: 5, heads, kv_heads, head_dim, block_tokens: kv_heads * 4, layout, is_normed, format };
            let norm = if is_normed { " normed" } else { "" };
            let name = format!("{format:?} {heads}:{kv_heads} x {head_dim} {layout:?}{norm}");
            cases.push(Case::new("rope_append", name, tolerance, move |device, seed| run(device, seed, shape)));
        }
    }
    cases
}

fn run(device: &Device, seed: u64, shape: Shape) -> Result<f64, CudaError> {
    let Shape { rows, heads, kv_heads, head_dim, block_tokens, layout, is_normed, format } = shape;
    let (op, mut random, mut buffers) = (RopeAppend::load(device)?, Random::new(seed), Buffers::new(device));
    let (layers, layer, rows_max) = (3, 1, rows + 2);
    let no_layout = CudaError::Shape { what: "a layout of the self-test", value: head_dim };
    let kv = KvLayout::new(layers, kv_heads, head_dim, block_tokens, format).ok_or(no_layout)?;
    let stride = (heads + 2 * kv_heads) * head_dim + 8;
    let qkv = random.normals(rows * stride, 2.0);
    let divisors: Vec<f32> = (0..head_dim / 2).map(|pair| 1.0 + pair as f32 / 7.0).collect();
    let table = RopeTable::with_layout(CONTEXT, head_dim, THETA, layout, &divisors);
    // Two sequences whose tables lie apart; the blocks of the pool are many fewer than the context's.
    let positions: Vec<usize> = (0..rows).map(|row| if row < 3 { 40 + row } else { CONTEXT - 1 - (row - 3) }).collect();
    let table_blocks = CONTEXT.div_ceil(block_tokens);
    let block_of = |row: usize| (positions[row] / block_tokens * 5 + usize::from(row >= 3)) % 11;
    let begins: Vec<u32> = (0..rows).map(|row| if row < 3 { 3 } else { 3 + table_blocks as u32 }).collect();
    let mut tables = vec![u32::MAX; 3 + 2 * table_blocks];
    (0..rows).for_each(|row| tables[begins[row] as usize + positions[row] / block_tokens] = block_of(row) as u32);
    let norms = [random.normals(head_dim, 1.0), random.normals(head_dim, 1.0)];
    let args = RopeAppendArgs {
        q: buffers.empty::<f16>(rows_max * heads * head_dim)?,
        pool: buffers.empty::<u8>(11 * kv.block_bytes())?,
        kv,
        layer: layer as u32,
        qkv: buffers.with_room(&qkv, rows_max * stride)?,
        qkv_stride: stride as u32,
        positions: buffers.with_room(&positions.iter().map(|at| *at as u32).collect::<Vec<_>>(), rows_max)?,
        table_begins: buffers.with_room(&begins, rows_max)?,
        block_tables: buffers.with(&tables)?,
        turns: buffers.with(&turns(CONTEXT, head_dim, THETA, &divisors))?,
        context: CONTEXT as u32,
        norms: match is_normed {
            true => Some(DeviceHeadNorms {
                query: buffers.with(&norms[0])?,
                key: buffers.with(&norms[1])?,
                epsilon: EPSILON,
            }),
            false => None,
        },
        heads: heads as u32,
        layout,
        rows: buffers.with(&[rows as u32])?,
        rows_max: rows_max as u32,
    };
    op.launch(device.compute(), &args)?;
    let q: Vec<f16> = buffers.read(args.q, rows_max * heads * head_dim)?;
    let pool: Vec<u8> = buffers.read(args.pool, 11 * kv.block_bytes())?;
    if q[rows * heads * head_dim..].iter().any(|value| value.to_bits() != 0xffff) {
        return Ok(f64::INFINITY);
    }
    let mut error = 0.0f64;
    let mut written = 0;
    for (row, qkv) in qkv.chunks_exact(stride).enumerate() {
        for (head, values) in qkv.chunks_exact(head_dim).take(heads + 2 * kv_heads).enumerate() {
            let mut want = values.to_vec();
            let (is_query, is_value) = (head < heads, head >= heads + kv_heads);
            if !is_value {
                let norm = is_normed.then(|| (&norms[usize::from(!is_query)][..], EPSILON));
                turn_head(&table, positions[row], norm, &mut want);
            }
            let got: Vec<f32> = if is_query {
                q[(row * heads + head) * head_dim..][..head_dim].iter().map(|value| value.to_f32()).collect()
            } else {
                let (at, block) = (positions[row] % block_tokens, block_of(row) as u32);
                written += kv.head_bytes() + if format == KvFormat::F16 { 0 } else { 4 };
                kv.read(&pool, block, layer, is_value, (head - heads) % kv_heads, at)
            };
            let most = want.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            let parts = |values: &[f32]| values.iter().map(|value| f64::from(value / most)).collect::<Vec<_>>();
            // Queries are f16 whatever the keys are.
            let part =
                worst(parts(&got), parts(&want)) * if is_query { tolerance(format) / TOLERANCE_F16 } else { 1.0 };
            error = error.max(part);
        }
    }
    // Nothing else in the pool was touched; codes of 0xff are rare.
    let touched = pool.iter().filter(|byte| **byte != 0xff).count();
    if touched > written || touched * 2 < written {
        return Ok(f64::INFINITY);
    }
    Ok(error.max(hostile(device, shape)?))
}

fn tolerance(format: KvFormat) -> f64 {
    match format {
        KvFormat::F16 => TOLERANCE_F16,
        KvFormat::Int8 => TOLERANCE_INT8,
        KvFormat::Fp8 => TOLERANCE_FP8,
    }
}

/// Heads of zeros, of numbers beyond f16, of NaN: what is finite stays finite, and each head to itself.
fn hostile(device: &Device, shape: Shape) -> Result<f64, CudaError> {
    let Shape { head_dim, format, .. } = shape;
    let (op, mut buffers) = (RopeAppend::load(device)?, Buffers::new(device));
    let no_layout = CudaError::Shape { what: "a layout of the self-test", value: head_dim };
    let kv = KvLayout::new(1, 2, head_dim, 2, format).ok_or(no_layout)?;
    // q: zeros; k: beyond f16, NaN in one place; v: zeros, the least numbers.
    let mut qkv = vec![0.0f32; 5 * head_dim];
    qkv[head_dim..2 * head_dim].fill(3e5);
    qkv[2 * head_dim + 1] = f32::NAN;
    qkv[4 * head_dim..].fill(1e-42);
    let args = RopeAppendArgs {
        q: buffers.empty::<f16>(head_dim)?,
        pool: buffers.empty::<u8>(kv.block_bytes())?,
        kv,
        layer: 0,
        qkv: buffers.with(&qkv)?,
        qkv_stride: 5 * head_dim as u32,
        positions: buffers.with(&[0u32])?,
        table_begins: buffers.with(&[0u32])?,
        block_tables: buffers.with(&[0u32])?,
        turns: buffers.with(&turns(1, head_dim, THETA, &[]))?,
        context: 1,
        norms: None,
        heads: 1,
        layout: shape.layout,
        rows: buffers.with(&[1u32])?,
        rows_max: 1,
    };
    op.launch(device.compute(), &args)?;
    let q: Vec<f16> = buffers.read(args.q, head_dim)?;
    let pool: Vec<u8> = buffers.read(args.pool, kv.block_bytes())?;
    let head = |is_value, head| kv.read(&pool, 0, 0, is_value, head, 0);
    let beyond = if format == KvFormat::F16 { to_f16(3e5).to_f32() } else { 3e5 };
    let is_right = q.iter().all(|value| value.to_f32() == 0.0)
        && head(false, 0).iter().all(|value| (value / beyond - 1.0).abs() < 1e-6)
        && head(false, 1).iter().any(|value| value.is_nan())
        && head(true, 0).iter().chain(&head(true, 1)).all(|value| *value == 0.0);
    Ok(if is_right { 0.0 } else { f64::INFINITY })
}
