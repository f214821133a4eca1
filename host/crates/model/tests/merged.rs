//! Compositions against a dense merge in f64, on a base made here from a seed: DoRA, plain LoRA and rsLoRA, ranks and alphas by
//! pattern, selections and weights, all in one batch. Needs nothing but this file.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::gguf_file::{self, Value as Gguf};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use engine::{Batch, BatchSequence, LoraSegment, ModelRunner, SampleRequest, Slot};
use model::{
    AdapterLimits, AdapterRejection, Base, CpuRunner, CpuRunnerConfig, LoraAdapter, Precision, Prompts,
    canonical_adapter,
};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use types::{LayerRange, Module, ModuleSet};

const LAYERS: usize = 2;
const HIDDEN: usize = 64;
const INTERMEDIATE: usize = 96;
const HEADS: usize = 2;
const HEAD_DIM: usize = 32;
const VOCABULARY: usize = 64;
const TOKENS: [u32; 12] = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 61, 0];

/// Values between -1 and 1 (splitmix64).
fn seeded(seed: u64) -> impl Iterator<Item = f32> {
    (1u64..).map(move |step| {
        let mut word = (seed << 32).wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    })
}

fn random(seed: u64, count: usize, size: f32) -> Vec<f32> {
    seeded(seed).take(count).map(|value| value * size).collect()
}

/// (inputs, outputs, name in a GGUF file, part of the layer)
const fn shape(module: Module) -> (usize, usize, &'static str, &'static str) {
    match module {
        Module::Q => (HIDDEN, HEADS * HEAD_DIM, "attn_q", "self_attn"),
        Module::K => (HIDDEN, HEAD_DIM, "attn_k", "self_attn"),
        Module::V => (HIDDEN, HEAD_DIM, "attn_v", "self_attn"),
        Module::O => (HEADS * HEAD_DIM, HIDDEN, "attn_output", "self_attn"),
        Module::Gate => (HIDDEN, INTERMEDIATE, "ffn_gate", "mlp"),
        Module::Up => (HIDDEN, INTERMEDIATE, "ffn_up", "mlp"),
        Module::Down => (INTERMEDIATE, HIDDEN, "ffn_down", "mlp"),
    }
}

/// Where GGUF has a row of transformers' matrix: in heads of q and k the two halves are interleaved.
fn gguf_row(module: Module, row: usize) -> usize {
    let (head, within, half) = (row / HEAD_DIM, row % HEAD_DIM, HEAD_DIM / 2);
    match module {
        Module::Q | Module::K => head * HEAD_DIM + (within % half) * 2 + within / half,
        _ => row,
    }
}

type Weights = BTreeMap<(usize, usize), Vec<f32>>;

/// The linear modules as they come back from Q4_1, in the file's order of rows.
fn base_weights() -> Weights {
    let mut weights = Weights::new();
    for layer in 0..LAYERS {
        for module in Module::ALL {
            let (inputs, outputs, ..) = shape(module);
            let values = random(100 + (layer * 7 + module.index()) as u64, inputs * outputs, 0.3);
            let dequantised = quantised(values, &[outputs, inputs], GgmlDType::Q4_1).dequantize(&Device::Cpu).unwrap();
            weights.insert((layer, module.index()), dequantised.flatten_all().unwrap().to_vec1().unwrap());
        }
    }
    weights
}

fn quantised(values: Vec<f32>, shape: &[usize], dtype: GgmlDType) -> QTensor {
    QTensor::quantize(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap(), dtype).unwrap()
}

/// A complete base file of these linear modules.
fn write_base(path: &Path, weights: &Weights, dtype: GgmlDType) -> Arc<Base> {
    let number = |value: usize| Gguf::U32(value as u32);
    let texts = (0..VOCABULARY).map(|id| Gguf::String(char::from_u32(0x41 + id as u32).unwrap().to_string())).collect();
    let metadata = [
        ("general.architecture", Gguf::String("llama".into())),
        ("general.name", Gguf::String("made".into())),
        ("llama.block_count", number(LAYERS)),
        ("llama.embedding_length", number(HIDDEN)),
        ("llama.feed_forward_length", number(INTERMEDIATE)),
        ("llama.attention.head_count", number(HEADS)),
        ("llama.attention.head_count_kv", number(1)),
        ("llama.context_length", number(64)),
        ("llama.rope.freq_base", Gguf::F32(10_000.0)),
        ("llama.attention.layer_norm_rms_epsilon", Gguf::F32(1e-5)),
        ("tokenizer.ggml.model", Gguf::String("gpt2".into())),
        ("tokenizer.ggml.pre", Gguf::String("smollm".into())),
        ("tokenizer.ggml.tokens", Gguf::Array(texts)),
        ("tokenizer.ggml.merges", Gguf::Array(vec![Gguf::String("A A".into())])),
    ];
    // A merge needs its result in the vocabulary.
    let metadata = metadata.map(|(key, value)| match (key, value) {
        ("tokenizer.ggml.tokens", Gguf::Array(mut texts)) => {
            texts[VOCABULARY - 1] = Gguf::String("AA".into());
            (key, Gguf::Array(texts))
        }
        entry => entry,
    });
    let mut tensors = vec![
        (
            "token_embd.weight".to_owned(),
            quantised(random(1, VOCABULARY * HIDDEN, 1.0), &[VOCABULARY, HIDDEN], GgmlDType::F32),
        ),
        ("output_norm.weight".to_owned(), quantised(vec![1.0; HIDDEN], &[HIDDEN], GgmlDType::F32)),
    ];
    for layer in 0..LAYERS {
        for name in ["attn_norm", "ffn_norm"] {
            let norm = random(2, HIDDEN, 0.2).into_iter().map(|value| 1.0 + value).collect();
            tensors.push((format!("blk.{layer}.{name}.weight"), quantised(norm, &[HIDDEN], GgmlDType::F32)));
        }
        for module in Module::ALL {
            let (inputs, outputs, name, _) = shape(module);
            let values = weights[&(layer, module.index())].clone();
            tensors.push((format!("blk.{layer}.{name}.weight"), quantised(values, &[outputs, inputs], dtype)));
        }
    }
    let metadata: Vec<(&str, &Gguf)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut std::fs::File::create(path).unwrap(), &metadata, &tensors).unwrap();
    Base::open(path).unwrap()
}

/// One module's part of an adapter, in transformers' order of rows.
#[derive(Clone)]
struct Part {
    layer: usize,
    module: Module,
    rank: usize,
    scale: f64,
    a: Vec<f32>,
    b: Vec<f32>,
    magnitude: Option<Vec<f32>>,
}

/// An adapter twice: as PEFT's files, and as the parts that those files should mean.
struct Made {
    config: Value,
    parts: Vec<Part>,
}

impl Made {
    /// `term_of` gives rank and scale where the configuration targets a module.
    fn new(seed: u64, is_dora: bool, config: Value, term_of: impl Fn(usize, Module) -> Option<(usize, f64)>) -> Self {
        let mut parts = Vec::new();
        for layer in 0..LAYERS {
            for module in Module::ALL {
                let Some((rank, scale)) = term_of(layer, module) else { continue };
                let (inputs, outputs, ..) = shape(module);
                let seed = seed * 1000 + (layer * 7 + module.index()) as u64 * 3;
                // A row of 64 values of up to 0.3 has a norm of about 1.4.
                let magnitude =
                    is_dora.then(|| random(seed + 2, outputs, 0.5).into_iter().map(|value| 1.4 + value).collect());
                let (a, b) = (random(seed, rank * inputs, 0.3), random(seed + 1, outputs * rank, 0.3));
                parts.push(Part { layer, module, rank, scale, a, b, magnitude });
            }
        }
        Self { config, parts }
    }

    fn canonical(&self, base: &Base) -> Result<Vec<u8>, AdapterRejection> {
        let bytes = |values: &[f32]| values.iter().copied().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
        let mut tensors = Vec::new();
        for Part { layer, module, rank, a, b, magnitude, .. } in &self.parts {
            let (inputs, outputs, _, part) = shape(*module);
            let name = |end: &str| format!("base_model.model.model.layers.{layer}.{part}.{}.{end}", module.name());
            tensors.push((name("lora_A.weight"), vec![*rank, inputs], bytes(a)));
            tensors.push((name("lora_B.weight"), vec![outputs, *rank], bytes(b)));
            if let Some(magnitude) = magnitude {
                // Both names occur in files of PEFT.
                let end = if layer % 2 == 0 { "lora_magnitude_vector" } else { "lora_magnitude_vector.weight" };
                tensors.push((name(end), vec![outputs], bytes(magnitude)));
            }
        }
        let views =
            tensors.iter().map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
        let file = safetensors::serialize(views, None).unwrap();
        canonical_adapter(self.config.to_string().as_bytes(), &file, base, &AdapterLimits::default())
            .map(|made| made.bytes)
    }

    fn packed(&self, base: &Base, precision: Precision) -> Arc<LoraAdapter> {
        let bytes = self.canonical(base).unwrap();
        Arc::new(LoraAdapter::from_canonical(&bytes, base, &AdapterLimits::default(), precision).unwrap())
    }
}

impl Part {
    /// The change of this module's matrix, dense, in f64; rows in the file's order.
    fn delta(&self, weight: &[f32]) -> Vec<f64> {
        let (inputs, outputs, ..) = shape(self.module);
        let mut delta = vec![0.0; inputs * outputs];
        for row in 0..outputs {
            let at = gguf_row(self.module, row) * inputs;
            let plain: Vec<f64> = weight[at..at + inputs].iter().map(|value| f64::from(*value)).collect();
            let changed: Vec<f64> = (0..inputs)
                .map(|column| {
                    let low = (0..self.rank).map(|rank| {
                        f64::from(self.b[row * self.rank + rank]) * f64::from(self.a[rank * inputs + column])
                    });
                    plain[column] + self.scale * low.sum::<f64>()
                })
                .collect();
            let gain = self.magnitude.as_ref().map_or(1.0, |magnitude| {
                f64::from(magnitude[row]) / changed.iter().map(|value| value * value).sum::<f64>().sqrt()
            });
            for column in 0..inputs {
                delta[at + column] = gain * changed[column] - plain[column];
            }
        }
        delta
    }
}

/// One adapter in a composition.
#[derive(Clone, Copy)]
struct Entry {
    adapter: usize,
    weight: f32,
    modules: ModuleSet,
    layers: LayerRange,
}

fn entry(adapter: usize, weight: f32) -> Entry {
    Entry { adapter, weight, modules: ModuleSet::ALL, layers: LayerRange::ALL }
}

fn merged(weights: &Weights, made: &[Made], composition: &[Entry]) -> Weights {
    let mut sums: BTreeMap<(usize, usize), Vec<f64>> =
        weights.iter().map(|(key, values)| (*key, values.iter().map(|value| f64::from(*value)).collect())).collect();
    for Entry { adapter, weight, modules, layers } in composition {
        let selected = |part: &&Part| modules.contains(part.module) && layers.contains(part.layer as u32);
        for part in made[*adapter].parts.iter().filter(selected) {
            let key = (part.layer, part.module.index());
            let delta = part.delta(&weights[&key]);
            sums.get_mut(&key)
                .unwrap()
                .iter_mut()
                .zip(delta)
                .for_each(|(sum, delta)| *sum += f64::from(*weight) * delta);
        }
    }
    sums.into_iter().map(|(key, values)| (key, values.into_iter().map(|value| value as f32).collect())).collect()
}

fn runner(base: &Base, precision: Precision, made: &[Arc<LoraAdapter>]) -> CpuRunner {
    let config = CpuRunnerConfig {
        precision,
        block_tokens: 16,
        kv_blocks: 16,
        adapter_slots: 4,
        batch_rows_max: 160,
        threads: 2,
        prompts: Prompts::Auto,
    };
    let mut runner = CpuRunner::new(base, config).unwrap();
    for (slot, adapter) in made.iter().enumerate() {
        runner.load_adapter(Slot(slot as u32), adapter, &[]).unwrap();
    }
    runner
}

/// Logits of every token, one sequence for each composition, all in one batch.
fn logits(runner: &mut CpuRunner, compositions: &[&[Entry]]) -> Vec<Vec<f32>> {
    let mut batch = Batch::default();
    for (sequence, composition) in compositions.iter().enumerate() {
        let start = batch.tokens.len() as u32;
        let rows = start..start + TOKENS.len() as u32;
        batch.tokens.extend(TOKENS);
        batch.positions.extend(0..TOKENS.len() as u32);
        batch.block_tables.push(sequence as u32);
        batch.sequences.push(BatchSequence { rows: rows.clone(), blocks: sequence as u32..sequence as u32 + 1 });
        batch.segments.extend(composition.iter().map(|entry| LoraSegment {
            rows: rows.clone(),
            slot: Slot(entry.adapter as u32),
            weight: entry.weight,
            modules: entry.modules,
            layers: entry.layers,
        }));
        batch.samples.extend(rows.map(SampleRequest::greedy));
    }
    let logits = runner.step_logits(&batch).unwrap();
    logits.chunks_exact(TOKENS.len() * VOCABULARY).map(<[f32]>::to_vec).collect()
}

fn difference(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
}

fn adapters() -> Vec<Made> {
    let varied = json!({
        "peft_type": "LORA", "use_dora": true, "r": 2, "lora_alpha": 3, "target_modules": "all-linear",
        "exclude_modules": ["layers.1.mlp.gate_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 5, "down_proj|q_proj": 3},
        "alpha_pattern": {"^model.layers.0.self_attn.k_proj": 1, "mlp\\.(up|gate)_proj": 4.5},
    });
    let varied = Made::new(1, true, varied, |layer, module| {
        let rank = match (layer, module) {
            (1, Module::Gate) => return None,
            (1, Module::Q) => 5,
            (_, Module::Q | Module::Down) => 3,
            _ => 2,
        };
        let alpha = match (layer, module) {
            (0, Module::K) => 1.0,
            (_, Module::Up | Module::Gate) => 4.5,
            _ => 3.0,
        };
        Some((rank, alpha / rank as f64))
    });
    let plain = json!({
        "peft_type": "LORA", "use_rslora": true, "r": 4, "lora_alpha": 2, "rank_pattern": {"o_proj": 9},
        "target_modules": ["q_proj", "k_proj", "self_attn.o_proj", "model.layers.1.mlp.down_proj"],
    });
    let plain = Made::new(2, false, plain, |layer, module| match (layer, module) {
        (_, Module::Q | Module::K) | (1, Module::Down) => Some((4, 1.0)),
        (_, Module::O) => Some((9, 2.0 / 3.0)),
        _ => None,
    });
    let second = json!({
        "peft_type": "LORA", "use_dora": true, "use_rslora": true, "r": 4, "lora_alpha": 1,
        "target_modules": ["q_proj", "v_proj", "down_proj"], "layers_to_transform": [1],
    });
    let second = Made::new(3, true, second, |layer, module| {
        (layer == 1 && [Module::Q, Module::V, Module::Down].contains(&module)).then_some((4, 0.5))
    });
    vec![varied, plain, second]
}

#[test]
fn a_composition_with_dora_equals_the_dense_merge() {
    let folder = tempfile::tempdir().unwrap();
    let weights = base_weights();
    let base = write_base(&folder.path().join("base.gguf"), &weights, GgmlDType::Q4_1);
    let made = adapters();
    let packed = |precision| made.iter().map(|made| made.packed(&base, precision)).collect::<Vec<Arc<LoraAdapter>>>();
    let (packed, packed_fast) = (packed(Precision::F32), packed(Precision::Quantised));
    assert_eq!(packed.iter().map(|adapter| adapter.rank()).collect::<Vec<_>>(), [5, 9, 4]);
    let mut f32_runner = runner(&base, Precision::F32, &packed);
    let mut quantised_runner = runner(&base, Precision::Quantised, &packed_fast);

    let selected = Entry {
        modules: ModuleSet::EMPTY.with(Module::Q).with(Module::Down),
        layers: LayerRange { first: 1, end: 2 },
        ..entry(0, -0.6)
    };
    // A weight for each module, and one for each layer, are entries of one adapter; weights that are below zero, and zero.
    let of = |adapter, weight, modules: &[Module], layers: Option<(u32, u32)>| Entry {
        modules: modules.iter().fold(ModuleSet::EMPTY, |set, module| set.with(*module)),
        layers: layers.map_or(LayerRange::ALL, |(first, end)| LayerRange { first, end }),
        ..entry(adapter, weight)
    };
    let by_module = [
        of(1, 1.5, &[Module::Q], None),
        of(1, -0.75, &[Module::K], None),
        of(1, 0.25, &[Module::O, Module::Down], None),
    ];
    let qko = [Module::Q, Module::K, Module::O];
    let by_layer = [of(0, -1.25, &Module::ALL, Some((0, 1))), of(0, 0.5, &qko, Some((1, 2))), entry(2, -0.8)];
    let compositions: [&[Entry]; 12] = [
        &[],
        &[entry(0, 1.0)],
        &[entry(1, 1.0)],
        &[entry(2, 0.3)],
        &[entry(0, 0.7), entry(1, -0.4), entry(2, 1.3)],
        &[entry(1, 0.5), selected, entry(2, -1.0)],
        &[entry(0, 0.5), entry(0, 0.5)],
        &by_module,
        &by_layer,
        &[entry(1, -1.0)],
        &[entry(1, 1.0), entry(0, 0.0), of(2, 0.0, &[Module::V], None)],
        &[entry(0, 1.0), entry(1, 1.0), of(0, -1.0, &Module::ALL, Some((0, 2)))],
    ];
    let mixed = logits(&mut f32_runner, &compositions);
    let plain = mixed[0].clone();
    let mixed_fast = logits(&mut quantised_runner, &compositions);
    for (number, (composition, mixed)) in compositions.iter().zip(&mixed).enumerate() {
        let (alone, together) = (logits(&mut quantised_runner, &[composition]).remove(0), &mixed_fast[number]);
        assert!(alone == *together, "quantised: composition {number} depends on the batch");
        let squares: f32 = mixed.iter().zip(together).map(|(exact, fast)| (exact - fast).powi(2)).sum();
        let error = (squares / mixed.len() as f32).sqrt();
        println!("composition {number}: quantised differs from f32 by {error:.1e}, root mean square");
        assert!(error < 0.25, "quantised: composition {number} is off by {error}");
        let alone = logits(&mut f32_runner, &[composition]).remove(0);
        assert!(alone == *mixed, "composition {number} depends on the batch");
        let merged = merged(&weights, &made, composition);
        let dense = write_base(&folder.path().join(format!("merged-{number}.gguf")), &merged, GgmlDType::F32);
        let expected = logits(&mut runner(&dense, Precision::F32, &[]), &[&[]]).remove(0);
        let (error, change) = (difference(mixed, &expected), difference(mixed, &plain));
        println!("composition {number}: error {error:.1e}, change of the base's logits {change:.1e}");
        assert!(error < 1e-3, "composition {number} differs from its dense merge by {error}");
        assert!(composition.is_empty() || change > 0.1, "composition {number} hardly changes anything: {change}");
    }
    // Twice half of an adapter is the adapter: no half sees the other.
    assert!(difference(&mixed[6], &mixed[1]) < 1e-3);
    // What has no weight is not there, and what is taken away was never there.
    assert!(mixed[10] == mixed[2], "a weight of zero adds nothing, to the bit");
    assert!(difference(&mixed[11], &mixed[2]) < 1e-3);
}

#[test]
fn a_magnitude_that_erases_or_a_row_without_a_norm_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut weights = base_weights();
    let base = write_base(&folder.path().join("base.gguf"), &weights, GgmlDType::F32);
    let code = |change: &dyn Fn(&mut Part), base: &Base| {
        let mut made = adapters().remove(2);
        made.parts.iter_mut().for_each(change);
        made.canonical(base).err().map(|rejection| rejection.code())
    };
    let first = |value: f32| move |part: &mut Part| part.magnitude.as_mut().unwrap()[0] = value;
    assert_eq!(code(&|_| (), &base), None);
    assert_eq!(code(&first(-1.0), &base), None, "a negative one is computed as PEFT does");
    assert_eq!(code(&first(0.0), &base), Some("adapter_unsupported"));
    assert_eq!(code(&first(-0.0), &base), Some("adapter_unsupported"));
    assert_eq!(code(&first(f32::NAN), &base), Some("adapter_not_finite"));
    assert_eq!(code(&first(1e9), &base), Some("adapter_too_large"));
    assert_eq!(code(&|part| part.magnitude = None, &base), Some("adapter_malformed"));
    // A row of W that is zero, and no change of it.
    weights.get_mut(&(1, Module::V.index())).unwrap()[..HIDDEN].fill(0.0);
    let hollow = write_base(&folder.path().join("hollow.gguf"), &weights, GgmlDType::F32);
    assert_eq!(code(&|_| (), &hollow), None, "B fills the row");
    let erase = |part: &mut Part| part.b[..part.rank].fill(0.0);
    assert_eq!(code(&erase, &base), None);
    assert_eq!(code(&erase, &hollow), Some("adapter_not_finite"));
    // Without weights DoRA cannot be admitted, and that is not its owner's fault.
    let rejection = {
        let made = adapters().remove(2);
        let bytes = made.canonical(&base).unwrap();
        LoraAdapter::from_canonical(&bytes, base.config(), &AdapterLimits::default(), Precision::F32).err().unwrap()
    };
    assert_eq!((rejection.code(), rejection.blame()), ("base_unreadable", types::Blame::Host));
}
