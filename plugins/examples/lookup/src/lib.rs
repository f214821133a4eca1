//! Asks a service of the author's for facts about the question, with a secret key, and puts them before the model. Configuration:
//! `url`, to which the text is added. The manifest grants the service in `grants.http` and the secret `lookup-key`.

use tenon_sdk::{HttpRequest, Plan, Policy, Prompt, Request, Result, config, log, secrets};

struct Lookup;

impl Policy for Lookup {
    fn compose(request: &Request) -> Result<Plan> {
        let url = format!("{}{}", config::require("url")?, escaped(&request.text));
        let key = secrets::get("lookup-key")?;
        let answer = HttpRequest::get(url).header("authorization", &format!("Bearer {key}")).send()?;
        let system = if answer.status == 200 {
            format!("Answer from these facts alone:\n{}", answer.text()?)
        } else {
            // The function serves without its facts rather than not at all.
            log::warn(&format!("the service answered with status {}", answer.status));
            "Say that you do not know if you are not sure.".to_owned()
        };
        Ok(Plan::new(Prompt::chat(&system, &request.text)).token_budget(request.max_tokens.or(Some(48))))
    }
}

/// As a URL's query has it.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let byte = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(byte).collect()
}

tenon_sdk::export_policy!(Lookup);

#[cfg(test)]
mod tests {
    use tenon_sdk::testing::{Harness, request};

    use super::*;

    fn harness() -> Harness {
        Harness::new().config("url", "https://facts.example/v1?q=").secret("lookup-key", "s3cret")
    }

    fn system(plan: &Plan) -> String {
        let Prompt::Messages(messages) = &plan.prompt else { panic!("messages") };
        messages[0].content.clone()
    }

    #[test]
    fn facts_are_asked_for_with_the_key_and_put_before_the_model() {
        let harness = harness().answer("https://facts.example/v1?q=", 200, "The sea is deep.");
        let plan = harness.compose::<Lookup>(&request("how deep?")).unwrap();
        assert!(system(&plan).ends_with("The sea is deep."));
        let sent = &harness.requests()[0];
        assert_eq!(sent.url, "https://facts.example/v1?q=how%20deep%3F");
        assert_eq!(sent.headers, [("authorization".to_owned(), "Bearer s3cret".to_owned())]);
    }

    #[test]
    fn without_facts_the_model_is_told_so() {
        let harness = harness().answer("https://facts.example/", 503, "busy");
        let plan = harness.compose::<Lookup>(&request("how deep?")).unwrap();
        assert!(system(&plan).contains("do not know"));
        assert_eq!(harness.lines(), ["the service answered with status 503"]);
    }

    #[test]
    fn what_is_not_granted_is_named() {
        let error = harness().compose::<Lookup>(&request("x")).unwrap_err();
        assert!(error.to_string().contains("grants.http") && !error.to_string().contains("s3cret"), "{error}");
        let error = Harness::new().config("url", "https://a.example/").compose::<Lookup>(&request("x")).unwrap_err();
        assert!(error.to_string().contains("`lookup-key`"), "{error}");
    }
}
