//! A request that goes on in another function of its tenant, because a plugin's `route` said so: whether it may, how far, and
//! what it takes along. Not here: the calls of the plugins (`function.rs`).
//!
//! The other function has its own version for this caller, manifest, limits and log. The time and the CPU time that the request
//! has are those that it began with. A loop is cut by the depth: whether one function is there twice is not asked.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use types::{Blame, FunctionName, Plan};

use super::called::Called;
use crate::error::Error;
use crate::host::Host;
use crate::receipt::FunctionRef;
use crate::registry::{FunctionVersion, Manifest, RegistryError};
use crate::tenants::Principal;

/// How many functions away from the one that was called first a request may get, by hand-overs and calls together.
pub(super) const HAND_OVER_DEPTH_MAX: usize = 4;

/// Why a request was not handed over. All of it but the time is the fault of the function that wanted to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandOverError {
    /// The manifest does not list the other function.
    #[error("the function `{from}` may not hand over to `{to}`: list it in the manifest's `functions`")]
    NotGranted {
        /// Who wanted to.
        from: FunctionName,
        /// As the plugin wrote it, shortened.
        to: String,
    },
    /// There is no such function, or it is another tenant's.
    #[error("the function `{from}` hands over to `{to}`, which is not there: deploy it")]
    Missing {
        /// Who wanted to.
        from: FunctionName,
        /// To whom.
        to: FunctionName,
    },
    /// Too often.
    #[error("the request was handed over too often, over the limit hand_over_depth_max of {max}: {chain}")]
    TooDeep {
        /// The limit.
        max: usize,
        /// The functions in order.
        chain: String,
    },
    /// Nothing is left of the time.
    #[error("the request's deadline passed while it was handed over: {chain}")]
    Late {
        /// The functions in order.
        chain: String,
    },
}

impl HandOverError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotGranted { .. } => "hand_over_not_granted",
            Self::Missing { .. } => "hand_over_not_found",
            Self::TooDeep { .. } => "hand_over_too_deep",
            Self::Late { .. } => "deadline_exceeded",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            // Compiling a plugin and waiting for a thread are in it too.
            Self::Late { .. } => Blame::Capacity,
            _ => Blame::Function,
        }
    }
}

/// The functions that took part in a request so far, and what they used of what it has.
#[derive(Debug)]
pub(super) struct Journey {
    pub(super) started: Instant,
    /// In all plugins but the current one.
    pub(super) cpu_used: Duration,
    /// In order; the last one is at work.
    pub(super) chain: Vec<FunctionRef>,
    /// The functions that led here by a call, before those.
    pub(super) callers: Vec<FunctionRef>,
    /// When the request that called has no time any more.
    pub(super) caller_deadline: Option<Instant>,
}

impl Journey {
    pub(super) fn new(started: Instant, caller: Option<&Caller>) -> Self {
        let callers = caller.map(|caller| caller.chain.clone()).unwrap_or_default();
        let caller_deadline = caller.map(|caller| caller.deadline);
        Self { started, cpu_used: Duration::ZERO, chain: Vec::new(), callers, caller_deadline }
    }

    /// All functions up to the one that is at work.
    pub(super) fn path(&self) -> Vec<FunctionRef> {
        self.callers.iter().chain(&self.chain).cloned().collect()
    }

    /// When the request has no time any more, under a function that may take so long.
    pub(super) fn deadline(&self, deadline_ms_max: u32) -> Instant {
        let own = self.started + Duration::from_millis(deadline_ms_max.into());
        self.caller_deadline.map_or(own, |callers| callers.min(own))
    }

    /// Begins the work of a function.
    pub(super) fn enter(&mut self, version: &FunctionVersion) {
        let (name, plugin) = (version.function.clone(), version.manifest.plugin);
        self.chain.push(FunctionRef { name, version: version.version, plugin });
    }

    /// The function before the one that is at work.
    pub(super) fn predecessor(&self) -> Option<&FunctionRef> {
        self.chain.iter().rev().nth(1)
    }

    fn names(&self) -> String {
        names(&self.path())
    }

    /// What is left of a deadline that counts from the request's beginning.
    ///
    /// # Errors
    /// [`HandOverError::Late`] if nothing is.
    fn left(&self, deadline_ms: u32) -> Result<u32, HandOverError> {
        let left = self.deadline(deadline_ms).saturating_duration_since(Instant::now());
        let left_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        if left_ms == 0 { Err(HandOverError::Late { chain: self.names() }) } else { Ok(left_ms) }
    }

    /// Has the deadline of a plan count from the request's beginning, if the request was handed over, and end with the caller's, if
    /// a plugin called. One that is over the limit is left as it is, for the plan's check to refuse.
    ///
    /// # Errors
    /// [`HandOverError::Late`].
    pub(super) fn shorten(&self, plan: &mut Plan, deadline_ms_max: u32) -> Result<(), HandOverError> {
        let asked = plan.deadline_ms.unwrap_or(deadline_ms_max);
        if asked > deadline_ms_max {
            return Ok(());
        }
        if self.chain.len() > 1 {
            plan.deadline_ms = Some(self.left(asked)?);
        } else if self.caller_deadline.is_some() {
            plan.deadline_ms = Some(asked.min(self.left(u32::MAX)?));
        }
        Ok(())
    }
}

/// A request that called this one.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// Its identifier.
    pub(super) request: String,
    /// All functions up to the one that called.
    pub(super) chain: Vec<FunctionRef>,
    /// When it has no time any more.
    pub(super) deadline: Instant,
    /// What is left of the calls that it and all that it leads to may make.
    pub(super) calls_left: Arc<AtomicU32>,
}

/// Functions as messages show them.
pub(super) fn names(chain: &[FunctionRef]) -> String {
    chain.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(" -> ")
}

/// The version that goes on with a request.
///
/// # Errors
/// Any [`HandOverError`], or what the registry ran into.
pub(super) async fn next(
    host: &Host,
    principal: &Principal,
    (from, manifest): (&FunctionName, &Manifest),
    to: &str,
    called: &Called,
    journey: &Journey,
) -> Result<FunctionVersion, Error> {
    let granted = manifest.functions.iter().any(|granted| granted == to).then(|| to.parse().ok()).flatten();
    let Some(to) = granted else {
        return Err(HandOverError::NotGranted { from: from.clone(), to: to.chars().take(96).collect() }.into());
    };
    if journey.callers.len() + journey.chain.len() > HAND_OVER_DEPTH_MAX {
        let chain = format!("{} -> {to}", journey.names());
        return Err(HandOverError::TooDeep { max: HAND_OVER_DEPTH_MAX, chain }.into());
    }
    let chosen = host.registry.choose(&principal.tenant, &to, &called.sticky, "").await;
    let version = chosen.map(|chosen| chosen.version).map_err(|error| match error {
        RegistryError::UnknownFunction(to) => HandOverError::Missing { from: from.clone(), to }.into(),
        other => Error::from(other),
    })?;
    journey.left(version.manifest.limits.narrow(&host.plan_limits).deadline_ms_max)?;
    Ok(version)
}

#[cfg(test)]
mod tests {
    use types::{Digest, Prompt};

    use super::*;

    fn journey(functions: usize, elapsed: Duration) -> Journey {
        let one = |number: usize| {
            let name = format!("f{number}").parse().expect("a name");
            FunctionRef { name, version: 1, plugin: Digest::of(b"plugin") }
        };
        let started = Instant::now().checked_sub(elapsed).expect("the machine runs for longer than that");
        Journey { chain: (0..functions).map(one).collect(), ..Journey::new(started, None) }
    }

    fn shortened(journey: &Journey, asked: Option<u32>) -> Result<Option<u32>, HandOverError> {
        let mut plan = Plan { deadline_ms: asked, ..Plan::new(Prompt::Text(String::new())) };
        journey.shorten(&mut plan, 10_000).map(|()| plan.deadline_ms)
    }

    #[test]
    fn a_deadline_counts_from_the_beginning_of_the_request() {
        let late = Duration::from_millis(2500);
        let left = shortened(&journey(2, late), Some(5000)).expect("in time").expect("a deadline");
        assert!((1000..=2500).contains(&left), "{left}");
        let left = shortened(&journey(3, late), None).expect("in time").expect("a deadline");
        assert!((6000..=7500).contains(&left), "{left}");
        assert_eq!(shortened(&journey(1, late), Some(5000)), Ok(Some(5000)), "nobody handed it over");
        assert_eq!(shortened(&journey(2, late), Some(20_000)), Ok(Some(20_000)), "the plan's check refuses it");
        let called = |left: u64| {
            let deadline = Instant::now() + Duration::from_millis(left);
            Journey { caller_deadline: Some(deadline), ..journey(1, late) }
        };
        let left = shortened(&called(4000), Some(5000)).expect("in time").expect("a deadline");
        assert!((2500..=4000).contains(&left), "what its caller has left: {left}");
        assert_eq!(shortened(&called(60_000), Some(5000)), Ok(Some(5000)), "its own, from now");
        assert!(shortened(&called(0), Some(5000)).is_err());
        let error = shortened(&journey(2, late), Some(2500)).expect_err("too late");
        assert_eq!((error.code(), error.blame()), ("deadline_exceeded", Blame::Capacity));
        assert!(error.to_string().ends_with("f0 -> f1"), "{error}");
    }
}
