//! What the receipt of a request says, gathered while it runs. Not here: signing and storing, which is `receipt.rs`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::Activation;
use types::{Composition, CompositionPart, Digest, InvocationRequest, TenantId, Usage, ValidPlan};

use super::Stages;
use super::cold::Cold;
use super::course::Course;
use super::function::FunctionCall;
use super::nested::{NestedLog, Noted};
use super::prompt::Rendered;
use crate::adapters::{LoadTimes, LoadedFrom, ResolvedAdapters};
use crate::error::Error;
use crate::host::Host;
use crate::metrics::Metrics;
use crate::receipt::{
    AdapterPart, AdapterUse, Claims, ColdRecord, Commitment, Committer, FunctionRef, GenerationRecord, LoadRecord,
    Outcome, SamplingRecord, Subject, Timings, TokenCounts,
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
    /// What acted before the composition was switched, and on how many tokens.
    before: Vec<AdapterUse>,
    /// The first token that the composition acts on.
    since: u32,
    /// The functions that the request was handed over to.
    handed_over: Vec<FunctionRef>,
    called: Option<Arc<NestedLog>>,
    /// Whose adapters are that other tenants share.
    owners: HashMap<Digest, TenantId>,
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
            before: Vec::new(),
            since: 0,
            handed_over: Vec::new(),
            called: None,
            owners: HashMap::new(),
        })
    }

    /// The same, answered by this function.
    pub(crate) fn by(self, function: Option<&FunctionCall>) -> Self {
        let called = function.map(|call| Arc::clone(&call.nested));
        Self { handed_over: function.map(FunctionCall::handed_over).unwrap_or_default(), called, ..self }
    }

    /// The same, whose adapters were not all in memory.
    pub(crate) fn met_cold(self, cold: Option<&Cold>) -> Self {
        Self { cold: cold.map(|cold| cold_record(cold, &self.owners)), ..self }
    }

    /// The same, of adapters that may be these tenants'.
    pub(crate) fn out_of(self, adapters: &ResolvedAdapters) -> Self {
        Self { owners: adapters.owners().clone(), ..self }
    }

    /// The same, to be generated so.
    pub(crate) fn generated_by(
        mut self,
        composition: Composition,
        activations: Vec<Activation>,
        plan: &ValidPlan,
        seed: u64,
    ) -> Self {
        self.composition = composition;
        self.activations = activations;
        self.sampling = Some(SamplingRecord::new(plan.sampling(), plan.constraint(), seed));
        self
    }

    /// The composition is another one from here on.
    pub(crate) fn switched(&mut self, course: &Course, cold: Option<&Cold>) {
        let end = u32::try_from(course.tokens.len().saturating_sub(1)).unwrap_or(u32::MAX);
        let acted: Vec<_> = self.uses(end).collect();
        self.before.extend(acted);
        self.since = if course.stretches.is_empty() { 0 } else { end };
        self.composition = course.plan.composition().clone();
        self.activations = course.activations.clone();
        self.cold = self.cold.take().or_else(|| cold.map(|cold| cold_record(cold, &self.owners)));
    }

    /// What acts now, and on how many of the tokens before this one.
    fn uses(&self, end: u32) -> impl Iterator<Item = AdapterUse> + '_ {
        self.composition.parts().iter().map(move |part| {
            AdapterUse::new(part, self.tokens_active(part, end)).shared_by(self.owners.get(&part.adapter))
        })
    }

    /// One more token came from the engine; it is in these metrics, if in any.
    pub(crate) fn count_token(&mut self, metrics: Option<&Metrics>) {
        self.completion_tokens = self.completion_tokens.saturating_add(1);
        let now = Instant::now();
        match self.last_token.replace(now) {
            Some(last) => metrics.into_iter().for_each(|metrics| metrics.inter_token(now - last)),
            None => {
                let first = self.stages.started.elapsed();
                self.first_token = Some(first);
                metrics.into_iter().for_each(|metrics| metrics.first_token(first));
            }
        }
    }

    /// This text goes to the caller.
    pub(crate) fn answered(&mut self, text: &str) {
        self.answer.update(text.as_bytes());
    }

    /// Something is sent that did not come from the engine: the first of it counts as the first token.
    pub(crate) fn first_piece(&mut self) {
        self.first_token.get_or_insert_with(|| self.stages.started.elapsed());
    }

    /// What was used so far, an agent's generations included.
    pub(crate) fn usage(&self) -> Usage {
        let own = Usage { prompt_tokens: self.prompt_tokens, completion_tokens: self.completion_tokens };
        let Some(called) = &self.called else { return own };
        called.noted().generations.iter().fold(own, |sum, one| Usage {
            prompt_tokens: sum.prompt_tokens.saturating_add(one.tokens.prompt),
            completion_tokens: sum.completion_tokens.saturating_add(one.tokens.completion),
        })
    }

    /// Tokens before this one that the part acts on: all of them since the last switch, those from its invocation on, or those that
    /// yield its range of the answer.
    fn tokens_active(&self, part: &CompositionPart, end: u32) -> u32 {
        tokens_active(part, &self.activations, self.since, self.prompt_tokens, end)
    }

    /// Ends what a plugin has had begun and not read to its end, so that the final record has all of it.
    pub(crate) fn break_off_nested(&self) {
        self.called.iter().for_each(|called| called.break_off());
    }

    /// What a final record says, as of now.
    pub(crate) fn outcome(&self) -> Outcome {
        let uses = self.uses(self.prompt_tokens.saturating_add(self.completion_tokens));
        let Noted { calls, generations } =
            self.called.as_ref().map(|called| called.noted().clone()).unwrap_or_default();
        Outcome {
            handed_over: self.handed_over.clone(),
            composition: self.before.iter().cloned().chain(uses).chain(together(&generations)).collect(),
            calls,
            generations,
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

/// Tokens from `since` to before `end` that the part acts on, after a prompt of so many.
pub(super) fn tokens_active(
    part: &CompositionPart,
    activations: &[Activation],
    since: u32,
    prompt_tokens: u32,
    end: u32,
) -> u32 {
    let invoked = match activations.iter().find(|activation| activation.adapter == part.adapter) {
        None => 0,
        Some(Activation { first_token: Some(first), .. }) => *first,
        Some(Activation { first_token: None, .. }) => return 0,
    };
    let (first, last) = part.output.map_or((0, None), |output| output.positions(prompt_tokens as usize));
    let token = |position: usize| u32::try_from(position).unwrap_or(u32::MAX);
    let end = last.map_or(end, |last| end.min(token(last)));
    end.saturating_sub(since.max(invoked).max(token(first)))
}

/// What acted in several generations, each term once.
fn together(generations: &[GenerationRecord]) -> Vec<AdapterUse> {
    let mut sums: Vec<AdapterUse> = Vec::new();
    for one in generations.iter().flat_map(|generation| &generation.composition) {
        let is_same = |sum: &&mut AdapterUse| {
            AdapterUse { tokens_active: 0, ..(**sum).clone() } == AdapterUse { tokens_active: 0, ..one.clone() }
        };
        match sums.iter_mut().find(is_same) {
            Some(sum) => sum.tokens_active = sum.tokens_active.saturating_add(one.tokens_active),
            None => sums.push(one.clone()),
        }
    }
    sums.sort_by_key(|one| one.adapter);
    sums
}

fn cold_record(cold: &Cold, owners: &HashMap<Digest, TenantId>) -> ColdRecord {
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
        asked: cold.asked.iter().flat_map(|asked| parts(asked, owners)).collect(),
        loads: cold.loads.iter().map(load).collect(),
    }
}

/// What a receipt is about.
pub(crate) fn subject(
    host: &Arc<Host>,
    request: &InvocationRequest,
    function: Option<&FunctionCall>,
    composition: &Composition,
    owners: &HashMap<Digest, TenantId>,
) -> Subject {
    Subject {
        request: request.id.clone(),
        // The one that was called; the outcome has those that it was handed over to.
        function: function.and_then(|call| call.chain.first().cloned()),
        called_by: function.and_then(|call| call.called_by.clone()),
        base: host.base.digest(),
        runner: host.runner.to_owned(),
        precision: host.precision.clone(),
        adapters: parts(composition, owners).collect(),
    }
}

fn parts<'a>(
    composition: &'a Composition,
    owners: &'a HashMap<Digest, TenantId>,
) -> impl Iterator<Item = AdapterPart> + 'a {
    composition.parts().iter().map(|part| AdapterPart::from(part).shared_by(owners.get(&part.adapter)))
}
