//! Plans that are good and bad in one place each. Not here: plans at random (`tests/malformed`).

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
}

#[test]
fn a_span_is_not_empty() {
    let with = |first, end| PlanEntry { span: Span::Output { first, end }, ..PlanEntry::whole("mine", 1.0) };
    let output = |entry: PlanEntry| {
        let plan = check(|plan| plan.composition.push(entry)).expect("valid");
        plan.composition().parts().first().and_then(|part| part.output)
    };
    assert_eq!(output(PlanEntry::whole("mine", 1.0)), None);
    assert_eq!(output(with(3, Some(4))), Some(OutputRange { first: 3, end: 4 }));
    assert_eq!(output(with(0, None)), Some(OutputRange { first: 0, end: u32::MAX }));
    for (first, end) in [(3, Some(3)), (4, Some(3)), (u32::MAX, None)] {
        assert_eq!(code(|plan| plan.composition.push(with(first, end))), "invalid_plan");
    }
}

#[test]
fn a_cold_policy_is_checked_like_a_composition() {
    let cold = |cold: ColdPolicy| move |plan: &mut Plan| plan.cold = Some(cold);
    let mine = || vec![PlanEntry::whole("mine", 0.5)];
    for policy in [ColdPolicy::Wait(0), ColdPolicy::Base, ColdPolicy::Refuse, ColdPolicy::Fallback(mine())] {
        assert_eq!(code(cold(policy)), "accepted");
    }
    let fallback = |entry: PlanEntry| code(cold(ColdPolicy::Fallback(vec![entry])));
    assert_eq!(fallback(PlanEntry::whole("yours", 1.0)), "adapter_not_granted");
    assert_eq!(fallback(PlanEntry::whole("mine", f32::NAN)), "invalid_plan");
    let span = Span::Output { first: 1, end: Some(1) };
    assert_eq!(fallback(PlanEntry { span, ..PlanEntry::whole("mine", 1.0) }), "invalid_plan");
    assert_eq!(code(cold(ColdPolicy::Fallback(vec![PlanEntry::whole("mine", 1.0); 9]))), "limit_exceeded");

    let taken = |policy: ColdPolicy| {
        let plan = check(|plan| (plan.composition, plan.cold) = (mine(), Some(policy))).expect("valid");
        plan.taken_cold().composition().parts().iter().map(|part| part.weight).collect::<Vec<_>>()
    };
    assert_eq!(taken(ColdPolicy::Wait(5)), [0.5]);
    assert_eq!(taken(ColdPolicy::Refuse), [0.5]);
    assert_eq!(taken(ColdPolicy::Base), [0.0; 0]);
    assert_eq!(taken(ColdPolicy::Fallback(vec![PlanEntry::whole("mine", 2.0)])), [2.0]);
}

#[test]
fn a_switch_is_checked_like_a_plan_and_gains_no_time() {
    let plan = check(|plan| plan.deadline_ms = Some(1000)).expect("valid");
    let switched = |entries: &[PlanEntry], deadline_ms| {
        let deadline = Duration::from_millis(deadline_ms);
        plan.switched(entries, &OneAdapter, &PlanLimits::default(), deadline)
    };
    let next = switched(&[PlanEntry::whole("mine", 2.0)], 400).expect("valid");
    assert_eq!((next.composition().parts().len(), next.deadline()), (1, Duration::from_millis(400)));
    assert_eq!(switched(&[], 5000).expect("the base").deadline(), plan.deadline());
    let code = |entry: PlanEntry| switched(&[entry], 1).map_or_else(|error| error.code(), |_| "accepted");
    assert_eq!(code(PlanEntry::whole("yours", 1.0)), "adapter_not_granted");
    assert_eq!(code(PlanEntry::whole("mine", f32::INFINITY)), "invalid_plan");
    let span = Span::Output { first: 1, end: Some(1) };
    assert_eq!(code(PlanEntry { span, ..PlanEntry::whole("mine", 1.0) }), "invalid_plan");
}

#[test]
fn only_what_is_granted_is_prefetched() {
    assert_eq!(check(|plan| plan.prefetch.push("mine".into())).expect("valid").prefetch(), [Digest::of(b"mine")]);
    assert_eq!(code(|plan| plan.prefetch.push("yours".into())), "adapter_not_granted");
    assert_eq!(code(|plan| plan.prefetch = vec!["mine".into(); 33]), "limit_exceeded");
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
    for (value, expected) in [(-2.0, "accepted"), (2.0, "accepted"), (2.1, "invalid_plan"), (-2.1, "invalid_plan")] {
        assert_eq!(code(&|sampling| sampling.presence_penalty = value), expected, "{value}");
        assert_eq!(code(&|sampling| sampling.frequency_penalty = value), expected, "{value}");
    }
    for (value, expected) in [(0.0, "accepted"), (1.0, "accepted"), (-0.1, "invalid_plan"), (1.1, "invalid_plan")] {
        assert_eq!(code(&|sampling| sampling.min_p = value), expected, "{value}");
    }
    for (value, expected) in [(0.0, "invalid_plan"), (0.01, "accepted"), (100.0, "accepted"), (101.0, "invalid_plan")] {
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
