//! The CUDA device: finding one, its memory, streams, events, graphs and kernels, and one file per operation in [`ops`]
//! with its typed launch, its reference and its self-test cases.
//!
//! Nothing here needs a toolkit to build or libcuda to start: the driver is looked up when [`gpus`] is asked, and every
//! way of not having one is a [`NoGpu`] that can be said. Kernels are built ahead of time (`kernels/build.sh`) and
//! embedded.
//!
//! What is checked, and what cannot be: every length that the host knows is checked before a copy or a launch
//! ([`DeviceRange`] carries its length), and host memory that a copy is still using cannot be touched ([`Pinned`]
//! waits). Which block or slot a *table in device memory* names is the caller's duty: a wrong one is an error of the
//! device, seen at the next synchronisation, and never memory unsafety in this process, because no kernel is given an
//! address of host memory.
//!
//! Not here: which kernels make up a layer or a step, and anything about models.

mod cublaslt;
mod device;
mod error;
mod event;
mod graph;
mod kernel;
mod kv_layout;
mod lora_tables;
mod memory;
pub mod ops;
mod pinned;
mod plain;
mod probe;
mod repack;
pub mod selftest;
mod stream;

pub use cublaslt::{CUBLASLT_VERSION_MIN, NoCublasLt, cublaslt_version};
pub use device::{Device, DeviceInfo, PinnedMemory};
pub use error::CudaError;
pub use event::Event;
pub use graph::Graph;
pub use kernel::{Argument, Kernel, Launch, Module};
pub use kv_layout::{BLOCK_TOKENS_MAX, HEAD_DIMS, KvFormat, KvLayout, e4m3_to_f32};
pub use lora_tables::{
    LORA_GROUPS, LORA_RANK_MULTIPLE, LoraEntry, LoraGroupId, LoraItem, LoraPiece, LoraTables, LoraTerm, LoraTile,
};
pub use memory::{DeviceMemory, DevicePtr, DeviceRange};
pub use pinned::Pinned;
pub use plain::{Plain, bytes_of, bytes_of_mut, view, view_mut};
pub use probe::{DRIVER_VERSION_MIN, NoGpu, gpus};
pub use repack::{PANEL, WeightFormat, repack};
pub use stream::Stream;
