//! The plugin sandbox. Uploaded components are checked and compiled in a child process, kept as artefacts that carry
//! our own mark, and run in a fresh, limited instance for each request.
//!
//! In reading order: what the host lends to a guest (`capability`), limits, the host, an instance's calls, what is recorded of
//! them and how that is played again; then what they stand on.
//!
//! Not here: the engine, models, kernels, HTTP. A guest reaches the accelerator only through a plan that others check.

mod capability;
mod error;
mod limits;

mod calls;
mod guest;
mod host;

mod record;
mod replay;

mod artefacts;
mod bindings;
mod child;
mod compile;
mod confine;
mod convert;
mod deserialize;
mod imports;
mod limiter;
mod meter;
mod pace;
mod pages;
mod sandbox;
mod self_test;
mod share;
mod spares;
mod state;
mod threads;
mod ticker;
mod turns;
mod unload;

pub use calls::{Begun, Decided, PluginInstance, Timed};
pub use capability::{
    BucketAccess, CallInput, CapabilityError, Catalog, CatalogEntry, Clock, Expected, FunctionReply, Functions,
    GenerationBounds, GenerationSession, Generations, KeyPage, KeyValue, LogLevel, LogSink, Nothing, Opening, Outbound,
    OutboundBounds, OutboundError, Output, Residency, Secrets, Session, SessionStep, Tokenizer, ToolDescription,
    ToolOutcome, Tools, Versioned, Written,
};
pub use child::compiler_main;
pub use error::PluginError;
pub use host::{CompilerCommand, ComponentSource, PluginHost, PluginHostConfig, PluginStats, World, may_be_imported};
pub use limits::{OwnLimits, PluginLimits};
pub use record::{
    Finished, Recorder, Recording, RecordingCut, RecordingError, RecordingHead, RecordingMemory, RecordingSink, Step,
};
pub use replay::{Difference, Replay};
pub use turns::{Turn, Turns};
