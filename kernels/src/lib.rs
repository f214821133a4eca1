//! Numerics on raw slices: one operation per file, each with its shapes, its plain f32 reference and, where it pays, a
//! vector version that gives the same bits.
//!
//! What must hold everywhere: a row's result does not depend on which other rows are computed with it, on the number of
//! threads, or on the instruction set. Hence every sum has one fixed order (see [`dot`]), and work is split only between
//! outputs, never inside a sum.
//!
//! Not here: tensors as objects, files, models, scheduling. Shapes are the caller's duty: a wrong one is a bug and panics.
//! The f32 operations are the reference and spread their work over the rayon pool that the caller runs in (see
//! [`ReferencePool`]); the fast ones take the [`Team`] of a step (see [`Pool`]).

#[cfg(target_arch = "x86_64")]
mod amx_tiles;
mod attention;
#[cfg(target_arch = "x86_64")]
mod attention_amx;
#[cfg(target_arch = "x86_64")]
mod attention_bf16;
mod attention_lanes;
mod attention_paged;
mod attention_tile;
mod buffer;
pub mod cuda;
mod dora;
pub mod dot;
mod elementwise;
mod elementwise_rope;
mod exp;
mod gemm;
mod grouped_lora;
mod isa;
pub mod limits;
mod lm_head;
mod lora;
mod mapping;
mod matmul;
mod memory;
mod norm_rows;
mod packed;
mod paged;
mod paged_expand;
mod paged_write;
mod pool;
mod quantised;
mod quantised_rows;
mod reference_pool;
mod rmsnorm;
mod rope;
mod sample_weights;
mod softmax;
mod swiglu;
mod tile_rows;
mod topk;

pub use attention::{AttentionRow, KvLayer, attention};
pub use attention_paged::{AttentionScratch, AttentionSequence, paged_attention};
pub use buffer::{Buffer, Number};
pub use dora::{DoraTerm, dora_add, dora_norms};
pub use elementwise::{add_rows, swiglu_rows};
pub use elementwise_rope::{HeadNorms, RopeRows, rope_rows};
pub use exp::exp;
pub use gemm::{Piece, TileScratch, matmul_each, matmul_packed, matmul_tiles, takes_tiles};
pub use grouped_lora::{
    LoraGroup, LoraRun, LoraScratch, LoraTermHead, LoraTermParts, SLOTS_MAX, matmul_lora, matmul_lora_gated,
    matmul_lora_tiles,
};
pub use isa::{Amx, Isa};
pub use lm_head::{HEAD_TOP_MAX, HeadOutput, HeadRow, HeadWant, lm_head};
pub use lora::{LoraPair, lora_add};
pub use mapping::{Bytes, Floats, MappedPart, Mapping};
pub use matmul::{Matrix, matmul, matmul_reference};
pub use norm_rows::{add_rms_norm_rows, rms_norm_rows};
pub use packed::{PackedMatrix, embed_rows};
pub use paged::{KvFormat, PagedKv};
pub use pool::{Pool, PoolError, Team};
pub use quantised::{BLOCK_VALUES, BlockFormat, dequantise};
pub use quantised_rows::QuantisedRows;
pub use reference_pool::ReferencePool;
pub use rmsnorm::rms_norm;
pub use rope::{RopeLayout, RopeTable};
pub use sample_weights::TokenWeights;
pub use softmax::{log_sum_exp, softmax};
pub use swiglu::swiglu;
pub use tile_rows::TileRows;
pub use topk::best_of;
