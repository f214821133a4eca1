//! Scheduling: which sequences run in the next step, over which KV blocks and adapter slots.
//!
//! Not here: tensors, files, clocks, HTTP, WebAssembly. Time comes in as an argument; the arithmetic is behind
//! [`ModelRunner`].

mod batch;
mod runner;
mod submission;

pub use batch::{Batch, BatchSequence, LoraSegment, SampleRequest, SampledToken, Slot};
pub use runner::{ModelRunner, RunnerError, RunnerShape};
pub use submission::{Submission, SubmitError, TokenEvent};
