//! Every method against plain f64 loops over dense matrices, on small adapters of mixed ranks, scales and modules.

mod oracle;

use half::f16;
use serde_json::json;

use super::*;
use crate::adapter::canonical_adapter;
use oracle::{Deltas, deltas, distance, largest, mask, norm, seeded, sum};

/// A full rank is 32, and q, gate and their inverses are not square.
fn base() -> ModelConfig {
    ModelConfig { hidden: 32, intermediate: 64, ..crate::adapter::tiny_config(2) }
}

/// An adapter by its configuration, and the module that each layer of it has.
struct Sample {
    seed: u64,
    rank: usize,
    alpha: f64,
    is_rslora: bool,
    modules: &'static [Module],
    dtype: Dtype,
}

impl Sample {
    fn canonical(&self) -> CanonicalAdapter {
        let (config, file) = self.files(false);
        canonical_adapter(&config, &file, &base(), &AdapterLimits::default()).expect("a sound adapter")
    }

    /// PEFT's two files.
    fn files(&self, is_dora: bool) -> (Vec<u8>, Vec<u8>) {
        let base = base();
        let names: Vec<&str> = self.modules.iter().map(|module| module.name()).collect();
        let config = json!({
            "peft_type": "LORA", "r": self.rank, "lora_alpha": self.alpha, "use_rslora": self.is_rslora,
            "target_modules": names, "use_dora": is_dora,
        });
        let mut owned = Vec::new();
        for layer in 0..base.layers {
            for module in self.modules {
                let (inputs, outputs) = base.module_shape(*module);
                let block = tensors::block(*module);
                let name = |end: &str| format!("base_model.model.model.layers.{layer}.{block}.{}.{end}", module.name());
                let seed = self.seed * 100 + (layer * 10 + module.index()) as u64;
                let mut push = |end: &str, shape: Vec<usize>, seed: u64| {
                    let values = seeded(seed).take(shape.iter().product());
                    let data: Vec<u8> = match self.dtype {
                        Dtype::F16 => values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect(),
                        _ => values.flat_map(f32::to_le_bytes).collect(),
                    };
                    owned.push((name(end), shape, data));
                };
                push("lora_A.weight", vec![self.rank, inputs], seed);
                push("lora_B.weight", vec![outputs, self.rank], !seed);
                if is_dora {
                    push("lora_magnitude_vector", vec![outputs], seed ^ 7);
                }
            }
        }
        let views = owned.iter().map(|(name, shape, data)| {
            (name.as_str(), TensorView::new(self.dtype, shape.clone(), data).expect("a tensor"))
        });
        let file = safetensors::serialize(views, None).expect("a file");
        (config.to_string().into_bytes(), file)
    }
}

const QV: &[Module] = &[Module::Q, Module::V];

/// Different ranks, scales, kinds, types and modules.
fn samples() -> [CanonicalAdapter; 3] {
    let plain = Sample { seed: 1, rank: 2, alpha: 4.0, is_rslora: false, modules: QV, dtype: Dtype::F32 };
    let modules = &[Module::Q, Module::Gate, Module::Down];
    let rslora = Sample { seed: 2, rank: 5, alpha: 3.0, is_rslora: true, modules, dtype: Dtype::F32 };
    let modules = &[Module::Q, Module::V, Module::O];
    let halves = Sample { seed: 3, rank: 3, alpha: 1.0, is_rslora: false, modules, dtype: Dtype::F16 };
    [plain.canonical(), rslora.canonical(), halves.canonical()]
}

fn parents<'a>(adapters: &'a [CanonicalAdapter], weights: &[f64]) -> Vec<DeriveParent<'a>> {
    let named = adapters.iter().zip(weights);
    named.map(|(one, weight)| DeriveParent { bytes: &one.bytes, digest: one.digest, weight: *weight }).collect()
}

fn try_derive(recipe: DeriveRecipe, parents: &[DeriveParent<'_>]) -> Result<DerivedAdapter, DeriveError> {
    let weights: Vec<f64> = parents.iter().map(|parent| parent.weight).collect();
    let limits = AdapterLimits::default();
    let recipe = ValidRecipe::check(recipe, &weights, &limits, &DeriveLimits::default())?;
    derive_adapter(&recipe, parents, &base(), &limits, &|| true)
}

fn derive(recipe: DeriveRecipe, parents: &[DeriveParent<'_>]) -> DerivedAdapter {
    try_derive(recipe, parents).expect("derived")
}

fn recipe(method: DeriveMethod, rank: u32) -> DeriveRecipe {
    let is_dense = !matches!(method, DeriveMethod::Concatenate | DeriveMethod::Svd);
    DeriveRecipe {
        rank: (method != DeriveMethod::Concatenate).then_some(rank),
        density: is_dense.then_some(0.4),
        ..DeriveRecipe::new(method)
    }
}

/// As large as any module of the base can need.
const FULL: u32 = 32;
const WEIGHTS: [f64; 3] = [0.7, -1.3, 0.25];

fn found(derived: &DerivedAdapter) -> Deltas {
    deltas(&derived.adapter.bytes, &base())
}

/// Of all modules together.
fn relative(found: &Deltas, expected: &Deltas) -> f64 {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    distance(found, expected) / norm(expected)
}

#[test]
fn concatenation_is_the_dense_sum() {
    let samples = samples();
    let expected = sum(&samples, &WEIGHTS, &base());
    let derived = derive(recipe(DeriveMethod::Concatenate, 0), &parents(&samples, &WEIGHTS));
    assert!(relative(&found(&derived), &expected) < 1e-6);
    assert_eq!((derived.adapter.rank, derived.error), (10, 0.0));
    assert_eq!(derived.adapter.report.kind, AdapterKind::Lora);
    // v: 2 + 3, o: 3 alone.
    let ranks = |name: &str| -> Vec<u32> {
        derived.adapter.report.modules.iter().filter(|one| one.module == name).map(|one| one.rank).collect()
    };
    assert_eq!((ranks("v_proj"), ranks("o_proj"), ranks("down_proj")), (vec![5], vec![3], vec![5]));
}

#[test]
fn a_concatenation_of_one_is_itself() {
    for one in samples() {
        let derived = derive(recipe(DeriveMethod::Concatenate, 0), &parents(std::slice::from_ref(&one), &[1.0]));
        assert_eq!(derived.adapter.digest, one.digest);
    }
    // Half of it is the same factors at half the scale, whatever their type.
    let [_, _, halves] = samples();
    let derived = derive(recipe(DeriveMethod::Concatenate, 0), &parents(std::slice::from_ref(&halves), &[0.5]));
    assert_eq!(derived.adapter.report.dtypes, ["f16"]);
    assert!(relative(&found(&derived), &sum(&[halves], &[0.5], &base())) < 1e-12);
}

#[test]
fn svd_of_full_rank_is_exact_and_of_a_lower_one_the_nearest() {
    let samples = samples();
    let parents = parents(&samples, &WEIGHTS);
    let expected = sum(&samples, &WEIGHTS, &base());
    let full = derive(recipe(DeriveMethod::Svd, FULL), &parents);
    assert!(relative(&found(&full), &expected) < 1e-6);
    assert!(full.error < 1e-12, "{}", full.error);
    assert_eq!(full.adapter.rank, 10, "no rank is spent on nothing");
    for rank in [1, 3, 6] {
        let low = derive(recipe(DeriveMethod::Svd, rank), &parents);
        assert_eq!(low.adapter.rank, rank);
        let (error, best) = (relative(&found(&low), &expected), oracle::best_error(&expected, rank as usize, &base()));
        assert!((error - low.error).abs() < 1e-6, "rank {rank}: stated {}, found {error}", low.error);
        assert!((error - best).abs() < 1e-6, "rank {rank}: {error}, the best is {best}");
    }
}

#[test]
fn pruning_keeps_the_largest_of_each_parent() {
    let samples = samples();
    let derived = derive(recipe(DeriveMethod::MagnitudePrune, FULL), &parents(&samples, &WEIGHTS));
    let kept: Vec<Deltas> = samples.iter().map(|one| largest(&deltas(&one.bytes, &base()), 0.4)).collect();
    assert!(relative(&found(&derived), &oracle::weighted(&kept, &WEIGHTS)) < 1e-6);
    assert!(derived.error < 1e-6);
}

#[test]
fn ties_is_the_mean_of_what_agrees() {
    let samples = samples();
    for sign in [MajoritySign::Total, MajoritySign::Frequency] {
        let ties = DeriveRecipe { majority_sign: Some(sign), ..recipe(DeriveMethod::Ties, FULL) };
        let derived = derive(ties, &parents(&samples, &WEIGHTS));
        let kept: Vec<Deltas> = samples.iter().map(|one| largest(&deltas(&one.bytes, &base()), 0.4)).collect();
        let expected = oracle::elected(&kept, &WEIGHTS, sign == MajoritySign::Frequency);
        assert!(relative(&found(&derived), &expected) < 1e-6, "{sign:?}");
    }
}

#[test]
fn dare_drops_by_its_seed() {
    let samples = samples();
    let dropped = |seed| -> Vec<Deltas> { samples.iter().map(|one| mask(one, seed, 0.4, &base())).collect() };
    let linear = DeriveRecipe { seed: Some(9), ..recipe(DeriveMethod::DareLinear, FULL) };
    let derived = derive(linear, &parents(&samples, &WEIGHTS));
    assert!(relative(&found(&derived), &oracle::weighted(&dropped(9), &WEIGHTS)) < 1e-6);
    let other = derive(DeriveRecipe { seed: Some(10), ..linear }, &parents(&samples, &WEIGHTS));
    assert!(relative(&found(&other), &found(&derived)) > 0.1, "another seed, another mask");
    let ties = DeriveRecipe { seed: Some(9), ..recipe(DeriveMethod::DareTies, FULL) };
    let derived = derive(ties, &parents(&samples, &WEIGHTS));
    assert!(relative(&found(&derived), &oracle::elected(&dropped(9), &WEIGHTS, false)) < 1e-6);
}

#[test]
fn a_mask_depends_on_no_other_parent() {
    let samples = samples();
    let linear = recipe(DeriveMethod::DareLinear, FULL);
    let together = derive(linear, &parents(&samples, &[1.0, 1.0, 1.0]));
    let alone: Vec<Deltas> =
        samples.iter().map(|one| found(&derive(linear, &parents(std::slice::from_ref(one), &[1.0])))).collect();
    assert!(relative(&found(&together), &oracle::weighted(&alone, &[1.0; 3])) < 1e-6);
}

#[test]
fn a_density_of_one_drops_nothing() {
    let samples = samples();
    let expected = sum(&samples, &WEIGHTS, &base());
    for method in [DeriveMethod::DareLinear, DeriveMethod::MagnitudePrune] {
        let all = DeriveRecipe { density: Some(1.0), ..recipe(method, FULL) };
        assert!(relative(&found(&derive(all, &parents(&samples, &WEIGHTS))), &expected) < 1e-6, "{method:?}");
    }
    // Of one parent all signs agree, and the mean is the parent.
    let one = std::slice::from_ref(&samples[1]);
    for method in [DeriveMethod::Ties, DeriveMethod::DareTies] {
        let all = DeriveRecipe { density: Some(1.0), ..recipe(method, FULL) };
        let derived = derive(all, &parents(one, &[-0.5]));
        assert!(relative(&found(&derived), &sum(one, &[-0.5], &base())) < 1e-6, "{method:?}");
    }
}

#[test]
fn what_a_rank_loses_of_a_dense_merge_is_said() {
    let samples = samples();
    for method in [DeriveMethod::Ties, DeriveMethod::DareLinear, DeriveMethod::DareTies, DeriveMethod::MagnitudePrune] {
        let whole = found(&derive(recipe(method, FULL), &parents(&samples, &WEIGHTS)));
        let low = derive(recipe(method, 4), &parents(&samples, &WEIGHTS));
        let (error, best) = (relative(&found(&low), &whole), oracle::best_error(&whole, 4, &base()));
        assert!((low.error - error).abs() < 1e-5 && (best - error).abs() < 1e-5, "{method:?} {error} {best}");
        assert!(low.error > 0.05, "{method:?}");
        for module in &low.modules {
            let of = |deltas: &Deltas, only: Option<usize>| -> Deltas {
                let is_of = |site: &Site| site.module == module.module && only.is_none_or(|layer| site.layer == layer);
                deltas.iter().filter(|(site, _)| is_of(site)).map(|(site, delta)| (*site, delta.clone())).collect()
            };
            for (layer, stated) in [(None, module.error), (Some(module.worst_layer), module.worst_error)] {
                let error = relative(&of(&found(&low), layer), &of(&whole, layer));
                assert!((stated - error).abs() < 1e-5, "{method:?} {module:?}: {error}");
            }
        }
        let refused = try_derive(
            DeriveRecipe { error_max: Some(low.error * 0.9), ..recipe(method, 4) },
            &parents(&samples, &WEIGHTS),
        );
        assert_eq!(refused.expect_err("too much").code(), "derivation_loses_too_much");
    }
}

#[test]
fn the_same_parents_give_the_same_bytes() {
    let samples = samples();
    for method in DeriveMethod::ALL {
        let recipe = recipe(method, 6);
        let made = derive(recipe, &parents(&samples, &WEIGHTS)).adapter.digest;
        let mut turned = parents(&samples, &WEIGHTS);
        turned.rotate_left(1);
        assert_eq!(made, derive(recipe, &turned).adapter.digest, "{method:?}: in another order");
        let with_nothing = [samples.as_slice(), &[other_sample()]].concat();
        let with_nothing = parents(&with_nothing, &[WEIGHTS[0], WEIGHTS[1], WEIGHTS[2], 0.0]);
        assert_eq!(made, derive(recipe, &with_nothing).adapter.digest, "{method:?}: a weight of zero is no parent");
        std::thread::scope(|scope| {
            let work = || derive(recipe, &parents(&samples, &WEIGHTS)).adapter.digest;
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            for thread in threads {
                assert_eq!(made, thread.join().expect("a digest"), "{method:?}: on another thread");
            }
        });
        let heavier = derive(recipe, &parents(&samples, &[0.7, -1.3, 0.3])).adapter.digest;
        assert_ne!(made, heavier, "{method:?}");
    }
}

fn other_sample() -> CanonicalAdapter {
    Sample { seed: 4, rank: 4, alpha: 4.0, is_rslora: false, modules: QV, dtype: Dtype::F32 }.canonical()
}

#[test]
fn what_cancels_is_an_adapter_that_changes_nothing() {
    let one = Sample { seed: 1, rank: 2, alpha: 4.0, is_rslora: false, modules: QV, dtype: Dtype::F32 }.canonical();
    // The same deltas at another scale, so another digest.
    let half = Sample { seed: 1, rank: 2, alpha: 2.0, is_rslora: false, modules: QV, dtype: Dtype::F32 }.canonical();
    for method in [DeriveMethod::Concatenate, DeriveMethod::Svd] {
        let derived = derive(recipe(method, 4), &parents(&[one.clone(), half.clone()], &[0.5, -1.0]));
        assert!(norm(&found(&derived)) < 1e-6 * norm(&deltas(&one.bytes, &base())), "{method:?}");
        assert!(derived.error <= 1.0);
    }
}

#[test]
fn a_recipe_has_its_own_parameters_and_no_others() {
    let ok = |change: &dyn Fn(&mut DeriveRecipe), method, weights: &[f64]| {
        let mut recipe = recipe(method, 8);
        change(&mut recipe);
        let checked = ValidRecipe::check(recipe, weights, &AdapterLimits::default(), &DeriveLimits::default());
        match checked {
            Ok(_) => "ok",
            Err(DeriveError::Recipe { field, .. }) => field,
            Err(error) => panic!("{error}"),
        }
    };
    for method in DeriveMethod::ALL {
        let is_dense = !matches!(method, DeriveMethod::Concatenate | DeriveMethod::Svd);
        let is_compressed = method != DeriveMethod::Concatenate;
        let is_random = matches!(method, DeriveMethod::DareLinear | DeriveMethod::DareTies);
        let is_elected = matches!(method, DeriveMethod::Ties | DeriveMethod::DareTies);
        let told = |is_right, field| if is_right { "ok" } else { field };
        assert_eq!(ok(&|_| (), method, &[1.0]), "ok", "{method:?}");
        assert_eq!(ok(&|recipe| recipe.rank = None, method, &[1.0]), told(!is_compressed, "rank"));
        assert_eq!(ok(&|recipe| recipe.rank = Some(256), method, &[1.0]), told(is_compressed, "rank"));
        for rank in [0, 257, u32::MAX] {
            assert_eq!(ok(&|recipe| recipe.rank = Some(rank), method, &[1.0]), "rank");
        }
        assert_eq!(ok(&|recipe| recipe.density = None, method, &[1.0]), told(!is_dense, "density"));
        for density in [0.0, -0.5, 1.0 + 1e-9, f64::NAN, f64::INFINITY] {
            assert_eq!(ok(&|recipe| recipe.density = Some(density), method, &[1.0]), "density");
        }
        assert_eq!(ok(&|recipe| recipe.seed = Some(1), method, &[1.0]), told(is_random, "seed"));
        let sign = Some(MajoritySign::Frequency);
        assert_eq!(ok(&|recipe| recipe.majority_sign = sign, method, &[1.0]), told(is_elected, "majority_sign"));
        assert_eq!(ok(&|recipe| recipe.error_max = Some(0.5), method, &[1.0]), told(is_compressed, "error_max"));
        for max in [-0.1, 1.1, f64::NAN] {
            assert_eq!(ok(&|recipe| recipe.error_max = Some(max), method, &[1.0]), "error_max");
        }
        for weights in [&[][..], &[1.0; 17], &[1.0; 1000], &[0.0, -0.0], &[f64::NAN], &[1.0, f64::INFINITY], &[1e9]] {
            assert_eq!(ok(&|_| (), method, weights), "parents", "{weights:?}");
        }
        assert_eq!(ok(&|_| (), method, &[16.0, -16.0, 0.0]), "ok");
    }
}

#[test]
fn a_parent_that_cannot_be_derived_from_is_named() {
    let [one, other, _] = samples();
    let code = |parents: &[DeriveParent<'_>]| {
        let error = try_derive(recipe(DeriveMethod::Svd, 4), parents).expect_err("refused");
        (error.code(), error.blame())
    };
    let twice = [one.clone(), one.clone()];
    assert_eq!(code(&parents(&twice, &[1.0, 1.0])), ("invalid_request", Blame::Caller));
    let mut poisoned = other.clone();
    let end = poisoned.bytes.len();
    poisoned.bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_eq!(code(&parents(&[one.clone(), poisoned], &[1.0, 1.0])), ("adapter_not_finite", Blame::Caller));
    let garbage = CanonicalAdapter { bytes: b"garbage".to_vec(), ..one.clone() };
    assert_eq!(code(&parents(&[garbage], &[1.0])), ("adapter_malformed", Blame::Caller));
    let wider = ModelConfig { hidden: 64, ..base() };
    let recipe =
        ValidRecipe::check(recipe(DeriveMethod::Svd, 4), &[1.0], &AdapterLimits::default(), &DeriveLimits::default());
    let recipe = recipe.expect("a recipe");
    let elsewhere = derive_adapter(&recipe, &parents(&[one], &[1.0]), &wider, &AdapterLimits::default(), &|| true)
        .expect_err("wider");
    assert_eq!(elsewhere.code(), "adapter_shape_mismatch");
}

#[test]
fn limits_are_met_before_the_work_and_told() {
    let samples = samples();
    let parents = parents(&samples, &WEIGHTS);
    let told = |recipe: DeriveRecipe, adapters: AdapterLimits, limits: DeriveLimits, calls_max: usize| {
        let calls = std::cell::Cell::new(0);
        let go_on = || calls.replace(calls.get() + 1) < calls_max;
        let checked = ValidRecipe::check(recipe, &WEIGHTS, &adapters, &limits).expect("a recipe");
        let error = derive_adapter(&checked, &parents, &base(), &adapters, &go_on).expect_err("refused");
        (error.code(), error.to_string(), calls.get())
    };
    let (adapters, limits) = (AdapterLimits::default, DeriveLimits::default);
    let concatenate = recipe(DeriveMethod::Concatenate, 0);
    let (code, message, calls) = told(concatenate, AdapterLimits { rank_max: 9, ..adapters() }, limits(), 99);
    assert_eq!((code, calls), ("limit_exceeded", 0));
    assert!(message.contains("add up to 10") && message.contains("svd"), "{message}");
    let small = AdapterLimits { file_bytes_max: 20_000, ..adapters() };
    assert_eq!(told(concatenate, small, limits(), 99).0, "adapter_too_large");
    let narrow = DeriveLimits { dense_values_max: 64 * 32 - 1, ..limits() };
    let (code, message, calls) = told(recipe(DeriveMethod::Ties, 4), adapters(), narrow, 99);
    assert_eq!((code, calls), ("limit_exceeded", 0));
    assert!(message.contains("2048 values"), "{message}");
    // Between two modules it can be stopped.
    for (calls_max, method) in [(0, DeriveMethod::Ties), (3, DeriveMethod::Svd), (3, DeriveMethod::Concatenate)] {
        let (code, _, calls) = told(recipe(method, 4), adapters(), limits(), calls_max);
        assert_eq!((code, calls), ("deadline_exceeded", calls_max + 1), "{method:?}");
    }
    // What is too large for admission is refused as an upload of it would be.
    let weak = AdapterLimits { delta_norm_max: 200, ..adapters() };
    let heavy = ValidRecipe::check(concatenate, &[16.0], &weak, &limits()).expect("a recipe");
    let heavier = [DeriveParent { weight: 16.0, ..parents[0] }];
    let error = derive_adapter(&heavy, &heavier, &base(), &weak, &|| true).expect_err("too large");
    assert_eq!((error.code(), error.blame()), ("adapter_too_large", Blame::Caller));
    assert!(matches!(error, DeriveError::Result(_)), "{error}");
}

#[test]
fn dora_is_refused_with_its_reason() {
    struct Ones(ModelConfig);
    impl crate::AdapterBase for Ones {
        fn config(&self) -> &ModelConfig {
            &self.0
        }
        fn digest(&self) -> Option<Digest> {
            None
        }
        fn dense(&self, _: usize, module: Module) -> Result<Vec<f32>, crate::ModelError> {
            let (inputs, outputs) = self.0.module_shape(module);
            Ok(vec![1.0; inputs * outputs])
        }
        fn may_be_called(&self, _: &str) -> bool {
            true
        }
    }
    let sample = Sample { seed: 1, rank: 2, alpha: 4.0, is_rslora: false, modules: QV, dtype: Dtype::F32 };
    let (config, file) = sample.files(true);
    let limits = AdapterLimits::default();
    let dora = canonical_adapter(&config, &file, &Ones(base()), &limits).expect("a DoRA adapter");
    let error = try_derive(recipe(DeriveMethod::Svd, 4), &parents(&[dora], &[1.0])).expect_err("refused");
    assert_eq!((error.code(), error.blame()), ("adapter_unsupported", Blame::Caller));
    assert!(error.to_string().contains("DoRA"), "{error}");
}

#[test]
fn an_activated_adapter_is_refused_with_its_reason() {
    let plain = Sample { seed: 1, rank: 2, alpha: 4.0, is_rslora: false, modules: QV, dtype: Dtype::F32 };
    let (config, file) = plain.files(false);
    let mut config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
    config["alora_invocation_tokens"] = json!([1, 2]);
    config["task_type"] = json!("CAUSAL_LM");
    let alora = canonical_adapter(config.to_string().as_bytes(), &file, &base(), &AdapterLimits::default());
    let alora = alora.expect("an aLoRA");
    assert_eq!(alora.report.kind, AdapterKind::Alora);
    // Also beside one that could be derived from, and by every method.
    for method in DeriveMethod::ALL {
        let both = [alora.clone(), other_sample()];
        let error = try_derive(recipe(method, 4), &parents(&both, &[1.0, 1.0])).expect_err("refused");
        assert_eq!((error.code(), error.blame()), ("adapter_unsupported", Blame::Caller), "{method:?}");
        assert!(
            error.to_string().contains("aLoRA") && error.to_string().contains(&alora.digest.to_string()),
            "{error}"
        );
    }
}

#[test]
fn the_report_is_that_of_an_upload() {
    let samples = samples();
    let derived = derive(recipe(DeriveMethod::Concatenate, 0), &parents(&samples, &WEIGHTS));
    let report = &derived.adapter.report;
    assert!(report.invocation_tokens.is_empty() && !report.base_is_named && report.warnings.is_empty());
    let expected = sum(&samples, &WEIGHTS, &base());
    for module in &report.modules {
        for ((layer, frobenius), spectral) in
            module.layers.iter().zip(&module.frobenius_norms).zip(&module.spectral_norms)
        {
            let site = Site { layer: *layer as usize, module: Module::from_name(&module.module).expect("a module") };
            let squares: f64 = expected[&site].iter().map(|value| value * value).sum();
            assert!((frobenius / squares.sqrt() - 1.0).abs() < 1e-3, "{site}: {frobenius}");
            assert!(*spectral > 0.0 && spectral <= frobenius, "{site}: {spectral}");
        }
        assert_eq!(module.layers.len(), module.frobenius_norms.len());
        assert_eq!(module.layers.len(), module.spectral_norms.len());
    }
    // The operator's limits on norms hold for what is made here, too.
    let mut limits = AdapterLimits::default();
    limits.norms.spectral_max = Some(1e-3);
    let checked = ValidRecipe::check(recipe(DeriveMethod::Svd, 4), &WEIGHTS, &limits, &DeriveLimits::default());
    let checked = checked.expect("a recipe");
    let refused = derive_adapter(&checked, &parents(&samples, &WEIGHTS), &base(), &limits, &|| true);
    let error = refused.expect_err("over the norm");
    assert_eq!((error.code(), error.blame()), ("adapter_norm_too_large", Blame::Caller));
    assert!(matches!(error, DeriveError::Result(_)), "{error}");
}
