//! What is being generated, and how it goes on under another composition: as a request of its own that begins with all tokens so
//! far, each with what acted on it. Not here: when, which is the plugin's to say (`generation.rs`).
//!
//! The KV policy is the function's. `reuse`: what was computed stays as it was, and the new composition acts from the last token on;
//! the engine finds the KV by its keys, in which the composition of each token is. `reprefill`: all of it is computed anew under
//! the new composition. Both are the same tokens whatever else runs, and however late the plugin answered.

use std::sync::Arc;
use std::time::Instant;

use engine::{Activation, Continuation, GenerationError, OutputConstraint, Stretch, Submission, Terms, TokenStream};
use types::{Digest, PlanEntry, PlanError, PlanLimits, ValidPlan};

use super::cold::{self, Cold, ColdBounds, Resident};
use super::cold_bytes::ColdBytes;
use super::grants::ResolvedGrants;
use super::place::{submitted, wait_for_place};
use super::{activations, lent};
use crate::adapters::{AdapterLease, ReleasePolicy};
use crate::constraints::ReadConstraint;
use crate::error::Error;
use crate::host::Host;
use crate::registry::ManifestSwitch;

/// Switches of one answer.
const SWITCHES_MAX: u32 = 64;

/// What a composition may be made of, and how one is exchanged for another.
pub(crate) struct Rights {
    pub(crate) grants: ResolvedGrants,
    pub(crate) limits: PlanLimits,
    pub(crate) release: ReleasePolicy,
    pub(crate) switch: ManifestSwitch,
}

/// A sequence and its past.
pub(crate) struct Course {
    pub(crate) plan: ValidPlan,
    pub(crate) activations: Vec<Activation>,
    pub(crate) constraint: Option<ReadConstraint>,
    /// The prompt, then what was generated and taken.
    pub(crate) tokens: Vec<u32>,
    pub(crate) generated: u32,
    pub(crate) seed: u64,
    pub(crate) terms: Terms,
    pub(crate) stretches: Vec<Stretch>,
    /// Held so that all generations that acted stay until the last token: their KV may have to be computed again.
    pub(crate) leases: Vec<AdapterLease>,
    pub(crate) rights: Rights,
    pub(crate) switches: u32,
    /// Of the adapters that were loaded for it, under all compositions.
    pub(crate) cold_bytes: ColdBytes,
    pub(crate) started: Instant,
}

impl Course {
    /// One more token was taken.
    pub(crate) fn push(&mut self, id: u32) {
        self.tokens.push(id);
        self.generated = self.generated.saturating_add(1);
    }

    /// What is told when the engine gave it up: a constraint that it could not be kept to is its author's fault.
    pub(crate) fn failed(&self, error: GenerationError) -> Error {
        match (error, &self.constraint) {
            (GenerationError::Constraint(why), Some(constraint)) => constraint.failed(why),
            (error, _) => error.into(),
        }
    }

    /// Goes on under these entries. `None` if nothing is left to be generated.
    pub(crate) async fn switch(
        &mut self,
        host: &Arc<Host>,
        entries: &[PlanEntry],
    ) -> Result<Option<(TokenStream, Option<Cold>)>, Error> {
        let plan_error = |source| Error::Plan { source, by_caller: false };
        if self.switches >= SWITCHES_MAX {
            let (what, limit) = ("the number of composition switches", "switches_max");
            let (value, max) = ((SWITCHES_MAX + 1).to_string(), SWITCHES_MAX.to_string());
            return Err(plan_error(PlanError::OverLimit { what, value, limit, max }));
        }
        self.switches += 1;
        let left = || self.plan.deadline().saturating_sub(self.started.elapsed());
        let Rights { grants, limits, release, switch } = &self.rights;
        let plan = self.plan.switched(entries, grants, limits, left()).map_err(plan_error)?;
        if self.generated >= plan.output_tokens_max() {
            return Ok(None);
        }
        let bounds = ColdBounds { bytes: &self.cold_bytes, by_caller: false };
        let Resident { plan, leases, cold } = cold::make_resident(host, grants, plan, *release, bounds).await?;
        // The KV of the last token was not computed under the earlier composition: it is drawn from under the new one.
        let end = u32::try_from(self.tokens.len().saturating_sub(1)).unwrap_or(u32::MAX);
        match switch {
            ManifestSwitch::Reuse => {
                let composition = self.plan.composition().clone();
                let activations = std::mem::take(&mut self.activations);
                self.stretches.push(Stretch { composition, activations, end });
            }
            ManifestSwitch::Reprefill => {
                self.stretches.clear();
                self.leases.clear();
            }
        }
        self.activations = activations(&leases, &self.tokens);
        self.leases.extend(leases);
        self.plan = plan;
        let deadline = Instant::now() + self.plan.deadline();
        // It gave up its place for this: it waits for another one.
        loop {
            wait_for_place(host, self.terms, deadline).await;
            if let Some(tokens) = submitted(host, self.submission().await?, deadline)? {
                return Ok(Some((tokens, cold)));
            }
        }
    }

    async fn submission(&self) -> Result<Submission<model::LoraAdapter>, Error> {
        let constraint = self.resumed_constraint().await?;
        let mut adapters: Vec<(Digest, _)> = lent(&self.leases).collect();
        adapters.sort_by_key(|(digest, _)| *digest);
        adapters.dedup_by_key(|(digest, _)| *digest);
        Ok(Submission {
            plan: self.plan.clone(),
            prompt: self.tokens.clone(),
            adapters,
            activations: self.activations.clone(),
            continues: Continuation {
                generated_tokens: self.generated,
                stretches: self.stretches.clone(),
                drawn: Vec::new(),
            },
            constraint,
            seed: self.seed,
            terms: self.terms,
        })
    }

    /// What the answer must match, as it stands after the tokens that were taken.
    async fn resumed_constraint(&self) -> Result<Option<Box<dyn OutputConstraint>>, Error> {
        let Some(constraint) = self.constraint.clone() else { return Ok(None) };
        let asked = self.tokens.len().saturating_sub(self.generated as usize);
        let generated = self.tokens.get(asked..).unwrap_or_default().to_vec();
        let resumed = tokio::task::spawn_blocking(move || constraint.begin(&generated));
        resumed.await.map_err(|error| Error::Internal(format!("a constraint was not resumed: {error}")))?.map(Some)
    }
}
