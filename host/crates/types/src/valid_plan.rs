//! The check of a plan against grants and limits: `Plan` in, `ValidPlan` out. Only a `ValidPlan` reaches the engine.
//!
//! Not here: resolving names (a [`Grants`] does), rendering and tokenising the prompt.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::{
    Blame, ColdPolicy, Composition, CompositionPart, Digest, LayerRange, ModuleSet, OutputRange, Plan, PlanEntry,
    PlanLimits, Prompt, Sampling, Span, StopConditions,
};

/// A factor this large takes a seen token out for good.
const REPETITION_PENALTY_MAX: f32 = 100.0;

/// What a function (or a caller without one) may use.
pub trait Grants {
    /// The content behind an alias or digest, if it may be used. One answer for "not there" and "not granted": the
    /// difference must not be observable.
    fn adapter(&self, alias_or_digest: &str) -> Option<Digest>;

    /// Whether the manifest has a prompt template of this name.
    fn has_template(&self, name: &str) -> bool;
}

/// Why a plan was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// Not granted, or not there.
    #[error("there is no adapter `{0}` that may be used here; add it, or grant it in the manifest")]
    AdapterNotGranted(String),
    /// Declared in the contract, not there yet.
    #[error("{0} is not supported yet")]
    Unsupported(&'static str),
    /// Over a limit.
    #[error("{what} is {value}, over the limit {limit} of {max}")]
    OverLimit {
        /// What was too large.
        what: &'static str,
        /// How large.
        value: String,
        /// The limit's name.
        limit: &'static str,
        /// The limit.
        max: String,
    },
    /// A value outside its range.
    #[error("{what} is {value}: {expected}")]
    OutOfRange {
        /// What.
        what: &'static str,
        /// The value.
        value: String,
        /// The range.
        expected: &'static str,
    },
    /// No such template.
    #[error("the manifest has no prompt template `{0}`")]
    UnknownTemplate(String),
}

impl PlanError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::AdapterNotGranted(_) => "adapter_not_granted",
            Self::Unsupported(_) => "unsupported",
            Self::OverLimit { .. } => "limit_exceeded",
            Self::OutOfRange { .. } => "invalid_plan",
            Self::UnknownTemplate(_) => "unknown_template",
        }
    }

    /// A plan is made by a function; the HTTP surface turns the blame to the caller where the caller wrote it.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        Blame::Function
    }
}

/// A [`ColdPolicy`] that was checked: what is done when an adapter of the composition is not in memory.
#[derive(Clone, Debug, PartialEq)]
pub enum ValidCold {
    /// Wait for at most so long.
    Wait(Duration),
    /// Serve the base.
    Base,
    /// Serve this composition.
    Fallback(Composition),
    /// Refuse.
    Refuse,
}

/// A plan that was checked. It can only be made by [`ValidPlan::check`].
#[derive(Clone, Debug, PartialEq)]
pub struct ValidPlan {
    prompt: Prompt,
    composition: Composition,
    sampling: Sampling,
    stop: StopConditions,
    deadline: Duration,
    output_tokens_max: u32,
    post_process: bool,
    cold: Option<ValidCold>,
    prefetch: Vec<Digest>,
}

impl ValidPlan {
    /// Checks a plan.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check(plan: Plan, grants: &dyn Grants, limits: &PlanLimits) -> Result<Self, PlanError> {
        unsupported(&plan)?;
        check_prompt(&plan.prompt, grants, limits)?;
        check_sampling(&plan.sampling, limits)?;
        check_stop(&plan.stop, limits)?;
        let composition = check_composition(&plan.composition, grants, limits)?;
        let cold = plan.cold.map(|cold| check_cold(cold, grants, limits)).transpose()?;
        let prefetch = check_prefetch(&plan.prefetch, grants, limits)?;
        let budget = plan.token_budget.unwrap_or(limits.output_tokens_default.min(limits.output_tokens_max));
        at_most("the token budget", budget, "output_tokens_max", limits.output_tokens_max)?;
        if budget == 0 {
            return Err(out_of_range("the token budget", 0, "at least 1"));
        }
        let deadline_ms = plan.deadline_ms.unwrap_or(limits.deadline_ms_max);
        at_most("the deadline", deadline_ms, "deadline_ms_max", limits.deadline_ms_max)?;
        Ok(Self {
            prompt: plan.prompt,
            composition,
            sampling: plan.sampling,
            stop: plan.stop,
            deadline: Duration::from_millis(deadline_ms.into()),
            output_tokens_max: budget,
            post_process: plan.post_process,
            cold,
            prefetch,
        })
    }

    /// What the model is given.
    #[must_use]
    pub const fn prompt(&self) -> &Prompt {
        &self.prompt
    }

    /// The adapters, resolved and in canonical form.
    #[must_use]
    pub const fn composition(&self) -> &Composition {
        &self.composition
    }

    /// How tokens are chosen.
    #[must_use]
    pub const fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// When to stop.
    #[must_use]
    pub const fn stop(&self) -> &StopConditions {
        &self.stop
    }

    /// Time for the whole answer.
    #[must_use]
    pub const fn deadline(&self) -> Duration {
        self.deadline
    }

    /// How many tokens may be generated; at least 1.
    #[must_use]
    pub const fn output_tokens_max(&self) -> u32 {
        self.output_tokens_max
    }

    /// Whether the plugin sees the chunks.
    #[must_use]
    pub const fn post_process(&self) -> bool {
        self.post_process
    }

    /// What is done when an adapter is not in memory. `None` waits until the deadline.
    #[must_use]
    pub const fn cold(&self) -> Option<&ValidCold> {
        self.cold.as_ref()
    }

    /// Adapters that will be needed later.
    #[must_use]
    pub fn prefetch(&self) -> &[Digest] {
        &self.prefetch
    }

    /// The same plan with another composition, for what is left of its time.
    ///
    /// # Errors
    /// What is wrong with the composition.
    pub fn switched(
        &self,
        entries: &[PlanEntry],
        grants: &dyn Grants,
        limits: &PlanLimits,
        deadline: Duration,
    ) -> Result<Self, PlanError> {
        let composition = check_composition(entries, grants, limits)?;
        Ok(Self { composition, deadline: deadline.min(self.deadline), prefetch: Vec::new(), ..self.clone() })
    }

    /// The same plan with what its own cold policy says in place of its composition; as it is if that says to wait or refuse.
    #[must_use]
    pub fn taken_cold(mut self) -> Self {
        match self.cold.take() {
            Some(ValidCold::Base) => self.composition = Composition::default(),
            Some(ValidCold::Fallback(composition)) => self.composition = composition,
            other => self.cold = other,
        }
        self
    }
}

fn check_cold(cold: ColdPolicy, grants: &dyn Grants, limits: &PlanLimits) -> Result<ValidCold, PlanError> {
    Ok(match cold {
        ColdPolicy::Wait(wait_ms) => ValidCold::Wait(Duration::from_millis(wait_ms.into())),
        ColdPolicy::Base => ValidCold::Base,
        ColdPolicy::Fallback(entries) => ValidCold::Fallback(check_composition(&entries, grants, limits)?),
        ColdPolicy::Refuse => ValidCold::Refuse,
    })
}

fn check_prefetch(names: &[String], grants: &dyn Grants, limits: &PlanLimits) -> Result<Vec<Digest>, PlanError> {
    let max = limits.prefetch_adapters_max;
    at_most("the number of adapters to prefetch", names.len(), "prefetch_adapters_max", max)?;
    let granted = |name: &String| grants.adapter(name).ok_or_else(|| PlanError::AdapterNotGranted(shorten(name)));
    names.iter().map(granted).collect()
}

fn unsupported(plan: &Plan) -> Result<(), PlanError> {
    if plan.constraint.is_some() {
        return Err(PlanError::Unsupported("an output constraint"));
    }
    Ok(())
}

fn check_prompt(prompt: &Prompt, grants: &dyn Grants, limits: &PlanLimits) -> Result<(), PlanError> {
    let bytes = match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Tokens(tokens) => {
            at_most("the prompt's length in tokens", tokens.len(), "prompt_tokens_max", limits.prompt_tokens_max)?;
            tokens.len()
        }
        Prompt::Messages(messages) => messages.iter().map(|m| m.role.len() + m.content.len()).sum(),
        Prompt::Chat(chat) => {
            let bytes = chat.bytes();
            at_most("the messages' length in bytes", bytes, "prompt_bytes_max", limits.prompt_bytes_max)?;
            bytes
        }
        Prompt::Template { name, arguments } => {
            if !grants.has_template(name) {
                return Err(PlanError::UnknownTemplate(shorten(name)));
            }
            arguments.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>().max(1)
        }
    };
    if bytes == 0 {
        return Err(out_of_range("the prompt's length", 0, "at least 1"));
    }
    if !matches!(prompt, Prompt::Tokens(_)) {
        at_most("the prompt's length in bytes", bytes, "prompt_bytes_max", limits.prompt_bytes_max)?;
    }
    Ok(())
}

fn check_sampling(sampling: &Sampling, limits: &PlanLimits) -> Result<(), PlanError> {
    let temperature = sampling.temperature;
    if !(0.0..=100.0).contains(&temperature) {
        return Err(out_of_range("temperature", temperature, "between 0 and 100"));
    }
    if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
        return Err(out_of_range("top_p", sampling.top_p, "over 0 and at most 1"));
    }
    if !(0.0..=1.0).contains(&sampling.min_p) {
        return Err(out_of_range("min_p", sampling.min_p, "between 0 and 1"));
    }
    let repetition = sampling.repetition_penalty;
    if !(repetition > 0.0 && repetition <= REPETITION_PENALTY_MAX) {
        return Err(out_of_range("repetition_penalty", repetition, "over 0 and at most 100"));
    }
    for (what, penalty) in
        [("presence_penalty", sampling.presence_penalty), ("frequency_penalty", sampling.frequency_penalty)]
    {
        if !(-2.0..=2.0).contains(&penalty) {
            return Err(out_of_range(what, penalty, "between -2 and 2"));
        }
    }
    if let Some(count) = sampling.logprobs {
        at_most("logprobs", count, "logprobs_max", limits.logprobs_max)?;
    }
    check_bias(&sampling.logit_bias, limits)
}

fn check_bias(biases: &[(u32, f32)], limits: &PlanLimits) -> Result<(), PlanError> {
    let count_max = limits.logit_bias_tokens_max;
    at_most("the number of tokens in logit_bias", biases.len(), "logit_bias_tokens_max", count_max)?;
    let mut seen = BTreeSet::new();
    for &(token, bias) in biases {
        if token >= limits.vocabulary {
            return Err(out_of_range("a token of logit_bias", token, "a token of the base's vocabulary"));
        }
        if !(-100.0..=100.0).contains(&bias) {
            return Err(out_of_range("a bias of logit_bias", bias, "between -100 and 100"));
        }
        if !seen.insert(token) {
            return Err(out_of_range("a token of logit_bias", token, "named once"));
        }
    }
    Ok(())
}

fn check_stop(stop: &StopConditions, limits: &PlanLimits) -> Result<(), PlanError> {
    let count = stop.strings.len().max(stop.token_ids.len());
    at_most("the number of stop conditions", count, "stop_conditions_max", limits.stop_conditions_max)?;
    for string in &stop.strings {
        if string.is_empty() {
            return Err(out_of_range("a stop string's length", 0, "at least 1"));
        }
        at_most("a stop string's length", string.len(), "stop_string_bytes_max", limits.stop_string_bytes_max)?;
    }
    Ok(())
}

fn check_composition(
    entries: &[PlanEntry],
    grants: &dyn Grants,
    limits: &PlanLimits,
) -> Result<Composition, PlanError> {
    let count_max = limits.composition_entries_max;
    at_most("the number of composition entries", entries.len(), "composition_entries_max", count_max)?;
    let parts = entries.iter().map(|entry| check_entry(entry, grants, limits)).collect::<Result<Vec<_>, _>>()?;
    Ok(Composition::new(parts))
}

fn check_entry(entry: &PlanEntry, grants: &dyn Grants, limits: &PlanLimits) -> Result<CompositionPart, PlanError> {
    let weight = entry.weight;
    if !weight.is_finite() {
        return Err(out_of_range("an adapter's weight", weight, "a finite number"));
    }
    at_most("an adapter's weight", weight.abs(), "adapter_weight_abs_max", limits.adapter_weight_abs_max)?;
    let modules = entry.modules.unwrap_or(ModuleSet::ALL);
    if modules.is_empty() {
        return Err(out_of_range("the number of selected modules", 0, "at least 1"));
    }
    let layers = entry.layers.unwrap_or(LayerRange::ALL);
    let layers_ok = layers.first < layers.end && (layers == LayerRange::ALL || layers.end <= limits.layers);
    if !layers_ok {
        let range = format!("{}..{}", layers.first, layers.end);
        return Err(out_of_range("a layer range", range, "not empty and within the base's layers"));
    }
    let adapter =
        grants.adapter(&entry.adapter).ok_or_else(|| PlanError::AdapterNotGranted(shorten(&entry.adapter)))?;
    let output = check_span(entry.span)?;
    Ok(CompositionPart { adapter, weight, modules, layers, output })
}

fn check_span(span: Span) -> Result<Option<OutputRange>, PlanError> {
    let Span::Output { first, end } = span else { return Ok(None) };
    let end = end.unwrap_or(u32::MAX);
    if first < end {
        return Ok(Some(OutputRange { first, end }));
    }
    Err(out_of_range("a span of the output", format!("{first}..{end}"), "not empty"))
}

fn at_most<T: PartialOrd + ToString>(
    what: &'static str,
    value: T,
    limit: &'static str,
    max: T,
) -> Result<(), PlanError> {
    if value <= max {
        return Ok(());
    }
    Err(PlanError::OverLimit { what, value: value.to_string(), limit, max: max.to_string() })
}

fn out_of_range(what: &'static str, value: impl ToString, expected: &'static str) -> PlanError {
    PlanError::OutOfRange { what, value: value.to_string(), expected }
}

/// A hostile name must not fill the log.
fn shorten(name: &str) -> String {
    name.chars().take(96).collect()
}

#[cfg(test)]
mod tests;
