//! The Python program that drives llama.cpp: a line of JSON in, a line out. Not here: what it is asked.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::Outcome;

const SCRIPT: &str = include_str!("../../python/driver.py");

/// A running one; ends when dropped.
pub(crate) struct Driver {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// The package's version and what llama.cpp says of its build.
    pub(crate) about: Value,
}

impl Driver {
    /// Starts one.
    ///
    /// # Errors
    /// If the interpreter does not start, or the package is not in it.
    pub(crate) fn start(python: &Path) -> Outcome<Self> {
        let mut command = Command::new(python);
        // The script is an argument, so that it need not lie anywhere.
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().map_err(|error| format!("cannot start {}: {error}", python.display()))?;
        let requests = child.stdin.take().ok_or("no standard input")?;
        let answers = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        let mut driver = Self { child, requests, answers, about: Value::Null };
        driver.about = driver.answer()?;
        Ok(driver)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// If the driver ended, or says that something failed.
    pub(crate) fn ask(&mut self, request: &Value) -> Outcome<Value> {
        writeln!(self.requests, "{request}")?;
        self.requests.flush()?;
        let answer = self.answer()?;
        match answer.get("error").and_then(Value::as_str) {
            Some(error) => Err(format!("llama.cpp: {error}").into()),
            None => Ok(answer),
        }
    }

    /// Opens a model under a name.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn open(&mut self, name: &str, path: &Path) -> Outcome {
        self.ask(&json!({"do": "open", "name": name, "path": path})).map(|_| ())
    }

    /// Time for a prompt of so many tokens.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn prefill(&mut self, name: &str, tokens: usize, threads: usize) -> Outcome<Duration> {
        let answer = self.ask(&json!({"do": "prefill", "name": name, "tokens": tokens, "threads": threads}))?;
        seconds(&answer)
    }

    /// Time for so many decode steps after a short context.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn decode(
        &mut self,
        name: &str,
        (batch, context, steps): (usize, usize, usize),
        threads: usize,
    ) -> Outcome<Duration> {
        let request = json!({"do": "decode", "name": name, "batch": batch, "context": context, "steps": steps, "threads": threads});
        let answer = self.ask(&request)?;
        seconds(&answer)
    }

    fn answer(&mut self) -> Outcome<Value> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err("the driver of llama.cpp ended: its message is above".into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn seconds(answer: &Value) -> Outcome<Duration> {
    let seconds = answer.get("seconds").and_then(Value::as_f64).ok_or("llama.cpp's driver gave no time")?;
    Ok(Duration::try_from_secs_f64(seconds)?)
}
