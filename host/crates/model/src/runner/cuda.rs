//! The CUDA runner.

mod draw;
mod pieces;
mod runs;
mod spans;
mod tables;
