//! The host's side of the contract's imports, one file for each interface. Each counts its call, checks its limits and
//! hands over to a capability of the session. Not here: the capabilities.

mod catalog;
mod clock;
mod config;
mod log;
mod random;

use crate::bindings::tenon::plugin::types;
use crate::state::InstanceState;

/// It has types only.
impl types::Host for InstanceState {}
