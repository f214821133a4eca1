//! Stage 5: the adapters of a plan are brought into memory, or what its cold policy says is done instead. What was asked for is
//! loaded in any case, so that the next request finds it. Not here: how an adapter is loaded (`adapters/leases.rs`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use types::{Composition, Digest, ValidCold, ValidPlan};

use super::cold_bytes::ColdBytes;
use super::grants::ResolvedGrants;
use crate::adapters::{AdapterLease, LoadTimes, ReleasePolicy};
use crate::error::Error;
use crate::host::Host;

/// What was done about adapters that were not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ColdDecision {
    /// They were waited for.
    Waited,
    /// The base was served.
    Base,
    /// The fallback was served.
    Fallback,
}

impl ColdDecision {
    /// As receipts and metrics have it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Waited => "waited",
            Self::Base => "base",
            Self::Fallback => "fallback",
        }
    }
}

/// How a request met adapters that were not in memory.
#[derive(Clone, Debug)]
pub(crate) struct Cold {
    pub(crate) decision: ColdDecision,
    /// What was asked for, if something else was served.
    pub(crate) asked: Option<Composition>,
    /// What was loaded for it, and how long that took.
    pub(crate) loads: Vec<(Digest, LoadTimes)>,
}

/// A plan with leases on all that it names.
pub(crate) struct Resident {
    pub(crate) plan: ValidPlan,
    pub(crate) leases: Vec<AdapterLease>,
    /// `None` if everything was in memory.
    pub(crate) cold: Option<Cold>,
}

/// How much a request may have loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ColdBounds<'a> {
    /// What it has had loaded so far, and how much that may be.
    pub(crate) bytes: &'a ColdBytes,
    /// Whether the caller wrote the plan.
    pub(crate) by_caller: bool,
}

/// When to try again, where nothing better is known: a load takes some tens of milliseconds, and seconds are what is told.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Leases on what the plan names, or on what is served in its place.
pub(crate) async fn make_resident(
    host: &Arc<Host>,
    grants: &ResolvedGrants,
    plan: ValidPlan,
    release: ReleasePolicy,
    bounds: ColdBounds<'_>,
) -> Result<Resident, Error> {
    let adapters = &host.adapters;
    let is_cold = |digest: &Digest| adapters.is_cold(grants.adapters(), *digest);
    let cold = |composition: &Composition| digests(composition).into_iter().filter(is_cold).collect();
    let missing: Vec<Digest> = cold(plan.composition());
    let hinted: Vec<Digest> = plan.prefetch().iter().copied().filter(is_cold).collect();
    let sized = |digests: &[Digest]| -> Vec<_> {
        digests.iter().filter_map(|digest| Some((*digest, grants.adapters().bytes(*digest)?))).collect()
    };
    let taken = bounds.bytes.take(&sized(&missing), &sized(&hinted));
    taken.map_err(|source| Error::Plan { source, by_caller: bounds.by_caller })?;
    bring(host, grants, plan.prefetch())?;
    let decision = match plan.cold() {
        _ if missing.is_empty() => None,
        Some(ValidCold::Base) => Some(ColdDecision::Base),
        Some(ValidCold::Fallback(_)) => Some(ColdDecision::Fallback),
        Some(ValidCold::Wait(time)) if !time.is_zero() => Some(ColdDecision::Waited),
        None => Some(ColdDecision::Waited),
        Some(ValidCold::Wait(_) | ValidCold::Refuse) => {
            bring(host, grants, &missing)?;
            return Err(refused(host, &missing));
        }
    };
    let time = match (&decision, plan.cold()) {
        (Some(ColdDecision::Waited), Some(ValidCold::Wait(time))) => Some(*time).filter(|time| *time < plan.deadline()),
        _ => None,
    };
    let (mut plan, mut asked) = (plan, None);
    if let Some(ColdDecision::Base | ColdDecision::Fallback) = decision {
        bring(host, grants, &missing)?;
        asked = Some(plan.composition().clone());
        plan = plan.taken_cold();
        let missing = cold(plan.composition());
        if !missing.is_empty() {
            bring(host, grants, &missing)?;
            return Err(refused(host, &missing));
        }
    }
    let leasing = lease_all(host, grants, &plan, release);
    let leases = match tokio::time::timeout(time.unwrap_or(plan.deadline()), leasing).await {
        Ok(leases) => leases?,
        Err(_) if time.is_some() => return Err(refused(host, &missing)),
        Err(_) => return Err(Error::Deadline),
    };
    let loads: Vec<_> = leases.iter().filter_map(|lease| Some((lease.digest(), lease.times()?))).collect();
    // What was cold when it was looked for may have come since, and what was there may have gone.
    let decision = match decision {
        None | Some(ColdDecision::Waited) => (!loads.is_empty()).then_some(ColdDecision::Waited),
        other => other,
    };
    host.metrics.cold_decision(decision.map_or("resident", ColdDecision::name));
    let cold = decision.map(|decision| Cold { decision, asked, loads });
    Ok(Resident { plan, leases, cold })
}

/// Each adapter once.
fn digests(composition: &Composition) -> BTreeSet<Digest> {
    composition.parts().iter().map(|part| part.adapter).collect()
}

async fn lease_all(
    host: &Arc<Host>,
    grants: &ResolvedGrants,
    plan: &ValidPlan,
    release: ReleasePolicy,
) -> Result<Vec<AdapterLease>, Error> {
    let lease = |digest| host.adapters.lease_resolved(grants.adapters(), digest, release);
    Ok(try_join_all(digests(plan.composition()).into_iter().map(lease)).await?)
}

fn bring(host: &Host, grants: &ResolvedGrants, digests: &[Digest]) -> Result<(), Error> {
    digests.iter().try_for_each(|digest| host.adapters.prefetch(grants.adapters(), *digest))?;
    Ok(())
}

fn refused(host: &Host, missing: &[Digest]) -> Error {
    host.metrics.cold_decision("refused");
    Error::Cold { adapters: missing.len(), retry_after: RETRY_AFTER }
}
