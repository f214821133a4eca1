//! The check of a plan against grants and limits: `Plan` in, `ValidPlan` out. Only a `ValidPlan` reaches the engine.
//!
//! Not here: resolving names (a [`Grants`] does), rendering and tokenising the prompt.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::{
    Blame, Composition, CompositionPart, Digest, LayerRange, ModuleSet, Plan, PlanEntry, PlanLimits, Prompt, Sampling,
    Span, StopConditions,
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
}

fn unsupported(plan: &Plan) -> Result<(), PlanError> {
    if plan.constraint.is_some() {
        return Err(PlanError::Unsupported("an output constraint"));
    }
    if plan.cold.is_some() {
        return Err(PlanError::Unsupported("a cold policy"));
    }
    if !plan.prefetch.is_empty() {
        return Err(PlanError::Unsupported("prefetch"));
    }
    if plan.composition.iter().any(|entry| entry.span != Span::Whole) {
        return Err(PlanError::Unsupported("a span other than `whole`"));
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
    Ok(CompositionPart { adapter, weight, modules, layers })
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
mod tests {
    use super::*;
    use crate::Constraint;

    struct OneAdapter;

    impl Grants for OneAdapter {
        fn adapter(&self, name: &str) -> Option<Digest> {
            (name == "mine").then(|| Digest::of(b"mine"))
        }

        fn has_template(&self, name: &str) -> bool {
            name == "greet"
        }
    }

    fn check(change: impl FnOnce(&mut Plan)) -> Result<ValidPlan, PlanError> {
        let mut plan = Plan::new(Prompt::Text("hello".into()));
        change(&mut plan);
        ValidPlan::check(plan, &OneAdapter, &PlanLimits { layers: 30, ..PlanLimits::default() })
    }

    fn code(change: impl FnOnce(&mut Plan)) -> &'static str {
        check(change).map_or_else(|error| error.code(), |_| "accepted")
    }

    #[test]
    fn a_plain_plan_is_accepted() {
        let plan = check(|plan| plan.composition.push(PlanEntry::whole("mine", 0.5))).expect("valid");
        assert_eq!(plan.composition().parts().len(), 1);
        assert_eq!(plan.output_tokens_max(), 256);
    }

    #[test]
    fn what_is_not_granted_is_refused() {
        assert_eq!(code(|plan| plan.composition.push(PlanEntry::whole("yours", 1.0))), "adapter_not_granted");
    }

    #[test]
    fn what_is_not_there_yet_is_unsupported() {
        assert_eq!(code(|plan| plan.constraint = Some(Constraint::Regex("a+".into()))), "unsupported");
        assert_eq!(code(|plan| plan.cold = Some(crate::ColdPolicy::Refuse)), "unsupported");
        assert_eq!(code(|plan| plan.prefetch.push("mine".into())), "unsupported");
        let span = Span::Output { first: 0, end: None };
        let entry = PlanEntry { span, ..PlanEntry::whole("mine", 1.0) };
        assert_eq!(code(|plan| plan.composition.push(entry)), "unsupported");
    }

    #[test]
    fn limits_and_ranges() {
        assert_eq!(code(|plan| plan.composition.push(PlanEntry::whole("mine", f32::NAN))), "invalid_plan");
        assert_eq!(code(|plan| plan.composition.push(PlanEntry::whole("mine", 1e9))), "limit_exceeded");
        assert_eq!(code(|plan| plan.composition = vec![PlanEntry::whole("mine", 1.0); 9]), "limit_exceeded");
        assert_eq!(code(|plan| plan.sampling.temperature = f32::NAN), "invalid_plan");
        assert_eq!(code(|plan| plan.sampling.temperature = -1.0), "invalid_plan");
        assert_eq!(code(|plan| plan.sampling.top_p = 0.0), "invalid_plan");
        assert_eq!(code(|plan| plan.sampling.logprobs = Some(21)), "limit_exceeded");
        assert_eq!(code(|plan| plan.token_budget = Some(0)), "invalid_plan");
        assert_eq!(code(|plan| plan.token_budget = Some(u32::MAX)), "limit_exceeded");
        assert_eq!(code(|plan| plan.deadline_ms = Some(u32::MAX)), "limit_exceeded");
        assert_eq!(code(|plan| plan.stop.strings = vec![String::new()]), "invalid_plan");
        assert_eq!(code(|plan| plan.prompt = Prompt::Text(String::new())), "invalid_plan");
        assert_eq!(code(|plan| plan.prompt = Prompt::Text("x".repeat(2 << 20))), "limit_exceeded");
        assert_eq!(code(|plan| plan.prompt = Prompt::Tokens(vec![1; 9000])), "limit_exceeded");
    }

    #[test]
    fn ranges_of_sampling() {
        let code = |change: &dyn Fn(&mut Sampling)| {
            let limits = PlanLimits { vocabulary: 10, logit_bias_tokens_max: 2, ..PlanLimits::default() };
            let mut plan = Plan::new(Prompt::Text("hello".into()));
            change(&mut plan.sampling);
            ValidPlan::check(plan, &OneAdapter, &limits).map_or_else(|error| error.code(), |_| "accepted")
        };
        for (value, expected) in [(-2.0, "accepted"), (2.0, "accepted"), (2.1, "invalid_plan"), (-2.1, "invalid_plan")]
        {
            assert_eq!(code(&|sampling| sampling.presence_penalty = value), expected, "{value}");
            assert_eq!(code(&|sampling| sampling.frequency_penalty = value), expected, "{value}");
        }
        for (value, expected) in [(0.0, "accepted"), (1.0, "accepted"), (-0.1, "invalid_plan"), (1.1, "invalid_plan")] {
            assert_eq!(code(&|sampling| sampling.min_p = value), expected, "{value}");
        }
        for (value, expected) in
            [(0.0, "invalid_plan"), (0.01, "accepted"), (100.0, "accepted"), (101.0, "invalid_plan")]
        {
            assert_eq!(code(&|sampling| sampling.repetition_penalty = value), expected, "{value}");
        }
        assert_eq!(code(&|sampling| sampling.presence_penalty = f32::NAN), "invalid_plan");
        assert_eq!(code(&|sampling| sampling.repetition_penalty = f32::NAN), "invalid_plan");
        assert_eq!(code(&|sampling| sampling.min_p = f32::NAN), "invalid_plan");
        let bias = |biases: &[(u32, f32)]| code(&|sampling| sampling.logit_bias = biases.to_vec());
        assert_eq!(bias(&[(9, 100.0), (0, -100.0)]), "accepted");
        assert_eq!(bias(&[(10, 1.0)]), "invalid_plan");
        assert_eq!(bias(&[(1, 100.5)]), "invalid_plan");
        assert_eq!(bias(&[(1, f32::NAN)]), "invalid_plan");
        assert_eq!(bias(&[(1, 1.0), (1, 2.0)]), "invalid_plan");
        assert_eq!(bias(&[(1, 1.0), (2, 1.0), (3, 1.0)]), "limit_exceeded");
    }

    #[test]
    fn layer_and_module_selection() {
        let layers = |first, end| Some(LayerRange { first, end });
        let entry = |layers| PlanEntry { layers, ..PlanEntry::whole("mine", 1.0) };
        assert_eq!(code(|plan| plan.composition.push(entry(layers(0, 30)))), "accepted");
        assert_eq!(code(|plan| plan.composition.push(entry(layers(0, 31)))), "invalid_plan");
        assert_eq!(code(|plan| plan.composition.push(entry(layers(5, 5)))), "invalid_plan");
        let none = PlanEntry { modules: Some(ModuleSet::EMPTY), ..PlanEntry::whole("mine", 1.0) };
        assert_eq!(code(|plan| plan.composition.push(none)), "invalid_plan");
    }

    #[test]
    fn templates_must_exist() {
        let template = |name: &str| Prompt::Template { name: name.into(), arguments: Vec::new() };
        assert_eq!(code(|plan| plan.prompt = template("greet")), "accepted");
        assert_eq!(code(|plan| plan.prompt = template("other")), "unknown_template");
        let error = check(|plan| plan.prompt = template(&"x".repeat(1 << 20))).unwrap_err();
        assert!(error.to_string().len() < 200, "a hostile name does not fill the log");
    }
}
