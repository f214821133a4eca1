//! Numerics on raw slices: one operation per file, each with its shapes, its plain f32 reference and, where it pays, a
//! vector version that gives the same bits.
//!
//! What must hold everywhere: a row's result does not depend on which other rows are computed with it, on the number of
//! threads, or on the instruction set. Hence every sum has one fixed order (see [`dot`]), and work is split only between
//! outputs, never inside a sum.
//!
//! Not here: tensors as objects, files, models, scheduling. Shapes are the caller's duty: a wrong one is a bug and panics.
//! Work is spread over the rayon pool that the caller runs in (see [`Pool`]).

mod attention;
mod dora;
pub mod dot;
mod isa;
pub mod limits;
mod lora;
mod matmul;
mod pool;
mod quantised;
mod rmsnorm;
mod rope;
mod softmax;
mod swiglu;

pub use attention::{AttentionRow, KvLayer, attention};
pub use dora::{DoraTerm, dora_add, dora_norms};
pub use isa::Isa;
pub use lora::{LoraPair, lora_add};
pub use matmul::{Matrix, matmul, matmul_reference};
pub use pool::Pool;
pub use quantised::{BLOCK_VALUES, BlockFormat, dequantise};
pub use rmsnorm::rms_norm;
pub use rope::RopeTable;
pub use softmax::{log_sum_exp, softmax};
pub use swiglu::swiglu;
