//! Repository tasks: `cargo xtask demo`, `test`, `fuzz`, `bench`, `guests`, `base`, `tidy`. Each does from a fresh clone whatever it
//! needs done first. Not here: anything that a user of Tenon runs on a server; that is the `tenon` binary.

mod base;
mod bench;
mod clients;
mod cuda;
mod cuda_bench;
mod demo;
mod fuzz;
mod guests;
mod shell;
mod suite;
mod tools;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Repository tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", about = "Repository tasks of Tenon")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Set everything up, start a server with real adapters and plugins, invoke them, and keep serving
    Demo {
        /// End after the tour; non-zero if any step failed
        #[arg(long)]
        once: bool,
        /// Keep the server's data here (a temporary folder by default)
        #[arg(long, value_name = "DIR")]
        keep_data: Option<PathBuf>,
        /// Listen on this port of 127.0.0.1 (any free one by default)
        #[arg(long, default_value_t = 0)]
        port: u16,
    },
    /// Build the release, and measure it: `bench engine`, `adapters`, `churn`, `soak`, `plugin`, `quality`, `cuda`; each says more with `--help`
    #[command(disable_help_flag = true)]
    Bench {
        /// Which bench, and what it is told
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "BENCH")]
        arguments: Vec<OsString>,
    },
    /// Build the guests, fetch the base, and run every check: formatting, lints, licences, tests
    Test {
        /// Only this stage
        #[arg(long, value_enum)]
        stage: Option<suite::Stage>,
    },
    /// Run the fuzz targets; the first build takes some minutes
    Fuzz {
        /// Only this one
        #[arg(value_enum)]
        target: Option<fuzz::Target>,
        /// How long each of them runs
        #[arg(long, default_value_t = 1.0)]
        minutes: f64,
        /// Run the target once, on the input that a finding left
        #[arg(long, value_name = "FILE", requires = "target")]
        input: Option<PathBuf>,
    },
    /// Build the example and adversarial plugins as components
    Guests {
        /// Copy them over the committed ones in tests/fixtures/guests
        #[arg(long)]
        update_fixtures: bool,
    },
    /// Fetch the demo base model into the cache, and print its path
    Base,
    /// Check the rules of this repository: who imports whom, file lengths, licences, fixtures
    Tidy,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Demo { once, keep_data, port } => demo::run(&demo::Options { once, keep_data, port }),
        Task::Bench { arguments } => bench::run(&arguments),
        Task::Test { stage } => suite::run(stage),
        Task::Fuzz { target, minutes, input } => fuzz::run(target, minutes, input.as_deref()),
        Task::Guests { update_fixtures } => suite::guests(update_fixtures),
        Task::Base => base::ensure().map(|path| println!("{}", path.display())),
        Task::Tidy => suite::tidy(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_bench_is_told_reaches_it_as_it_is() {
        let line = ["xtask", "bench", "engine", "--peer", "--json", "out.json", "--help"];
        let Ok(Arguments { task: Task::Bench { arguments } }) = Arguments::try_parse_from(line) else {
            panic!("`bench` takes any arguments");
        };
        assert_eq!(arguments, line[2..]);
    }
}
