//! Stage 5: the adapters of a plan are brought into memory, or what its cold policy says is done instead. What was asked for is
//! loaded in any case, so that the next request finds it. Not here: how an adapter is loaded (`adapters/leases.rs`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use types::{Composition, Digest, PlanError, ValidCold, ValidPlan};

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
    /// Bytes that the request has had loaded so far, as [`ColdBounds::bytes_max`] counts them.
    pub(crate) cold_bytes: u64,
}

/// How much a request may have loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ColdBounds {
    /// Bytes of the adapters as they are stored, over the whole request.
    pub(crate) bytes_max: u64,
    /// What earlier compositions of the request have had loaded.
    pub(crate) bytes_before: u64,
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
    bounds: ColdBounds,
) -> Result<Resident, Error> {
    let adapters = &host.adapters;
    plan.prefetch().iter().try_for_each(|digest| adapters.prefetch(grants.adapters(), *digest))?;
    let cold = |composition: &Composition| {
        digests(composition).into_iter().filter(|digest| adapters.is_cold(grants.adapters(), *digest)).collect()
    };
    let missing: Vec<Digest> = cold(plan.composition());
    let cold_bytes = check_bytes(grants, &missing, bounds)?;
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
    Ok(Resident { plan, leases, cold, cold_bytes })
}

/// Each adapter once.
fn digests(composition: &Composition) -> BTreeSet<Digest> {
    composition.parts().iter().map(|part| part.adapter).collect()
}

/// What would be loaded, in the form that is stored, and what was.
fn check_bytes(grants: &ResolvedGrants, missing: &[Digest], bounds: ColdBounds) -> Result<u64, Error> {
    let ColdBounds { bytes_max: max, bytes_before, by_caller } = bounds;
    let sizes = missing.iter().filter_map(|digest| grants.adapters().bytes(*digest));
    let bytes = sizes.fold(bytes_before, u64::saturating_add);
    // What is in memory costs nothing, whatever was loaded before.
    if bytes <= max || bytes == bytes_before {
        return Ok(bytes);
    }
    Err(Error::Plan {
        source: PlanError::OverLimit {
            what: "the adapters to be loaded, in bytes,",
            value: bytes.to_string(),
            limit: "cold_bytes_max",
            max: max.to_string(),
        },
        by_caller,
    })
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
