//! The report: the device, the machine, the commit, rows, bars, and which parts failed. In the form of the other benches'
//! reports. Not here: the measuring.

use std::path::Path;

use kernels::cuda::DeviceInfo;
use serde_json::{Map, Value, json};

use crate::Outcome;
use crate::measure::rounded;

/// Lines of a part that are kept.
const SAID_LINES_MAX: usize = 200;

/// One run.
pub(crate) struct Report {
    device: Value,
    tiny: bool,
    limits: Value,
    rows: Vec<Value>,
    bars: Map<String, Value>,
    failures: Map<String, Value>,
    durations: Map<String, Value>,
    said: Map<String, Value>,
}

impl Report {
    pub(crate) fn new(info: &DeviceInfo, tiny: bool) -> Self {
        let (major, minor) = info.capability;
        Self {
            device: json!({
                "name": info.name, "capability": format!("{major}.{minor}"), "memory_bytes": info.memory_bytes,
                "multiprocessors": info.multiprocessors,
            }),
            tiny,
            limits: json!({}),
            rows: Vec::new(),
            bars: Map::new(),
            failures: Map::new(),
            durations: Map::new(),
            said: Map::new(),
        }
    }

    pub(crate) fn limits(&self) -> &Value {
        &self.limits
    }

    /// Takes what a part recorded, and shows it.
    pub(crate) fn take(&mut self, part: &str, kind: &str, mut value: Value) {
        match kind {
            "row" | "quiet" => {
                if kind == "row" {
                    println!("  {}", line_of(&value));
                }
                let mut row = Map::from_iter([("part".to_owned(), json!(part))]);
                if let Value::Object(members) = &mut value {
                    row.append(members);
                }
                self.rows.push(Value::Object(row));
            }
            "limits" => {
                println!("  {}", line_of(&value));
                self.limits = value;
            }
            "bar" => {
                println!("  bar {}", line_of(&value));
                if let Some(name) = value["name"].as_str().map(str::to_owned) {
                    if let Value::Object(members) = &mut value {
                        members.shift_remove("name");
                    }
                    self.bars.insert(name, value);
                }
            }
            _ => println!("  {kind} {value}"),
        }
    }

    pub(crate) fn failure(&mut self, part: &str, why: &str) {
        println!("  {part} FAILED: {why}");
        self.failures.insert(part.to_owned(), json!(why));
    }

    /// Shows a line that is no record, and keeps it: whoever reads a failure has nothing else.
    pub(crate) fn said(&mut self, part: &str, line: &str) {
        println!("  {line}");
        if let Value::Array(lines) = self.said.entry(part).or_insert_with(|| json!([])) {
            if lines.len() >= SAID_LINES_MAX {
                lines.remove(0);
            }
            lines.push(json!(line));
        }
    }

    pub(crate) fn duration(&mut self, part: &str, seconds: f64) {
        self.durations.insert(part.to_owned(), rounded(seconds));
    }

    /// Writes the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn write(&self, path: &Path, seconds: f64) -> Outcome {
        let all = json!({
            "bench": "cuda", "device": self.device, "machine": machine(), "commit": commit(),
            "settings": {"tiny": self.tiny, "profile": if cfg!(debug_assertions) { "debug" } else { "release" }},
            "seconds": rounded(seconds), "seconds_of_parts": self.durations, "limits": self.limits, "rows": self.rows,
            "bars": self.bars, "failures": self.failures, "said": self.said,
        });
        let text = serde_json::to_string_pretty(&all)? + "\n";
        std::fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(())
    }

    /// The bars again, and what failed.
    pub(crate) fn summary(&self) -> String {
        let mut lines = vec!["== bars".to_owned()];
        for (name, bar) in &self.bars {
            let ok = match &bar["ok"] {
                Value::Bool(true) => "ok",
                Value::Bool(false) => "MISSED",
                _ => "undecided",
            };
            lines.push(format!("{ok:>9}  {name:<44} {:>10}  {} {}", bar["value"], word(&bar["is"]), bar["bar"]));
        }
        lines.extend(self.failures.iter().map(|(part, why)| format!("   FAILED  {part}: {}", word(why))));
        lines.join("\n")
    }
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A row as a line.
fn line_of(row: &Value) -> String {
    let Some(members) = row.as_object() else { return row.to_string() };
    let texts = members.iter().map(|(name, value)| match value {
        Value::String(text) => format!("{name} {text}"),
        other => format!("{name} {other}"),
    });
    texts.collect::<Vec<_>>().join(", ")
}

/// What is beside the device.
fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or_else(String::new, |line| line.trim_start_matches([':', ' ', '\t']).trim().to_owned())
    };
    let driver = read("/proc/driver/nvidia/version").lines().next().unwrap_or_default().to_owned();
    json!({
        "cpu": field(&read("/proc/cpuinfo"), "model name"),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
        "system": read("/proc/sys/kernel/osrelease").trim(),
        "driver": driver,
    })
}

/// `cargo xtask bench cuda` says at build time which commit it is: where this runs there is no checkout.
fn commit() -> &'static str {
    option_env!("TENON_COMMIT").unwrap_or("not stated")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_parts_record_is_in_the_report_and_failures_too() {
        let info = DeviceInfo {
            name: "none".into(),
            capability: (9, 0),
            memory_bytes: 1,
            multiprocessors: 1,
            shared_bytes_max: 1,
        };
        let mut report = Report::new(&info, true);
        report.take("decode", "row", json!({"cell": "a", "ms": 1.5}));
        report.take("decode", "bar", json!({"name": "a", "value": 0.5, "bar": 0.8, "is": "at least", "ok": false}));
        report.take("limits", "limits", json!({"copy_bytes_per_s": 1e12}));
        report.failure("tax", "no memory");
        let file = tempfile::NamedTempFile::new().expect("a file");
        report.write(file.path(), 1.0).expect("written");
        let read: Value = serde_json::from_slice(&std::fs::read(file.path()).expect("read")).expect("JSON");
        assert_eq!(read["rows"][0], json!({"part": "decode", "cell": "a", "ms": 1.5}));
        assert_eq!(read["bars"]["a"]["ok"], false);
        assert_eq!(read["failures"]["tax"], "no memory");
        assert!(report.summary().contains("MISSED  a") && report.summary().contains("FAILED  tax"));
        assert_eq!(report.limits()["copy_bytes_per_s"], 1e12);
    }
}
