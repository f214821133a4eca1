//! Plans as a hostile plugin or caller would write them, with what was granted and the limits in force. Not here: the check.

use std::collections::{BTreeMap, BTreeSet};

use types::{
    Chat, ChatMessage, ColdPolicy, Constraint, Digest, Grants, LayerRange, Message, Module, ModuleSet, Plan, PlanEntry,
    PlanLimits, Prompt, Sampling, Span, StopConditions, ToolCall,
};

use crate::Draw;

/// Aliases that plans name; which of them are granted is drawn.
const ALIASES: [&str; 6] = ["one", "two", "three", "ONE", "", "a/b"];
const TEMPLATES: [&str; 3] = ["greet", "other", ""];

/// A plan, and what it is checked against.
#[derive(Clone, Debug)]
pub struct PlanCase {
    /// The plan.
    pub plan: Plan,
    /// What may be used.
    pub granted: Granted,
    /// How much may be used.
    pub limits: PlanLimits,
}

/// Adapters and templates that may be used.
#[derive(Clone, Debug, Default)]
pub struct Granted {
    /// Content by alias. Two aliases may stand for the same.
    pub adapters: BTreeMap<String, Digest>,
    /// Names of prompt templates.
    pub templates: BTreeSet<String>,
}

impl Grants for Granted {
    fn adapter(&self, alias_or_digest: &str) -> Option<Digest> {
        let by_digest = || {
            let digest = alias_or_digest.parse().ok()?;
            self.adapters.values().any(|granted| *granted == digest).then_some(digest)
        };
        self.adapters.get(alias_or_digest).copied().or_else(by_digest)
    }

    fn has_template(&self, name: &str) -> bool {
        self.templates.contains(name)
    }
}

/// A plan with grants and limits.
pub fn plan_case(draw: &mut Draw<'_>) -> PlanCase {
    let granted = granted(draw);
    let limits = limits(draw);
    let mut plan = Plan::new(prompt(draw));
    plan.composition = composition(draw);
    // Most plans leave most of it alone: what is drawn for every field is refused for the first.
    for _ in 0..draw.below(4) {
        change(&mut plan, draw);
    }
    PlanCase { plan, granted, limits }
}

fn granted(draw: &mut Draw<'_>) -> Granted {
    let content = |index: usize| Digest::of(&[index as u8]);
    let aliases = ALIASES.iter().enumerate();
    let adapters = aliases.filter_map(|(index, alias)| match draw.below(4) {
        0 | 1 => Some(((*alias).to_owned(), content(index))),
        2 => Some(((*alias).to_owned(), content(0))),
        _ => None,
    });
    let adapters = adapters.collect();
    let templates = TEMPLATES.iter().filter(|_| !draw.one_in(3)).map(|name| (*name).to_owned()).collect();
    Granted { adapters, templates }
}

fn limits(draw: &mut Draw<'_>) -> PlanLimits {
    let mut limits = PlanLimits { layers: draw.pick(&[2, 1, 30, u32::MAX, 0]), ..PlanLimits::default() };
    if draw.one_in(3) {
        limits.composition_entries_max = draw.below(4);
        limits.adapter_weight_abs_max = draw.pick(&[1.0, 0.0, 16.0, f32::INFINITY, f32::NAN]);
        limits.prompt_bytes_max = draw.below(64);
        limits.prompt_tokens_max = draw.below(8);
        limits.output_tokens_max = draw.count();
        limits.output_tokens_default = draw.count();
        limits.stop_conditions_max = draw.below(4);
        limits.stop_string_bytes_max = draw.below(8);
        limits.constraint_bytes_max = draw.below(8);
        limits.logprobs_max = draw.count();
        limits.logit_bias_tokens_max = draw.below(4);
        limits.vocabulary = draw.count();
        limits.deadline_ms_max = draw.count();
    }
    limits
}

fn prompt(draw: &mut Draw<'_>) -> Prompt {
    match draw.below(7) {
        6 => Prompt::Chat(chat(draw)),
        0 | 1 => Prompt::Text(draw.text()),
        2 => Prompt::Tokens((0..draw.below(12)).map(|_| draw.count()).collect()),
        3 => {
            let roles = ["user", "system", "assistant", "tool", "", "root"];
            let message = |draw: &mut Draw<'_>| Message { role: draw.pick(&roles).into(), content: draw.text() };
            Prompt::Messages((0..draw.below(4)).map(|_| message(draw)).collect())
        }
        _ => Prompt::Template {
            name: draw.pick(&TEMPLATES).to_owned(),
            arguments: (0..draw.below(3)).map(|_| (draw.text(), draw.text())).collect(),
        },
    }
}

fn chat(draw: &mut Draw<'_>) -> Chat {
    let message = |draw: &mut Draw<'_>| ChatMessage {
        role: draw.text(),
        content: draw.text(),
        name: draw.maybe(4, Draw::text),
        tool_calls: (0..draw.below(3))
            .map(|_| ToolCall { id: draw.text(), name: draw.text(), arguments: draw.text() })
            .collect(),
        tool_call_id: draw.maybe(4, Draw::text),
    };
    let messages = (0..draw.below(4)).map(|_| message(draw)).collect();
    Chat { messages, tools: (0..draw.below(3)).map(|_| draw.text()).collect() }
}

fn composition(draw: &mut Draw<'_>) -> Vec<PlanEntry> {
    let count = if draw.one_in(16) { draw.below(40) } else { draw.below(4) };
    (0..count).map(|_| entry(draw)).collect()
}

fn entry(draw: &mut Draw<'_>) -> PlanEntry {
    let adapter = match draw.below(8) {
        6 => Digest::of(&[draw.below(ALIASES.len()) as u8]).to_string(),
        7 => draw.text(),
        _ => draw.pick(&ALIASES).to_owned(),
    };
    let layer = |draw: &mut Draw<'_>| if draw.one_in(4) { draw.count() } else { draw.below(4) as u32 };
    let span = |draw: &mut Draw<'_>| Span::Output { first: draw.count(), end: draw.maybe(2, Draw::count) };
    PlanEntry {
        adapter,
        weight: draw.float(),
        modules: draw.maybe(4, |draw| (0..draw.below(4)).map(|_| draw.pick(&Module::ALL)).collect::<ModuleSet>()),
        layers: draw.maybe(4, |draw| LayerRange { first: layer(draw), end: layer(draw) }),
        span: draw.maybe(32, span).unwrap_or(Span::Whole),
    }
}

/// Sets one field to anything.
fn change(plan: &mut Plan, draw: &mut Draw<'_>) {
    match draw.below(20) {
        0 => plan.token_budget = Some(draw.count()),
        1 => plan.deadline_ms = Some(draw.count()),
        2 => plan.post_process = true,
        3 => plan.stop = stop(draw),
        4 => plan.prompt = prompt(draw),
        5 => plan.constraint = Some(constraint(draw)),
        6 => plan.cold = Some(cold(draw)),
        7 => plan.prefetch = (0..draw.below(3)).map(|_| draw.text()).collect(),
        8 => plan.composition.extend(composition(draw)),
        _ => change_sampling(&mut plan.sampling, draw),
    }
}

fn change_sampling(sampling: &mut Sampling, draw: &mut Draw<'_>) {
    match draw.below(10) {
        9 => sampling.logit_bias = (0..draw.below(4)).map(|_| (draw.count(), draw.float())).collect(),
        0 => sampling.temperature = draw.float(),
        1 => sampling.top_k = draw.count(),
        2 => sampling.top_p = draw.float(),
        3 => sampling.min_p = draw.float(),
        4 => sampling.repetition_penalty = draw.float(),
        5 => sampling.presence_penalty = draw.float(),
        6 => sampling.frequency_penalty = draw.float(),
        7 => sampling.seed = Some(draw.bits()),
        _ => sampling.logprobs = Some(draw.count()),
    }
}

fn stop(draw: &mut Draw<'_>) -> StopConditions {
    StopConditions {
        strings: (0..draw.below(6)).map(|_| draw.text()).collect(),
        token_ids: (0..draw.below(6)).map(|_| draw.count()).collect(),
        ignore_eos: draw.one_in(2),
    }
}

fn constraint(draw: &mut Draw<'_>) -> Constraint {
    let text = draw.text();
    draw.pick(&[Constraint::JsonSchema, Constraint::Regex, Constraint::Grammar])(text)
}

fn cold(draw: &mut Draw<'_>) -> ColdPolicy {
    match draw.below(4) {
        0 => ColdPolicy::Wait(draw.count()),
        1 => ColdPolicy::Base,
        2 => ColdPolicy::Refuse,
        _ => ColdPolicy::Fallback(composition(draw)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_bytes_the_plan_is_a_plain_one() {
        let case = plan_case(&mut Draw::new(&[]));
        assert_eq!(case.plan, Plan::new(Prompt::Text("a".into())));
        assert!(case.granted.adapter("one").is_some() && case.granted.has_template("greet"));
        assert_eq!(case.granted.adapter(&Digest::of(&[1]).to_string()), Some(Digest::of(&[1])));
        assert_eq!(case.granted.adapter(&Digest::of(b"other").to_string()), None);
    }
}
