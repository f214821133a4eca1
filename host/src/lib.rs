//! The host: all I/O and all composition of parts. Begin with `invoke.rs`, the life of a request.
//!
//! Not here: scheduling (`engine`), tensors (`model`, `kernels`), the sandbox (`plugin`).

pub mod cli;
pub mod config;
mod constraints;
mod error;
mod host;
mod http;
mod invoke;
mod key_file;

// State: what lasts, and what is made of it.
pub mod adapters;
pub mod artifacts;
pub mod keyvalue;
pub mod oci;
mod open_files;
pub mod outbound;
pub mod quotas;
pub mod registry;
pub mod revocation;
pub mod secrets;
mod shadows;
pub mod store;
pub mod tenants;
mod tools;

// Records.
mod logs;
pub mod metrics;
pub mod receipt;
mod recordings;
mod runner;

pub use error::Error;
/// For tests and fuzz targets.
#[cfg(feature = "in-process")]
#[doc(hidden)]
pub use http::{Answer, InProcess};
pub use invoke::HandOverError;
