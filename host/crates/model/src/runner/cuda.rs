//! The CUDA runner.

mod pieces;
mod runs;
