//! `tenon adapter derive`. Not here: what the methods compute.

use clap::Args;
use clap::builder::PossibleValuesParser;
use model::DeriveMethod;
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::cli::failure::Failure;
use crate::cli::output::{Printer, cell, text};
use crate::cli::remote::{Connection, Remote, segment};

#[derive(Debug, Args)]
pub(crate) struct DeriveArgs {
    /// Movable name of the result
    alias: String,
    /// How the parents become one
    #[arg(long, value_parser = PossibleValuesParser::new(DeriveMethod::ALL.map(DeriveMethod::name)))]
    method: String,
    /// A parent's alias or digest, with its weight if it is not 1; once for each
    #[arg(long = "parent", value_name = "NAME[=WEIGHT]", required = true, value_parser = parent)]
    parents: Vec<Parent>,
    /// The largest rank of the result; for all but concatenate
    #[arg(long)]
    rank: Option<u32>,
    /// The part of the elements that is kept; for ties, dare_linear, dare_ties and magnitude_prune
    #[arg(long)]
    density: Option<f64>,
    /// By what signs are elected; for ties and dare_ties
    #[arg(long, value_parser = PossibleValuesParser::new(["total", "frequency"]))]
    majority_sign: Option<String>,
    /// Of what is drawn; for dare_linear and dare_ties
    #[arg(long)]
    seed: Option<u32>,
    /// Refuse a result that lost more than this part of the delta's norm
    #[arg(long, value_name = "PART")]
    error_max: Option<f64>,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Clone, Debug, PartialEq)]
struct Parent {
    adapter: String,
    weight: f64,
}

/// A name has no `=`, so that the rest is the weight.
fn parent(text: &str) -> Result<Parent, String> {
    let (adapter, weight) = text.split_once('=').unwrap_or((text, "1"));
    let weight = weight.parse().ok().filter(|weight: &f64| weight.is_finite());
    let weight = weight.ok_or_else(|| "the weight after `=` must be a number".to_owned())?;
    Ok(Parent { adapter: adapter.to_owned(), weight })
}

/// Derives.
pub(super) async fn run(arguments: DeriveArgs, printer: Printer) -> Result<(), Failure> {
    let remote = Remote::new(&arguments.connection)?;
    let path = format!("/v1/adapters/{}/derive", segment(&arguments.alias));
    let derived = remote.json(remote.call(Method::POST, &path).json(&body(&arguments))).await?;
    printer.result(&derived, |derived| {
        let error = derived.pointer("/lineage/error").and_then(Value::as_f64).unwrap_or_default();
        let (digest, rank, license) = (text(derived, "digest"), cell(derived, "rank"), text(derived, "license"));
        format!("{} {digest} rank {rank} license {license} lost {:.2} %", arguments.alias, error * 100.0)
    })
}

/// What is not said is left out.
fn body(arguments: &DeriveArgs) -> Value {
    let parents = arguments.parents.iter().map(|parent| json!({"adapter": parent.adapter, "weight": parent.weight}));
    let said = [
        ("method", json!(arguments.method)),
        ("parents", parents.collect()),
        ("rank", json!(arguments.rank)),
        ("density", json!(arguments.density)),
        ("majority_sign", json!(arguments.majority_sign)),
        ("seed", json!(arguments.seed)),
        ("error_max", json!(arguments.error_max)),
    ];
    let said = said.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(said.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_a_name_with_or_without_a_weight() {
        let made = |adapter: &str, weight| Ok(Parent { adapter: adapter.into(), weight });
        assert_eq!(parent("caps"), made("caps", 1.0));
        assert_eq!(parent("caps=-0.5"), made("caps", -0.5));
        for bad in ["caps=", "caps=x", "caps=nan", "caps=inf", "caps=1=2"] {
            assert!(parent(bad).is_err(), "{bad}");
        }
    }
}
