//! The model side of the host: opening a base, its tokenizer and chat template, what outputs must match, admission of adapters, and the runner
//! that executes batches on the CPU.
//!
//! Not here: which sequence runs (that is `engine`), the arithmetic itself (that is `kernels`), WebAssembly, HTTP, async.

pub mod accelerator;
mod adapter;
mod base;
mod chat_template;
mod config;
mod constraint;
mod error;
mod folder;
mod generated;
mod gguf;
mod gguf_config;
mod names;
mod runner;
mod sampler;
mod tensor;
mod tensor_files;
mod tokenizer;

pub use adapter::{
    AdapterBase, AdapterKind, AdapterLimits, AdapterRejection, AdapterReport, CONTAINER_PREFIX_BYTES, CanonicalAdapter,
    DeriveError, DeriveLimits, DeriveMethod, DeriveParent, DeriveRecipe, DerivedAdapter, Invocation, LoraAdapter,
    MajoritySign, ModuleError, ModuleReport, NormLimits, PackedFileError, PackedImage, ValidRecipe, canonical_adapter,
    derive_adapter, packed_layout, refuse_container, refuse_container_name,
};
pub use base::Base;
pub use chat_template::ChatTemplate;
pub use config::{Architecture, ModelConfig};
pub use constraint::{CompiledConstraint, ConstraintCompiler, ConstraintError, MaskWorkers};
pub use error::ModelError;
pub use generated::GeneratedBase;
pub use kernels::cuda::KvFormat;
pub use kernels::{Mapping, RopeLayout};
pub use runner::{
    AdapterStaging, CpuRunner, CpuRunnerConfig, CudaRunner, CudaRunnerConfig, Matmul, Precision, Prompts, Runner,
    StagingStats,
};
pub use sampler::draw;
pub use tensor::{BaseTensor, TensorFormat};
pub use tokenizer::{TextDecoder, Tokenizer};
