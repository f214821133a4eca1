//! The life of a request, top to bottom: function, plugin, plan check, adapters, engine, receipt. What comes back is a
//! [`Generation`], which the HTTP surface pulls from; dropping it cancels everything that it holds.
//!
//! Not here: JSON and HTTP types, and how any stage does its work.

mod agent;
mod call;
mod called;
mod cold;
mod cold_bytes;
mod copy;
mod course;
mod function;
mod generation;
mod grants;
mod hand_over;
mod lent;
mod nested;
mod pending;
mod place;
mod post;
mod prompt;
mod record;
mod seed;
mod sessions;
mod stop;
mod template;
mod terms;

pub use hand_over::HandOverError;
pub(crate) use template::check_templates;

pub(crate) use called::{Called, check_sticky};
pub(crate) use generation::{AdapterUse, Ended, Generation, Head, Piece, TokenOut};
pub(crate) use terms::{Handling, TenantSalts};

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Activation, Continuation, Submission, Terms, TokenStream};
use futures::future::{join_all, try_join_all};
use model::LoraAdapter;
use types::{Digest, InvocationRequest, Plan, PlanError, PlanLimits, ValidPlan};

use crate::adapters::AdapterLease;
use crate::error::Error;
use crate::host::Host;
use crate::logs::InvocationLog;
use crate::registry::ManifestRelease;
use crate::tenants::Principal;
use agent::AgentWork;
use cold::{ColdBounds, Resident};
use cold_bytes::ColdBytes;
use copy::Tap;
use course::Rights;
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
    /// Which of several answers to the same question this is; 0 if there is one.
    pub(crate) choice: u32,
    /// What the caller said about its turn.
    pub(crate) handling: Handling,
}

/// Who decides what is generated.
#[derive(Clone)]
pub(crate) enum Target {
    /// A function, one of whose versions was chosen.
    Function(Box<Called>),
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
    /// Left to an agent.
    Agent(Box<AgentWork>),
}

/// A request that is ready for the engine, or answered already.
struct Prepared {
    principal: Principal,
    request: InvocationRequest,
    handling: Handling,
    /// Of the function, if one is invoked.
    log: Option<InvocationLog>,
    /// If the request gets a copy.
    tap: Option<Tap>,
    work: Work,
}

enum Work {
    Answer { call: Box<FunctionCall>, text: String, stages: Stages },
    Generate(Box<generation::Parts>),
    Agent(Box<AgentWork>, Stages),
}

/// A request that has its place in the engine's queue. Dropping it gives the place back.
struct Queued {
    prepared: Prepared,
    tokens: Option<TokenStream>,
}

/// Takes a request as far as its place in the engine's queue and a durable `started` receipt.
pub(crate) async fn invoke(host: &Arc<Host>, invocation: Invocation) -> Result<Generation, Error> {
    let mut generations = invoke_all(host, vec![invocation]).await?;
    generations.pop().ok_or_else(|| Error::Internal("a request without a generation".into()))
}

/// The same with several requests that are one to their caller: all of them or none. Each is an inference of its own, with
/// its own receipt; those with the same prompt have it computed once.
pub(crate) async fn invoke_all(host: &Arc<Host>, invocations: Vec<Invocation>) -> Result<Vec<Generation>, Error> {
    let prepared = try_join_all(invocations.into_iter().map(|one| prepare(host, one))).await?;
    let queued = submit(host, prepared)?;
    // Every receipt is waited for, so that none is left open: dropping a generation closes its receipt as cancelled.
    all_or_error(join_all(queued.into_iter().map(|one| one.start(host))).await)
}

/// A place in the engine's queue for each that needs one, or for none.
fn submit(host: &Arc<Host>, prepared: Vec<Prepared>) -> Result<Vec<Queued>, Error> {
    let submissions = prepared.iter().filter_map(|one| one.submission(host).transpose()).collect::<Result<Vec<_>, _>>();
    let streams = submissions.and_then(|submissions| match submissions.is_empty() {
        true => Ok(Vec::new()),
        false => host.engine.submit_all(submissions).map_err(Error::from),
    });
    let streams = streams.inspect_err(|error| {
        prepared.iter().for_each(|one| function::log_failure(one.log.as_ref(), error));
    })?;
    let mut streams = streams.into_iter();
    let queued = prepared.into_iter().map(|one| {
        let is_generated = matches!(one.work, Work::Generate(_));
        Queued { tokens: if is_generated { streams.next() } else { None }, prepared: one }
    });
    Ok(queued.collect())
}

/// All that started, or the first error with every receipt that was made: those of the ones that are dropped for it, too.
fn all_or_error(started: Vec<Result<Generation, Error>>) -> Result<Vec<Generation>, Error> {
    let (mut generations, mut receipts, mut failed) = (Vec::new(), Vec::new(), None);
    for one in started {
        match one {
            Ok(generation) => {
                receipts.push(generation.head.receipt_id.clone());
                generations.push(generation);
            }
            Err(Error::WithReceipt { receipt, source }) => {
                receipts.push(receipt);
                failed.get_or_insert(*source);
            }
            Err(error) => drop(failed.get_or_insert(error)),
        }
    }
    match failed {
        None => Ok(generations),
        Some(error) if receipts.is_empty() => Err(error),
        Some(error) => Err(Error::WithReceipt { receipt: receipts.join(", "), source: Box::new(error) }),
    }
}

/// Everything before the engine: the plugin, the plan's check, adapters, the prompt as tokens.
async fn prepare(host: &Arc<Host>, mut invocation: Invocation) -> Result<Prepared, Error> {
    if let Target::Function(called) = &mut invocation.target {
        called.share_randomness(invocation.choice == 0)?;
    }
    let tap = Tap::new(host, &invocation);
    match prepare_tapped(host, invocation).await {
        Ok(prepared) => Ok(Prepared { tap, ..prepared }),
        Err(error) => {
            if let Some(tap) = tap {
                tap.failed(&error);
            }
            Err(error)
        }
    }
}

async fn prepare_tapped(host: &Arc<Host>, invocation: Invocation) -> Result<Prepared, Error> {
    let started = Instant::now();
    let Invocation { principal, mut request, target, choice, handling } = invocation;
    let from_plugin = matches!(target, Target::Function(_));
    let routed = match target {
        Target::Plan(plan) => Routed::Draft(Box::new(direct(host, &principal, *plan).await?)),
        Target::Function(called) => {
            function::route(host, &principal, &called, &mut request, (handling, started)).await?
        }
    };
    let plugin = if from_plugin { started.elapsed() } else { Duration::ZERO };
    let stages = Stages { started, plugin, adapters: Duration::ZERO };
    let (log, work) = match routed {
        Routed::Answer(call, text) => (Some(call.log.clone()), Work::Answer { call, text, stages }),
        Routed::Agent(work) => (Some(work.call.log.clone()), Work::Agent(work, stages)),
        Routed::Draft(draft) => {
            let log = draft.function.as_ref().map(|call| call.log.clone());
            let checked = check(host, &principal, *draft, choice, stages).await;
            let parts = checked.inspect_err(|error| function::log_failure(log.as_ref(), error))?;
            (log, Work::Generate(Box::new(parts)))
        }
    };
    Ok(Prepared { principal, request, handling, log, tap: None, work })
}

/// A plan that the caller wrote: it may name every adapter of its tenant.
async fn direct(host: &Arc<Host>, principal: &Principal, plan: Plan) -> Result<Draft, Error> {
    let names: Vec<String> = plan.composition.iter().map(|entry| entry.adapter.clone()).collect();
    let grants = ResolvedGrants::of_tenant(host, &principal.tenant, &names).await?;
    Ok(Draft { plan, grants, limits: host.plan_limits.clone(), function: None })
}

async fn check(
    host: &Arc<Host>,
    principal: &Principal,
    draft: Draft,
    choice: u32,
    stages: Stages,
) -> Result<generation::Parts, Error> {
    let Draft { plan, grants, limits, function } = draft;
    let by_caller = function.is_none();
    let plan = ValidPlan::check(plan, &grants, &limits).map_err(|source| Error::Plan { source, by_caller })?;
    let constraint = match plan.constraint() {
        Some(constraint) => Some(host.constraints.read(&principal.tenant, constraint, by_caller).await?),
        None => None,
    };
    let release = function.as_ref().map(|call| call.manifest.release.policy()).unwrap_or_default();
    let switch = function.as_ref().map(|call| call.manifest.switch).unwrap_or_default();
    let adapters_started = Instant::now();
    let so_far = function.as_ref().map(|call| call.cold_bytes.clone());
    let cold_bytes = so_far.unwrap_or_else(|| ColdBytes::new(limits.cold_bytes_max));
    let bounds = ColdBounds { bytes: &cold_bytes, by_caller };
    let Resident { plan, leases, cold } = cold::make_resident(host, &grants, plan, release, bounds).await?;
    let stages = Stages { adapters: adapters_started.elapsed(), ..stages };
    let templates = function.as_ref().map(|call| &call.manifest.templates);
    let prompt = prompt::tokenise(host, plan.prompt(), templates).await?;
    let within = check_kv_blocks(host, prompt.tokens.len(), plan.output_tokens_max(), &limits);
    within.map_err(|source| Error::Plan { source, by_caller })?;
    let activations = activations(&leases, &prompt.tokens);
    // Drawn with a copy's randomness, where there is a copy; other choices have none.
    let drawn = function.as_ref().and_then(|call| call.draw).filter(|_| choice == 0);
    let seed = seed::of_choice(plan.sampling().seed.or(drawn), choice)?;
    Ok(generation::Parts {
        post: PostState::new(&limits),
        aliases: grants.aliases(),
        plan,
        prompt,
        activations,
        constraint,
        seed,
        leases,
        function,
        stages,
        cold,
        cold_bytes,
        rights: Rights { grants, limits, release, switch },
    })
}

/// Blocks that are shared count too: whether they are is another's doing, and must not decide.
fn check_kv_blocks(host: &Host, prompt: usize, budget: u32, limits: &PlanLimits) -> Result<(), PlanError> {
    let tokens = u64::try_from(prompt).unwrap_or(u64::MAX).saturating_add(budget.into());
    let blocks = tokens.div_ceil(host.engine.shape().block_tokens.max(1).into());
    let max = limits.kv_blocks_max;
    if blocks <= max.into() {
        return Ok(());
    }
    let (what, value, max) = ("the KV blocks of prompt and token budget", blocks.to_string(), max.to_string());
    Err(PlanError::OverLimit { what, value, limit: "kv_blocks_max", max })
}

impl Prepared {
    /// What the engine is to do for it, if anything.
    fn submission(&self, host: &Host) -> Result<Option<Submission<LoraAdapter>>, Error> {
        let Work::Generate(parts) = &self.work else { return Ok(None) };
        let constraint = parts.constraint.as_ref().map(|read| read.begin(&[])).transpose()?;
        Ok(Some(Submission {
            plan: parts.plan.clone(),
            prompt: parts.prompt.tokens.clone(),
            adapters: lent(&parts.leases).collect(),
            activations: parts.activations.clone(),
            continues: Continuation::default(),
            constraint,
            seed: parts.seed,
            terms: parts.terms(host, &self.principal, self.handling),
        }))
    }
}

impl generation::Parts {
    fn terms(&self, host: &Host, principal: &Principal, handling: Handling) -> Terms {
        let manifest = self.function.as_ref().map(|call| &call.manifest);
        Terms {
            author: manifest.map(|manifest| manifest.plugin),
            unload: manifest.is_some_and(|manifest| manifest.release != ManifestRelease::Lru),
            ..host.tenant_salts.terms(&principal.tenant, handling)
        }
    }
}

/// The adapters on lease, as the engine takes them.
fn lent(leases: &[AdapterLease]) -> impl Iterator<Item = (Digest, Arc<LoraAdapter>)> + '_ {
    leases.iter().map(|lease| (lease.digest(), Arc::clone(lease.adapter())))
}

impl Queued {
    async fn start(self, host: &Arc<Host>) -> Result<Generation, Error> {
        let Prepared { principal, request, log, work, handling, tap } = self.prepared;
        let started = match (work, self.tokens) {
            (Work::Answer { call, text, stages }, _) => {
                Generation::answered(host, &principal, &request, *call, text, stages).await
            }
            (Work::Agent(work, stages), _) => Generation::agent(host, &principal, &request, *work, stages).await,
            (Work::Generate(parts), Some(tokens)) => {
                let terms = parts.terms(host, &principal, handling);
                Generation::started(host, &principal, &request, *parts, tokens, terms).await
            }
            (Work::Generate(_), None) => Err(Error::Internal("a request was not submitted".into())),
        };
        let started = started.inspect_err(|error| function::log_failure(log.as_ref(), error))?;
        Ok(started.heard_by(tap))
    }
}

/// Where in the prompt each activated adapter is invoked.
fn activations(leases: &[AdapterLease], prompt: &[u32]) -> Vec<Activation> {
    let activation = |lease: &AdapterLease| {
        let first_token = lease.adapter().invocation()?.last_start(prompt);
        Some(Activation { adapter: lease.digest(), first_token })
    };
    leases.iter().filter_map(activation).collect()
}
