//! An agent at work: its one call, and the text that it writes meanwhile, which waits for whoever reads it. Not here: its generations
//! (`sessions.rs`), and what is sent and recorded (`generation/agent.rs`).

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use plugin::{CapabilityError, Output};
use tokio::sync::mpsc;
use types::{AgentAnswer, InvocationRequest};

use super::function::FunctionCall;
use super::post::over;
use crate::error::Error;

/// Texts that were written and not read yet.
const WRITTEN_MAX: usize = 4;

/// An agent that was started and not called yet.
pub(crate) struct AgentWork {
    pub(crate) call: FunctionCall,
    pub(crate) written: mpsc::Receiver<String>,
    /// When the request has no time any more.
    pub(crate) deadline: Instant,
    pub(crate) answer_bytes_max: usize,
}

/// Where an agent writes its answer.
pub(super) struct AgentOutput {
    written: mpsc::Sender<String>,
    bytes_left: AtomicUsize,
    bytes_max: usize,
}

/// An output of at most so many bytes, and where it comes out.
pub(super) fn output(bytes_max: usize) -> (AgentOutput, mpsc::Receiver<String>) {
    let (written, reader) = mpsc::channel(WRITTEN_MAX);
    (AgentOutput { written, bytes_left: AtomicUsize::new(bytes_max), bytes_max }, reader)
}

#[async_trait]
impl Output for AgentOutput {
    async fn write(&self, text: String) -> Result<(), CapabilityError> {
        let take = |left: usize| left.checked_sub(text.len());
        let taken = self.bytes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.map_err(|_| {
            CapabilityError::Limit(format!("answer_bytes_max of {} bytes of the answer", self.bytes_max))
        })?;
        let gone = |_| CapabilityError::Failed("nobody reads what is written here".to_owned());
        self.written.send(text).await.map_err(gone)
    }
}

/// What comes of an agent.
#[derive(Debug)]
pub(super) enum AgentStep {
    Text(String),
    Done(AgentAnswer),
}

/// An agent's call as it runs. Dropping it ends the agent and all that it began.
pub(super) struct AgentRun {
    running: Pin<Box<dyn Future<Output = Result<AgentAnswer, Error>> + Send>>,
    written: mpsc::Receiver<String>,
    ended: Option<Result<AgentAnswer, Error>>,
    bytes_sent: usize,
    bytes_max: usize,
}

impl AgentRun {
    pub(super) fn begin(work: AgentWork, request: &InvocationRequest) -> Self {
        let AgentWork { mut call, written, deadline, answer_bytes_max: bytes_max } = work;
        let request = request.clone();
        let running = Box::pin(async move {
            let deadline = tokio::time::Instant::from_std(deadline);
            match tokio::time::timeout_at(deadline, call.instance.run_agent(&request)).await {
                Ok(answer) => Ok(answer?),
                Err(_) => Err(Error::Late("the agent had answered")),
            }
        });
        Self { running, written, ended: None, bytes_sent: 0, bytes_max }
    }

    /// What comes next: what was written in its order, then how it ended.
    pub(super) async fn next(&mut self) -> Result<AgentStep, Error> {
        while self.ended.is_none() {
            tokio::select! {
                biased;
                Some(text) = self.written.recv() => return Ok(self.text(text)),
                answer = &mut self.running => self.ended = Some(answer),
            }
        }
        if let Ok(text) = self.written.try_recv() {
            return Ok(self.text(text));
        }
        let ended = self.ended.take();
        let answer = ended.unwrap_or_else(|| Err(Error::Internal("an agent was read after its end".into())))?;
        let bytes = self.bytes_sent.saturating_add(answer.text.len());
        if bytes > self.bytes_max {
            return Err(over("the plugin's answer in bytes", bytes, "answer_bytes_max", self.bytes_max));
        }
        Ok(AgentStep::Done(answer))
    }

    fn text(&mut self, text: String) -> AgentStep {
        self.bytes_sent = self.bytes_sent.saturating_add(text.len());
        AgentStep::Text(text)
    }
}
