//! Limits that a plan is checked against, each with its unit in its name.

/// What one plan may ask for.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanLimits {
    /// Entries of a composition.
    pub composition_entries_max: usize,
    /// Absolute value of an entry's weight.
    pub adapter_weight_abs_max: f32,
    /// Adapters that a plan may name to be needed later.
    pub prefetch_adapters_max: usize,
    /// Text of a prompt, its messages or its template arguments, in all.
    pub prompt_bytes_max: usize,
    /// Tokens of a prompt that is given as tokens.
    pub prompt_tokens_max: usize,
    /// Tokens to generate.
    pub output_tokens_max: u32,
    /// Tokens to generate when the plan does not say.
    pub output_tokens_default: u32,
    /// Stop strings and stop tokens, each.
    pub stop_conditions_max: usize,
    /// Bytes of one stop string.
    pub stop_string_bytes_max: usize,
    /// Alternatives to each token.
    pub logprobs_max: u32,
    /// Tokens whose logits are biased.
    pub logit_bias_tokens_max: usize,
    /// Bytes of text that a plugin may hold back.
    pub held_bytes_max: usize,
    /// Bytes of text that a plugin may answer with, whether it reads along or answers by itself.
    pub answer_bytes_max: usize,
    /// KV blocks that a prompt and its token budget may need together, shared ones included.
    pub kv_blocks_max: u32,
    /// Bytes of adapters, in their stored form, that a request may have loaded.
    pub cold_bytes_max: u64,
    /// Milliseconds for a request, and the deadline when the plan does not say.
    pub deadline_ms_max: u32,
    /// Layers of the base.
    pub layers: u32,
    /// Tokens in the base's vocabulary.
    pub vocabulary: u32,
}

impl Default for PlanLimits {
    fn default() -> Self {
        Self {
            composition_entries_max: 8,
            adapter_weight_abs_max: 16.0,
            prefetch_adapters_max: 32,
            prompt_bytes_max: 1 << 20,
            prompt_tokens_max: 8192,
            output_tokens_max: 4096,
            output_tokens_default: 256,
            stop_conditions_max: 16,
            stop_string_bytes_max: 256,
            logprobs_max: 20,
            logit_bias_tokens_max: 300,
            held_bytes_max: 1 << 20,
            answer_bytes_max: 4 << 20,
            kv_blocks_max: u32::MAX,
            cold_bytes_max: u64::MAX,
            deadline_ms_max: 120_000,
            layers: u32::MAX,
            vocabulary: u32::MAX,
        }
    }
}
