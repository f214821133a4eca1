//! `bench quality`: how far the fast path is from the f32 path. Both read the same windows of text, every token after the same
//! ones (teacher forcing), on the base, under each adapter and under combinations; and both are compared with the golden
//! outputs of transformers and PEFT. Not here: speed.

mod divergence;
mod forward;
mod goldens;
mod text;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use model::{AdapterLimits, Base, LoraAdapter, Precision, canonical_adapter};
use serde_json::json;

use crate::machine::{Machine, repository};
use crate::report::{Report, rounded};
use crate::statistics::{Bound, Spread};
use crate::{Given, Outcome};

use divergence::Divergence;
use forward::Forward;
use goldens::Goldens;

/// What is compared, and over how much.
#[derive(Args)]
pub(crate) struct Options {
    /// Write the report here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Tokens for each configuration
    #[arg(long, default_value_t = 20_480)]
    tokens: usize,
    /// Threads; all cores by default, since nothing is timed
    #[arg(long)]
    threads: Option<usize>,
    /// Only configurations whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Adapters and goldens; beside the checkout, or where TENON_SHARED says, or the committed ones, by default
    #[arg(long, value_name = "DIR")]
    lora: Option<PathBuf>,
}

/// Tokens of a window: what a row can look back on.
const WINDOW: usize = 512;
/// Nats, for every configuration.
const DIVERGENCE_BAR: f64 = 0.01;
/// Combinations that the divergence is measured for; the goldens have more.
const COMBINATIONS: usize = 2;

/// Adapters by name, each with its weight in the composition.
pub(crate) type Composition = Vec<(String, f32)>;

/// Compares, prints, writes.
///
/// # Errors
/// If the base or an adapter cannot be run; a missed bar is no error.
pub(crate) fn run(given: &Given, options: &Options) -> Outcome {
    let started = Instant::now();
    let machine = Machine::read();
    println!("{}", machine.line());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = options.threads.unwrap_or(cores);
    let folder = options.lora.clone().or_else(shared).unwrap_or_else(|| repository().join("tests/fixtures/lora"));
    let settings = json!({"tokens": options.tokens, "window": WINDOW, "threads": threads,
        "adapters_from": folder.file_name().map(|name| name.to_string_lossy().into_owned())});
    let mut report = Report::new("quality", machine, settings);
    let base = Base::open(&given.base)?;
    let goldens = Goldens::read(&folder.join("golden").join("golden.json"))?;
    let exact = adapters(&base, &folder, Precision::F32)?;
    let fast = adapters(&base, &folder, Precision::Quantised)?;
    let configurations: Vec<(String, Composition)> = goldens
        .configurations()
        .filter(|(name, composition)| {
            let is_known = composition.iter().all(|(adapter, _)| exact.iter().any(|(name, _)| name == adapter));
            is_known && options.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
        })
        .collect();
    let mut paths = Paths {
        exact: Forward::new(&base, Precision::F32, threads, &exact)?,
        fast: Forward::new(&base, Precision::Quantised, threads, &fast)?,
    };

    println!("\n== goldens of transformers and PEFT");
    for (name, composition) in &configurations {
        for (path, forward) in [("f32", &mut paths.exact), ("fast", &mut paths.fast)] {
            let agreement = goldens.compare(name, composition, forward)?;
            report.row(agreement.json(name, path));
        }
    }

    println!("\n== divergence of the fast path from f32 over {} tokens each", options.tokens);
    let windows = text::windows(&base, options.tokens, WINDOW)?;
    let mut combinations = 0;
    for (name, composition) in &configurations {
        combinations += usize::from(composition.len() > 1);
        if composition.len() > 1 && combinations > COMBINATIONS {
            continue;
        }
        let all = paths.divergence(&windows, composition, threads)?;
        report.row(all.json(name));
        let mean =
            Spread { median: all.mean(), low: all.mean() - all.mean_error(), high: all.mean() + all.mean_error() };
        report.bar(&format!("mean KL of `{name}`, nats"), Bound::Below(DIVERGENCE_BAR), Ok(mean));
    }
    report.row(json!({"minutes": rounded(started.elapsed().as_secs_f64() / 60.0)}));
    println!("{}", report.summary());
    options.json.as_ref().map_or(Ok(()), |path| report.write(path))
}

/// The reference and what is compared with it.
struct Paths {
    exact: Forward,
    fast: Forward,
}

impl Paths {
    fn divergence(&mut self, windows: &[Vec<u32>], composition: &Composition, threads: usize) -> Outcome<Divergence> {
        let mut all = Divergence::default();
        for window in windows {
            let exact = self.exact.logits(window, 0..window.len(), composition)?;
            let fast = self.fast.logits(window, 0..window.len(), composition)?;
            all.add(&exact, &fast, self.exact.vocabulary(), threads);
        }
        Ok(all)
    }
}

/// `lora` of the larger sets that may lie beside the checkout.
fn shared() -> Option<PathBuf> {
    let beside = repository().parent().map(|parent| parent.join("shared"));
    let folder = std::env::var_os("TENON_SHARED").map(PathBuf::from).or(beside)?.join("lora");
    folder.join("adapters").is_dir().then_some(folder)
}

/// All adapters of the folder, or of its `adapters`, packed for this precision; by name.
fn adapters(base: &Base, folder: &Path, precision: Precision) -> Outcome<Vec<(String, Arc<LoraAdapter>)>> {
    let larger = folder.join("adapters");
    let folder = if larger.is_dir() { larger } else { folder.to_owned() };
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(&folder)?.filter_map(Result::ok).map(|entry| entry.path()).collect();
    folders.retain(|folder| folder.join("adapter_config.json").is_file());
    folders.sort();
    let limits = AdapterLimits::default();
    let one = |folder: PathBuf| -> Outcome<(String, Arc<LoraAdapter>)> {
        let (config, weights) = (
            std::fs::read(folder.join("adapter_config.json"))?,
            std::fs::read(folder.join("adapter_model.safetensors"))?,
        );
        let canonical = canonical_adapter(&config, &weights, base, &limits)?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok((name, Arc::new(LoraAdapter::from_canonical(&canonical.bytes, base, &limits, precision)?)))
    };
    folders.into_iter().map(one).collect()
}
