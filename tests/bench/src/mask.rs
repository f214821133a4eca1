//! What a mask costs: the tokens that may come next, found out over the base's whole vocabulary along documents that match. Not
//! here: what of it is hidden behind a step of the model, which is all of it as long as a step takes longer.

use std::sync::Arc;
use std::time::Instant;

use model::{Base, ConstraintCompiler, MaskWorkers};
use serde_json::{Value, json};
use types::Constraint;

use crate::report::rounded;
use crate::statistics::quantile;
use crate::{Given, Outcome};

/// Times that each document is walked after the first.
const ROUNDS: usize = 20;
/// What a mask may cost in the median, in microseconds.
pub(crate) const MEDIAN_US_MAX: f64 = 60.0;

/// Arguments of the bench.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Walk each document twice only
    #[arg(long)]
    quick: bool,
}

/// Measures, and prints what came of it as JSON.
pub(crate) fn run(given: &Given, options: &Options) -> Outcome {
    let base = Base::open(&given.base)?;
    println!("{}", measure(&base, if options.quick { 1 } else { ROUNDS })?);
    Ok(())
}

/// Masks along each case's document: the first time, when the lexer knows nothing, and later, as it is for every request that
/// finds its constraint read. Microseconds.
pub(crate) fn measure(base: &Base, rounds: usize) -> Outcome<Value> {
    let begun = Instant::now();
    let compiler = ConstraintCompiler::new(base)?;
    let made_ms = begun.elapsed().as_secs_f64() * 1e3;
    // Found out where they are asked for, so that only that is measured.
    let workers = Arc::new(MaskWorkers::inline());
    let (mut cases, mut all_first, mut all_later) = (Vec::new(), Vec::new(), Vec::new());
    for (name, constraint, document) in documents() {
        let begun = Instant::now();
        let compiled = Arc::new(compiler.compile(&constraint)?);
        let read_ms = begun.elapsed().as_secs_f64() * 1e3;
        let tokens = base.tokenizer().encode(&document)?;
        let walk = || -> Outcome<Vec<f64>> {
            let mut output = compiled.begin(&[], &workers)?;
            let mut times_us = Vec::with_capacity(tokens.len());
            for id in &tokens {
                let begun = Instant::now();
                let mask = output.mask();
                let is_known = mask.wait().is_some_and(|words| engine::is_allowed(words, *id));
                times_us.push(begun.elapsed().as_secs_f64() * 1e6);
                if !is_known {
                    return Err(format!("{name}: the document does not match at token {}", times_us.len()).into());
                }
                output.push(*id)?;
            }
            Ok(times_us)
        };
        let first = walk()?;
        let later = (0..rounds).map(|_| walk()).collect::<Outcome<Vec<_>>>()?.concat();
        cases.push(json!({"case": name, "tokens": tokens.len(), "read_ms": rounded(read_ms),
            "first_us": spread(&first), "later_us": spread(&later), "lexer_bytes": compiled.bytes()}));
        all_first.extend(first);
        all_later.extend(later);
    }
    let median = quantile(&all_later, 0.5).unwrap_or(f64::INFINITY);
    Ok(json!({"vocabulary": base.config().vocabulary, "tokens_as_trees_ms": rounded(made_ms), "cases": cases,
        "first_us": spread(&all_first), "later_us": spread(&all_later),
        "bar": {"what": "median of later_us", "us_max": MEDIAN_US_MAX, "is_met": median <= MEDIAN_US_MAX}}))
}

fn spread(times_us: &[f64]) -> Value {
    let at = |share| quantile(times_us, share).map(rounded);
    json!({"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0)})
}

/// Constraints as they are asked for, each with a document that matches.
fn documents() -> Vec<(&'static str, Constraint, String)> {
    let flat = json!({"type": "object", "properties": {
        "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150}, "email": {"type": "string"},
        "is_member": {"type": "boolean"}, "plan": {"enum": ["free", "team", "enterprise"]}, "score": {"type": "number"}},
        "required": ["name", "age", "email", "is_member", "plan", "score"], "additionalProperties": false});
    let person = json!({"name": "Ada Lovelace of London", "age": 36, "email": "ada.lovelace@example.org",
        "is_member": true, "plan": "enterprise", "score": 9.75});
    let nested = json!({"$defs": {
        "address": {"type": "object", "properties": {"street": {"type": "string", "maxLength": 60}, "city": {"type": "string"},
            "postcode": {"type": "string", "pattern": "^[0-9]{5}$"}}, "required": ["street", "city", "postcode"]},
        "line": {"type": "object", "properties": {"sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
            "count": {"type": "integer", "minimum": 1}, "note": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
            "required": ["sku", "count"]}},
        "type": "object", "properties": {"id": {"type": "string", "format": "uuid"}, "at": {"type": "string", "format": "date-time"},
            "ship_to": {"$ref": "#/$defs/address"}, "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}, "minItems": 1}},
        "required": ["id", "at", "ship_to", "lines"]});
    let order = json!({"id": "3f2504e0-4f89-41d3-9a0c-0305e82c3301", "at": "2026-11-22T10:11:12Z",
        "ship_to": {"street": "12 Harbour Street", "city": "Rotterdam", "postcode": "30121"},
        "lines": [{"sku": "ABC-1234", "count": 2, "note": "Leave it at the door, please."}, {"sku": "XYZ-0001", "count": 10, "note": null}]});
    let call = json!({"anyOf": [
        {"type": "object", "properties": {"tool": {"const": "search"}, "query": {"type": "string"}, "limit": {"type": "integer"}},
            "required": ["tool", "query"], "additionalProperties": false},
        {"type": "object", "properties": {"tool": {"const": "answer"}, "text": {"type": "string"}}, "required": ["tool", "text"],
            "additionalProperties": false}]});
    let called = json!({"tool": "search", "query": "how a tenon is cut into a piece of oak", "limit": 5});
    let schema = |schema: &Value| Constraint::JsonSchema(schema.to_string());
    vec![
        ("flat object", schema(&flat), person.to_string()),
        ("nested object with references, formats and patterns", schema(&nested), pretty(&order)),
        ("one of two calls", schema(&call), called.to_string()),
        ("any object", schema(&json!({"type": "object"})), pretty(&order)),
        ("date by a regular expression", Constraint::Regex("20[0-9]{2}-[01][0-9]-[0-3][0-9]".into()), "2026-11-22".into()),
        (
            "arithmetic by a grammar",
            Constraint::Grammar("start: sum\nsum: product (\"+\" product)*\nproduct: atom (\"*\" atom)*\natom: /[0-9]+/ | \"(\" sum \")\"".into()),
            "12+(3*(4+50)*6)+7*8".into(),
        ),
    ]
}

fn pretty(document: &Value) -> String {
    serde_json::to_string_pretty(document).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    #[test]
    fn every_document_matches_and_is_measured() {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
        let file = cache.map(|cache| cache.join("tenon/base/SmolLM2-135M-Instruct.Q4_1.gguf"));
        let Some(file) = std::env::var_os("TENON_BASE").map(PathBuf::from).or(file).filter(|file| file.is_file())
        else {
            println!("skipped: the base is not in the cache; `cargo xtask test` fetches it");
            return;
        };
        let rounds = std::env::var("TENON_MASK_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1);
        let report = measure(&Base::open(&file).expect("a base"), rounds).expect("all documents match");
        assert_eq!(report["cases"].as_array().map(Vec::len), Some(6));
        println!("{report:#}");
    }
}
