//! Guests that mean harm, each with what must come of it: the suite runs them once or twice, `cargo xtask bench hostile`
//! hundreds of times beside well-behaved traffic. In reading order: what a guest is, the catalogue by class, how components are
//! made that no toolchain would make.
//!
//! Not here: the servers that they are sent to, and who sends them.

mod guest;

mod catalogue;

mod bombs;
mod wat;

pub use catalogue::all;
pub use guest::{Act, Class, Guest, Outcome, Seen, Source, Tenant};
pub use wat::{Encoding, component as wat_component};
