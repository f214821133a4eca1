//! Bodies as LoRAX's clients write them, and the plan that they ask for. What would change the answer and is not served is
//! refused by its name; what is unknown is ignored, as LoRAX does. Not here: which adapter an id stands for (`adapter.rs`).

use serde::Deserialize;
use types::{Constraint, Plan, PlanEntry, PlanLimits, Prompt, Sampling, StopConditions};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::http::wire::{Asks, ResponseFormat, or_default, unsupported};

/// `POST /`, `/generate` and `/generate_stream`.
#[derive(Deserialize, ToSchema)]
#[schema(example = json!({"inputs": "Hello", "parameters": {"max_new_tokens": 8}}))]
pub(crate) struct GenerateBody {
    /// The prompt as text; it gets no template unless `apply_chat_template` asks for it.
    #[schema(min_length = 1)]
    pub(super) inputs: String,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<LoraxParameters>)]
    pub(super) parameters: LoraxParameters,
    /// Of `POST /` alone; the other two routes say it by their names.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    pub(super) stream: bool,
}

/// What is asked of an answer. Everything may be left out or null.
#[derive(Default, Deserialize, ToSchema)]
pub(crate) struct LoraxParameters {
    /// An alias or digest of the tenant's, or where the adapter lies.
    pub(super) adapter_id: Option<String>,
    /// `local`, `hub`, `s3` or `file`; without it, an id with a `/` in it is of the hub.
    pub(super) adapter_source: Option<String>,
    /// In place of `adapter_id`.
    pub(super) merged_adapters: Option<MergedAdapters>,
    /// Opens a private source: a token, or `secret:NAME` for one that the tenant keeps.
    #[schema(value_type = Option<String>)]
    pub(super) api_token: Option<ApiToken>,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    do_sample: bool,
    temperature: Option<f32>,
    top_k: Option<i64>,
    top_p: Option<f32>,
    typical_p: Option<f32>,
    repetition_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    seed: Option<u64>,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<Vec<String>>)]
    stop: Vec<String>,
    max_new_tokens: Option<i64>,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    ignore_eos_token: bool,
    /// Several answers are made and the likeliest is told, the others in `details`; not of a stream, and not with a seed.
    best_of: Option<i64>,
    /// Only so many of the last tokens of `inputs`.
    pub(super) truncate: Option<i64>,
    /// `inputs` stands before the text.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    pub(super) return_full_text: bool,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    pub(super) details: bool,
    /// So many of the likeliest tokens stand beside each token.
    return_k_alternatives: Option<i64>,
    /// `inputs` is what a user says, in the base's chat template.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    pub(super) apply_chat_template: bool,
    /// `json_object`, with a `schema` or without: what the text must be.
    response_format: Option<ResponseFormat>,
    #[serde(flatten)]
    #[schema(ignore)]
    refused: Refused,
}

/// Several adapters at once.
#[derive(Deserialize, ToSchema)]
pub(crate) struct MergedAdapters {
    pub(super) ids: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Vec<f32>)]
    pub(super) weights: Vec<f32>,
    /// `linear`, which is here the exact sum of the adapters' changes; the others are made once, as derived adapters.
    pub(super) merge_strategy: Option<String>,
    /// Of the other strategies.
    #[serde(rename = "density")]
    _density: Option<f32>,
    /// Of the other strategies.
    #[serde(rename = "majority_sign_method")]
    _majority_sign_method: Option<String>,
}

/// A token that is wiped from memory when dropped, and never shown.
pub(crate) struct ApiToken(pub(super) Zeroizing<String>);

/// Untagged: an error of the parser's own would quote what it found.
#[derive(Deserialize)]
#[serde(untagged, expecting = "api_token: expected a text")]
enum ApiTokenField {
    Text(Zeroizing<String>),
}

impl<'de> Deserialize<'de> for ApiToken {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ApiTokenField::deserialize(deserializer).map(|ApiTokenField::Text(token)| Self(token))
    }
}

/// Fields of LoRAX and text-generation-inference that are not served.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Refused {
    watermark: Asks,
    decoder_input_details: Asks,
    // Of text-generation-inference, and of our own other routes.
    grammar: Asks,
    top_n_tokens: Asks,
    logit_bias: Asks,
    min_p: Asks,
    stop_token_ids: Asks,
}

/// How one answer is to be drawn and told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wishes {
    /// Answers to be made, of which one is told.
    pub(super) best_of: u32,
    /// Likeliest tokens beside each token.
    pub(super) alternatives: Option<u32>,
    /// Whether tokens are drawn, and not just taken as the likeliest.
    pub(super) is_sampled: bool,
    /// Tokens to generate at most.
    pub(super) tokens_max: u32,
}

impl LoraxParameters {
    /// Refuses what is not served and what makes no sense, and reads the rest.
    pub(super) fn check(&self, is_streamed: bool, limits: &PlanLimits, choices_max: u32) -> Result<Wishes, Error> {
        self.refuse()?;
        let tokens_max = positive("max_new_tokens", self.max_new_tokens)?;
        let alternatives = positive("return_k_alternatives", self.return_k_alternatives)?;
        if let Some(count) = alternatives.filter(|count| *count > limits.logprobs_max) {
            return Err(over("return_k_alternatives", count, "logprobs_max", limits.logprobs_max));
        }
        positive("top_k", self.top_k)?;
        positive("truncate", self.truncate)?;
        let is_sampled = self.is_sampled();
        let best_of = positive("best_of", self.best_of)?.unwrap_or(1);
        if best_of > choices_max {
            return Err(over("best_of", best_of, "choices_max", choices_max));
        }
        let conflict = match best_of {
            1 => None,
            _ if is_streamed => Some("a stream has one answer: leave best_of out"),
            _ if self.seed.is_some() => Some("answers of one seed are all the same: leave seed or best_of out"),
            _ if !is_sampled => Some("best_of is of answers that are drawn: set do_sample"),
            _ => None,
        };
        if let Some(message) = conflict {
            return Err(Error::invalid("invalid_request", "best_of", message));
        }
        Ok(Wishes { best_of, alternatives, is_sampled, tokens_max: tokens_max.unwrap_or(limits.output_tokens_default) })
    }

    fn refuse(&self) -> Result<(), Error> {
        let Refused { watermark, decoder_input_details, grammar, top_n_tokens, logit_bias, min_p, stop_token_ids } =
            &self.refused;
        let fields = [
            ("watermark", watermark),
            ("decoder_input_details", decoder_input_details),
            ("grammar", grammar),
            ("top_n_tokens", top_n_tokens),
            ("logit_bias", logit_bias),
            ("min_p", min_p),
            ("stop_token_ids", stop_token_ids),
        ];
        if let Some((field, _)) = fields.into_iter().find(|(_, asks)| asks.any()) {
            return Err(unsupported(field));
        }
        if self.typical_p.is_some_and(|typical_p| typical_p != 1.0) {
            return Err(unsupported("typical_p"));
        }
        self.constraint()?;
        if self.apply_chat_template && self.truncate.is_some() {
            let message = "truncate cuts plain text: leave it or apply_chat_template out";
            return Err(Error::invalid("unsupported", "truncate", message));
        }
        Ok(())
    }

    /// What the text must match, if anything.
    fn constraint(&self) -> Result<Option<Constraint>, Error> {
        Ok(self.response_format.as_ref().map(ResponseFormat::constraint).transpose()?.flatten())
    }

    /// As LoRAX decides it: asked for, or one of the fields that only a draw has a use for; never at temperature 0.
    fn is_sampled(&self) -> bool {
        let warps = self.temperature.is_some_and(|temperature| temperature != 1.0)
            || self.top_k.is_some()
            || self.top_p.is_some_and(|top_p| top_p < 1.0);
        (self.do_sample || warps) && self.temperature != Some(0.0)
    }

    /// The plan of one answer, with a seed of its own if none was asked for.
    pub(super) fn plan(
        &self,
        prompt: Prompt,
        composition: Vec<PlanEntry>,
        wishes: Wishes,
        logprobs: Option<u32>,
    ) -> Result<Plan, Error> {
        let neutral = Sampling::default();
        let seed = match self.seed {
            Some(seed) => seed,
            None => random_seed()?,
        };
        let temperature = self.temperature.unwrap_or(1.0);
        let sampling = Sampling {
            // One that makes no sense is for the plan's check to refuse.
            temperature: if wishes.is_sampled || temperature < 0.0 { temperature } else { 0.0 },
            top_k: positive("top_k", self.top_k)?.unwrap_or(0),
            top_p: self.top_p.unwrap_or(neutral.top_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(neutral.repetition_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(neutral.frequency_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(neutral.presence_penalty),
            seed: Some(seed),
            logprobs,
            ..neutral
        };
        let stop =
            StopConditions { strings: self.stop.clone(), token_ids: Vec::new(), ignore_eos: self.ignore_eos_token };
        let token_budget = Some(wishes.tokens_max);
        let constraint = self.constraint()?;
        Ok(Plan { composition, sampling, stop, token_budget, constraint, ..Plan::new(prompt) })
    }
}

/// A number from 1 on; what is beyond a u32 is beyond every limit too.
pub(super) fn positive(field: &str, value: Option<i64>) -> Result<Option<u32>, Error> {
    let Some(value) = value else { return Ok(None) };
    if value < 1 {
        let message = format!("{field} is {value}: use at least 1, or leave it out");
        return Err(Error::invalid("invalid_request", field, message));
    }
    Ok(Some(u32::try_from(value).unwrap_or(u32::MAX)))
}

fn over(field: &str, value: u32, limit: &str, max: u32) -> Error {
    Error::invalid("limit_exceeded", field, format!("{field} is {value}, over the limit {limit} of {max}"))
}

/// Below 2^63, which every client can write.
fn random_seed() -> Result<u64, Error> {
    getrandom::u64().map(|seed| seed >> 1).map_err(|error| Error::Internal(format!("no randomness: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::wire::parse;

    fn parameters(fields: &str) -> LoraxParameters {
        parse::<GenerateBody>(format!(r#"{{"inputs": "a", "parameters": {{{fields}}}}}"#)).expect("parsed").parameters
    }

    fn wishes(fields: &str) -> Result<Wishes, (String, String)> {
        let told = |error: Error| (error.code().to_owned(), error.param().unwrap_or_default().to_owned());
        parameters(fields).check(false, &PlanLimits::default(), 4).map_err(told)
    }

    fn sampling(fields: &str) -> Sampling {
        let parameters = parameters(fields);
        let wishes = parameters.check(false, &PlanLimits::default(), 4).expect("allowed");
        parameters.plan(Prompt::Text("a".into()), Vec::new(), wishes, Some(0)).expect("a plan").sampling
    }

    /// As the clients send it: every field is there.
    #[test]
    fn what_the_clients_send_by_default_asks_for_nothing() {
        let all = r#""adapter_id": null, "adapter_source": null, "merged_adapters": null, "api_token": null,
            "do_sample": false, "max_new_tokens": null, "ignore_eos_token": false, "repetition_penalty": null,
            "return_full_text": false, "stop": [], "seed": null, "temperature": null, "top_k": null, "top_p": null,
            "truncate": null, "typical_p": null, "best_of": null, "watermark": false, "details": true,
            "decoder_input_details": false, "return_k_alternatives": null, "response_format": null"#;
        let expected = Wishes { best_of: 1, alternatives: None, is_sampled: false, tokens_max: 256 };
        assert_eq!(wishes(all), Ok(expected));
        assert_eq!(wishes(""), Ok(expected));
        assert!(parameters(all).details && !parameters("").details);
        assert_eq!(sampling(all).temperature, 0.0);
        assert!(parse::<GenerateBody>(r#"{"inputs": "a", "parameters": null, "stream": null}"#).is_ok());
    }

    #[test]
    fn tokens_are_drawn_where_lorax_would() {
        for (fields, temperature) in [
            (r#""do_sample": true"#, 1.0),
            (r#""do_sample": true, "temperature": 0.5"#, 0.5),
            (r#""temperature": 0.5"#, 0.5),
            (r#""temperature": 1.0"#, 0.0),
            (r#""do_sample": true, "temperature": 0"#, 0.0),
            (r#""top_k": 5"#, 1.0),
            (r#""top_p": 0.5"#, 1.0),
            (r#""top_p": 1.0"#, 0.0),
            (r#""temperature": -1.0"#, -1.0),
        ] {
            assert_eq!(sampling(fields).temperature, temperature, "{fields}");
        }
        assert_eq!(sampling(r#""do_sample": true, "seed": 18446744073709551615"#).seed, Some(u64::MAX));
        assert_ne!(sampling(r#""do_sample": true"#).seed, sampling(r#""do_sample": true"#).seed);
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_name() {
        for (field, value, code) in [
            ("watermark", "true", "unsupported"),
            ("decoder_input_details", "true", "unsupported"),
            ("typical_p", "0.5", "unsupported"),
            ("response_format", r#"{"type": "xml"}"#, "unsupported"),
            ("response_format", "{}", "unsupported"),
            ("grammar", r#"{"type": "regex"}"#, "unsupported"),
            ("top_n_tokens", "2", "unsupported"),
            ("min_p", "0.1", "unsupported"),
            ("max_new_tokens", "0", "invalid_request"),
            ("max_new_tokens", "-1", "invalid_request"),
            ("top_k", "0", "invalid_request"),
            ("truncate", "0", "invalid_request"),
            ("return_k_alternatives", "0", "invalid_request"),
            ("return_k_alternatives", "21", "limit_exceeded"),
            ("best_of", "0", "invalid_request"),
            ("best_of", "2", "invalid_request"),
            ("best_of", "5", "limit_exceeded"),
        ] {
            assert_eq!(wishes(&format!(r#""{field}": {value}"#)), Err((code.into(), field.into())), "{field}: {value}");
        }
        let drawn = r#""do_sample": true, "best_of": 4"#;
        assert_eq!(wishes(drawn).map(|wishes| wishes.best_of), Ok(4));
        assert!(parameters(drawn).check(true, &PlanLimits::default(), 4).is_err(), "a stream has one answer");
        assert!(wishes(&format!(r#"{drawn}, "seed": 1"#)).is_err());
        assert!(wishes(r#""truncate": 3, "apply_chat_template": true"#).is_err());
        assert!(wishes(r#""typical_p": 1.0, "response_format": {"type": "text"}, "unknown": {"a": 1}"#).is_ok());
    }

    #[test]
    fn a_token_is_not_quoted_when_it_is_of_another_type() {
        for value in ["1234567", "[\"hush1234567\"]", "{\"hush1234567\": 1}"] {
            let body = format!(r#"{{"inputs": "a", "parameters": {{"api_token": {value}}}}}"#);
            let error = parse::<GenerateBody>(body).err().expect("refused").to_string();
            assert!(error.contains("api_token") && !error.contains("1234567"), "{error}");
        }
        let token = parameters(r#""api_token": "hush""#).api_token.expect("a token");
        assert_eq!(token.0.as_str(), "hush");
        assert!(parameters(r#""api_token": null"#).api_token.is_none());
    }
}
