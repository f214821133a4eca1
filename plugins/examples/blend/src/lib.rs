//! Composes two adapters, named by the configuration keys `first` and `second`, each with the weight that the request
//! gives under the adapter's own name (0.5 if it gives none): `{"text": "...", "all-caps": 0.7, "iso-date": 0.3}`.

use tenon_sdk::{Plan, Policy, Prompt, Request, Result, config};

const WEIGHT_DEFAULT: f32 = 0.5;

struct Blend;

impl Policy for Blend {
    fn compose(request: &Request) -> Result<Plan> {
        let prompt = match config::get("system") {
            Some(system) if request.messages.is_empty() => Prompt::chat(&system, &request.text),
            _ => request.prompt(),
        };
        let mut plan = Plan::new(prompt).token_budget(request.max_tokens.or(Some(48)));
        for key in ["first", "second"] {
            let adapter = config::require(key)?;
            let weight = request.parameter_as(&adapter)?.unwrap_or(WEIGHT_DEFAULT);
            plan = plan.adapter(adapter, weight);
        }
        Ok(plan)
    }
}

tenon_sdk::export_policy!(Blend);

#[cfg(test)]
mod tests {
    use tenon_sdk::testing::{Harness, request};

    use super::*;

    fn weights(request: &Request) -> Result<Vec<(String, f32)>> {
        let harness = Harness::new().config("first", "all-caps").config("second", "iso-date");
        let plan = harness.compose::<Blend>(request)?;
        Ok(plan.composition.into_iter().map(|entry| (entry.adapter, entry.weight)).collect())
    }

    #[test]
    fn weights_come_from_the_request() {
        let asked = request("hi").with_parameter("all-caps", "0.75").with_parameter("iso-date", "-0.25");
        assert_eq!(weights(&asked).unwrap(), [("all-caps".into(), 0.75), ("iso-date".into(), -0.25)]);
        assert_eq!(weights(&request("hi")).unwrap(), [("all-caps".into(), 0.5), ("iso-date".into(), 0.5)]);
        assert!(weights(&request("hi").with_parameter("iso-date", "much")).is_err());
    }

    #[test]
    fn an_incomplete_configuration_is_named() {
        let error = Harness::new().config("first", "a").compose::<Blend>(&request("hi")).unwrap_err();
        assert!(error.to_string().contains("`second`"), "{error}");
    }
}
