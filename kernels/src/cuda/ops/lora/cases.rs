//! The self-test of LoRA: values against f64, and equal bits whatever the batch. Adapters are cut into pieces in several
//! ways, and what no kernel may touch holds 0xff.

use std::ops::Range;

use half::bf16;

use super::{Lora, LoraArgs, tmp_bytes};
use crate::cuda::selftest::{Buffers, Case, Random, worst};
use crate::cuda::{
    CudaError, Device, DeviceRange, LORA_GROUPS, LoraGroupId, LoraItem, LoraPiece, LoraTables, LoraTerm, LoraTile,
};

/// Of the sum of sizes: Ax keeps 16 bits or more, sums are f32.
const TOLERANCE: f64 = 4e-6;
/// Columns of y around and between the modules.
const MARGIN: usize = 5;
const LAYERS: usize = 3;
const LAYER: usize = 1;
/// Every module, every layer.
const ALL: u32 = 127;

/// What a slot holds of one module, in f32 that are bf16.
struct Term {
    rank: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    scale: f32,
    growth: Option<Vec<f32>>,
}

/// What a slot holds of the group.
struct Adapter {
    terms: [Option<Term>; 3],
    /// Ranks of a piece, at most.
    cut: usize,
    /// Whether each module has pieces of its own.
    is_apart: bool,
}

/// A group, adapters in slots, rows and what they have.
struct Scene {
    group: LoraGroupId,
    inputs: usize,
    outputs: [usize; 3],
    adapters: Vec<Adapter>,
    rows: usize,
    runs: Vec<(Range<u32>, Vec<LoraTerm>)>,
    x: Vec<bf16>,
    y: Vec<f32>,
}

impl Scene {
    fn new(random: &mut Random, group: LoraGroupId, inputs: usize, rows: usize) -> Self {
        let outputs = match group {
            LoraGroupId::Qkv => [288, 32, 64],
            LoraGroupId::GateUp => [96, 96, 0],
            LoraGroupId::O | LoraGroupId::Down => [544, 0, 0],
        };
        let x = random.normals(rows * inputs, 1.0).into_iter().map(bf16::from_f32).collect();
        let mut scene = Self { group, inputs, outputs, adapters: Vec::new(), rows, runs: Vec::new(), x, y: Vec::new() };
        scene.y = random.normals(rows * scene.stride(), 1.0);
        scene
    }

    fn columns(&self) -> [usize; 3] {
        let [first, second, _] = self.outputs;
        [MARGIN, 2 * MARGIN + first, 3 * MARGIN + first + second]
    }

    fn stride(&self) -> usize {
        self.outputs.iter().sum::<usize>() + 4 * MARGIN
    }

    /// Puts an adapter into the next slot. A rank of 0 is no term.
    fn adapter(&mut self, random: &mut Random, ranks: [usize; 3], cut: usize, is_apart: bool, is_dora: bool) {
        let inputs = self.inputs;
        let mut module = 0;
        let terms = ranks.map(|rank| {
            let outputs = self.outputs[module];
            module += 1;
            if rank == 0 || outputs == 0 {
                return None;
            }
            let mut numbers = |count: usize, size: f32| -> Vec<f32> {
                random.normals(count, size).into_iter().map(|value| bf16::from_f32(value).to_f32()).collect()
            };
            let (a, b) = (numbers(rank * inputs, 0.1), numbers(outputs * rank, 1.0));
            let growth = is_dora.then(|| random.normals(outputs, 0.3));
            Some(Term { rank, a, b, scale: random.normal(1.0), growth })
        });
        self.adapters.push(Adapter { terms, cut, is_apart });
    }

    /// The largest sum of padded ranks, so that all slots have the same stride.
    fn tmp_stride(&self) -> u32 {
        let of = |adapter: &Adapter| adapter.terms.iter().flatten().map(|term| term.rank.next_multiple_of(8)).sum();
        self.adapters.iter().map(of).max().unwrap_or(0usize).max(8) as u32
    }

    fn term(&self, slot: u32, weight: f32, modules: u32, layers: Range<u32>) -> LoraTerm {
        LoraTerm { slot, weight, modules, layers, stride: self.tmp_stride() }
    }

    /// y in f64 and the sum of the sizes of what was added, for the columns of the modules in each row.
    fn reference(&self) -> (Vec<f64>, Vec<f64>) {
        let (mut values, mut sizes) = (Vec::new(), Vec::new());
        for row in 0..self.rows {
            let x: Vec<f64> = self.x[row * self.inputs..][..self.inputs].iter().map(|x| x.to_f64()).collect();
            let run = self.runs.iter().find(|(rows, _)| rows.contains(&(row as u32)));
            for (module, (outputs, column)) in self.outputs.into_iter().zip(self.columns()).enumerate() {
                let plain: Vec<f64> =
                    self.y[row * self.stride() + column..][..outputs].iter().map(|y| f64::from(*y)).collect();
                let (mut value, mut size) = (plain.clone(), plain.iter().map(|y| y.abs()).collect::<Vec<_>>());
                for term in run.map_or(&[][..], |(_, terms)| terms) {
                    let bit = self.group.first_module() + module as u32;
                    let adapter = &self.adapters[term.slot as usize];
                    if let Some(pair) = &adapter.terms[module]
                        && term.layers.contains(&(LAYER as u32))
                        && term.modules >> bit & 1 == 1
                    {
                        add(pair, f64::from(term.weight), &x, &plain, &mut value, &mut size);
                    }
                }
                values.extend(value);
                sizes.extend(size);
            }
        }
        (values, sizes)
    }
}

/// One term of the reference: y += w·s·B(Ax), or w·(g' Wx + (g' + 1)·s·B(Ax)) with g' = g - 1.
fn add(pair: &Term, weight: f64, x: &[f64], plain: &[f64], values: &mut [f64], sizes: &mut [f64]) {
    let shrunk: Vec<(f64, f64)> = pair
        .a
        .chunks(x.len())
        .map(|a| {
            let products = a.iter().zip(x).map(|(a, x)| f64::from(*a) * x);
            products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()))
        })
        .collect();
    for (output, b) in pair.b.chunks(pair.rank).enumerate() {
        let growth = pair.growth.as_ref().map_or(0.0, |growth| f64::from(growth[output]));
        let scale = weight * f64::from(pair.scale) * (growth + 1.0);
        let sum = |of: &dyn Fn(f64, (f64, f64)) -> f64| -> f64 {
            b.iter().zip(&shrunk).map(|(b, t)| of(f64::from(*b), *t)).sum()
        };
        values[output] += weight * growth * plain[output] + scale * sum(&|b, (t, _)| b * t);
        sizes[output] += (weight * growth * plain[output]).abs() + scale.abs() * sum(&|b, (_, size)| b.abs() * size);
    }
}

/// A scene on a device.
struct Stage<'a> {
    scene: &'a Scene,
    buffers: Buffers<'a>,
    op: Lora,
    pieces: DeviceRange,
    x: DeviceRange,
}

impl<'a> Stage<'a> {
    fn new(device: &'a Device, scene: &'a Scene) -> Result<Self, CudaError> {
        let mut buffers = Buffers::new(device);
        let per_slot = LAYERS * LORA_GROUPS;
        // What is not this layer's and group's holds addresses that are nowhere.
        let poison = LoraPiece { a: u64::MAX, b: [u64::MAX; 3], rank: [u32::MAX; 3], next: 0, ..LoraPiece::EMPTY };
        let mut pieces = vec![poison; scene.adapters.len() * per_slot];
        for (slot, adapter) in scene.adapters.iter().enumerate() {
            let mut chain = chain(&mut buffers, adapter, scene.inputs)?;
            let mut at = slot * per_slot + LAYER * LORA_GROUPS + scene.group as usize;
            let rest = chain.split_off(1);
            pieces[at] = chain[0];
            for piece in rest {
                pieces[at].next = pieces.len() as u32;
                at = pieces.len();
                pieces.push(piece);
            }
        }
        let (op, pieces, x) = (Lora::load(device)?, buffers.with(&pieces)?, buffers.with(&scene.x)?);
        Ok(Self { scene, buffers, op, pieces, x })
    }

    /// y of all rows after these runs, in a launch of `tile`; `None` if something between the modules was written, or a row
    /// that is in none of the runs.
    fn run(&mut self, tile: LoraTile, runs: &[(Range<u32>, Vec<LoraTerm>)]) -> Result<Option<Vec<f32>>, CudaError> {
        let scene = self.scene;
        let device = self.buffers.device();
        let mut tables = LoraTables::new(64, 64, 1 << 20);
        tables.clear(tile);
        for (rows, terms) in runs {
            if !terms.is_empty() && tables.push_run(rows.clone(), terms) != rows.end - rows.start {
                return Ok(None);
            }
        }
        let tmp_floats = tables.entries().iter().map(|entry| entry.stride as usize).sum::<usize>() * scene.rows;
        let y = self.buffers.with(&scene.y)?;
        // Those past the count are what an earlier step left.
        let stale = LoraItem { row: 0, rows: 1, entry_begin: 0, entry_end: 1 };
        let items = [tables.items(), &[stale; 2]].concat();
        let args = LoraArgs {
            pieces: self.pieces,
            slots: scene.adapters.len(),
            layers: LAYERS,
            entries: self.buffers.with(tables.entries())?,
            items: self.buffers.with(&items)?,
            item_count: self.buffers.with(&[tables.items().len() as u32])?,
            items_max: items.len(),
            tile,
            layer: LAYER,
            group: scene.group,
            x: self.x,
            inputs: scene.inputs,
            y,
            y_stride: scene.stride(),
            outputs: scene.outputs,
            columns: scene.columns(),
            rows_max: scene.rows,
            tmp: self.buffers.empty::<u8>(tmp_bytes(tmp_floats))?,
            tmp_floats,
        };
        self.op.shrink(device.compute(), &args)?;
        self.op.expand(device.compute(), &args)?;
        let got: Vec<f32> = self.buffers.read(y, scene.y.len())?;
        let inside = |column: usize| {
            let mut modules = scene.outputs.into_iter().zip(scene.columns());
            modules.any(|(outputs, first)| (first..first + outputs).contains(&column))
        };
        let has = |row: usize| runs.iter().any(|(rows, terms)| rows.contains(&(row as u32)) && !terms.is_empty());
        let (mut values, mut is_kept) = (Vec::new(), true);
        for (at, (got, start)) in got.iter().zip(&scene.y).enumerate() {
            let (row, column) = (at / scene.stride(), at % scene.stride());
            is_kept &= inside(column) && has(row) || got.to_bits() == start.to_bits();
            if inside(column) {
                values.push(*got);
            }
        }
        Ok(is_kept.then_some(values))
    }
}

/// An adapter's pieces with their matrices on the device, ranks padded.
fn chain(buffers: &mut Buffers<'_>, adapter: &Adapter, inputs: usize) -> Result<Vec<LoraPiece>, CudaError> {
    // Which ranks of which modules lie in each piece.
    let mut plans: Vec<[Range<usize>; 3]> = Vec::new();
    for (module, term) in adapter.terms.iter().enumerate() {
        let Some(term) = term else { continue };
        for (index, first) in (0..term.rank).step_by(adapter.cut).enumerate() {
            let ranks = first..(first + adapter.cut).min(term.rank);
            if adapter.is_apart || plans.len() <= index {
                plans.push([const { 0..0 }; 3]);
            }
            let at = if adapter.is_apart { plans.len() - 1 } else { index };
            plans[at][module] = ranks;
        }
    }
    let (mut pieces, mut row) = (Vec::new(), 0);
    for plan in plans {
        let mut piece = LoraPiece { row, ..LoraPiece::EMPTY };
        let mut a: Vec<bf16> = Vec::new();
        for (module, ranks) in plan.into_iter().enumerate().filter(|(_, ranks)| !ranks.is_empty()) {
            let Some(term) = &adapter.terms[module] else { continue };
            let padded = ranks.len().next_multiple_of(8);
            a.extend(term.a[ranks.start * inputs..ranks.end * inputs].iter().map(|value| bf16::from_f32(*value)));
            a.resize(a.len() + (padded - ranks.len()) * inputs, bf16::ZERO);
            let mut b: Vec<bf16> = Vec::new();
            for of_output in term.b.chunks(term.rank) {
                b.extend(of_output[ranks.clone()].iter().map(|value| bf16::from_f32(*value)));
                b.resize(b.len() + padded - ranks.len(), bf16::ZERO);
            }
            piece.b[module] = buffers.with(&b)?.start().address();
            piece.scale[module] = term.scale;
            piece.rank[module] = padded as u32;
            if let Some(growth) = &term.growth {
                piece.growth[module] = buffers.with(growth)?.start().address();
            }
            row += padded as u32;
        }
        piece.a = buffers.with(&a)?.start().address();
        pieces.push(piece);
    }
    Ok(if pieces.is_empty() { vec![LoraPiece::EMPTY] } else { pieces })
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for group in LoraGroupId::ALL {
        for (what, is_dora) in [("LoRA", false), ("DoRA", true)] {
            cases.push(Case::new(
                "lora",
                format!("{what}, {group:?}, mixed ranks and runs"),
                TOLERANCE,
                move |device, seed| values(device, &mixed(seed, group, 96, is_dora), LoraTile::Rows8),
            ));
        }
    }
    for (inputs, rank) in [(2048, 16), (4096, 8), (32, 256)] {
        cases.push(Case::new("lora", format!("one row, rank {rank} x {inputs}"), TOLERANCE, move |device, seed| {
            let mut random = Random::new(seed);
            let mut scene = Scene::new(&mut random, LoraGroupId::O, inputs, 1);
            scene.adapter(&mut random, [rank, 0, 0], 1024, false, false);
            scene.runs = vec![(0..1, vec![scene.term(0, 0.5, ALL, 0..9)])];
            values(device, &scene, LoraTile::Rows8)
        }));
    }
    cases.push(Case::new("lora", "one run of 41 rows in pieces", TOLERANCE, |device, seed| {
        values(device, &long(seed), LoraTile::Rows32)
    }));
    cases.push(Case::new("lora", "equal bits in every batch", 0.0, batches));
    cases.push(Case::new("lora", "equal bits in every batch, DoRA", 0.0, |device, seed| {
        equal_bits(device, &mixed(seed, LoraGroupId::GateUp, 2048, true))
    }));
    cases.push(Case::new("lora", "no items", 0.0, |device, seed| {
        let mut scene = mixed(seed, LoraGroupId::O, 64, false);
        scene.runs.clear();
        values(device, &scene, LoraTile::Rows8)
    }));
    cases
}

/// 27 rows: alone, several adapters on one row, none, masked, out of their layers, and with nothing for the group.
fn mixed(seed: u64, group: LoraGroupId, inputs: usize, is_dora: bool) -> Scene {
    let mut random = Random::new(seed);
    let mut scene = Scene::new(&mut random, group, inputs, 27);
    scene.adapter(&mut random, [8, 8, 8], 1024, false, false);
    scene.adapter(&mut random, [16, 5, 24], 1024, false, is_dora);
    scene.adapter(&mut random, [64, 40, 1], 16, false, is_dora);
    scene.adapter(&mut random, [24, 33, 9], 16, true, is_dora);
    scene.adapter(&mut random, [0, 0, 0], 16, true, false);
    let all = |scene: &Scene, slot, weight| scene.term(slot, weight, ALL, 0..9);
    let second = 1 << (group.first_module() + 1) | 1 << group.first_module();
    scene.runs = vec![
        (0..1, vec![all(&scene, 0, 1.0)]),
        (1..2, vec![all(&scene, 2, -0.75)]),
        (2..5, vec![all(&scene, 1, 0.5), all(&scene, 3, 1.25), all(&scene, 0, 1.0)]),
        (5..7, Vec::new()),
        // Not in this layer, not this group's modules, and then only the first two of them.
        (7..8, vec![scene.term(1, 1.0, ALL, 0..1), scene.term(1, 1.0, ALL, 2..9), scene.term(1, 1.0, 0, 0..9)]),
        (8..10, vec![scene.term(3, 1.0, second, 1..2), all(&scene, 4, 1.0), all(&scene, 3, 0.0)]),
        // 9 and 8 rows: one more than an item, and exactly one.
        (10..19, vec![all(&scene, 1, 1.0), all(&scene, 1, -1.5)]),
        (19..27, vec![all(&scene, 3, 1.0)]),
    ];
    scene
}

fn long(seed: u64) -> Scene {
    let mut random = Random::new(seed);
    let mut scene = Scene::new(&mut random, LoraGroupId::Qkv, 64, 41);
    scene.adapter(&mut random, [40, 16, 24], 16, false, false);
    scene.adapter(&mut random, [8, 8, 8], 16, false, true);
    scene.runs = vec![(0..41, vec![scene.term(0, 1.0, ALL, 0..9), scene.term(1, 0.5, ALL, 0..9)])];
    scene
}

fn values(device: &Device, scene: &Scene, tile: LoraTile) -> Result<f64, CudaError> {
    let got = Stage::new(device, scene)?.run(tile, &scene.runs)?;
    Ok(got.map_or(f64::INFINITY, |got| error_of(scene, &got)))
}

fn error_of(scene: &Scene, got: &[f32]) -> f64 {
    let (want, sizes) = scene.reference();
    let got = got.iter().zip(&sizes).map(|(got, size)| f64::from(*got) / size);
    worst(got, want.iter().zip(&sizes).map(|(want, size)| want / size))
}

fn batches(device: &Device, seed: u64) -> Result<f64, CudaError> {
    let short = equal_bits(device, &mixed(seed, LoraGroupId::Qkv, 96, false))?;
    Ok(short.max(equal_bits(device, &long(seed))?))
}

/// Runs together in both tiles, the other way round, cut into pieces, and each row alone: the same bits for each row.
fn equal_bits(device: &Device, scene: &Scene) -> Result<f64, CudaError> {
    let mut stage = Stage::new(device, scene)?;
    let Some(together) = stage.run(LoraTile::Rows8, &scene.runs)? else { return Ok(f64::INFINITY) };
    let backwards: Vec<_> = scene.runs.iter().rev().cloned().collect();
    let pieces: Vec<_> = scene
        .runs
        .iter()
        .flat_map(|(rows, terms)| {
            let middle = rows.start + (rows.end - rows.start) / 3;
            [(rows.start..middle, terms.clone()), (middle..rows.end, terms.clone())]
        })
        .filter(|(rows, _)| !rows.is_empty())
        .collect();
    let mut others = vec![(LoraTile::Rows32, scene.runs.clone()), (LoraTile::Rows8, backwards)];
    others.extend([(LoraTile::Rows8, pieces.clone()), (LoraTile::Rows32, pieces)]);
    for (tile, runs) in others {
        let is_equal = stage.run(tile, &runs)?.is_some_and(|other| {
            other.len() == together.len()
                && other.iter().zip(&together).all(|(one, two)| one.to_bits() == two.to_bits())
        });
        if !is_equal {
            return Ok(f64::INFINITY);
        }
    }
    // The last row of each run alone.
    let width: usize = scene.outputs.iter().sum();
    for (rows, terms) in &scene.runs {
        let row = (rows.end - 1) as usize;
        let alone = stage.run(LoraTile::Rows8, &[(rows.end - 1..rows.end, terms.clone())])?;
        let is_equal = alone.is_some_and(|alone| {
            let of_row = row * width..(row + 1) * width;
            alone[of_row.clone()].iter().zip(&together[of_row]).all(|(one, two)| one.to_bits() == two.to_bits())
        });
        if !is_equal {
            return Ok(f64::INFINITY);
        }
    }
    Ok(if error_of(scene, &together) <= TOLERANCE { 0.0 } else { f64::INFINITY })
}
