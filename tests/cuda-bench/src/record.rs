//! What a part tells the process that started it, as it is known: a row, a bar, the limits. Not here: the report.

use serde_json::{Value, json};

use crate::measure::rounded;

/// What such a line begins with.
pub(crate) const MARK: &str = "@";

/// Which side of a bar is right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// The way to the report.
pub(crate) struct Record {
    tiny: bool,
}

impl Record {
    /// Lines of standard output.
    pub(crate) const fn to_parent(tiny: bool) -> Self {
        Self { tiny }
    }

    fn line(&mut self, kind: &str, value: &Value) {
        println!("{MARK}{kind} {value}");
    }

    /// Something measured.
    pub(crate) fn row(&mut self, row: &Value) {
        self.line("row", row);
    }

    /// What the floors are computed from.
    pub(crate) fn limits(&mut self, limits: &Value) {
        self.line("limits", limits);
    }

    /// One that nobody has to see as it comes.
    pub(crate) fn quiet_row(&mut self, row: &Value) {
        self.line("quiet", row);
    }

    /// A bar of speed or size, which a tiny run knows nothing about: there it is absent.
    pub(crate) fn bar(&mut self, name: &str, bound: Bound, value: f64) {
        if !self.tiny {
            self.verdict(name, bound, value);
        }
    }

    /// A bar of what is right or wrong on any device.
    pub(crate) fn verdict(&mut self, name: &str, bound: Bound, value: f64) {
        let (is, bar, ok) = match bound {
            Bound::AtLeast(bar) => ("at least", bar, value >= bar),
            Bound::AtMost(bar) => ("at most", bar, value <= bar),
        };
        self.line("bar", &json!({"name": name, "value": rounded(value), "bar": rounded(bar), "is": is, "ok": ok}));
    }

    /// A bar that this run cannot decide, and why; what was measured, if anything.
    pub(crate) fn undecided(&mut self, name: &str, bound: Bound, value: Option<f64>, why: &str) {
        if self.tiny {
            return;
        }
        let (is, bar) = match bound {
            Bound::AtLeast(bar) => ("at least", bar),
            Bound::AtMost(bar) => ("at most", bar),
        };
        let value = value.map(rounded);
        self.line(
            "bar",
            &json!({"name": name, "value": value, "bar": rounded(bar), "is": is, "ok": "undecided", "why": why}),
        );
    }
}
