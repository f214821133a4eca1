//! What the receipt of a request says, gathered while it runs. Not here: signing and storing, which is `receipt.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::Activation;
use types::{Composition, Digest, InvocationRequest, Sampling, Usage};

use super::Stages;
use super::cold::Cold;
use super::function::FunctionCall;
use super::prompt::Rendered;
use crate::adapters::{LoadTimes, LoadedFrom};
use crate::error::Error;
use crate::host::Host;
use crate::metrics::Metrics;
use crate::receipt::{
    AdapterPart, AdapterUse, Claims, ColdRecord, Commitment, Committer, FunctionRef, LoadRecord, Outcome,
    SamplingRecord, Subject, Timings, TokenCounts,
};

/// What is known so far about a request that is being answered.
pub(crate) struct Progress {
    pub(crate) stages: Stages,
    pub(crate) composition: Composition,
    activations: Vec<Activation>,
    pub(crate) queued: Duration,
    /// Time inside the plugin after `compose`.
    pub(crate) post_processing: Duration,
    pub(crate) completion_tokens: u32,
    pub(crate) claims: Claims,
    sampling: Option<SamplingRecord>,
    prompt_tokens: u32,
    prompt: Commitment,
    answer: Committer,
    first_token: Option<Duration>,
    last_token: Option<Instant>,
    cold: Option<ColdRecord>,
}

impl Progress {
    /// A request whose prompt is this, or whatever else the answer was made from.
    pub(crate) fn new(stages: Stages, prompt: &Rendered) -> Result<Self, Error> {
        Ok(Self {
            stages,
            composition: Composition::default(),
            activations: Vec::new(),
            queued: Duration::ZERO,
            post_processing: Duration::ZERO,
            completion_tokens: 0,
            claims: Claims::default(),
            sampling: None,
            prompt_tokens: u32::try_from(prompt.tokens.len()).unwrap_or(u32::MAX),
            prompt: Commitment::to(&prompt.committed)?,
            answer: Committer::new()?,
            first_token: None,
            last_token: None,
            cold: None,
        })
    }

    /// The same, whose adapters were not all in memory.
    pub(crate) fn met_cold(self, cold: Option<&Cold>) -> Self {
        Self { cold: cold.map(cold_record), ..self }
    }

    /// The same, to be generated so.
    pub(crate) fn generated_by(
        mut self,
        composition: Composition,
        activations: Vec<Activation>,
        sampling: &Sampling,
        seed: u64,
    ) -> Self {
        self.composition = composition;
        self.activations = activations;
        self.sampling = Some(SamplingRecord::new(sampling, seed));
        self
    }

    /// One more token came from the engine.
    pub(crate) fn count_token(&mut self, metrics: &Metrics) {
        self.completion_tokens = self.completion_tokens.saturating_add(1);
        let now = Instant::now();
        match self.last_token.replace(now) {
            Some(last) => metrics.inter_token(now - last),
            None => {
                let first = self.stages.started.elapsed();
                self.first_token = Some(first);
                metrics.first_token(first);
            }
        }
    }

    /// This text goes to the caller.
    pub(crate) fn answered(&mut self, text: &str) {
        self.answer.update(text.as_bytes());
    }

    /// What was used so far.
    pub(crate) const fn usage(&self) -> Usage {
        Usage { prompt_tokens: self.prompt_tokens, completion_tokens: self.completion_tokens }
    }

    /// Tokens of prompt and output that the adapter acts on: all of them, or those from its invocation on.
    fn tokens_active(&self, adapter: Digest) -> u32 {
        let Usage { prompt_tokens, completion_tokens } = self.usage();
        let tokens = prompt_tokens.saturating_add(completion_tokens);
        match self.activations.iter().find(|activation| activation.adapter == adapter) {
            None => tokens,
            Some(Activation { first_token: Some(first), .. }) => tokens.saturating_sub(*first),
            Some(Activation { first_token: None, .. }) => 0,
        }
    }

    /// What a final record says, as of now.
    pub(crate) fn outcome(&self) -> Outcome {
        let parts = self.composition.parts().iter();
        Outcome {
            composition: parts.map(|part| AdapterUse::new(part, self.tokens_active(part.adapter))).collect(),
            sampling: self.sampling.clone(),
            tokens: TokenCounts::from(self.usage()),
            timings: Timings {
                queue: self.queued,
                plugin: self.stages.plugin + self.post_processing,
                adapters: self.stages.adapters,
                first_token: self.first_token.unwrap_or_default(),
                total: self.stages.started.elapsed(),
            },
            prompt: Some(self.prompt),
            answer: Some(self.answer.commit()),
            claims: self.claims.clone(),
            cold: self.cold.clone(),
            ..Outcome::default()
        }
    }
}

fn cold_record(cold: &Cold) -> ColdRecord {
    let load = |(adapter, times): &(Digest, LoadTimes)| LoadRecord {
        adapter: *adapter,
        from: match times.from {
            LoadedFrom::Disk => "disk",
            LoadedFrom::Store => "store",
        }
        .to_owned(),
        wait: times.wait,
        fetch: times.fetch,
        verify: times.verify,
        pack: times.pack,
        load: times.load,
    };
    ColdRecord {
        decision: cold.decision.name().to_owned(),
        asked: cold.asked.iter().flat_map(|asked| asked.parts()).map(AdapterPart::from).collect(),
        loads: cold.loads.iter().map(load).collect(),
    }
}

/// What a receipt is about.
pub(crate) fn subject(
    host: &Arc<Host>,
    request: &InvocationRequest,
    function: Option<&FunctionCall>,
    composition: &Composition,
) -> Subject {
    Subject {
        request: request.id.clone(),
        function: function.map(|call| FunctionRef {
            name: call.name.clone(),
            version: call.version,
            plugin: call.manifest.plugin,
        }),
        base: host.base.digest(),
        runner: "cpu".to_owned(),
        precision: host.precision.clone(),
        adapters: composition.parts().iter().map(AdapterPart::from).collect(),
    }
}
