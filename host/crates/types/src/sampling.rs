//! How tokens are chosen and when to stop. Not here: the sampler.

/// Sampling parameters, unchecked. The neutral value of each is in [`Sampling::default`].
///
/// They act in this order (vLLM's): bias, repetition, frequency and presence penalty on the logits; then temperature,
/// `min_p`, `top_k`, `top_p` on what is left. Greedy takes the highest logit after the penalties.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep this many of the most likely tokens; 0 is off.
    pub top_k: u32,
    /// Keep the smallest set whose probability reaches this; 1 is off.
    pub top_p: f32,
    /// Drop tokens below this share of the most likely one; 0 is off.
    pub min_p: f32,
    /// Divide the positive and multiply the negative logits of tokens of prompt and output (Keskar et al. 2019); 1 is off.
    pub repetition_penalty: f32,
    /// Subtract from the logits of tokens of the output; 0 is off.
    pub presence_penalty: f32,
    /// Subtract from the logits of tokens of the output, once for each time; 0 is off.
    pub frequency_penalty: f32,
    /// Add to the logits of these tokens; each token at most once.
    pub logit_bias: Vec<(u32, f32)>,
    /// Makes the choice repeatable; drawn by the host if absent, and then written into the receipt.
    pub seed: Option<u64>,
    /// Report log-probabilities with this many alternatives.
    pub logprobs: Option<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
            logprobs: None,
        }
    }
}

/// When to stop, besides the token budget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopConditions {
    /// Stop before any of these appears in the text.
    pub strings: Vec<String>,
    /// Stop at any of these tokens.
    pub token_ids: Vec<u32>,
    /// Go on after the end-of-sequence token.
    pub ignore_eos: bool,
}
