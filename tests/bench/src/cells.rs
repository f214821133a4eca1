//! Prefill and decode on the base alone, ours beside llama.cpp in every format that it has, with the distance from the
//! machine's limits. Not here: adapters (`mixes`), HTTP (`served`).

use serde_json::{Value, json};

use crate::Outcome;
use crate::calm::Calm;
use crate::limits::{BaseCost, Limits};
use crate::ours::{Mix, Ours};
use crate::peer::{Driver, FORMATS};
use crate::report::{Report, rounded, spread_json};
use crate::rounds::interleaved;
use crate::statistics::{Bound, Spread, median};

/// Tokens before the measured ones of a decode.
pub(crate) const CONTEXT: usize = 16;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    Prefill(usize),
    /// Batch and steps.
    Decode(usize, usize),
}

const CELLS: [Cell; 8] = [
    Cell::Prefill(128),
    Cell::Prefill(512),
    Cell::Decode(1, 64),
    Cell::Decode(2, 64),
    Cell::Decode(4, 64),
    Cell::Decode(8, 64),
    Cell::Decode(16, 32),
    Cell::Decode(32, 32),
];

/// Of [`FORMATS`], what a quick run compares with: the same file, and the two that are fastest on machines that were seen.
const FORMATS_QUICK: [&str; 3] = [FORMATS[0], FORMATS[1], FORMATS[3]];

/// Cells with a bar against llama.cpp on the same file; in each of them the best format has [`BEST_BAR`].
const SAME_FILE_BARS: [(&str, f64); 4] =
    [("prefill 512", 5.5), ("decode batch 1", 2.0), ("decode batch 8", 3.0), ("decode batch 32", 4.0)];
const BEST_BAR: f64 = 1.3;
const INT8_SHARE_BAR: (&str, f64) = ("prefill 512", 0.4);
const READ_SHARE_BAR: (&str, f64) = ("decode batch 1", 0.55);

impl Cell {
    fn name(self) -> String {
        match self {
            Self::Prefill(tokens) => format!("prefill {tokens}"),
            Self::Decode(batch, _) => format!("decode batch {batch}"),
        }
    }

    fn tokens(self) -> f64 {
        match self {
            Self::Prefill(tokens) => tokens as f64,
            Self::Decode(batch, steps) => (batch * steps) as f64,
        }
    }

    /// With half the steps.
    const fn quick(self) -> Self {
        match self {
            Self::Decode(batch, steps) => Self::Decode(batch, steps / 2),
            prefill @ Self::Prefill(_) => prefill,
        }
    }

    /// Whether there is a bar for it.
    fn has_bar(self) -> bool {
        SAME_FILE_BARS.iter().any(|(cell, _)| *cell == self.name())
    }

    /// Rows and samples of one step, and steps.
    fn shape(self) -> (usize, usize, usize) {
        match self {
            Self::Prefill(tokens) => (tokens, 1, 1),
            Self::Decode(batch, steps) => (batch, batch, steps),
        }
    }

    fn ours(self, ours: &mut Ours) -> Outcome<f64> {
        let time = match self {
            Self::Prefill(tokens) => ours.prefill(tokens)?,
            Self::Decode(batch, steps) => ours.decode(batch, Mix::Base, CONTEXT, steps)?,
        };
        Ok(self.tokens() / time.as_secs_f64())
    }

    fn peer(self, driver: &mut Driver, format: &str, threads: usize) -> Outcome<f64> {
        let time = match self {
            Self::Prefill(tokens) => driver.prefill(format, tokens, threads)?,
            Self::Decode(batch, steps) => driver.decode(format, (batch, CONTEXT, steps), threads)?,
        };
        Ok(self.tokens() / time.as_secs_f64())
    }
}

/// What the cells are measured with.
pub(crate) struct Setting<'a> {
    pub(crate) threads: usize,
    pub(crate) rounds: usize,
    /// Only what has bars, with fewer steps and formats.
    pub(crate) is_quick: bool,
    pub(crate) limits: &'a Limits,
    pub(crate) cost: BaseCost,
}

impl Setting<'_> {
    /// Bytes a second that all threads read now from a working set of so many.
    ///
    /// # Errors
    /// If the machine gives no threads.
    pub(crate) fn read_bandwidth(&self, bytes: usize) -> Outcome<f64> {
        Ok(kernels::limits::read_bandwidth(bytes, self.threads).ok_or("the read bandwidth was not measured")?)
    }
}

/// Measures all cells, adds their rows and bars, and returns llama.cpp's formats, those first in which it decodes a batch of 32
/// fastest.
///
/// # Errors
/// If a side fails.
pub(crate) fn run(
    ours: &mut Ours,
    mut driver: Option<&mut Driver>,
    setting: &Setting<'_>,
    calm: &mut Calm,
    report: &mut Report,
) -> Outcome<Vec<&'static str>> {
    println!("\n== prefill and decode on the base, tokens/s");
    let formats = match (driver.is_some(), setting.is_quick) {
        (false, _) => &[],
        (true, true) => &FORMATS_QUICK[..],
        (true, false) => &FORMATS[..],
    };
    let mut fastest_first = FORMATS.get(1..).unwrap_or_default().to_vec();
    let cells = CELLS.into_iter().filter(|cell| !setting.is_quick || cell.has_bar());
    for cell in cells.map(|cell| if setting.is_quick { cell.quick() } else { cell }) {
        // Ours twice: the second is the control. Then the read bandwidth, as CPUs of a virtual machine move nearer to memory
        // and away from it.
        let mut values = interleaved(calm, setting.rounds, 3 + formats.len(), |side| {
            match (side.checked_sub(1).and_then(|side| formats.get(side)), &mut driver) {
                (Some(format), Some(driver)) => cell.peer(driver, format, setting.threads),
                _ if side == formats.len() + 2 => setting.read_bandwidth(setting.cost.weight_bytes as usize),
                _ => cell.ours(ours),
            }
        })?;
        let bandwidths = values.pop().unwrap_or_default();
        let (Some(ours_values), Some(again)) = (values.first(), values.last()) else { continue };
        let control = Spread::of_median_ratio(ours_values, again).ok_or("no rounds")?;
        let both = [ours_values.as_slice(), again].concat();
        if cell.name() == READ_SHARE_BAR.0 {
            let floors: Vec<f64> = bandwidths.iter().map(|bandwidth| bandwidth / setting.cost.weight_bytes).collect();
            let share = Spread::of_median_ratio(ours_values, &floors).map(|share| share.widened_by(control));
            let name = format!("{}: share of the read floor", cell.name());
            report.bar(&name, Bound::AtLeast(READ_SHARE_BAR.1), share.ok_or("no rounds"));
        }
        our_row(cell, &both, control, (median(&bandwidths), setting), report).ok_or("no rounds")?;
        let peers: Vec<(&'static str, &Vec<f64>)> = formats.iter().copied().zip(values.iter().skip(1)).collect();
        peer_rows(cell, ours_values, &peers, control, report);
        if matches!(cell, Cell::Decode(32, _)) && !peers.is_empty() {
            let speed = |values: &[f64]| median(values).unwrap_or_default();
            let mut ranked = peers.clone();
            ranked.sort_by(|one, other| speed(other.1).total_cmp(&speed(one.1)));
            fastest_first = ranked.into_iter().map(|(format, _)| format).collect();
        }
    }
    if driver.is_none() {
        missing_bars(report);
    }
    Ok(fastest_first)
}

/// Our speed, the control, and how far from the machine's limits; `None` if there are no values.
fn our_row(
    cell: Cell,
    values: &[f64],
    control: Spread,
    (bandwidth, setting): (Option<f64>, &Setting<'_>),
    report: &mut Report,
) -> Option<()> {
    let speed = Spread::of(values)?;
    let name = cell.name();
    let (rows, samples, steps) = cell.shape();
    let floor = setting.cost.floor_seconds(rows, samples, bandwidth, setting.limits);
    let step_seconds = cell.tokens() / speed.median / steps as f64;
    let shares = floor.map_or(Value::Null, |floor| {
        json!({"bound_by": floor.what(), "floor_ms": rounded(floor.seconds() * 1e3),
            "of_floor": rounded(floor.seconds() / step_seconds), "of_read_floor": rounded(floor.read / step_seconds),
            "of_int8_peak": rounded(floor.compute / step_seconds)})
    });
    report.row(json!({"cell": name, "side": "tenon", "tokens_per_s": spread_json(Some(speed)),
        "step_ms": rounded(step_seconds * 1e3), "control_a_a": spread_json(Some(control)), "limits": shares}));
    if name == INT8_SHARE_BAR.0 {
        let speed_sure = Spread::of_median(values)?;
        let share_of = |part: f64| speed_sure.times(part * steps as f64 / cell.tokens());
        let share = floor.filter(|floor| floor.compute > 0.0).map(|floor| share_of(floor.compute));
        let value = share.ok_or("the machine has no int8 instruction that is known here");
        report.bar(&format!("{name}: share of the int8 peak"), Bound::AtLeast(INT8_SHARE_BAR.1), value);
    }
    Some(())
}

/// llama.cpp's speeds and our ratios to them; `None` if there are none.
fn peer_rows(
    cell: Cell,
    ours: &[f64],
    peers: &[(&'static str, &Vec<f64>)],
    control: Spread,
    report: &mut Report,
) -> Option<()> {
    let name = cell.name();
    let mut best: Option<(&'static str, f64, Spread)> = None;
    for (format, values) in peers {
        let speed = Spread::of(values)?;
        let ratio = Spread::of_median_ratio(ours, values)?.widened_by(control);
        report
            .row(json!({"cell": name, "side": format!("llama.cpp {format}"), "tokens_per_s": spread_json(Some(speed)),
            "tenon_over_it": spread_json(Some(ratio))}));
        if best.is_none_or(|(_, fastest, _)| speed.median > fastest) {
            best = Some((format, speed.median, ratio));
        }
        if let Some((_, bar)) = SAME_FILE_BARS.iter().find(|(cell, _)| *cell == name && *format == FORMATS[0]) {
            report.bar(&same_file_bar(&name), Bound::AtLeast(*bar), Ok(ratio));
        }
    }
    let (format, _, ratio) = best?;
    if SAME_FILE_BARS.iter().any(|(cell, _)| *cell == name) {
        report.bar(&best_bar(&name), Bound::AtLeast(BEST_BAR), Ok(ratio));
        report.row(json!({"cell": name, "best_format_of_llama_cpp": format}));
    }
    Some(())
}

fn missing_bars(report: &mut Report) {
    let why = "run with --peer";
    for (cell, bar) in SAME_FILE_BARS {
        report.bar(&same_file_bar(cell), Bound::AtLeast(bar), Err(why));
        report.bar(&best_bar(cell), Bound::AtLeast(BEST_BAR), Err(why));
    }
}

fn same_file_bar(cell: &str) -> String {
    format!("{cell}: times llama.cpp on the same file")
}

fn best_bar(cell: &str) -> String {
    format!("{cell}: times llama.cpp's best format")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_names_a_cell_that_is_measured() {
        let names: Vec<String> = CELLS.iter().map(|cell| cell.name()).collect();
        let barred = SAME_FILE_BARS.iter().chain([&INT8_SHARE_BAR, &READ_SHARE_BAR]);
        for (cell, _) in barred {
            assert!(names.iter().any(|name| name == cell), "{cell}");
        }
    }
}
