//! One file per operation: its kernels, the typed launch that checks every length, the reference in f32 or f64, and the
//! cases of the self-test.

pub mod attention;
pub mod copy_wipe;
pub mod dense;
pub mod embed;
pub mod linear;
pub mod lora;
pub mod rms_norm;
pub mod rope_append;
pub mod sample;
pub mod swiglu;
