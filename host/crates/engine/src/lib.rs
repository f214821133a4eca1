//! Scheduling: which sequences run in the next step, over which KV blocks and adapter slots.
//!
//! Not here: tensors, files, clocks, HTTP, WebAssembly. Time comes in as an argument; the arithmetic is behind
//! [`ModelRunner`].
//!
//! Read `engine.rs` first: its `step` is the data flow. In the order in which things happen: `submission`, `handle`,
//! `thread`, `engine`, `sequence`, `scheduler` over `block_manager` and `adapter_slots`, `assembly`, `batch`, `runner`.

mod adapter_slots;
mod assembly;
mod batch;
mod block_manager;
mod config;
mod conformance;
mod engine;
mod fake;
mod handle;
mod runner;
mod scheduler;
mod seen_tokens;
mod sequence;
mod submission;
mod thread;

#[cfg(test)]
mod tests;

pub use batch::{Batch, BatchSequence, LoraSegment, SampleRequest, SampledToken, Slot};
pub use config::{EngineConfig, EngineError};
pub use conformance::{ConformanceInput, check_runner};
pub use engine::Engine;
pub use fake::{FakeAdapter, FakeRunner, expected_tokens};
pub use handle::{Clock, EngineHandle, EngineStats, TokenStream};
pub use runner::{ModelRunner, RunnerError, RunnerShape};
pub use seen_tokens::SeenToken;
pub use submission::{GenerationError, Submission, SubmitError, TokenEvent};
pub use thread::{EngineThread, Started, start};
