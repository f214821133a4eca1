//! Counts how often each caller's `user` was served and refuses when the configuration's `limit` is reached: a quota of a
//! function's own, kept in the bucket `visits` with compare-and-swap, so that no visit is lost among many at once.

use tenon_sdk::kv::Bucket;
use tenon_sdk::{Decision, Plan, Policy, Rejection, Request, Result, config};

const LIMIT_DEFAULT: u32 = 10;

struct Counter;

impl Policy for Counter {
    fn route(request: &Request) -> Result<Decision> {
        let limit = config::get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(LIMIT_DEFAULT);
        let user = request.parameter("user").unwrap_or("anonymous");
        let visits =
            Bucket::open("visits")?.update(user, |before| Ok((count(before)? + 1).to_string().into_bytes()))?;
        if count(Some(&visits))? > limit {
            let reason = format!("{user} has used up {limit} visits");
            return Ok(Decision::Reject(Rejection { code: "used_up".to_owned(), reason }));
        }
        Ok(Decision::Serve)
    }

    fn compose(request: &Request) -> Result<Plan> {
        Ok(Plan::new(request.prompt()).token_budget(request.max_tokens.or(Some(48))))
    }
}

fn count(value: Option<&[u8]>) -> Result<u32> {
    let Some(value) = value else { return Ok(0) };
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| "the bucket holds something else than a number".into())
}

tenon_sdk::export_policy!(Counter);

#[cfg(test)]
mod tests {
    use tenon_sdk::testing::{Harness, request};

    use super::*;

    #[test]
    fn visits_are_counted_up_to_the_limit() {
        let asked = request("hi").with_parameter("user", "ann");
        let harness = Harness::new().config("limit", "2").value("visits", "ann", b"1");
        assert_eq!(harness.route::<Counter>(&asked), Ok(Decision::Serve));
        assert_eq!(harness.stored("visits", "ann"), Some(b"2".to_vec()));
        let full = Harness::new().config("limit", "2").value("visits", "ann", b"2");
        assert!(
            matches!(full.route::<Counter>(&asked), Ok(Decision::Reject(rejection)) if rejection.code == "used_up")
        );
        assert_eq!(full.route::<Counter>(&request("hi")), Ok(Decision::Serve), "another user");
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Harness::new().route::<Counter>(&request("hi")).unwrap_err();
        assert!(error.to_string().contains("`visits`") && error.to_string().contains("grants.kv"), "{error}");
    }
}
