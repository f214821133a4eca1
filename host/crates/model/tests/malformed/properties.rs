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
pub(crate) const CODES: [&str; 6] = [
    "adapter_malformed",
    "adapter_unsupported",
    "adapter_shape_mismatch",
    "adapter_not_finite",
    "adapter_too_large",
    "unsupported_media_type",
];

/// A base with weights, which DoRA asks for.
struct Tiny {
    config: ModelConfig,
    /// By layer and [`Module::index`].
    dense: Vec<Vec<f32>>,
}

impl Tiny {
    /// Made once: it is the same for every input.
    fn get() -> &'static Self {
        static TINY: OnceLock<Tiny> = OnceLock::new();
        TINY.get_or_init(|| {
            let config = tiny();
            let sites = (0..config.layers).flat_map(|_| Module::ALL).enumerate();
            let dense = |(seed, module)| {
                let (inputs, outputs) = config.module_shape(module);
                let bytes = generators::seeded_bytes(seed as u64, inputs * outputs);
                bytes.iter().map(|byte| f32::from(*byte) / 1024.0 - 0.1).collect()
            };
            Self { dense: sites.map(dense).collect(), config }
        })
    }
}

impl AdapterBase for Tiny {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn dense(&self, layer: usize, module: Module) -> Result<Vec<f32>, ModelError> {
        Ok(self.dense[layer * Module::ALL.len() + module.index()].clone())
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

/// Makes two files of these bytes and submits them. Gives the verdict.
///
/// # Panics
/// If something does not hold.
pub(crate) fn hold(bytes: &[u8]) -> &'static str {
    let files = files(bytes);
    let (base, limits) = (Tiny::get(), limits());
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

fn is_whole(canonical: &CanonicalAdapter, files: &AdapterFiles, base: &Tiny, limits: &AdapterLimits) {
    assert_eq!(canonical.digest, Digest::of(&canonical.bytes));
    assert!((1..=limits.rank_max).contains(&canonical.rank));
    assert!(canonical.report.modules.iter().all(|module| module.scale.is_finite()));
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
    assert!(invocation.len() <= limits.invocation_tokens_max && invocation.iter().all(|token| *token < 262));
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
