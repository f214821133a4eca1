//! What holds of every plan and its check. The fuzz target `plan_validation` is these lines over libFuzzer's bytes.

use generators::{Draw, Granted, PlanCase, plan_case};
use types::{
    ColdPolicy, Composition, Digest, Grants as _, LayerRange, Plan, PlanEntry, PlanError, PlanLimits, Prompt, Span,
    ValidCold, ValidPlan,
};

/// A refusal is a line for people and logs, however long the plan is.
const MESSAGE_BYTES_MAX: usize = 1024;

/// What became of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may run.
    Accepted,
    /// It may not.
    Refused,
}

/// Makes a plan of these bytes and checks it.
///
/// # Panics
/// If something does not hold.
pub(crate) fn hold(bytes: &[u8]) -> Verdict {
    let case = case(bytes);
    let PlanCase { plan, granted, limits } = &case;
    let checked = ValidPlan::check(plan.clone(), granted, limits);
    assert_eq!(
        format!("{checked:?}"),
        format!("{:?}", ValidPlan::check(plan.clone(), granted, limits)),
        "the same twice"
    );
    match checked {
        Ok(valid) => {
            is_within_the_limits(&valid, plan, granted, limits);
            is_canonical(&valid, plan, limits);
            Verdict::Accepted
        }
        Err(error) => {
            is_told(&error);
            Verdict::Refused
        }
    }
}

/// The first byte chooses: a structured plan, or the rest as text in every place that takes some.
fn case(bytes: &[u8]) -> PlanCase {
    match bytes.split_first() {
        Some((first, rest)) if first % 8 == 7 => {
            let text = String::from_utf8_lossy(rest).into_owned();
            let mut plan =
                Plan::new(Prompt::Template { name: text.clone(), arguments: vec![(text.clone(), text.clone())] });
            if first & 8 == 0 {
                plan.prompt = Prompt::Text(text.clone());
                plan.composition.push(PlanEntry::whole(text.clone(), 1.0));
            }
            plan.stop.strings.push(text);
            PlanCase { plan, granted: Granted::default(), limits: PlanLimits::default() }
        }
        Some((_, rest)) => plan_case(&mut Draw::new(rest)),
        None => plan_case(&mut Draw::new(&[])),
    }
}

/// Written down again from the meaning of each limit, not from the code of the check.
fn is_within_the_limits(valid: &ValidPlan, plan: &Plan, granted: &Granted, limits: &PlanLimits) {
    let parts = valid.composition().parts();
    assert!(plan.composition.len() <= limits.composition_entries_max && parts.len() <= plan.composition.len());
    for part in parts {
        assert!(part.weight.is_finite() && part.weight != 0.0 && part.weight.abs() <= limits.adapter_weight_abs_max);
        assert!(granted.adapters.values().any(|digest| *digest == part.adapter), "only what was granted");
        assert!(part.modules.iter().count() > 0);
        assert!(part.layers.first < part.layers.end);
        assert!(part.layers == LayerRange::ALL || part.layers.end <= limits.layers);
    }
    let named = plan.composition.iter().all(|entry| granted.adapter(&entry.adapter).is_some());
    assert!(named, "an adapter of weight 0 must be granted too");
    let limited = |entry: &PlanEntry| match entry.span {
        Span::Whole => None,
        Span::Output { first, end } => Some((first, end.unwrap_or(u32::MAX))),
    };
    let mut asked: Vec<_> = plan.composition.iter().filter(|entry| entry.weight != 0.0).map(limited).collect();
    let mut checked: Vec<_> = parts.iter().map(|part| part.output.map(|output| (output.first, output.end))).collect();
    asked.sort_unstable();
    checked.sort_unstable();
    assert_eq!(asked, checked, "spans are kept, not ignored");
    assert!(checked.iter().flatten().all(|(first, end)| first < end));
    assert_eq!(valid.constraint(), plan.constraint.as_ref());
    let constraint_bytes = valid.constraint().map_or(0, |constraint| constraint.text().len());
    assert!(constraint_bytes <= limits.constraint_bytes_max);
    assert!(valid.constraint().is_none() || !valid.stop().ignore_eos);
    assert_eq!((plan.cold.is_some(), plan.prefetch.len()), (valid.cold().is_some(), valid.prefetch().len()));
    assert!(valid.prefetch().len() <= limits.prefetch_adapters_max);
    assert!(valid.prefetch().iter().all(|digest| granted.adapters.values().any(|granted| granted == digest)));
    if let Some(ValidCold::Fallback(composition)) = valid.cold() {
        let parts = composition.parts();
        assert!(parts.len() <= limits.composition_entries_max);
        assert!(parts.iter().all(|part| granted.adapters.values().any(|digest| *digest == part.adapter)));
    }
    assert!((1..=limits.output_tokens_max).contains(&valid.output_tokens_max()));
    assert_eq!(valid.output_tokens_max(), plan.token_budget.unwrap_or(valid.output_tokens_max()));
    assert!(valid.deadline().as_millis() <= limits.deadline_ms_max.into());
    assert_eq!((valid.prompt(), valid.post_process()), (&plan.prompt, plan.post_process));
    let (bytes, tokens) = match valid.prompt() {
        Prompt::Text(text) => (text.len(), 1),
        Prompt::Tokens(tokens) => (1, tokens.len()),
        Prompt::Messages(messages) => (messages.iter().map(|one| one.role.len() + one.content.len()).sum(), 1),
        Prompt::Chat(chat) => (chat.bytes(), 1),
        Prompt::Template { name, arguments } => {
            assert!(granted.templates.contains(name));
            (arguments.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>().max(1), 1)
        }
    };
    let is_text = !matches!(valid.prompt(), Prompt::Tokens(_));
    assert!(bytes >= 1 && (!is_text || bytes <= limits.prompt_bytes_max));
    assert!(tokens >= 1 && (is_text || tokens <= limits.prompt_tokens_max));
    let stop = valid.stop();
    assert!(stop.strings.len() <= limits.stop_conditions_max && stop.token_ids.len() <= limits.stop_conditions_max);
    assert!(stop.strings.iter().all(|text| (1..=limits.stop_string_bytes_max).contains(&text.len())));
    let sampling = valid.sampling();
    assert!((0.0..=100.0).contains(&sampling.temperature));
    assert!(sampling.top_p > 0.0 && sampling.top_p <= 1.0);
    assert!((0.0..=1.0).contains(&sampling.min_p));
    assert!(sampling.repetition_penalty > 0.0 && sampling.repetition_penalty.is_finite());
    assert!((-2.0..=2.0).contains(&sampling.presence_penalty) && (-2.0..=2.0).contains(&sampling.frequency_penalty));
    let biases: std::collections::BTreeMap<u32, f32> = sampling.logit_bias.iter().copied().collect();
    assert!(biases.len() == sampling.logit_bias.len() && biases.len() <= limits.logit_bias_tokens_max);
    assert!(biases.iter().all(|(token, bias)| *token < limits.vocabulary && (-100.0..=100.0).contains(bias)));
    assert!(sampling.logprobs.is_none_or(|count| count <= limits.logprobs_max));
}

/// Canonical, whatever the order; and what is canonical is accepted again, as it is.
fn is_canonical(valid: &ValidPlan, plan: &Plan, limits: &PlanLimits) {
    let parts = valid.composition().parts();
    let keys: Vec<(Digest, _)> = parts.iter().map(|part| (part.adapter, (part.modules, part.layers))).collect();
    assert!(keys.is_sorted(), "in order of digest");
    assert_eq!(valid.composition(), &Composition::new(parts.iter().rev().copied()));
    let fallback = match valid.cold() {
        Some(ValidCold::Fallback(composition)) => composition.parts(),
        _ => &[],
    };
    let named = parts.iter().chain(fallback).map(|part| part.adapter).chain(valid.prefetch().iter().copied());
    let granted = Granted {
        adapters: named.map(|adapter| (adapter.to_string(), adapter)).collect(),
        templates: match valid.prompt() {
            Prompt::Template { name, .. } => [name.clone()].into(),
            _ => Default::default(),
        },
    };
    let entry = |part: &types::CompositionPart| PlanEntry {
        modules: Some(part.modules),
        layers: Some(part.layers),
        span: part.output.map_or(Span::Whole, |output| Span::Output { first: output.first, end: Some(output.end) }),
        ..PlanEntry::whole(part.adapter.to_string(), part.weight)
    };
    let cold = match valid.cold() {
        Some(ValidCold::Fallback(composition)) => {
            Some(ColdPolicy::Fallback(composition.parts().iter().map(entry).collect()))
        }
        _ => plan.cold.clone(),
    };
    let again = Plan {
        cold,
        prefetch: valid.prefetch().iter().map(Digest::to_string).collect(),
        prompt: valid.prompt().clone(),
        composition: parts.iter().rev().map(entry).collect(),
        sampling: valid.sampling().clone(),
        stop: valid.stop().clone(),
        token_budget: Some(valid.output_tokens_max()),
        ..plan.clone()
    };
    assert_eq!(ValidPlan::check(again, &granted, limits).as_ref(), Ok(valid));
}

fn is_told(error: &PlanError) {
    let codes = ["adapter_not_granted", "unsupported", "limit_exceeded", "invalid_plan", "unknown_template"];
    assert!(codes.contains(&error.code()), "{}", error.code());
    let message = error.to_string();
    assert!((10..=MESSAGE_BYTES_MAX).contains(&message.len()), "{} bytes", message.len());
}
