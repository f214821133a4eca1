//! The CUDA path on a GPU: self-test, goldens, speed beside its floors, and the ceiling of memory, in eight minutes and one
//! JSON. Carried to a machine with nothing but a driver by `cargo xtask bench cuda --archive`; `docs/bench/cuda.md` says what
//! each part measures. Each part is a process of its own (`parts.rs`): one that fails, hangs or breaks the device's context is
//! reported, and the others go on.
//!
//! Not here: what a host adds (HTTP, plugins, the scheduler), which `tests/bench` measures.

mod cold_load;
mod decode;
mod floor;
mod goldens;
mod limits;
mod lora_alone;
mod measure;
mod parts;
mod peer;
mod record;
mod red_line;
mod report;
mod resident;
mod rig;
mod selftest;
mod shapes;
mod tax;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use kernels::cuda::Device;

use self::limits::Limits;
use self::parts::Part;
use self::record::Record;
use self::report::Report;

/// A part either measures or says in one line why not.
pub(crate) type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// The CUDA path on a GPU.
#[derive(Parser)]
#[command(name = "cuda-bench", about = "Tenon's CUDA path on a GPU, beside its floors", args_override_self = true)]
struct Arguments {
    /// Where the report goes
    #[arg(long, value_name = "FILE", default_value = "cuda.json")]
    json: PathBuf,
    /// How long all parts may take together, in seconds
    #[arg(long, default_value_t = 480.0)]
    seconds: f64,
    /// How long adapters and sequences come and go, if there is so much time left
    #[arg(long, default_value_t = 300.0)]
    red_line_seconds: f64,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Sizes that an emulated device can do in seconds; the figures mean nothing
    #[arg(long)]
    tiny: bool,
    /// The PyTorch and Triton versions; `peers.py` beside this program by default
    #[arg(long, value_name = "FILE")]
    peers: Option<PathBuf>,
    /// Run one part, in a process of its own
    #[arg(long, value_enum, hide = true)]
    part: Option<Part>,
    /// What the first part found
    #[arg(long, hide = true, default_value = "{}")]
    limits: String,
}

/// What every part is given.
pub(crate) struct Given {
    pub(crate) tiny: bool,
    /// Of this part.
    pub(crate) seconds: f64,
    pub(crate) limits: Limits,
    pub(crate) peers: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.part {
        Some(part) => run_part(&arguments, part),
        None => run_all(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cuda-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn peers(arguments: &Arguments) -> PathBuf {
    let beside = || std::env::current_exe().unwrap_or_default().with_file_name("peers.py");
    arguments.peers.clone().unwrap_or_else(beside)
}

fn run_part(arguments: &Arguments, part: Part) -> Outcome {
    let limits = Limits::from_json(&serde_json::from_str(&arguments.limits)?);
    let given = Given { tiny: arguments.tiny, seconds: arguments.seconds, limits, peers: peers(arguments) };
    part.run(&given, &mut Record::to_parent(arguments.tiny))
}

fn run_all(arguments: &Arguments) -> Outcome {
    let start = Instant::now();
    let device = Device::open(0).map_err(|error| format!("there is no GPU to measure: {error}"))?;
    let mut report = Report::new(device.info(), arguments.tiny);
    drop(device);
    let chosen = |part: &Part| arguments.only.is_empty() || arguments.only.contains(part);
    for part in Part::ALL.into_iter().filter(chosen) {
        let left = arguments.seconds - start.elapsed().as_secs_f64();
        let seconds = match part {
            Part::RedLine => arguments.red_line_seconds.min(left - parts::RESERVE_SECONDS),
            _ => part.seconds().min(left - parts::RESERVE_SECONDS),
        };
        println!("== {} ({seconds:.0} s at most)", part.name());
        let peers = peers(arguments);
        parts::spawn(part, seconds, arguments.tiny, &peers, &mut report);
        // After each part, so that whoever stops this has what there is.
        report.write(&arguments.json, start.elapsed().as_secs_f64())?;
    }
    println!("{}", report.summary());
    println!("{} written", arguments.json.display());
    Ok(())
}
