//! The same work in PyTorch and Triton, in a Python process that answers line by line, so that both sides can be measured in
//! turn. Where torch is not installed there is no peer, and that is said. Not here: the work (`peers.py`).

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

use crate::Outcome;

/// The process. Ended when dropped.
pub(crate) struct Peer {
    child: Child,
    input: ChildStdin,
    answers: Receiver<String>,
}

impl Peer {
    /// Starts it and waits until it has said what it has.
    ///
    /// # Errors
    /// If there is no Python, no torch, no device for it, or no answer in time.
    pub(crate) fn start(script: &Path, seconds: f64) -> Outcome<Self> {
        if !script.is_file() {
            return Err(format!("{} is missing", script.display()).into());
        }
        let mut command = Command::new("python3");
        command.arg("-u").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("python3: {error}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the peer has no pipes".into());
        };
        let (to, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = to.send(line);
            }
        });
        let peer = Self { child, input, answers };
        peer.answer(seconds)?;
        Ok(peer)
    }

    /// Asks for something and waits for the answer.
    ///
    /// # Errors
    /// If the peer fails, ends, or takes longer.
    pub(crate) fn ask(&mut self, question: &Value, seconds: f64) -> Outcome<Value> {
        writeln!(self.input, "{question}")?;
        self.input.flush()?;
        self.answer(seconds)
    }

    fn answer(&self, seconds: f64) -> Outcome<Value> {
        let line = self.answers.recv_timeout(Duration::from_secs_f64(seconds));
        let line = line.map_err(|error| format!("the peer gave no answer: {error}"))?;
        let answer: Value = serde_json::from_str(&line).map_err(|_| format!("the peer said: {line}"))?;
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned().into()),
            None => Ok(answer),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_answers_line_by_line_or_says_why_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let script = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        assert!(Peer::start(&folder.path().join("none.py"), 1.0).is_err());
        let absent = script("absent.py", "print('{\"error\": \"no torch\"}')");
        let error = Peer::start(&absent, 20.0).err().map(|error| error.to_string());
        // A machine without Python says so instead.
        assert!(error.is_some_and(|error| error == "no torch" || error.contains("python3")));
        let echo = script(
            "echo.py",
            "import sys\nprint('{}')\nfor line in sys.stdin: print('{\"said\": %s}' % line.strip(), flush=True)",
        );
        let Ok(mut peer) = Peer::start(&echo, 20.0) else { return };
        assert_eq!(peer.ask(&serde_json::json!([1, 2]), 20.0).expect("an answer")["said"][1], 2);
    }
}
