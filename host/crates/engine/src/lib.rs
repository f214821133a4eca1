//! Scheduling: which sequences run in the next step, over which KV blocks and adapter slots.
//!
//! Not here: tensors, files, clocks, HTTP, WebAssembly. Time comes in as an argument; the arithmetic is behind
//! [`ModelRunner`].
//!
//! Read `engine.rs` first: its `step` is the data flow. In the order in which things happen: `submission`, `handle` with
//! `door`, `thread`, `engine` with `flight` and `pace`, `sequence` with `active_parts`, `kinds` and `constraint`, `scheduler` over `fairness`, `block_manager` with `block_keys`,
//! `adapter_slots` and `speculation` with `lookup`, `assembly`, `batch`, `runner`.

mod active_parts;
mod adapter_slots;
mod assembly;
mod batch;
mod block_keys;
mod block_manager;
mod config;
mod conformance;
mod constraint;
mod door;
mod engine;
mod fairness;
mod fake;
mod flight;
mod handle;
mod kinds;
mod lookup;
mod pace;
mod runner;
mod scheduler;
mod seen_tokens;
mod sequence;
mod speculation;
mod submission;
mod thread;

#[cfg(test)]
mod tests;

pub use active_parts::Activation;
pub use batch::{Batch, BatchSequence, BlockCopy, LoraSegment, SampleRequest, SampledToken, Slot, UnseenToken};
pub use config::{EngineConfig, EngineError};
pub use conformance::{ConformanceInput, check_runner};
pub use constraint::{OutputConstraint, OutputState, TokenMask, is_allowed};
pub use engine::Engine;
pub use fake::{ExpectedPart, FakeAdapter, FakeRunner, expected_tokens};
pub use handle::{Clock, EngineHandle, EngineStats, TokenStream};
pub use runner::{ModelRunner, RunnerError, RunnerShape};
pub use seen_tokens::SeenToken;
pub use speculation::SpeculationConfig;
pub use submission::{Continuation, GenerationError, Stretch, Submission, SubmitError, Terms, TokenEvent};
pub use thread::{EngineThread, Started, start};
