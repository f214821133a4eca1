//! What a bench leaves behind: machine, commit, rows, and bars with their verdicts, as JSON and as a table. Not here: the
//! measuring.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::Outcome;
use crate::machine::Machine;
use crate::statistics::{Bound, Spread, Verdict};

/// One run of one bench.
pub(crate) struct Report {
    bench: &'static str,
    machine: Machine,
    settings: Value,
    rows: Vec<Value>,
    bars: Map<String, Value>,
}

impl Report {
    /// An empty one.
    pub(crate) fn new(bench: &'static str, machine: Machine, settings: Value) -> Self {
        Self { bench, machine, settings, rows: Vec::new(), bars: Map::new() }
    }

    /// Adds something measured, and shows it.
    pub(crate) fn row(&mut self, row: Value) {
        println!("  {}", line_of(&row));
        self.rows.push(row);
    }

    /// Adds a bar, and shows whether it is kept. Without a value it is not decided, and says why.
    pub(crate) fn bar(&mut self, name: &str, bound: Bound, value: Result<Spread, &str>) {
        let (is, bar) = match bound {
            Bound::AtLeast(bar) => ("at least", bar),
            Bound::AtMost(bar) => ("at most", bar),
            Bound::Below(bar) => ("below", bar),
        };
        let bar = rounded(bar);
        let entry = match value {
            Ok(spread) => {
                let verdict = bound.judge(spread);
                let [median, low, high] = [spread.median, spread.low, spread.high].map(rounded);
                println!("  bar {name}: {median} [{low}, {high}], {is} {bar}: {}", word(verdict));
                json!({"value": rounded(spread.median), "low": rounded(spread.low), "high": rounded(spread.high),
                    "bar": bar, "is": is, "ok": said(verdict)})
            }
            Err(why) => {
                println!("  bar {name}: not measured ({why}), {is} {bar}");
                json!({"value": null, "bar": bar, "is": is, "ok": "undecided", "why": why})
            }
        };
        self.bars.insert(name.to_owned(), entry);
    }

    /// Writes the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Outcome {
        let all = json!({
            "bench": self.bench, "machine": self.machine.json(), "commit": self.machine.commit, "settings": self.settings,
            "rows": self.rows, "bars": self.bars,
        });
        let text = serde_json::to_string_pretty(&all)? + "\n";
        std::fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(())
    }

    /// The bars again, at the end of a run, and the count of those that are not kept.
    pub(crate) fn summary(&self) -> String {
        let mut lines = vec![format!("\n== bars of `bench {}`", self.bench)];
        let mut missed = 0;
        for (name, bar) in &self.bars {
            let ok = match &bar["ok"] {
                Value::Bool(true) => "ok",
                Value::Bool(false) => {
                    missed += 1;
                    "MISSED"
                }
                _ => "undecided",
            };
            let value = bar["value"].as_f64().map_or_else(|| "-".to_owned(), |value| value.to_string());
            let is = bar["is"].as_str().unwrap_or_default();
            lines.push(format!("{ok:>9}  {name:<58} {value:>9}  {is} {}", bar["bar"]));
        }
        lines.push(format!("{} bars, {missed} missed", self.bars.len()));
        lines.join("\n")
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Yes => "ok",
        Verdict::No => "MISSED",
        Verdict::Undecided => "undecided",
    }
}

fn said(verdict: Verdict) -> Value {
    match verdict {
        Verdict::Yes => Value::Bool(true),
        Verdict::No => Value::Bool(false),
        Verdict::Undecided => "undecided".into(),
    }
}

/// A spread as a member of a row.
pub(crate) fn spread_json(spread: Option<Spread>) -> Value {
    spread.map_or(
        Value::Null,
        |spread| json!({"median": rounded(spread.median), "low": rounded(spread.low), "high": rounded(spread.high)}),
    )
}

/// Four digits that count: more are noise.
pub(crate) fn rounded(value: f64) -> Value {
    if value == 0.0 || !value.is_finite() {
        return json!(if value == 0.0 { Some(0.0) } else { None });
    }
    let digits = (3.0 - value.abs().log10().floor()).clamp(-300.0, 300.0);
    let factor = 10f64.powf(digits);
    json!((value * factor).round() / factor)
}

/// A row as a line: its members, those of a spread as `median [low, high]`.
fn line_of(row: &Value) -> String {
    let Some(members) = row.as_object() else { return row.to_string() };
    let texts = members.iter().map(|(name, value)| match value {
        Value::Object(spread) if spread.contains_key("median") => {
            format!("{name} {} [{}, {}]", spread["median"], value["low"], value["high"])
        }
        Value::String(text) => format!("{name} {text}"),
        other => format!("{name} {other}"),
    });
    texts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_machine_commit_rows_and_bars() {
        let mut report = Report::new("engine", Machine::read(), json!({"threads": 2}));
        report.row(json!({"cell": "decode 1", "tokens_per_s": spread_json(Some(Spread::exactly(12.34567)))}));
        report.bar("a", Bound::AtLeast(2.0), Ok(Spread { median: 2.5, low: 2.2, high: 2.7 }));
        report.bar("b", Bound::AtLeast(2.0), Ok(Spread { median: 2.1, low: 1.9, high: 2.2 }));
        report.bar("c", Bound::AtMost(1.0), Ok(Spread::exactly(1.5)));
        report.bar("d", Bound::AtMost(1.0), Err("no peer"));
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.json");
        report.write(&path).expect("written");
        let read: Value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
        assert!(read["machine"]["cores"].as_u64().is_some_and(|cores| cores > 0));
        assert!(read["commit"].is_string() && read["rows"][0]["tokens_per_s"]["median"] == 12.35);
        let ok: Vec<&Value> = ["a", "b", "c", "d"].iter().map(|name| &read["bars"][name]["ok"]).collect();
        assert_eq!(ok, [&json!(true), &json!("undecided"), &json!(false), &json!("undecided")]);
        assert_eq!(read["bars"]["a"]["value"], 2.5);
        assert!(report.summary().ends_with("4 bars, 1 missed"));
    }

    #[test]
    fn numbers_keep_four_digits() {
        assert_eq!(rounded(12345.678), json!(12350.0));
        assert_eq!(rounded(0.000_123_456), json!(0.000_123_5));
        assert_eq!(rounded(0.0), json!(0.0));
        assert_eq!(rounded(f64::NAN), Value::Null);
    }
}
