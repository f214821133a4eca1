//! The host's side of the contract's imports, one file for each interface. Each counts its call, checks its limits and
//! hands over to a capability of the session. Not here: the capabilities.

mod catalog;
mod clock;
mod config;
mod functions;
pub(crate) mod http;
pub(crate) mod keyvalue;
mod log;
mod logging;
mod output;
mod random;
mod secrets;
pub(crate) mod sessions;
mod tokenizer;
mod tools;
mod wasi_config;

use crate::bindings::tenon::plugin::types;
use crate::state::InstanceState;

/// It has types only.
impl types::Host for InstanceState {}
