//! How the cost of a decode step grows: with the batch, with the context, with the adapters of a batch. Drawn as SVG. Not
//! here: bars, but for cliffs.

use std::path::Path;

use serde_json::json;

use crate::Outcome;
use crate::calm::Calm;
use crate::cells::{CONTEXT, Setting};
use crate::ours::{Mix, Ours};
use crate::report::{Report, rounded};
use crate::rounds::interleaved;
use crate::statistics::{Bound, Spread, median};
use crate::svg::{Chart, Line};

const BATCHES: [usize; 11] = [1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 64];
const CONTEXTS: [usize; 9] = [16, 256, 512, 1024, 2048, 3072, 4096, 6144, 8160];
const ADAPTERS: [usize; 8] = [0, 1, 2, 4, 8, 16, 24, 32];
const ADAPTERS_BATCH: usize = 32;
/// A step may cost this many times what a straight line between its neighbours says.
const CLIFF: f64 = 1.5;

/// Tokens of KV memory that the curves need.
pub(crate) const KV_TOKENS: usize = 64 * 160;

/// Measures the three curves, adds their rows, and writes the charts into the folder if there is one.
///
/// # Errors
/// If a step fails or a file cannot be written.
pub(crate) fn run(
    ours: &mut Ours,
    context_tokens_max: usize,
    folder: Option<&Path>,
    source: &str,
    (setting, calm): (&Setting<'_>, &mut Calm),
    report: &mut Report,
) -> Outcome {
    println!("\n== how the cost of a decode step grows, ms");
    let batches = by_batch(ours, setting, calm)?;
    let contexts = vec![by_context(ours, context_tokens_max, setting, calm)?];
    let adapters = by_adapters(ours, setting, calm)?;
    let curves = [
        ("batch", "decode-batch.svg", "Decode step by batch, 16 tokens of context", "batch (sequences)", batches),
        ("context", "decode-context.svg", "Decode step by context, batch 1", "context (tokens)", contexts),
        (
            "adapters",
            "decode-adapters.svg",
            "Decode step by adapters, batch 32, rank 16 on all linear layers",
            "distinct adapters in the batch",
            adapters,
        ),
    ];
    for (name, file, title, x_title, lines) in curves {
        for line in &lines {
            let points: Vec<_> = line.points.iter().map(|(x, y)| json!([x, rounded(*y)])).collect();
            report.row(json!({"curve": name, "line": line.name, "points": points}));
            let cliff = line.points.windows(3).filter_map(cliff_of).fold(0.0, f64::max);
            let bar = format!("cost by {name}, {}: worst step over its neighbours' line", line.name);
            report.bar(&bar, Bound::AtMost(CLIFF), Ok(Spread::exactly(cliff)));
        }
        let Some(folder) = folder else { continue };
        let (title, x_title, y_title) = (title.to_owned(), x_title.to_owned(), "time of a step (ms)".to_owned());
        let chart = Chart { title, x_title, y_title, lines, source: source.to_owned() };
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join(file), chart.svg())?;
    }
    Ok(())
}

fn by_batch(ours: &mut Ours, setting: &Setting<'_>, calm: &mut Calm) -> Outcome<Vec<Line>> {
    let mut lines = Vec::new();
    for mix in [Mix::Base, Mix::Shared, Mix::Distinct(usize::MAX)] {
        let points = BATCHES.iter().map(|&batch| {
            let steps = (256 / batch).clamp(8, 32);
            let time =
                best(calm, setting.rounds.min(3), || Ok(ours.decode(batch, mix, CONTEXT, steps)?.as_secs_f64()))?;
            Ok((batch as f64, time * 1e3 / steps as f64))
        });
        let name = if mix == Mix::Distinct(usize::MAX) { "all distinct, out of 32".to_owned() } else { mix.name() };
        lines.push(Line { name, points: points.collect::<Outcome<_>>()? });
    }
    Ok(lines)
}

fn by_context(ours: &mut Ours, context_tokens_max: usize, setting: &Setting<'_>, calm: &mut Calm) -> Outcome<Line> {
    const STEPS: usize = 16;
    let mut points = Vec::new();
    let mut computed = 0;
    for context in CONTEXTS.into_iter().filter(|context| context + STEPS < context_tokens_max) {
        ours.extend(computed, context)?;
        computed = context;
        let time =
            best(calm, setting.rounds.min(3), || Ok(ours.decode_on(1, Mix::Base, context, STEPS)?.as_secs_f64()))?;
        points.push((context as f64, time * 1e3 / STEPS as f64));
    }
    Ok(Line { name: "base".into(), points })
}

fn by_adapters(ours: &mut Ours, setting: &Setting<'_>, calm: &mut Calm) -> Outcome<Vec<Line>> {
    const STEPS: usize = 16;
    let points = ADAPTERS.iter().map(|&count| {
        let mix = if count == 0 { Mix::Base } else { Mix::Distinct(count) };
        let time =
            best(calm, setting.rounds.min(3), || Ok(ours.decode(ADAPTERS_BATCH, mix, CONTEXT, STEPS)?.as_secs_f64()))?;
        Ok((count as f64, time * 1e3 / STEPS as f64))
    });
    Ok(vec![Line { name: "one adapter a sequence".into(), points: points.collect::<Outcome<_>>()? }])
}

/// The median of some tries, after one that warms up.
fn best(calm: &mut Calm, tries: usize, mut measure: impl FnMut() -> Outcome<f64>) -> Outcome<f64> {
    let values = interleaved(calm, tries.max(1), 1, |_| measure())?.concat();
    Ok(median(&values).ok_or("no tries")?)
}

/// How far the middle of three points lies above the line between the outer two, as a ratio.
fn cliff_of(points: &[(f64, f64)]) -> Option<f64> {
    let [(x0, y0), (x1, y1), (x2, y2)] = points else { return None };
    let line = y0 + (y2 - y0) * (x1 - x0) / (x2 - x0);
    (line > 0.0).then(|| y1 / line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cliff_stands_above_the_line_between_its_neighbours() {
        assert_eq!(cliff_of(&[(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]), Some(1.0));
        assert_eq!(cliff_of(&[(1.0, 1.0), (2.0, 4.0), (5.0, 5.0)]), Some(2.0));
        assert_eq!(cliff_of(&[(1.0, 1.0), (2.0, 4.0)]), None);
    }

    #[test]
    fn the_curves_fit_their_memory() {
        let (batch, context) = (BATCHES[BATCHES.len() - 1], CONTEXTS[CONTEXTS.len() - 1]);
        assert!(batch * (CONTEXT + 34) <= KV_TOKENS && context + 17 <= KV_TOKENS);
    }
}
