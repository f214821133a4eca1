//! Write a Tenon plugin in Rust: implement [`Policy`], export it, test it natively.
//!
//! ```
//! use tenon_sdk::{Plan, Policy, Prompt, Request, Result};
//!
//! struct Polite;
//!
//! impl Policy for Polite {
//!     fn compose(request: &Request) -> Result<Plan> {
//!         Ok(Plan::new(Prompt::chat("Be polite.", &request.text)).adapter("manners", 0.8))
//!     }
//! }
//!
//! tenon_sdk::export_policy!(Polite);
//! # fn main() {}
//! ```
//!
//! A plugin that drives its own generations implements [`agent::Agent`].
//!
//! Build for `wasm32-unknown-unknown`; the component imports nothing but `tenon:plugin/*`, `wasi:keyvalue`
//! if it uses [`kv`], and `wasi:http` if it uses [`HttpRequest`]. Every function is called in a
//! fresh instance for each request, so statics hold nothing from one request to the next.
//!
//! Not here: anything of the host. The WIT in `wit/` is the only link.

pub mod agent;
pub mod bindings;
mod error;
mod export;
pub mod functions;
mod host;
mod http;
pub mod kv;
mod plan;
mod policy;
mod request;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use agent::{Agent, Answer};
pub use bindings::tenon::plugin::catalog::{Adapter, Residency};
pub use bindings::tenon::plugin::functions::Reply;
pub use bindings::tenon::plugin::tools::{Outcome as ToolOutcome, Tool};
pub use bindings::tenon::plugin::types::{
    Action, Chunk, ColdPolicy, CompositionEntry, Constraint, Decision, Ending, FinishReason, HostError, LayerRange,
    Message, Modules, Pair, Plan, Prompt, Rejection, Request, Sampling, Span, StopConditions, Template, Token, Usage,
};
pub use error::{Error, Result};
#[doc(hidden)]
pub use export::{Exported, ExportedAgent};
pub use host::{catalog, clock, config, log, random, secrets, tokenizer, tools};
pub use http::{HttpRequest, HttpResponse};
pub use policy::{PassThrough, Policy, PostProcessor};
