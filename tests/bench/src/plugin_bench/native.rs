//! The router's policy compiled for this machine, in a process beside: what its calls cost without a sandbox. Not here: the
//! program (`plugins/examples/skill-router/examples/native.rs`).

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::Outcome;

/// The program, running.
pub(super) struct Native {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// Where `cargo xtask bench plugin` builds it: beside the target folder of this program.
///
/// # Errors
/// If the system does not say where this program lies.
pub(super) fn program() -> Outcome<PathBuf> {
    let this = std::env::current_exe()?;
    let target = this.ancestors().nth(2).ok_or("this program lies in no target folder")?;
    Ok(target.join("plugins-native/release/examples/native"))
}

impl Native {
    /// # Errors
    /// If it is not there.
    pub(super) fn start(program: &Path) -> Outcome<Self> {
        let mut command = Command::new(program);
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let why = |error| format!("{}: {error}; run `cargo xtask bench plugin`, which builds it", program.display());
        let mut child = spawned.map_err(why)?;
        let input = child.stdin.take().ok_or("a process without an input")?;
        let output = BufReader::new(child.stdout.take().ok_or("a process without an output")?);
        Ok(Self { child, input, output })
    }

    /// So many requests, each in microseconds.
    ///
    /// # Errors
    /// If the program failed.
    pub(super) fn cycles(&mut self, count: usize) -> Outcome<Vec<f64>> {
        writeln!(self.input, "{count}")?;
        self.input.flush()?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let times: Result<Vec<f64>, _> = line.split_whitespace().map(str::parse).collect();
        let times_us: Vec<f64> = times?.into_iter().map(|ns: f64| ns / 1e3).collect();
        if times_us.len() != count {
            return Err(format!("the native policy answered {} of {count} requests", times_us.len()).into());
        }
        Ok(times_us)
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
