//! LoRA's kernels by themselves in decode, beside a loop in PyTorch and a version in Triton that are measured in turn with
//! them: rows of which each has its own adapter, and rows whose adapters are popular. Not here: a model around them.

use kernels::cuda::ops::lora::{Lora, LoraArgs, tmp_bytes};
use kernels::cuda::{Device, DeviceMemory, Graph, LoraGroupId, LoraPiece, LoraTables, LoraTerm, LoraTile, bytes_of};
use serde_json::{Value, json};

use crate::measure::{Random, Zipf, device_seconds, median, rounded, spread_ms};
use crate::peer::Peer;
use crate::record::{Bound, Record};
use crate::rig::small;
use crate::{Given, Outcome};

/// What ours must be of the better of the others.
const BAR: f64 = 2.0;
const RANK: usize = 16;
/// Launches between two measurements of the clock.
const REPEATS: usize = 4;
/// A question to the peer that compiles takes a while.
const PEER_SECONDS: f64 = 60.0;

/// The sizes of one case.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    rows: usize,
    inputs: usize,
    outputs: usize,
    adapters: usize,
    /// Each has adapters of its own, so that they do not lie in a cache from one launch to the next.
    layers: usize,
}

pub(crate) fn run(given: &Given, record: &mut Record) -> Outcome {
    let sizes: &[Sizes] = if given.tiny {
        &[Sizes { rows: 5, inputs: 64, outputs: 96, adapters: 5, layers: 2 }]
    } else {
        &[
            Sizes { rows: 64, inputs: 4096, outputs: 4096, adapters: 64, layers: 32 },
            Sizes { rows: 64, inputs: 4096, outputs: 14_336, adapters: 64, layers: 16 },
        ]
    };
    let device = Device::open(0)?;
    let lora = Lora::load(&device)?;
    let mut peer = Peer::start(&given.peers, PEER_SECONDS);
    if let Err(error) = &peer {
        record.row(&json!({"cell": "PyTorch and Triton", "absent": error.to_string()}));
    }
    for sizes in sizes {
        for name in ["distinct", "zipf", "skewed"] {
            let users = users(name, sizes);
            let case = Case::new(&device, &lora, *sizes, &users)?;
            measure(given, record, &device, &case, name, &users, peer.as_mut().ok())?;
        }
    }
    Ok(())
}

/// Which adapter each row has: all different; drawn with 1 / rank; drawn with 1 / rank^1.5, where one has most of the rows.
fn users(name: &str, sizes: &Sizes) -> Vec<usize> {
    let mut random = Random::new(5);
    let exponent = if name == "zipf" { 1.0 } else { 1.5 };
    let popular = Zipf::new(sizes.adapters, exponent);
    let draw = |row| if name == "distinct" { row % sizes.adapters } else { popular.draw(&mut random) };
    let mut users: Vec<usize> = (0..sizes.rows).map(draw).collect();
    // As the scheduler has them.
    users.sort_unstable();
    users
}

/// All of a case on the device, and its launches as a graph.
struct Case {
    graph: Graph,
    sizes: Sizes,
    _memory: Vec<DeviceMemory>,
}

impl Case {
    fn new(device: &Device, lora: &Lora, sizes: Sizes, users: &[usize]) -> Outcome<Self> {
        let Sizes { rows, inputs, outputs, adapters, layers } = sizes;
        let stream = device.compute();
        let mut memory = Vec::new();
        let mut allocate = |bytes: usize| -> Outcome<_> {
            let one = device.allocate(bytes)?;
            stream.fill(one.range(), 0x3c)?;
            let range = one.range();
            memory.push(one);
            Ok(range)
        };
        let (a_bytes, b_bytes) = (RANK * inputs * 2, RANK * outputs * 2);
        // 0x3c3c in bf16 is 0.0115.
        let factors = allocate(adapters * layers * (a_bytes + b_bytes))?;
        let mut pieces = vec![LoraPiece::EMPTY; adapters * layers * 4];
        for (place, piece) in pieces.iter_mut().skip(LoraGroupId::O as usize).step_by(4).enumerate() {
            let a = factors.part(place * (a_bytes + b_bytes), a_bytes)?;
            let b = factors.part(place * (a_bytes + b_bytes) + a_bytes, b_bytes)?;
            piece.a = a.start().address();
            piece.b[0] = b.start().address();
            piece.scale[0] = 1.0;
            piece.rank[0] = small(RANK);
        }
        let mut tables = LoraTables::new(rows, rows, small(rows * RANK));
        tables.clear(LoraTile::Rows8);
        let mut row = 0;
        for run in users.chunk_by(|one, other| one == other) {
            let slot = run.first().copied().map_or(0, small);
            let end = row + small(run.len());
            let term = LoraTerm { slot, weight: 1.0, modules: 127, layers: 0..small(layers), stride: small(RANK) };
            if tables.push_run(row..end, &[term]) != end - row {
                return Err("a run found no room in the tables".into());
            }
            row = end;
        }
        let items = tables.items().len();
        let [pieces_at, entries_at, items_at, count_at] = [
            allocate(bytes_of(&pieces).len())?,
            allocate(bytes_of(tables.entries()).len())?,
            allocate(bytes_of(tables.items()).len())?,
            allocate(4)?,
        ];
        stream.upload_now(&pieces, pieces_at)?;
        stream.upload_now(tables.entries(), entries_at)?;
        stream.upload_now(tables.items(), items_at)?;
        stream.upload_now(&[small(items)], count_at)?;
        let tmp_floats = rows * RANK;
        let args = LoraArgs {
            pieces: pieces_at,
            slots: adapters,
            layers,
            entries: entries_at,
            items: items_at,
            item_count: count_at,
            items_max: items,
            tile: LoraTile::Rows8,
            layer: 0,
            group: LoraGroupId::O,
            x: allocate(rows * inputs * 2)?,
            inputs,
            y: allocate(rows * outputs * 4)?,
            y_stride: outputs,
            outputs: [outputs, 0, 0],
            columns: [0; 3],
            rows_max: rows,
            tmp: allocate(tmp_bytes(tmp_floats))?,
            tmp_floats,
        };
        let graph = stream.record_graph(|stream| {
            (0..layers).try_for_each(|layer| {
                let args = LoraArgs { layer, ..args };
                lora.shrink(stream, &args)?;
                lora.expand(stream, &args)
            })
        })?;
        Ok(Self { graph, sizes, _memory: memory })
    }

    /// Seconds of a layer.
    fn time(&self, device: &Device) -> Outcome<f64> {
        let seconds = device_seconds(device, device.compute(), || {
            (0..REPEATS).try_for_each(|_| self.graph.launch(device.compute()))
        })?;
        Ok(seconds / (REPEATS * self.sizes.layers) as f64)
    }
}

fn measure(
    given: &Given,
    record: &mut Record,
    device: &Device,
    case: &Case,
    name: &str,
    users: &[usize],
    peer: Option<&mut Peer>,
) -> Outcome {
    let Sizes { rows, inputs, outputs, adapters, layers } = case.sizes;
    let question = json!({
        "lora": {"rows": rows, "inputs": inputs, "outputs": outputs, "adapters": adapters, "layers": layers, "rank": RANK,
            "users": users},
    });
    let mut peer = peer;
    let mut why = None;
    let (mut ours, mut theirs): (Vec<f64>, [Vec<f64>; 2]) = (Vec::new(), [Vec::new(), Vec::new()]);
    case.time(device)?;
    for _ in 0..if given.tiny { 2 } else { 7 } {
        ours.push(case.time(device)?);
        let Some(asked) = &mut peer else { continue };
        match asked.ask(&question, PEER_SECONDS) {
            Ok(answer) => {
                for (times, name) in theirs.iter_mut().zip(["loop", "triton"]) {
                    times.extend(answer[name].as_f64());
                }
                why = answer["why"].as_str().map(str::to_owned).or(why);
            }
            Err(error) => {
                why = Some(error.to_string());
                peer = None;
            }
        }
    }
    let distinct = users.chunk_by(|one, other| one == other).count();
    let bytes = (distinct * RANK * (inputs + outputs) * 2 + rows * inputs * 2 + 2 * rows * outputs * 4) as f64;
    let floor = given.limits.memory_seconds(bytes)?;
    let times = |times: &[f64]| if times.is_empty() { Value::Null } else { spread_ms(times) };
    let cell = format!("{name} {inputs} to {outputs}, {rows} rows");
    record.row(&json!({
        "cell": cell, "distinct": distinct, "ours_ms": spread_ms(&ours), "pytorch_loop_ms": times(&theirs[0]),
        "triton_ms": times(&theirs[1]), "floor_ms": rounded(1e3 * floor), "of_floor": rounded(floor / median(&ours)),
        "why": why,
    }));
    let better =
        theirs.iter().filter(|times| !times.is_empty()).map(|times| median(times)).fold(f64::INFINITY, f64::min);
    let (name, bound) = (format!("LoRA alone, {cell}: times the better of PyTorch and Triton"), Bound::AtLeast(BAR));
    if theirs.iter().all(|times| !times.is_empty()) {
        record.bar(&name, bound, better / median(&ours));
    } else {
        record.undecided(&name, bound, better.is_finite().then(|| better / median(&ours)), "not both are here");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_are_what_their_names_say() {
        let sizes = Sizes { rows: 64, inputs: 1, outputs: 1, adapters: 64, layers: 1 };
        let runs = |name| users(name, &sizes).chunk_by(|one, other| one == other).count();
        let (distinct, zipf, skewed) = (runs("distinct"), runs("zipf"), runs("skewed"));
        assert!(distinct == 64 && zipf < 45 && skewed < zipf && skewed > 5, "{distinct} {zipf} {skewed}");
    }
}
