//! What an activated adapter (aLoRA; Greenewald et al. 2025) is invoked by, and where it begins to act in a prompt. Not here:
//! that it acts on no token before that (`engine`).

use serde_json::{Map, Value};

use super::peft_config::is_neutral;
use super::{AdapterLimits, AdapterRejection};
use crate::ModelConfig;

/// PEFT's key for it, and ours in the canonical form.
pub(super) const KEY: &str = "alora_invocation_tokens";

/// The tokens that invoke an activated adapter; at least one, each in the base's vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    tokens: Vec<u32>,
    /// For each beginning of the tokens the length of its longest proper beginning that is its end, too.
    borders: Vec<usize>,
}

impl Invocation {
    /// What PEFT's configuration says. `None` if the adapter acts on every token: an empty list is as none to PEFT, too.
    pub(super) fn of(
        config: &Map<String, Value>,
        base: &ModelConfig,
        limits: &AdapterLimits,
    ) -> Result<Option<Self>, AdapterRejection> {
        let Some(value) = config.get(KEY).filter(|value| !is_neutral(value)) else { return Ok(None) };
        let refused = |reason: &str| Err(AdapterRejection::Unsupported(format!("`{KEY}` is set {reason}")));
        // PEFT refuses both, as variants that cannot be combined.
        if config.get("use_dora").is_some_and(|dora| !is_neutral(dora)) {
            return refused("and so is `use_dora`");
        }
        if config.get("init_lora_weights").is_some_and(|init| init == "mica") {
            return refused("and `init_lora_weights` is mica");
        }
        // PEFT looks for the invocation in no other kind of model: the adapter would never act.
        if config.get("task_type").is_none_or(|task| task != "CAUSAL_LM") {
            return refused("and `task_type` is not CAUSAL_LM");
        }
        Self::read(value, base, limits).map(Some)
    }

    /// A list of token ids.
    pub(super) fn read(value: &Value, base: &ModelConfig, limits: &AdapterLimits) -> Result<Self, AdapterRejection> {
        let malformed = || AdapterRejection::Malformed(format!("`{KEY}` must be a list of token ids"));
        let values = value.as_array().filter(|values| !values.is_empty()).ok_or_else(malformed)?;
        limits.check("the length of its invocation in tokens", values.len(), limits.invocation_tokens_max)?;
        let mut tokens = Vec::with_capacity(values.len());
        for value in values {
            let id = value.as_u64().ok_or_else(malformed)?;
            let token = u32::try_from(id).ok().filter(|token| (*token as usize) < base.vocabulary);
            tokens.push(token.ok_or_else(|| {
                let vocabulary = base.vocabulary;
                AdapterRejection::ShapeMismatch(format!(
                    "its invocation has token {id}, of a vocabulary of {vocabulary}"
                ))
            })?);
        }
        Ok(Self::new(tokens))
    }

    pub(super) fn new(tokens: Vec<u32>) -> Self {
        let mut invocation = Self { tokens, borders: vec![0] };
        let mut border = 0;
        for place in 1..invocation.tokens.len() {
            border = invocation.tokens.get(place).map_or(0, |token| invocation.extend(border, *token));
            invocation.borders.push(border);
        }
        invocation
    }

    /// How many of the tokens stand at the end of a text that goes on with `token`, if `matched` stood there before.
    fn extend(&self, mut matched: usize, token: u32) -> usize {
        while matched > 0 && self.tokens.get(matched) != Some(&token) {
            matched = self.borders.get(matched - 1).copied().unwrap_or(0);
        }
        matched + usize::from(self.tokens.get(matched) == Some(&token))
    }

    /// The tokens, in order.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The position of the first token that the adapter acts on: where the invocation begins for the last time, as in PEFT
    /// (`calculate_alora_offsets`). `None` if it is nowhere in the prompt: the adapter then acts on nothing, whatever is
    /// generated. In time linear in the prompt, whatever the tokens are (Knuth, Morris and Pratt 1977).
    #[must_use]
    pub fn last_start(&self, prompt: &[u32]) -> Option<u32> {
        let (mut matched, mut start) = (0, None);
        for (end, token) in (1..).zip(prompt) {
            matched = self.extend(matched, *token);
            if matched == self.tokens.len() {
                start = Some(end - matched);
            }
        }
        start.and_then(|start| u32::try_from(start).ok())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(tokens: Value) -> Result<Option<Invocation>, AdapterRejection> {
        let config = Map::from_iter([(KEY.to_owned(), tokens), ("task_type".to_owned(), json!("CAUSAL_LM"))]);
        let limits = AdapterLimits { invocation_tokens_max: 3, ..AdapterLimits::default() };
        Invocation::of(&config, &crate::adapter::tiny_config(1), &limits)
    }

    #[test]
    fn it_is_a_bounded_list_of_tokens_that_exist() {
        assert_eq!(of(json!([7, 0, 31])).unwrap().unwrap().tokens(), [7, 0, 31]);
        assert_eq!((of(Value::Null), of(json!([]))), (Ok(None), Ok(None)));
        for (tokens, code) in [
            (json!(true), "adapter_malformed"),
            (json!(7), "adapter_malformed"),
            (json!("7"), "adapter_malformed"),
            (json!({"7": 7}), "adapter_malformed"),
            (json!(["7"]), "adapter_malformed"),
            (json!([7.5]), "adapter_malformed"),
            (json!([-1]), "adapter_malformed"),
            (json!([[7]]), "adapter_malformed"),
            (json!([7, null]), "adapter_malformed"),
            (json!([32]), "adapter_shape_mismatch"),
            (json!([u64::from(u32::MAX) + 8]), "adapter_shape_mismatch"),
            (json!([1, 2, 3, 4]), "adapter_too_large"),
        ] {
            assert_eq!(of(tokens.clone()).unwrap_err().code(), code, "{tokens}");
        }
    }

    #[test]
    fn the_last_place_counts_and_it_may_overlap_one_before() {
        let invocation = Invocation::new(vec![5, 6, 5]);
        for (prompt, start) in [
            (&[5, 6, 5, 1][..], Some(0)),
            (&[1, 5, 6, 5], Some(1)),
            (&[5, 6, 5, 2, 5, 6, 5, 3], Some(4)),
            (&[5, 6, 5, 6, 5], Some(2)),
            (&[5, 6, 5, 6], Some(0)),
            (&[5, 6], None),
            (&[6, 5, 6], None),
            (&[], None),
        ] {
            assert_eq!(invocation.last_start(prompt), start, "{prompt:?}");
        }
    }

    #[test]
    fn it_is_found_where_a_plain_search_finds_it() {
        let mut state = 9u32;
        let mut token = |kinds: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % kinds
        };
        let mut found = 0;
        for case in 0..3000 {
            let kinds = 1 + case % 3;
            let tokens: Vec<u32> = (0..1 + token(6)).map(|_| token(kinds)).collect();
            let prompt: Vec<u32> = (0..token(40)).map(|_| token(kinds)).collect();
            let plain = prompt.windows(tokens.len()).rposition(|window| window == tokens).map(|start| start as u32);
            assert_eq!(Invocation::new(tokens.clone()).last_start(&prompt), plain, "{tokens:?} in {prompt:?}");
            found += usize::from(plain.is_some());
        }
        assert!((1000..2900).contains(&found), "{found}");
    }
}
