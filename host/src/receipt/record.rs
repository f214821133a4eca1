//! What a receipt says: the payload of an envelope. Fields are only ever added under a new payload type, because readers
//! refuse unknown ones. Not here: signatures, the chain's checks, storage.

mod nested;
pub(super) mod text;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use types::{
    CompositionPart, Constraint, Digest, FinishReason, FunctionName, LayerRange, ModuleSet, Sampling, TenantId, Usage,
};
use utoipa::ToSchema;

use super::{Commitment, ReceiptError};
pub use nested::{CallRecord, CalledBy, GenerationRecord};

/// Claims of one plugin in one receipt.
const CLAIMS_MAX: usize = 32;
/// Bytes of a claim's name.
const CLAIM_NAME_BYTES_MAX: usize = 64;
/// Bytes of a claim's value.
const CLAIM_VALUE_BYTES_MAX: usize = 1024;

/// `rcpt_` and a ULID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReceiptId(String);

impl ReceiptId {
    pub(super) fn generate() -> Self {
        Self(format!("rcpt_{}", ulid::Ulid::generate()))
    }

    /// The identifier as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReceiptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text that is not a receipt's identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a receipt's identifier is `rcpt_` and 26 characters")]
pub struct ReceiptIdError;

impl FromStr for ReceiptId {
    type Err = ReceiptIdError;

    fn from_str(text: &str) -> Result<Self, ReceiptIdError> {
        let ulid = text.strip_prefix("rcpt_").ok_or(ReceiptIdError)?;
        let parsed = ulid::Ulid::from_string(ulid).map_err(|_| ReceiptIdError)?;
        if parsed.to_string() == ulid { Ok(Self(text.to_owned())) } else { Err(ReceiptIdError) }
    }
}

/// Which record of a receipt this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The first record.
    Started,
    /// Final: the answer is complete.
    Finished,
    /// Final: the caller went away.
    Cancelled,
    /// Final: an error, whose code is in the outcome.
    Failed,
    /// Final: the host stopped before it could say how the request ended.
    Recovered,
}

/// A deployed function's version, with the plugin behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FunctionRef {
    /// Its name.
    #[serde(with = "text::parsed")]
    #[schema(value_type = String)]
    pub name: FunctionName,
    /// Its version.
    pub version: u32,
    /// The plugin's digest.
    #[serde(with = "text::digest")]
    #[schema(value_type = String)]
    pub plugin: Digest,
}

/// What a receipt is about; equal in both records of a receipt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// The request's identifier, as in `x-request-id`.
    pub request: String,
    /// The function that was called; none when the base or an adapter was called by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionRef>,
    /// The request that called it, if a plugin did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub called_by: Option<CalledBy>,
    /// The base model's digest.
    #[serde(with = "text::digest")]
    #[schema(value_type = String)]
    pub base: Digest,
    /// The runner's name.
    pub runner: String,
    /// The runner's precision.
    pub precision: String,
    /// The adapters that are to contribute, in canonical order: known before the first byte, so that a record that was
    /// recovered after a crash names them too. How much each did is in the outcome.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<AdapterPart>,
}

/// One term of a composition: an adapter, its weight and what it is limited to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdapterPart {
    /// The adapter's content.
    #[serde(with = "text::digest")]
    #[schema(value_type = String)]
    pub adapter: Digest,
    /// wᵢ.
    #[serde(with = "text::finite")]
    pub weight: f32,
    /// The modules it is limited to, by their PEFT names; absent for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules: Option<Vec<String>>,
    /// The layers `[first, end)` it is limited to; absent for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<[u32; 2]>,
    /// The tokens of the answer `[first, end)` it is limited to, the end 4294967295 for the rest; absent for prompt and answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<[u32; 2]>,
    /// The tenant that shares it; absent for the caller's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

impl AdapterPart {
    /// The same, shared by this tenant, if by any.
    #[must_use]
    pub fn shared_by(self, owner: Option<&TenantId>) -> Self {
        Self { owner: owner.map(ToString::to_string), ..self }
    }
}

impl From<&CompositionPart> for AdapterPart {
    fn from(part: &CompositionPart) -> Self {
        let names = || part.modules.iter().map(|module| module.name().to_owned()).collect();
        Self {
            adapter: part.adapter,
            weight: part.weight,
            modules: (part.modules != ModuleSet::ALL).then(names),
            layers: (part.layers != LayerRange::ALL).then_some([part.layers.first, part.layers.end]),
            output: part.output.map(|output| [output.first, output.end]),
            owner: None,
        }
    }
}

/// One term of the composition and how much it did. (Flat, because serde cannot both flatten and refuse unknown fields.)
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdapterUse {
    /// As in [`AdapterPart`].
    #[serde(with = "text::digest")]
    #[schema(value_type = String)]
    pub adapter: Digest,
    /// As in [`AdapterPart`].
    #[serde(with = "text::finite")]
    pub weight: f32,
    /// As in [`AdapterPart`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules: Option<Vec<String>>,
    /// As in [`AdapterPart`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<[u32; 2]>,
    /// As in [`AdapterPart`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<[u32; 2]>,
    /// As in [`AdapterPart`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Tokens of prompt and output that were computed with it.
    pub tokens_active: u32,
}

impl AdapterUse {
    /// What is said about one part of a composition.
    #[must_use]
    pub fn new(part: &CompositionPart, tokens_active: u32) -> Self {
        let AdapterPart { adapter, weight, modules, layers, output, owner } = part.into();
        Self { adapter, weight, modules, layers, output, owner, tokens_active }
    }

    /// The same, shared by this tenant, if by any.
    #[must_use]
    pub fn shared_by(self, owner: Option<&TenantId>) -> Self {
        Self { owner: owner.map(ToString::to_string), ..self }
    }
}

/// How tokens were chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SamplingRecord {
    /// 0 is greedy.
    #[serde(with = "text::finite")]
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    #[serde(with = "text::finite")]
    pub top_p: f32,
    /// 0 is off.
    #[serde(with = "text::finite")]
    pub min_p: f32,
    /// 1 is off.
    #[serde(with = "text::finite")]
    pub repetition_penalty: f32,
    /// 0 is off.
    #[serde(with = "text::finite")]
    pub presence_penalty: f32,
    /// 0 is off.
    #[serde(with = "text::finite")]
    pub frequency_penalty: f32,
    /// Tokens and what was added to their logits; absent without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logit_bias: Vec<(u32, f32)>,
    /// What the answer had to match; absent if nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraint: Option<ConstraintRecord>,
    /// The seed of the draw; text, since a JSON number of 64 bits is not safe in every reader.
    #[serde(with = "text::parsed")]
    #[schema(value_type = String)]
    pub seed: u64,
}

impl SamplingRecord {
    /// What is said about these parameters and the seed that was used.
    #[must_use]
    pub fn new(sampling: &Sampling, constraint: Option<&Constraint>, seed: u64) -> Self {
        Self {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            logit_bias: sampling.logit_bias.clone(),
            constraint: constraint.map(ConstraintRecord::new),
            seed,
        }
    }
}

/// What an answer had to match, without saying it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConstraintRecord {
    /// `JSON schema`, `regular expression` or `grammar`.
    pub kind: String,
    /// BLAKE3 of its text.
    #[serde(with = "text::digest")]
    #[schema(value_type = String)]
    pub digest: Digest,
}

impl ConstraintRecord {
    fn new(constraint: &Constraint) -> Self {
        Self { kind: constraint.kind().to_owned(), digest: Digest::of(constraint.text().as_bytes()) }
    }
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenCounts {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens generated.
    pub completion: u32,
}

impl From<Usage> for TokenCounts {
    fn from(usage: Usage) -> Self {
        Self { prompt: usage.prompt_tokens, completion: usage.completion_tokens }
    }
}

/// How long the stages took, in milliseconds with three decimals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Timings {
    /// From submission to the first step with rows of this request.
    #[serde(rename = "queue_ms", with = "text::milliseconds")]
    #[schema(value_type = f64)]
    pub queue: Duration,
    /// In the plugin, over all calls.
    #[serde(rename = "plugin_ms", with = "text::milliseconds")]
    #[schema(value_type = f64)]
    pub plugin: Duration,
    /// Making the adapters resident.
    #[serde(rename = "adapters_ms", with = "text::milliseconds")]
    #[schema(value_type = f64)]
    pub adapters: Duration,
    /// From admission to the first token.
    #[serde(rename = "first_token_ms", with = "text::milliseconds")]
    #[schema(value_type = f64)]
    pub first_token: Duration,
    /// From admission to the end.
    #[serde(rename = "total_ms", with = "text::milliseconds")]
    #[schema(value_type = f64)]
    pub total: Duration,
}

/// What was done about adapters that were not in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ColdRecord {
    /// `waited`, `base` or `fallback`.
    pub decision: String,
    /// The adapters that were asked for, if others or none were served.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<AdapterPart>,
    /// What was loaded before the answer began. Of one load that several requests waited for, each says how long it took.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loads: Vec<LoadRecord>,
}

/// How long it took to bring one adapter into memory, in milliseconds with three decimals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadRecord {
    /// The adapter's content.
    #[serde(with = "text::digest")]
    #[schema(value_type = String)]
    pub adapter: Digest,
    /// `disk`: it was packed before; `store`: it was not.
    pub from: String,
    /// For its turn among the loads.
    #[serde(rename = "wait_ms", with = "text::milliseconds")]
    #[schema(value_type = f64)]
    pub wait: Duration,
    /// Reading its bytes; 0 from disk, where they are read as they are verified.
    #[serde(rename = "fetch_ms", with = "text::milliseconds")]
    #[schema(value_type = f64)]
    pub fetch: Duration,
    /// Comparing its digest, or the mark of its file.
    #[serde(rename = "verify_ms", with = "text::milliseconds")]
    #[schema(value_type = f64)]
    pub verify: Duration,
    /// Laying it out for the runner; 0 from disk.
    #[serde(rename = "pack_ms", with = "text::milliseconds")]
    #[schema(value_type = f64)]
    pub pack: Duration,
    /// Making its file usable; 0 from the store.
    #[serde(rename = "load_ms", with = "text::milliseconds")]
    #[schema(value_type = f64)]
    pub load: Duration,
}

/// Something that a plugin says. The host signs that it was said, not that it is true.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// What it is about.
    pub name: String,
    /// The claim.
    pub value: String,
}

/// A plugin's claims, few and short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Claims(Vec<Claim>);

impl Claims {
    /// Checks what a plugin said.
    ///
    /// # Errors
    /// [`ReceiptError::OverLimit`] for more than 32 claims, a name over 64 bytes or a value over 1,024.
    pub fn check(claims: Vec<(String, String)>) -> Result<Self, ReceiptError> {
        at_most("the number of claims", claims.len(), "claims_max", CLAIMS_MAX)?;
        for (name, value) in &claims {
            at_most("a claim's name in bytes", name.len(), "claim_name_bytes_max", CLAIM_NAME_BYTES_MAX)?;
            at_most("a claim's value in bytes", value.len(), "claim_value_bytes_max", CLAIM_VALUE_BYTES_MAX)?;
        }
        Ok(Self(claims.into_iter().map(|(name, value)| Claim { name, value }).collect()))
    }

    /// The claims.
    #[must_use]
    pub fn as_slice(&self) -> &[Claim] {
        &self.0
    }
}

pub(super) fn at_most(what: &'static str, size: usize, limit: &'static str, max: usize) -> Result<(), ReceiptError> {
    if size <= max { Ok(()) } else { Err(ReceiptError::OverLimit { what, size, limit, max }) }
}

/// What a final record says beyond the started one. Fill in what is known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The functions that the request was handed over to, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handed_over: Vec<FunctionRef>,
    /// The functions that its plugins called, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<CallRecord>,
    /// The generations of an agent, in order; the composition and the tokens of the outcome are those of all of them together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub generations: Vec<GenerationRecord>,
    /// The adapters, in canonical order; where the composition was switched, those of each composition after those of the one
    /// before.
    pub composition: Vec<AdapterUse>,
    /// How tokens were chosen; absent when none were to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<SamplingRecord>,
    /// Why the generation ended ([`FinishReason::name`]).
    #[serde(default, skip_serializing_if = "Option::is_none", with = "text::finish")]
    #[schema(value_type = Option<String>)]
    pub finish: Option<FinishReason>,
    /// What was counted.
    pub tokens: TokenCounts,
    /// How long it took.
    pub timings: Timings,
    /// What was done about adapters that were not in memory; absent if all were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold: Option<ColdRecord>,
    /// Commitment to the prompt that the model was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub prompt: Option<Commitment>,
    /// Commitment to the answer that the caller was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub answer: Option<Commitment>,
    /// What the plugin says.
    #[serde(default)]
    pub claims: Claims,
    /// The stable code of the error that ended it; in failed records only. Set by the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How a request ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// With an answer.
    Finished,
    /// The caller went away.
    #[default]
    Cancelled,
    /// With an error of this stable code.
    Failed(String),
}

/// The payload: one record of a tenant's chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Names the inference; its two records share it.
    #[serde(with = "text::parsed")]
    #[schema(value_type = String)]
    pub id: ReceiptId,
    /// Which record this is.
    pub kind: Kind,
    /// Whose chain this is.
    #[serde(with = "text::parsed")]
    #[schema(value_type = String)]
    pub tenant: TenantId,
    /// Position in the tenant's chain, from 1.
    pub sequence: u64,
    /// BLAKE3 of the payload before this one in the chain; zeros at position 1.
    #[serde(with = "text::digest")]
    #[schema(value_type = String)]
    pub previous: Digest,
    /// The host that wrote it.
    pub node: String,
    /// Milliseconds since 1970-01-01 UTC by that host's clock.
    pub time_unix_ms: u64,
    /// What it is about.
    pub subject: Subject,
    /// In finished, cancelled and failed records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

impl Receipt {
    /// `previous` of a chain's first record.
    pub const GENESIS: Digest = Digest::from_bytes([0; 32]);

    /// Whether the fields fit the kind.
    pub(super) fn is_consistent(&self) -> bool {
        let error = self.outcome.as_ref().map(|outcome| outcome.error.is_some());
        match self.kind {
            Kind::Started | Kind::Recovered => error.is_none(),
            Kind::Finished | Kind::Cancelled => error == Some(false),
            Kind::Failed => error == Some(true),
        }
    }
}
