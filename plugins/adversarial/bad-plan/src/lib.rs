//! Returns a plan that the host must refuse: which one, the request's text says; a weight that is no number otherwise.
//! Some are refused in one function and fine in another (`template`), and some requests it refuses itself (`reject`).

use tenon_sdk::{
    Constraint, Decision, LayerRange, Modules, Pair, Plan, Policy, Prompt, Rejection, Request, Result, Template,
};

struct BadPlan;

impl Policy for BadPlan {
    fn route(request: &Request) -> Result<Decision> {
        Ok(match request.text.as_str() {
            "hand-over" => Decision::HandOver("echo".to_owned()),
            "reject" => Decision::Reject(Rejection { code: "rude".to_owned(), reason: "say please".to_owned() }),
            _ => Decision::Serve,
        })
    }

    fn compose(request: &Request) -> Result<Plan> {
        let mut plan = Plan::new(Prompt::Text("hello".to_owned()));
        match request.text.as_str() {
            "empty-prompt" => plan.prompt = Prompt::Text(String::new()),
            "long-prompt" => plan.prompt = Prompt::Text("x".repeat(2 << 20)),
            "template" => {
                let question = Pair { name: "question".to_owned(), value: "What is the ocean?".to_owned() };
                plan.prompt = Prompt::Template(Template { name: "brief".to_owned(), arguments: vec![question] });
            }
            "temperature" => plan.sampling.temperature = -1.0,
            "budget" => plan.token_budget = Some(u32::MAX),
            "deadline" => plan.deadline_ms = Some(u32::MAX),
            "top-p" => plan.sampling.top_p = f32::NAN,
            "stop" => plan.stop.strings = vec![String::new()],
            "stops" => plan.stop.strings = vec!["x".to_owned(); 1000],
            "infinite" => plan = plan.adapter("iso-date", f32::INFINITY),
            "heavy" => plan = plan.adapter("iso-date", 1e30),
            "constraint" => plan.constraint = Some(Constraint::Regex("a(".to_owned())),
            "entries" => plan.composition = vec![tenon_sdk::CompositionEntry::whole("all-caps", 1.0); 1000],
            "layers" => {
                plan = plan.adapter("all-caps", 1.0);
                plan.composition[0].layers = Some(LayerRange { first: 9, end: 3 });
                plan.composition[0].modules = Some(Modules::empty());
            }
            _ => plan = plan.adapter("all-caps", f32::NAN),
        }
        Ok(plan)
    }
}

tenon_sdk::export_policy!(BadPlan);
