//! The plugin sandbox. Uploaded components are checked and compiled in a child process, kept as artefacts that carry
//! our own mark, and run in a fresh, limited instance for each request. In reading order: what is lent to a guest,
//! limits, the host, an instance and its calls.
//!
//! Not here: the engine, models, kernels, HTTP. A guest reaches the accelerator only through a plan that others check.

mod capability;
mod error;
mod host;
mod instance;
mod limits;

pub use capability::{CapabilityError, Catalog, CatalogEntry, Clock, LogLevel, LogSink, Residency, Session};
pub use error::PluginError;
pub use host::{CompilerCommand, ComponentSource, PluginHost, PluginHostConfig};
pub use instance::PluginInstance;
pub use limits::PluginLimits;

/// The child process that compiles: sets limits on itself, reads a component from standard input and writes the
/// compiled form to standard output. The host's binary calls it for a hidden sub-command.
pub fn compiler_main() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
