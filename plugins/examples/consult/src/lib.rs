//! Asks another function first. Configuration: `function`, which the manifest's `grants.calls` must name, and `then`: `compose` (if
//! not set) puts what it said before the model, `answer` sends that as it is, `append` sends it after the answer of the model.

use tenon_sdk::{
    Action, Chunk, Decision, Ending, Plan, Policy, PostProcessor, Prompt, Request, Result, Usage, config, functions,
};

struct Consult;

fn asked(text: &str) -> Result<String> {
    Ok(functions::call(&config::require("function")?, text)?.text)
}

fn then() -> String {
    config::get("then").unwrap_or_else(|| "compose".to_owned())
}

impl Policy for Consult {
    fn route(request: &Request) -> Result<Decision> {
        match then().as_str() {
            "answer" => Ok(Decision::Answer(asked(&request.text)?)),
            _ => Ok(Decision::Serve),
        }
    }

    fn compose(request: &Request) -> Result<Plan> {
        let plan = match then().as_str() {
            "append" => Plan::new(request.prompt()).post_processed(),
            _ => Plan::new(Prompt::chat(&asked(&request.text)?, &request.text)),
        };
        Ok(plan.token_budget(request.max_tokens))
    }

    fn post_processor(request: &Request) -> Box<dyn PostProcessor> {
        Box::new(Appending(request.text.clone()))
    }
}

struct Appending(String);

impl PostProcessor for Appending {
    fn chunk(&mut self, _: &Chunk) -> Result<Vec<Action>> {
        Ok(vec![Action::Pass])
    }

    fn finish(&mut self, _: &Usage) -> Result<Ending> {
        let actions = vec![Action::Pass, Action::Emit(format!(" [{}]", asked(&self.0)?))];
        Ok(Ending { actions, metadata: Vec::new(), claims: Vec::new() })
    }
}

tenon_sdk::export_policy!(Consult);

#[cfg(test)]
mod tests {
    use tenon_sdk::testing::{Harness, request};

    use super::*;

    #[test]
    fn what_the_other_function_says_goes_where_it_should() {
        let harness = Harness::new().config("function", "facts").replies("facts", "Water is wet.");
        let plan = harness.compose::<Consult>(&request("Is it?")).unwrap();
        assert!(matches!(&plan.prompt, Prompt::Messages(list) if list[0].content == "Water is wet."));
        assert_eq!(harness.calls(), [("facts".to_owned(), "Is it?".to_owned())]);
        let answering = harness.clone().config("then", "answer");
        assert!(
            matches!(answering.route::<Consult>(&request("")), Ok(Decision::Answer(text)) if text == "Water is wet.")
        );
        let appending = harness.config("then", "append");
        let (text, _) = appending.post_process::<Consult>(&request("Is it?"), &["Yes."]).unwrap();
        assert_eq!(text, "Yes. [Water is wet.]");
    }

    #[test]
    fn a_function_that_is_not_granted_is_denied() {
        let error = Harness::new().config("function", "other").compose::<Consult>(&request("")).unwrap_err();
        assert!(error.to_string().contains("grants.calls"), "{error}");
    }
}
