//! Between the types of the contract and those of the host. Not here: any check of a plan; what a guest wrote is only
//! put into our types.

use types::{
    Action, Chunk, ChunkToken, ColdPolicy, Constraint, Decision, Ending, FinishReason, HookUsage, InvocationRequest,
    LayerRange, Message, Module, ModuleSet, Plan, PlanEntry, Prompt, Rejection, Sampling, Span, StopConditions,
};

use crate::bindings::tenon::plugin::{catalog, log, types as wit};
use crate::{CapabilityError, CatalogEntry, LogLevel, Residency};

/// Bytes of a rejection's code.
const CODE_BYTES_MAX: usize = 64;

pub(crate) fn request_to_wit(request: &InvocationRequest) -> wit::Request {
    wit::Request {
        id: request.id.clone(),
        function: request.function.clone(),
        version: request.version,
        text: request.text.clone(),
        input_json: request.input_json.clone(),
        messages: request.messages.iter().map(message_to_wit).collect(),
        parameters: request.parameters.iter().map(pair_to_wit).collect(),
        stream: request.stream,
        max_tokens: request.max_tokens,
    }
}

fn message_to_wit(message: &Message) -> wit::Message {
    wit::Message { role: message.role.clone(), content: message.content.clone() }
}

pub(crate) fn pair_to_wit((name, value): &(String, String)) -> wit::Pair {
    wit::Pair { name: name.clone(), value: value.clone() }
}

pub(crate) fn chunk_to_wit(chunk: Chunk) -> wit::Chunk {
    let tokens = chunk.tokens.into_iter().map(|ChunkToken { id, logprob }| wit::Token { id, logprob }).collect();
    wit::Chunk { text: chunk.text, tokens }
}

pub(crate) fn chunk_from_wit(chunk: wit::Chunk) -> Chunk {
    let tokens = chunk.tokens.into_iter().map(|wit::Token { id, logprob }| ChunkToken { id, logprob }).collect();
    Chunk { text: chunk.text, tokens }
}

pub(crate) fn usage_to_wit(usage: HookUsage) -> wit::Usage {
    let finish = match usage.finish {
        FinishReason::Stop => wit::FinishReason::Stop,
        FinishReason::Length => wit::FinishReason::Length,
        FinishReason::StoppedByPlugin => wit::FinishReason::StoppedByPlugin,
        FinishReason::Cancelled => wit::FinishReason::Cancelled,
        FinishReason::Deadline => wit::FinishReason::Deadline,
    };
    wit::Usage { prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens, finish }
}

pub(crate) const fn usage_from_wit(usage: wit::Usage) -> HookUsage {
    let finish = match usage.finish {
        wit::FinishReason::Stop => FinishReason::Stop,
        wit::FinishReason::Length => FinishReason::Length,
        wit::FinishReason::StoppedByPlugin => FinishReason::StoppedByPlugin,
        wit::FinishReason::Cancelled => FinishReason::Cancelled,
        wit::FinishReason::Deadline => FinishReason::Deadline,
    };
    HookUsage { prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens, finish }
}

pub(crate) fn entry_to_wit(entry: CatalogEntry) -> catalog::Adapter {
    let residency = match entry.residency {
        Residency::Device => catalog::Residency::Device,
        Residency::Memory => catalog::Residency::Memory,
        Residency::Storage => catalog::Residency::Storage,
    };
    catalog::Adapter { alias: entry.alias, digest: entry.digest.to_string(), rank: entry.rank, residency }
}

pub(crate) fn error_to_wit(error: CapabilityError) -> wit::HostError {
    match error {
        CapabilityError::Denied(what) => wit::HostError::Denied(what),
        CapabilityError::Unsupported(what) => wit::HostError::Unsupported(what),
        CapabilityError::Limit(what) => wit::HostError::Limit(what),
        CapabilityError::Failed(what) => wit::HostError::Failed(what),
    }
}

pub(crate) fn level_from_wit(level: log::Level) -> LogLevel {
    match level {
        log::Level::Debug => LogLevel::Debug,
        log::Level::Info => LogLevel::Info,
        log::Level::Warn => LogLevel::Warn,
        log::Level::Error => LogLevel::Error,
    }
}

pub(crate) fn decision_from_wit(decision: wit::Decision) -> Decision {
    match decision {
        wit::Decision::Serve => Decision::Serve,
        wit::Decision::HandOver(function) => Decision::HandOver(function),
        wit::Decision::Answer(text) => Decision::Answer(text),
        wit::Decision::Reject(rejection) => {
            let code = if is_code(&rejection.code) { rejection.code } else { "rejected".to_owned() };
            Decision::Reject(Rejection { code, reason: rejection.reason })
        }
    }
}

fn is_code(code: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    !code.is_empty() && code.len() <= CODE_BYTES_MAX && code.bytes().all(allowed)
}

pub(crate) fn plan_from_wit(plan: wit::Plan) -> Plan {
    Plan {
        prompt: prompt_from_wit(plan.prompt),
        composition: composition_from_wit(plan.composition),
        sampling: sampling_from_wit(plan.sampling),
        stop: stop_from_wit(plan.stop),
        constraint: plan.constraint.map(constraint_from_wit),
        cold: plan.cold.map(cold_from_wit),
        deadline_ms: plan.deadline_ms,
        token_budget: plan.token_budget,
        prefetch: plan.prefetch,
        post_process: plan.post_process,
    }
}

pub(crate) fn stop_from_wit(stop: wit::StopConditions) -> StopConditions {
    StopConditions { strings: stop.strings, token_ids: stop.token_ids, ignore_eos: stop.ignore_eos }
}

pub(crate) fn constraint_from_wit(constraint: wit::Constraint) -> Constraint {
    match constraint {
        wit::Constraint::JsonSchema(schema) => Constraint::JsonSchema(schema),
        wit::Constraint::Regex(regex) => Constraint::Regex(regex),
        wit::Constraint::Grammar(grammar) => Constraint::Grammar(grammar),
    }
}

pub(crate) fn cold_from_wit(cold: wit::ColdPolicy) -> ColdPolicy {
    match cold {
        wit::ColdPolicy::Wait(wait_ms) => ColdPolicy::Wait(wait_ms),
        wit::ColdPolicy::Base => ColdPolicy::Base,
        wit::ColdPolicy::Fallback(entries) => ColdPolicy::Fallback(composition_from_wit(entries)),
        wit::ColdPolicy::Refuse => ColdPolicy::Refuse,
    }
}

pub(crate) fn prompt_from_wit(prompt: wit::Prompt) -> Prompt {
    match prompt {
        wit::Prompt::Text(text) => Prompt::Text(text),
        wit::Prompt::Messages(messages) => {
            let message = |wit::Message { role, content }| Message { role, content };
            Prompt::Messages(messages.into_iter().map(message).collect())
        }
        wit::Prompt::Template(template) => {
            Prompt::Template { name: template.name, arguments: pairs_from_wit(template.arguments) }
        }
    }
}

pub(crate) fn pairs_from_wit(pairs: Vec<wit::Pair>) -> Vec<(String, String)> {
    pairs.into_iter().map(|pair| (pair.name, pair.value)).collect()
}

pub(crate) fn composition_from_wit(entries: Vec<wit::CompositionEntry>) -> Vec<PlanEntry> {
    let entry = |entry: wit::CompositionEntry| PlanEntry {
        adapter: entry.adapter,
        weight: entry.weight,
        modules: entry.modules.map(modules_from_wit),
        layers: entry.layers.map(|layers| LayerRange { first: layers.first, end: layers.end }),
        span: match entry.span {
            wit::Span::Whole => Span::Whole,
            wit::Span::Output(range) => Span::Output { first: range.first, end: Some(range.end) },
            wit::Span::OutputFrom(first) => Span::Output { first, end: None },
        },
    };
    entries.into_iter().map(entry).collect()
}

fn modules_from_wit(modules: wit::Modules) -> ModuleSet {
    let pairs = [
        (wit::Modules::Q_PROJ, Module::Q),
        (wit::Modules::K_PROJ, Module::K),
        (wit::Modules::V_PROJ, Module::V),
        (wit::Modules::O_PROJ, Module::O),
        (wit::Modules::GATE_PROJ, Module::Gate),
        (wit::Modules::UP_PROJ, Module::Up),
        (wit::Modules::DOWN_PROJ, Module::Down),
    ];
    pairs.into_iter().filter(|(flag, _)| modules.contains(*flag)).map(|(_, module)| module).collect()
}

pub(crate) fn sampling_from_wit(sampling: wit::Sampling) -> Sampling {
    Sampling {
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        // Not in the contract: plugins see text, not the vocabulary.
        logit_bias: Vec::new(),
        seed: sampling.seed.map(u64::from),
        logprobs: sampling.logprobs,
    }
}

pub(crate) fn actions_from_wit(actions: Vec<wit::Action>) -> Vec<Action> {
    let action = |action| match action {
        wit::Action::Pass => Action::Pass,
        wit::Action::Replace(text) => Action::Replace(text),
        wit::Action::Hold => Action::Hold,
        wit::Action::Emit(text) => Action::Emit(text),
        wit::Action::Stop => Action::Stop,
        wit::Action::SwitchComposition(entries) => Action::SwitchComposition(composition_from_wit(entries)),
    };
    actions.into_iter().map(action).collect()
}

pub(crate) fn ending_from_wit(ending: wit::Ending) -> Ending {
    Ending {
        actions: actions_from_wit(ending.actions),
        metadata: pairs_from_wit(ending.metadata),
        claims: pairs_from_wit(ending.claims),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_has_its_flag() {
        assert_eq!(modules_from_wit(wit::Modules::all()), ModuleSet::ALL);
        assert_eq!(modules_from_wit(wit::Modules::empty()), ModuleSet::EMPTY);
        let two = modules_from_wit(wit::Modules::Q_PROJ | wit::Modules::DOWN_PROJ);
        assert_eq!(two.iter().collect::<Vec<_>>(), [Module::Q, Module::Down]);
    }

    #[test]
    fn a_rejection_has_a_stable_code() {
        let code = |code: &str| {
            let rejection = wit::Rejection { code: code.to_owned(), reason: String::new() };
            match decision_from_wit(wit::Decision::Reject(rejection)) {
                Decision::Reject(rejection) => rejection.code,
                other => panic!("unexpected {other:?}"),
            }
        };
        assert_eq!(code("too_long_2"), "too_long_2");
        for bad in ["", "Too long", "a\nb", &"x".repeat(65)] {
            assert_eq!(code(bad), "rejected");
        }
    }
}
