//! The life of a request, top to bottom: function, plugin, plan check, adapters, engine, receipt. What comes back is a
//! [`Generation`], which the HTTP surface pulls from; dropping it cancels everything that it holds.
//!
//! Not here: JSON and HTTP types, and how any stage does its work.

mod function;
mod generation;
mod grants;
mod post;
mod prompt;
mod record;
mod stop;
mod template;

pub(crate) use template::check_templates;

pub(crate) use generation::{AdapterUse, Ended, Generation, Piece, TokenOut};

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::Submission;
use futures::future::try_join_all;
use types::{FunctionName, InvocationRequest, Plan, PlanLimits, ValidPlan};

use crate::adapters::AdapterLease;
use crate::error::Error;
use crate::host::Host;
use crate::tenants::Principal;
use function::FunctionCall;
use grants::ResolvedGrants;
use post::PostState;

/// A request as the HTTP surface hands it over.
pub(crate) struct Invocation {
    /// Who calls.
    pub(crate) principal: Principal,
    /// What is asked; its `function` and `version` are filled in here.
    pub(crate) request: InvocationRequest,
    /// Who decides what is generated.
    pub(crate) target: Target,
}

/// Who decides what is generated.
pub(crate) enum Target {
    /// The live version of a function.
    Function(FunctionName),
    /// The caller, who wrote a plan.
    Plan(Box<Plan>),
}

/// A plan with all that its check needs.
pub(crate) struct Draft {
    pub(crate) plan: Plan,
    pub(crate) grants: ResolvedGrants,
    pub(crate) limits: PlanLimits,
    pub(crate) function: Option<FunctionCall>,
}

/// How long the stages before the engine took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stages {
    pub(crate) started: Instant,
    pub(crate) plugin: Duration,
    pub(crate) adapters: Duration,
}

/// What the plugin made of a request.
pub(crate) enum Routed {
    /// To be generated.
    Draft(Box<Draft>),
    /// Answered without generating.
    Answer(Box<FunctionCall>, String),
}

/// Takes a request as far as its place in the engine's queue and a durable `started` receipt.
pub(crate) async fn invoke(host: &Arc<Host>, invocation: Invocation) -> Result<Generation, Error> {
    let started = Instant::now();
    let Invocation { principal, mut request, target } = invocation;
    let from_plugin = matches!(target, Target::Function(_));
    let routed = match target {
        Target::Plan(plan) => Routed::Draft(Box::new(direct(host, &principal, *plan).await?)),
        Target::Function(name) => function::route(host, &principal, &name, &mut request, started).await?,
    };
    let plugin = if from_plugin { started.elapsed() } else { Duration::ZERO };
    match routed {
        Routed::Answer(call, text) => {
            let stages = Stages { started, plugin, adapters: Duration::ZERO };
            Generation::answered(host, &principal, &request, *call, text, stages).await
        }
        Routed::Draft(draft) => submit(host, &principal, &request, *draft, started, plugin).await,
    }
}

/// A plan that the caller wrote: it may name every adapter of its tenant.
async fn direct(host: &Arc<Host>, principal: &Principal, plan: Plan) -> Result<Draft, Error> {
    let names: Vec<String> = plan.composition.iter().map(|entry| entry.adapter.clone()).collect();
    let grants = ResolvedGrants::of_tenant(host, &principal.tenant, &names).await?;
    Ok(Draft { plan, grants, limits: host.plan_limits.clone(), function: None })
}

async fn submit(
    host: &Arc<Host>,
    principal: &Principal,
    request: &InvocationRequest,
    draft: Draft,
    started: Instant,
    plugin: Duration,
) -> Result<Generation, Error> {
    let Draft { plan, grants, limits, function } = draft;
    let by_caller = function.is_none();
    let plan = ValidPlan::check(plan, &grants, &limits).map_err(|source| Error::Plan { source, by_caller })?;
    let adapters_started = Instant::now();
    let leasing = lease_adapters(host, &grants, &plan);
    let leases = tokio::time::timeout(plan.deadline(), leasing).await.map_err(|_| Error::Deadline)??;
    let stages = Stages { started, plugin, adapters: adapters_started.elapsed() };
    let templates = function.as_ref().map(|call| &call.manifest.templates);
    let prompt = prompt::tokenise(host, plan.prompt(), templates).await?;
    let seed = match plan.sampling().seed {
        Some(seed) => seed,
        None => random_seed()?,
    };
    let adapters = leases.iter().map(|lease| (lease.digest(), Arc::clone(lease.adapter()))).collect();
    let submission = Submission { plan: plan.clone(), prompt: prompt.tokens.clone(), adapters, seed };
    let tokens = host.engine.submit(submission)?;
    Generation::started(
        host,
        principal,
        request,
        generation::Parts {
            post: PostState::new(&limits),
            plan,
            prompt,
            seed,
            tokens,
            leases,
            function,
            aliases: grants.aliases(),
            stages,
        },
    )
    .await
}

async fn lease_adapters(
    host: &Arc<Host>,
    grants: &ResolvedGrants,
    plan: &ValidPlan,
) -> Result<Vec<AdapterLease>, Error> {
    let mut digests: Vec<_> = plan.composition().parts().iter().map(|part| part.adapter).collect();
    digests.dedup();
    let mut leases = Vec::with_capacity(digests.len());
    for digest in digests {
        leases.push(host.adapters.lease_resolved(grants.adapters(), digest));
    }
    Ok(try_join_all(leases).await?)
}

fn random_seed() -> Result<u64, Error> {
    getrandom::u64().map_err(|error| Error::Internal(format!("no randomness: {error}")))
}
