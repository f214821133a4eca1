//! Calls of other functions of the tenant that the manifest grants (`grants.calls`). Natively the harness answers. Not here: handing a
//! request over, which is a decision of `route`.

use crate::{Reply, Result};

/// Asks another function with a text, and waits for its whole answer.
pub fn call(function: &str, text: &str) -> Result<Reply> {
    call_with(function, Asked::Text(text), None)
}

/// Asks another function with any JSON, as text.
pub fn call_json(function: &str, json: &str) -> Result<Reply> {
    call_with(function, Asked::Json(json), None)
}

/// What another function is asked.
#[derive(Clone, Copy, Debug)]
pub enum Asked<'a> {
    /// A text.
    Text(&'a str),
    /// JSON, as text: what a caller sends as `input`.
    Json(&'a str),
}

/// The same with a limit on the tokens of its answer.
pub fn call_with(function: &str, asked: Asked<'_>, max_tokens: Option<u32>) -> Result<Reply> {
    #[cfg(target_arch = "wasm32")]
    {
        use crate::bindings::tenon::plugin::functions::{Input, call};
        let input = match asked {
            Asked::Text(text) => Input::Text(text.to_owned()),
            Asked::Json(json) => Input::Json(json.to_owned()),
        };
        Ok(call(function, &input, max_tokens)?)
    }
    #[cfg(not(target_arch = "wasm32"))]
    {
        let _ = max_tokens;
        let (Asked::Text(text) | Asked::Json(text)) = asked;
        Ok(crate::testing::agents::call(function, text.to_owned())?)
    }
}
