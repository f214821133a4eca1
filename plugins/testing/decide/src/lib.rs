//! Decides in `route` as its configuration says, so that a test can play every decision, and tell one version from another. First
//! it computes for so many turns (`turns`), then it traps (`trap`), rejects with a word (`reject`), answers with a text (`answer`, in
//! which `{version}`, `{function}` and `{text}` are filled in), or hands over to a function (`hand-over`). Without any of these it
//! serves: the prompt is what `prompt` says, or what was asked, and the adapter `prefetch` will be needed soon.

use tenon_sdk::{Decision, Plan, Policy, Prompt, Rejection, Request, Result, config};

struct Decide;

impl Policy for Decide {
    fn route(request: &Request) -> Result<Decision> {
        let turns = config::get("turns").and_then(|turns| turns.parse::<u64>().ok()).unwrap_or(0);
        for turn in 0..turns {
            std::hint::black_box(turn);
        }
        assert!(config::get("trap").is_none(), "it is configured to trap");
        if let Some(code) = config::get("reject") {
            return Ok(Decision::Reject(Rejection { code, reason: "it is configured to reject".into() }));
        }
        if let Some(text) = config::get("answer") {
            let text = text.replace("{version}", &request.version.to_string());
            return Ok(Decision::Answer(
                text.replace("{function}", &request.function).replace("{text}", &request.text),
            ));
        }
        Ok(config::get("hand-over").map_or(Decision::Serve, Decision::HandOver))
    }

    fn compose(request: &Request) -> Result<Plan> {
        let prompt = config::get("prompt").map_or_else(|| request.prompt(), |text| Prompt::chat("", &text));
        let plan = Plan::new(prompt).token_budget(request.max_tokens);
        Ok(match config::get("prefetch") {
            Some(adapter) => plan.prefetch(adapter),
            None => plan,
        })
    }
}

tenon_sdk::export_policy!(Decide);

#[cfg(test)]
mod tests {
    use tenon_sdk::testing::{Harness, request};

    use super::*;

    #[test]
    fn it_decides_as_it_is_told() {
        let decided =
            |name: &str, value: &str| Harness::new().config(name, value).route::<Decide>(&request("hi")).unwrap();
        assert!(matches!(decided("answer", "{text}!"), Decision::Answer(text) if text == "hi!"));
        assert!(matches!(decided("hand-over", "other"), Decision::HandOver(name) if name == "other"));
        assert!(matches!(decided("reject", "no"), Decision::Reject(rejection) if rejection.code == "no"));
        assert!(matches!(decided("turns", "10"), Decision::Serve));
    }
}
