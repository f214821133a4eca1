//! What a receipt says of the requests that a request made: calls of other functions, which have receipts of their own, and an
//! agent's generations, which have not.

use serde::{Deserialize, Serialize};
use types::{FinishReason, FunctionName};
use utoipa::ToSchema;

use super::{AdapterUse, FunctionRef, SamplingRecord, TokenCounts, text};

/// The request that a function was called by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CalledBy {
    /// Its identifier.
    pub request: String,
    /// The function whose plugin called.
    pub function: FunctionRef,
}

/// A call of another function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CallRecord {
    /// The one that was called.
    #[serde(with = "text::parsed")]
    #[schema(value_type = String)]
    pub function: FunctionName,
    /// Its receipt; absent if it came to none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<String>,
    /// The stable code of the error that it ended with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One generation of an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GenerationRecord {
    /// Which of its sessions, in the order in which they were opened or forked, from 1.
    pub session: u32,
    /// The adapters, in canonical order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub composition: Vec<AdapterUse>,
    /// How tokens were chosen.
    pub sampling: SamplingRecord,
    /// Why it ended.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::finish")]
    #[schema(value_type = Option<String>)]
    pub finish: Option<FinishReason>,
    /// What was counted; those of the prompt include what the session held.
    pub tokens: TokenCounts,
}
