//! Stages 11 to 13 for an agent: what it writes is sent as it comes, and the one receipt of the request is closed with all that it had
//! generated. Not here: the agent's call (`invoke/agent.rs`).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use types::{AgentAnswer, Composition, FinishReason, InvocationRequest};

use super::{Ended, Generation, Head, Piece, open_receipt};
use crate::error::Error;
use crate::host::Host;
use crate::invoke::Stages;
use crate::invoke::agent::{AgentRun, AgentStep, AgentWork};
use crate::invoke::prompt::Rendered;
use crate::invoke::record::{self, Progress};
use crate::receipt::{self, Claims, Final};
use crate::tenants::Principal;

impl Generation {
    /// An agent that is to be called; returns when its `started` receipt is durable.
    pub(crate) async fn agent(
        host: &Arc<Host>,
        principal: &Principal,
        request: &InvocationRequest,
        work: AgentWork,
        stages: Stages,
    ) -> Result<Self, Error> {
        let subject = record::subject(host, request, Some(&work.call), &Composition::default(), &HashMap::new());
        let is_copy = work.call.is_copy;
        let mut receipt = open_receipt(host, principal, subject, is_copy).await?;
        let asked = Rendered { tokens: Vec::new(), committed: request.input_json.clone().into_bytes() };
        let call = &work.call;
        let progress = Progress::new(stages, &asked)?.by(Some(call));
        if let Some(receipt) = receipt.as_mut() {
            let outcome = receipt::Outcome { answer: None, ..progress.outcome() };
            *receipt.draft() = Final { ending: receipt::Ending::Cancelled, outcome };
        }
        let head = Head {
            request_id: request.id.clone(),
            receipt_id: receipt.as_ref().map(|receipt| receipt.id().to_string()).unwrap_or_default(),
            function: Some((call.name.to_string(), call.version)),
            adapters: Vec::new(),
            prompt_tokens: Vec::new(),
        };
        Ok(Self {
            head: Arc::new(head),
            host: Arc::clone(host),
            tenant: principal.tenant.clone(),
            log: Some(call.log.clone()),
            receipt,
            tap: None,
            source: None,
            ready: VecDeque::new(),
            failed: None,
            is_copy,
            is_streamed: request.stream,
            progress,
            agent: Some(AgentRun::begin(work, request)),
        })
    }

    /// Takes what comes next of the agent and makes pieces of it.
    pub(super) async fn advance_agent(&mut self) -> Result<(), Error> {
        let Some(agent) = self.agent.as_mut() else { return Ok(()) };
        match agent.next().await? {
            AgentStep::Text(text) => {
                self.progress.first_piece();
                self.queue_text(text, Vec::new());
                Ok(())
            }
            AgentStep::Done(answer) => self.finish_agent(answer).await,
        }
    }

    async fn finish_agent(&mut self, answer: AgentAnswer) -> Result<(), Error> {
        let AgentAnswer { text, metadata, claims } = answer;
        self.progress.claims = Claims::check(claims)?;
        self.progress.first_piece();
        self.queue_text(text, Vec::new());
        // With it goes what it still held.
        self.agent = None;
        self.progress.break_off_nested();
        let (reason, usage) = (FinishReason::Stop, self.progress.usage());
        if let Some(receipt) = self.take_receipt() {
            let outcome = receipt::Outcome { finish: Some(reason), ..self.progress.outcome() };
            receipt.finish(Final { ending: receipt::Ending::Finished, outcome }).await?;
        }
        self.ready.push_back(Piece::End(Ended { reason, by_stop_string: false, usage, metadata }));
        Ok(())
    }
}
