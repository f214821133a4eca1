//! What holds of every pair of files that may be an adapter. The fuzz target `adapter_admission` is these lines over
//! libFuzzer's bytes.

use std::sync::OnceLock;

use generators::{AdapterFiles, Draw, Sizes, adapter};
use model::{
    AdapterBase, AdapterLimits, AdapterRejection, CanonicalAdapter, Invocation, LoraAdapter, ModelConfig, ModelError,
    Precision, canonical_adapter,
};
use safetensors::{Dtype, SafeTensors};
use types::{Digest, Module};

/// A rejection is a line for people and logs, however long the names in the files are.
const MESSAGE_BYTES_MAX: usize = 2048;
/// Every reason that a file can give; that the base cannot be read is none of them.
pub(crate) const CODES: [&str; 7] = [
    "adapter_base_mismatch",
    "adapter_malformed",
    "adapter_unsupported",
    "adapter_shape_mismatch",
    "adapter_not_finite",
    "adapter_too_large",
    "unsupported_media_type",
];

/// A base with weights, which DoRA asks for.
struct Made {
    config: ModelConfig,
    /// By layer and [`Module::index`]; empty where they are made when they are asked for.
    dense: Vec<Vec<f32>>,
}

impl Made {
    /// Made once: it is the same for every input.
    fn tiny() -> &'static Self {
        static TINY: OnceLock<Made> = OnceLock::new();
        TINY.get_or_init(|| {
            let config = tiny();
            let sites = (0..config.layers).flat_map(|_| Module::ALL).enumerate();
            Self { dense: sites.map(|(at, module)| weights(&config, module, at)).collect(), config }
        })
    }

    /// Of the sizes of the demo base, which the adapters of the shared hostile set are for.
    fn demo() -> &'static Self {
        static DEMO: OnceLock<Made> = OnceLock::new();
        DEMO.get_or_init(|| Self { config: demo(), dense: Vec::new() })
    }
}

fn weights(config: &ModelConfig, module: Module, seed: usize) -> Vec<f32> {
    let (inputs, outputs) = config.module_shape(module);
    let bytes = generators::seeded_bytes(seed as u64, inputs * outputs);
    bytes.iter().map(|byte| f32::from(*byte) / 1024.0 - 0.1).collect()
}

impl AdapterBase for Made {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn digest(&self) -> Option<Digest> {
        Some(Digest::of(b"tiny"))
    }

    fn dense(&self, layer: usize, module: Module) -> Result<Vec<f32>, ModelError> {
        let at = layer * Module::ALL.len() + module.index();
        Ok(self.dense.get(at).cloned().unwrap_or_else(|| weights(&self.config, module, at)))
    }

    fn may_be_called(&self, name: &str) -> bool {
        name == "tiny"
    }
}

/// The sizes of the base that the adapters are for.
pub(crate) fn tiny() -> ModelConfig {
    let Sizes { layers, hidden, intermediate, heads, kv_heads, head_dim } = Sizes::TINY;
    ModelConfig {
        layers,
        hidden,
        intermediate,
        heads,
        kv_heads,
        head_dim,
        vocabulary: 262,
        context_tokens_max: 512,
        rope_theta: 10_000.0,
        rope: model::RopeLayout::Neighbours,
        rope_divisors: Vec::new(),
        rms_epsilon: 1e-5,
        query_key_norm: false,
        tied_output: true,
    }
}

/// SmolLM2-135M's.
fn demo() -> ModelConfig {
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
        ..tiny()
    }
}

/// Makes two files of these bytes and submits them. Gives the verdict.
///
/// # Panics
/// If something does not hold.
pub(crate) fn hold(bytes: &[u8]) -> &'static str {
    let (files, base) = match whole_files(bytes) {
        Some(files) => (files, Made::demo()),
        None => (files(bytes), Made::tiny()),
    };
    let limits = limits();
    let first = canonical_adapter(&files.config, &files.weights, base, &limits);
    let second = canonical_adapter(&files.config, &files.weights, base, &limits);
    match (first, second) {
        (Ok(canonical), Ok(again)) => {
            assert_eq!(canonical.bytes, again.bytes, "the same twice");
            is_whole(&canonical, &files, base, &limits);
            "admitted"
        }
        (Err(rejection), Err(again)) => {
            assert_eq!(rejection.code(), again.code(), "the same twice");
            // Of several faults in a container, its library tells any.
            assert!(rejection == again || rejection.code() == "adapter_malformed", "{rejection} and {again}");
            is_told(&rejection)
        }
        _ => panic!("admitted once and refused once"),
    }
}

/// Small enough that each of them is met.
fn limits() -> AdapterLimits {
    AdapterLimits { rank_max: 16, tensors_max: 48, ..AdapterLimits::default() }
}

/// Both files as they are, for the demo base: what begins with 6 and the length of the first in four bytes. `cargo xtask fuzz`
/// writes the shared hostile set so into its corpus.
fn whole_files(bytes: &[u8]) -> Option<AdapterFiles> {
    let (first, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    if *first != 6 {
        return None;
    }
    let (config, weights) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    Some(AdapterFiles { config: config.to_vec(), weights: weights.to_vec() })
}

/// The first byte chooses: structured files, or the rest as one of the two.
fn files(bytes: &[u8]) -> AdapterFiles {
    let plain = || adapter(&mut Draw::new(&[]), &Sizes::TINY);
    match bytes.split_first() {
        Some((first, rest)) if first % 8 == 7 => match first % 16 {
            7 => AdapterFiles { config: rest.to_vec(), ..plain() },
            _ => AdapterFiles { weights: rest.to_vec(), ..plain() },
        },
        Some((_, rest)) => adapter(&mut Draw::new(rest), &Sizes::TINY),
        None => plain(),
    }
}

fn is_whole(canonical: &CanonicalAdapter, files: &AdapterFiles, base: &Made, limits: &AdapterLimits) {
    assert_eq!(canonical.digest, Digest::of(&canonical.bytes));
    assert!((1..=limits.rank_max).contains(&canonical.rank));
    for module in &canonical.report.modules {
        assert!(module.scale.is_finite());
        let norms = module.frobenius_norms.iter().zip(&module.spectral_norms);
        assert_eq!((norms.len(), module.spectral_norms.len()), (module.layers.len(), module.layers.len()));
        for (frobenius, spectral) in norms {
            assert!(*frobenius <= f64::from(limits.delta_norm_max) * 1.001, "{frobenius} is bounded by the factors'");
            // Both are rounded to four digits.
            assert!((0.0..=frobenius * 1.001).contains(spectral), "{spectral} of {frobenius}");
        }
    }
    // The header is ours; the values are those of the file, and nothing is added to them.
    assert!(canonical.bytes.len() <= files.weights.len() + 256 * limits.tensors_max + 4096);
    let tensors = SafeTensors::deserialize(&canonical.bytes).expect("canonical bytes are a safetensors file");
    let sent = SafeTensors::deserialize(&files.weights).expect("what was admitted is a safetensors file");
    assert_eq!(tensors.len(), sent.len(), "no tensor is left out");
    for (name, tensor) in tensors.iter() {
        assert!(values(tensor.dtype(), tensor.data()).all(f32::is_finite), "{name} is finite");
    }
    let packed = LoraAdapter::from_canonical(&canonical.bytes, base, limits, Precision::Quantised)
        .expect("what was admitted can be packed");
    assert_eq!((packed.rank(), packed.modules()), (canonical.rank, canonical.modules));
    let invocation = packed.invocation().map(Invocation::tokens).unwrap_or_default();
    assert_eq!(invocation, canonical.report.invocation_tokens, "what invokes it is kept");
    assert!(invocation.len() <= limits.invocation_tokens_max);
    assert!(invocation.iter().all(|token| (*token as usize) < base.config.vocabulary), "{invocation:?}");
    assert!(packed.memory_bytes() <= 8 * canonical.bytes.len(), "{} bytes in memory", packed.memory_bytes());
    // The same adapter in other words: other order of tensors, other notes.
    let weights = rewritten(&sent);
    let again = canonical_adapter(&files.config, &weights, base, limits).expect("the same adapter is admitted");
    assert_eq!(again.digest, canonical.digest, "its name does not depend on how the file is laid out");
    // Bytes that are nearly canonical are an error, not a panic.
    let nearly = canonical.bytes.get(..canonical.bytes.len() - 1).unwrap_or_default();
    assert!(LoraAdapter::from_canonical(nearly, base, limits, Precision::Quantised).is_err());
}

/// The same tensors as the library would write them.
fn rewritten(sent: &SafeTensors<'_>) -> Vec<u8> {
    let mut tensors: Vec<_> = sent.iter().collect();
    tensors.sort_by_key(|(name, _)| name.chars().rev().collect::<String>());
    let notes = [("note".to_owned(), "other".to_owned())].into();
    safetensors::serialize(tensors, Some(notes)).expect("tensors that were read can be written")
}

fn values(dtype: Dtype, data: &[u8]) -> impl Iterator<Item = f32> {
    let width = if dtype == Dtype::F32 { 4 } else { 2 };
    data.chunks_exact(width).map(move |bytes| match (dtype, bytes) {
        (Dtype::F32, [a, b, c, d]) => f32::from_le_bytes([*a, *b, *c, *d]),
        (Dtype::F16, [a, b]) => half::f16::from_le_bytes([*a, *b]).to_f32(),
        (Dtype::BF16, [a, b]) => half::bf16::from_le_bytes([*a, *b]).to_f32(),
        _ => panic!("a canonical tensor is of type {dtype:?}"),
    })
}

fn is_told(rejection: &AdapterRejection) -> &'static str {
    assert!(CODES.contains(&rejection.code()), "{}", rejection.code());
    let message = rejection.to_string();
    assert!((10..=MESSAGE_BYTES_MAX).contains(&message.len()), "{} bytes", message.len());
    rejection.code()
}
