//! Lets nothing out but whole, valid JSON. The answer of an adapter that writes JSON is held back until its first document
//! is complete; then that is sent in one piece and the generation ends. Once it can no longer become valid, or when the
//! output ends before it is complete, an error object goes out in its place: `{"error": {"code", "message"}}`, its code
//! `invalid_json`, `incomplete_json`, `missing_key` or `too_long`. The receipt's claim `json` says `valid` or that code.
//!
//! Configuration: `adapter` (required) and `system` (the prompt that it was trained with); `required`, the keys that the
//! document, then an object, must have, separated by commas.

mod scan;

use scan::{Progress, Scan};
use serde::de::IgnoredAny;
use tenon_sdk::{Action, Chunk, Ending, Pair, Plan, Policy, PostProcessor, Prompt, Request, Result, Usage, config};

const TOKENS_DEFAULT: u32 = 96;
const DOCUMENT_BYTES_MAX: usize = 64 << 10;
const NOT_JSON: &str = "the output is not JSON";

struct JsonGuard;

impl Policy for JsonGuard {
    fn compose(request: &Request) -> Result<Plan> {
        let prompt = match config::get("system") {
            Some(system) if request.messages.is_empty() => Prompt::chat(&system, &request.text),
            _ => request.prompt(),
        };
        let budget = request.max_tokens.or(Some(TOKENS_DEFAULT));
        Ok(Plan::new(prompt).adapter(config::require("adapter")?, 1.0).token_budget(budget).post_processed())
    }

    fn post_processor(_: &Request) -> Box<dyn PostProcessor> {
        let required = config::get("required").unwrap_or_default();
        let required = required.split(',').map(str::trim).filter(|key| !key.is_empty()).map(str::to_owned).collect();
        Box::new(Guard { scan: Scan::new(required), document: String::new(), verdict: None })
    }
}

struct Guard {
    scan: Scan,
    document: String,
    /// Said once: `valid`, or the error's code.
    verdict: Option<&'static str>,
}

impl PostProcessor for Guard {
    fn chunk(&mut self, chunk: &Chunk) -> Result<Vec<Action>> {
        let (end, is_complete) = match self.scan.push(&chunk.text) {
            Progress::Incomplete => (chunk.text.len(), false),
            Progress::Complete { end } => (end, true),
            Progress::Invalid => return Ok(vec![self.refuse("invalid_json", NOT_JSON), Action::Stop]),
        };
        self.document += &chunk.text[..end];
        if self.document.len() > DOCUMENT_BYTES_MAX {
            let message = format!("the output is longer than {DOCUMENT_BYTES_MAX} bytes");
            return Ok(vec![self.refuse("too_long", &message), Action::Stop]);
        }
        Ok(if is_complete { vec![self.judge(), Action::Stop] } else { vec![Action::Hold] })
    }

    fn finish(&mut self, _: &Usage) -> Result<Ending> {
        let action = match self.verdict {
            Some(_) => None,
            None if self.scan.may_end() => Some(self.judge()),
            None => Some(self.refuse("incomplete_json", "the output ended before the document did")),
        };
        let verdict = self.verdict.unwrap_or_default().to_owned();
        let claims = vec![Pair { name: "json".to_owned(), value: verdict }];
        Ok(Ending { actions: action.into_iter().collect(), metadata: claims.clone(), claims })
    }
}

impl Guard {
    /// The complete document, or an error in its place. The parser has the last word.
    fn judge(&mut self) -> Action {
        if serde_json::from_str::<IgnoredAny>(&self.document).is_err() {
            return self.refuse("invalid_json", NOT_JSON);
        }
        match self.scan.missing() {
            Some(key) => self.refuse("missing_key", &format!("the document has no `{key}`")),
            None => {
                self.verdict = Some("valid");
                Action::Replace(self.document.trim().to_owned())
            }
        }
    }

    fn refuse(&mut self, code: &'static str, message: &str) -> Action {
        self.verdict = Some(code);
        // Text can always be written.
        let message = serde_json::to_string(message).unwrap_or_default();
        Action::Replace(format!(r#"{{"error":{{"code":"{code}","message":{message}}}}}"#))
    }
}

tenon_sdk::export_policy!(JsonGuard);

#[cfg(test)]
mod tests;
