//! Scheduling: which sequences run in the next step, over which KV blocks and adapter slots.
//!
//! Not here: tensors, files, clocks, HTTP, WebAssembly. Time comes in as an argument; the arithmetic is behind
//! [`ModelRunner`].

mod batch;
mod config;
mod engine;
mod handle;
mod runner;
mod submission;
mod thread;

pub use batch::{Batch, BatchSequence, LoraSegment, SampleRequest, SampledToken, Slot};
pub use config::{EngineConfig, EngineError};
pub use engine::Engine;
pub use handle::{Clock, EngineHandle, EngineStats, TokenStream};
pub use runner::{ModelRunner, RunnerError, RunnerShape};
pub use submission::{Submission, SubmitError, TokenEvent};
pub use thread::{EngineThread, Started, start};
