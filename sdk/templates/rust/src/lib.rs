//! {{name}}: answers an empty text by itself; the rest is served on the base, or under the adapter that the configuration's
//! `adapter` names. Not here: the host, which is `tenon`.

use tenon_sdk::{Decision, Plan, Policy, Request, Result, config};

struct Plugin;

impl Policy for Plugin {
    fn route(request: &Request) -> Result<Decision> {
        Ok(if request.text.trim().is_empty() { Decision::Answer("Say something.".to_owned()) } else { Decision::Serve })
    }

    fn compose(request: &Request) -> Result<Plan> {
        let plan = Plan::new(request.prompt()).token_budget(request.max_tokens);
        Ok(match config::get("adapter") {
            Some(adapter) => plan.adapter(adapter, 1.0),
            None => plan,
        })
    }
}

tenon_sdk::export_policy!(Plugin);

#[cfg(test)]
mod tests {
    use tenon_sdk::testing::{Harness, request};

    use super::*;

    #[test]
    fn nothing_is_answered_by_itself() {
        let harness = Harness::new();
        assert!(matches!(harness.route::<Plugin>(&request(" ")).unwrap(), Decision::Answer(_)));
        assert!(matches!(harness.route::<Plugin>(&request("hello")).unwrap(), Decision::Serve));
    }

    #[test]
    fn the_adapter_is_the_configured_one() {
        let plan = Harness::new().config("adapter", "manners").compose::<Plugin>(&request("hello")).unwrap();
        assert_eq!(plan.composition[0].adapter, "manners");
        assert!(Harness::new().compose::<Plugin>(&request("hello")).unwrap().composition.is_empty());
    }
}
