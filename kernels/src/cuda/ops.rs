//! One file per operation: its kernels, the typed launch that checks every length, the reference in f32 or f64, and the
//! cases of the self-test.

pub mod linear;
pub mod rms_norm;
