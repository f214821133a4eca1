//! Derivations of trained adapters against a dense merge in f64: those of the tree, and all of the larger set where `../shared` (or
//! `TENON_SHARED`) has it. The deltas are read from PEFT's files, by nothing that derives.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use half::{bf16, f16};
use model::{
    AdapterLimits, CanonicalAdapter, DeriveLimits, DeriveMethod, DeriveParent, DeriveRecipe, DerivedAdapter,
    MajoritySign, ModelConfig, ValidRecipe, canonical_adapter, derive_adapter,
};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// The sizes of SmolLM2-135M.
fn smollm() -> ModelConfig {
    ModelConfig {
        layers: 30,
        hidden: 576,
        intermediate: 1536,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        vocabulary: 49152,
        context_tokens_max: 8192,
        rope_theta: 100_000.0,
        rope: model::RopeLayout::Neighbours,
        rope_divisors: Vec::new(),
        rms_epsilon: 1e-5,
        query_key_norm: false,
        tied_output: true,
    }
}

/// Factors of one module, and what their product is multiplied by.
struct Factors {
    rank: usize,
    scale: f64,
    a: Vec<f64>,
    b: Vec<f64>,
}

impl Factors {
    /// Dense `[outputs, inputs]`, by rows.
    fn add_to(&self, delta: &mut [f64], weight: f64) {
        let inputs = self.a.len() / self.rank;
        for (row, b) in delta.chunks_exact_mut(inputs).zip(self.b.chunks_exact(self.rank)) {
            for (b, a) in b.iter().zip(self.a.chunks_exact(inputs)) {
                let by = weight * self.scale * b;
                row.iter_mut().zip(a).for_each(|(value, a)| *value += by * a);
            }
        }
    }

    fn values(&self) -> usize {
        self.a.len() / self.rank * (self.b.len() / self.rank)
    }
}

/// By `layers.N.module`.
type Modules = BTreeMap<String, Factors>;

struct Trained {
    name: String,
    canonical: CanonicalAdapter,
    modules: Modules,
}

fn values(tensor: &TensorView<'_>) -> Vec<f64> {
    let data = tensor.data();
    match tensor.dtype() {
        Dtype::F32 => data.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()).into()).collect(),
        Dtype::F16 => data.chunks(2).map(|bytes| f16::from_le_bytes(bytes.try_into().unwrap()).into()).collect(),
        Dtype::BF16 => data.chunks(2).map(|bytes| bf16::from_le_bytes(bytes.try_into().unwrap()).into()).collect(),
        _ => Vec::new(),
    }
}

/// The folders that are here, but for DoRA, which is not derived from.
fn trained() -> Vec<Trained> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let shared = std::env::var_os("TENON_SHARED").map_or_else(|| repository.join("../shared"), PathBuf::from);
    let larger = shared.join("lora/adapters");
    if !larger.is_dir() {
        println!("skipped: the larger set, not at {}", larger.display());
    }
    let folder = if larger.is_dir() { larger } else { repository.join("tests/fixtures/lora") };
    let mut folders: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders.iter().filter_map(|folder| read(folder, &smollm())).collect()
}

fn read(folder: &Path, base: &ModelConfig) -> Option<Trained> {
    let config = std::fs::read(folder.join("adapter_config.json")).ok()?;
    let weights = std::fs::read(folder.join("adapter_model.safetensors")).ok()?;
    let stated: Value = serde_json::from_slice(&config).unwrap();
    if stated["use_dora"] == Value::Bool(true) {
        return None;
    }
    let (rank, alpha) = (stated["r"].as_f64().unwrap(), stated["lora_alpha"].as_f64().unwrap());
    let scale = alpha / if stated["use_rslora"] == Value::Bool(true) { rank.sqrt() } else { rank };
    let file = SafeTensors::deserialize(&weights).unwrap();
    let mut modules = Modules::new();
    for (name, tensor) in file.tensors() {
        let Some(place) = name.strip_suffix(".lora_A.weight") else { continue };
        let (rank, b) = (tensor.shape()[0], file.tensor(&format!("{place}.lora_B.weight")).unwrap());
        let place = place.replace("base_model.model.model.", "").replace("self_attn.", "").replace("mlp.", "");
        modules.insert(place, Factors { rank, scale, a: values(&tensor), b: values(&b) });
    }
    let canonical = canonical_adapter(&config, &weights, base, &AdapterLimits::default()).unwrap();
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    Some(Trained { name, canonical, modules })
}

/// Canonical bytes are a safetensors file; the scales are in its metadata.
fn modules_of(canonical: &[u8]) -> Modules {
    let file = SafeTensors::deserialize(canonical).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(canonical).unwrap();
    let about: Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["tenon.adapter"]).unwrap();
    // In the order of the tensors, which is that of their bytes.
    let mut places: Vec<(String, TensorView<'_>)> =
        file.tensors().into_iter().filter(|(name, _)| name.ends_with(".A")).collect();
    places.sort_by_key(|(_, tensor)| tensor.data().as_ptr());
    let scale_of = |number: usize| about["scale"].as_f64().or_else(|| about["scales"][number].as_f64()).unwrap();
    let factors = |(number, (name, tensor)): (usize, (String, TensorView<'_>))| {
        let place = name.trim_end_matches(".A").to_owned();
        let b = values(&file.tensor(&format!("{place}.B")).unwrap());
        (place, Factors { rank: tensor.shape()[0], scale: scale_of(number), a: values(&tensor), b })
    };
    places.into_iter().enumerate().map(factors).collect()
}

fn derive(recipe: DeriveRecipe, parents: &[(&Trained, f64)], base: &ModelConfig) -> DerivedAdapter {
    let limits = AdapterLimits::default();
    let weights: Vec<f64> = parents.iter().map(|(_, weight)| *weight).collect();
    let recipe = ValidRecipe::check(recipe, &weights, &limits, &DeriveLimits::default()).unwrap();
    let parent = |(one, weight): &(&Trained, f64)| (one.canonical.digest, one.canonical.bytes.clone(), *weight);
    let held: Vec<_> = parents.iter().map(parent).collect();
    let parents: Vec<_> =
        held.iter().map(|(digest, bytes, weight)| DeriveParent { bytes, digest: *digest, weight: *weight }).collect();
    derive_adapter(&recipe, &parents, base, &limits, &|| true).unwrap()
}

/// The largest error of a module, and the error over all, of what `change` makes of each parent's delta.
fn errors(derived: &DerivedAdapter, parents: &[(&Trained, f64)], change: impl Fn(&mut [f64])) -> (f64, f64) {
    let found = modules_of(&derived.adapter.bytes);
    let (mut worst, mut lost, mut norm) = (0.0_f64, 0.0, 0.0);
    for (place, factors) in &found {
        let mut difference = vec![0.0; factors.values()];
        for (parent, weight) in parents {
            let Some(own) = parent.modules.get(place) else { continue };
            let mut delta = vec![0.0; own.values()];
            own.add_to(&mut delta, 1.0);
            change(&mut delta);
            difference.iter_mut().zip(delta).for_each(|(sum, value)| *sum += weight * value);
        }
        let squares = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>();
        let own_norm = squares(&difference);
        factors.add_to(&mut difference, -1.0);
        let own_lost = squares(&difference);
        worst = worst.max((own_lost / own_norm).sqrt());
        (lost, norm) = (lost + own_lost, norm + own_norm);
    }
    let places: usize = parents.iter().map(|(parent, _)| parent.modules.len()).max().unwrap();
    assert!(found.len() >= places, "no module is lost");
    (worst, (lost / norm).sqrt())
}

#[test]
fn trained_adapters_are_summed_exactly_and_compressed_as_stated() {
    let trained = trained();
    assert!(trained.len() >= 3);
    let weights = [0.7, -0.4, 1.0, 0.5, -1.2, 0.3];
    let parents: Vec<(&Trained, f64)> = trained.iter().zip(weights).collect();
    let names: Vec<&str> = parents.iter().map(|(one, _)| one.name.as_str()).collect();
    let summed = derive(DeriveRecipe::new(DeriveMethod::Concatenate), &parents, &smollm());
    let (worst, _) = errors(&summed, &parents, |_| ());
    println!("{names:?}: concatenated in rank {}, error {worst:.1e}", summed.adapter.rank);
    assert!(worst < 1e-6, "{worst}");
    for rank in [summed.adapter.rank, 16] {
        let recipe = DeriveRecipe { rank: Some(rank), ..DeriveRecipe::new(DeriveMethod::Svd) };
        let started = Instant::now();
        let derived = derive(recipe, &parents, &smollm());
        let took = started.elapsed();
        let (worst, all) = errors(&derived, &parents, |_| ());
        println!("svd of rank {rank}: error {all:.3e} (a module: {worst:.3e}), stated {:.3e}, {took:?}", derived.error);
        assert!((all - derived.error).abs() < 1e-6, "{all} {}", derived.error);
        assert!(rank == 16 || worst < 1e-6, "{worst}");
    }
}

#[test]
fn trained_adapters_are_pruned_as_stated() {
    let trained = trained();
    // Two that are on q and v alone: a decomposition of each of their dense modules is seconds of work.
    let small = |one: &&Trained| one.modules.keys().all(|place| place.ends_with("q_proj") || place.ends_with("v_proj"));
    let parents: Vec<(&Trained, f64)> = trained.iter().filter(small).zip([1.0, -0.5]).collect();
    assert_eq!(parents.len(), 2);
    let method = DeriveMethod::MagnitudePrune;
    for (density, rank) in [(1.0, 256), (0.2, 32)] {
        let recipe = DeriveRecipe { rank: Some(rank), density: Some(density), ..DeriveRecipe::new(method) };
        let started = Instant::now();
        let derived = derive(recipe, &parents, &smollm());
        let took = started.elapsed();
        let keep = |delta: &mut [f64]| {
            let mut sizes: Vec<f64> = delta.iter().map(|value| value.abs()).collect();
            sizes.sort_by(|one, other| other.total_cmp(one));
            let smallest = sizes[(density * sizes.len() as f64) as usize - 1];
            delta.iter_mut().filter(|value| value.abs() < smallest).for_each(|value| *value = 0.0);
        };
        let (_, all) = errors(&derived, &parents, keep);
        println!("density {density} in rank {rank}: error {all:.3e}, stated {:.3e}, {took:?}", derived.error);
        assert!((all - derived.error).abs() < 1e-6, "{all} {}", derived.error);
        assert_eq!(derived.error < 1e-6, density == 1.0, "dense again once it is pruned");
    }
}

/// The sizes of `tests/fixtures/bases/llama`.
fn tiny_llama() -> ModelConfig {
    let sizes = ModelConfig { layers: 2, hidden: 64, intermediate: 96, heads: 2, kv_heads: 1, ..smollm() };
    ModelConfig { head_dim: 32, ..sizes }
}

/// What PEFT's `add_weighted_adapter` made of three small adapters (tests/derive/make.py), at full rank and, for `svd`, at rank 3.
#[test]
fn peft_merges_the_same() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/fixtures/derive");
    let about: Value = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let weights = about["weights"].as_object().unwrap();
    let parents: Vec<(Trained, f64)> = weights
        .iter()
        .map(|(name, weight)| (read(&folder.join(name), &tiny_llama()).unwrap(), weight.as_f64().unwrap()))
        .collect();
    let parents: Vec<(&Trained, f64)> = parents.iter().map(|(one, weight)| (one, *weight)).collect();
    let golden = std::fs::read(folder.join("deltas.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let dense = |method, sign| DeriveRecipe {
        rank: Some(64),
        density: Some(0.4),
        majority_sign: sign,
        ..DeriveRecipe::new(method)
    };
    let (total, frequency) = (Some(MajoritySign::Total), Some(MajoritySign::Frequency));
    let cases = [
        ("magnitude_prune", dense(DeriveMethod::MagnitudePrune, None)),
        ("ties-total", dense(DeriveMethod::Ties, total)),
        ("ties-frequency", dense(DeriveMethod::Ties, frequency)),
        ("svd", DeriveRecipe { rank: Some(3), ..DeriveRecipe::new(DeriveMethod::Svd) }),
        ("concatenate", DeriveRecipe::new(DeriveMethod::Concatenate)),
    ];
    assert_eq!(about["cases"].as_object().unwrap().len(), cases.len());
    for (case, recipe) in cases {
        let found = modules_of(&derive(recipe, &parents, &tiny_llama()).adapter.bytes);
        assert_eq!(found.len(), 4, "q and up in two layers");
        for (place, factors) in found {
            let expected = values(&golden.tensor(&format!("{case}/{place}")).unwrap());
            let mut difference = expected.clone();
            factors.add_to(&mut difference, -1.0);
            let largest = |values: &[f64]| values.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
            let error = largest(&difference) / largest(&expected);
            println!("{case} {place}: {error:.1e}");
            // PEFT computes in f32.
            assert!(error < 1e-5, "{case} {place}: {error}");
        }
    }
}
