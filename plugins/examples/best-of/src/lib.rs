//! Draws several answers from one prompt and sends the one that the model itself finds likeliest, by the mean log-probability of its
//! tokens. The prompt is computed once: each draw is a fork of one session. Configuration: `draws` (4), `tokens` (48), and if you like
//! `adapter` and `system`.

use tenon_sdk::agent::{Bounds, Generated, Opening, Session};
use tenon_sdk::{Agent, Answer, Prompt, Request, Result, Sampling, config, random};

struct BestOf;

fn number(name: &str, default: u32) -> Result<u32> {
    let Some(text) = config::get(name) else { return Ok(default) };
    text.parse().map_err(|_| format!("`{name}` in the configuration is no such number: {text}").into())
}

impl Agent for BestOf {
    fn run(request: &Request) -> Result<Answer> {
        let system = config::get("system").unwrap_or_else(|| "Answer the question.".into());
        let sampling = Sampling { temperature: 0.8, logprobs: Some(0), ..Sampling::default() };
        let mut opening = Opening::new(Prompt::chat(&system, &request.text)).sampling(sampling);
        if let Some(adapter) = config::get("adapter") {
            opening = opening.adapter(adapter, 1.0);
        }
        let start = Session::open(&opening)?;
        let draws = number("draws", 4)?;
        let tokens = number("tokens", 48)?;
        let tokens = request.max_tokens.map_or(tokens, |asked| asked.min(tokens));
        let mut best: Option<(f32, Generated)> = None;
        for _ in 0..draws.max(1) {
            // Each draw is its own, and can be had again by the seed in the receipt.
            let sampling = Sampling { seed: Some(random::next()), ..sampling };
            let drawn = start.fork()?.generate(&Bounds { sampling: Some(sampling), ..Bounds::tokens(tokens) })?;
            let score = drawn.mean_logprob()?;
            if best.as_ref().is_none_or(|(highest, _)| score > *highest) {
                best = Some((score, drawn));
            }
        }
        let (score, drawn) = best.ok_or("nothing was drawn")?;
        Ok(Answer::text(drawn.text)
            .metadata("draws", draws.to_string())
            .metadata("mean_logprob_thousandths", ((score * 1000.0) as i32).to_string()))
    }
}

tenon_sdk::export_agent!(BestOf);

#[cfg(test)]
mod tests {
    use tenon_sdk::testing::{Harness, request};

    use super::*;

    #[test]
    fn the_likeliest_draw_is_sent() {
        let harness = Harness::new().config("draws", "3").config("system", "S.");
        let harness = harness.says("so so", -1.5).says("good", -0.25).says("bad", -4.0);
        let (text, answer) = harness.run::<BestOf>(&request("Q?")).unwrap();
        assert_eq!(text, "good");
        assert_eq!(answer.metadata[1].value, "-250");
        assert_eq!(harness.prompts(), ["S.Q?"; 3], "every draw begins with the same prompt");
    }

    #[test]
    fn a_wrong_configuration_and_too_few_draws_are_told() {
        let error = Harness::new().config("draws", "many").run::<BestOf>(&request("Q?")).unwrap_err();
        assert!(error.to_string().contains("`draws`"), "{error}");
        let error = Harness::new().says("one", -1.0).run::<BestOf>(&request("Q?")).unwrap_err();
        assert!(error.to_string().contains("no more to say"), "{error}");
        let error = Harness::new().config("adapter", "caps").run::<BestOf>(&request("Q?")).unwrap_err();
        assert!(error.to_string().contains("denied"), "{error}");
    }
}
