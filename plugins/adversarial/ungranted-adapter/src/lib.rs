//! Names an adapter that it was not granted: the request's text, or `not-mine`.

use tenon_sdk::{Plan, Policy, Request, Result};

struct UngrantedAdapter;

impl Policy for UngrantedAdapter {
    fn compose(request: &Request) -> Result<Plan> {
        let adapter = if request.text.is_empty() { "not-mine" } else { &request.text };
        Ok(Plan::new(tenon_sdk::Prompt::chat("Be brief.", "hello")).adapter(adapter, 1.0))
    }
}

tenon_sdk::export_policy!(UngrantedAdapter);
