//! The vocabulary that every crate of the host shares, in reading order: names, what a plugin is asked and answers,
//! the plan before and after its check, and what is counted.
//!
//! Not here: I/O, async code, serialisation, and anything that knows HTTP, WebAssembly or tensors.

mod blame;
mod chat;
mod composition;
mod digest;
mod hook;
mod ids;
mod limits;
mod plan;
mod sampling;
mod usage;
mod valid_plan;

pub use blame::Blame;
pub use chat::{Chat, ChatMessage, ToolCall};
pub use composition::{Composition, CompositionPart, LayerRange, Module, ModuleSet, OutputRange};
pub use digest::{Digest, DigestError};
pub use hook::{
    Action, AgentAnswer, Chunk, ChunkToken, Decision, Ending, HookUsage, InvocationRequest, Message, Rejection,
};
pub use ids::{AdapterAlias, BucketName, FunctionName, NameError, SecretName, TenantId};
pub use limits::PlanLimits;
pub use plan::{ColdPolicy, Constraint, Plan, PlanEntry, Prompt, Span};
pub use sampling::{Sampling, StopConditions};
pub use usage::{FinishReason, Usage};
pub use valid_plan::{Grants, PlanError, ValidCold, ValidPlan};
