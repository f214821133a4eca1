//! The bounded queue before the engine: who may wait, and how long that would take. Not here: the queue's contents, which
//! the scheduler orders, and a request's other checks (`handle.rs`).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use types::Digest;

use crate::pace::Estimates;
use crate::{SubmitError, Terms};

/// When to come back if nothing was measured yet.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// Counts those that wait.
#[derive(Debug)]
pub(crate) struct Door {
    waiting_max: usize,
    tenant_waiting_max: usize,
    state: Mutex<DoorState>,
}

#[derive(Debug, Default)]
struct DoorState {
    waiting: usize,
    /// Of each tenant that has any.
    tenants: HashMap<Digest, usize>,
    /// Of each priority that has any.
    priorities: BTreeMap<i8, usize>,
    families: u64,
    estimates: Estimates,
    /// How the device failed, if it did for good.
    lost: Option<String>,
}

/// A place in the queue; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    door: Arc<Door>,
    terms: Terms,
}

impl Door {
    /// Places for `waiting_max` requests, of which one tenant can have `tenant_waiting_max`.
    pub(crate) fn new(waiting_max: usize, tenant_waiting_max: usize) -> Self {
        Self { waiting_max, tenant_waiting_max: tenant_waiting_max.clamp(1, waiting_max), state: Mutex::default() }
    }

    /// Places for `count` requests that are one to their caller: all or none.
    ///
    /// # Errors
    /// If the tenant has its share, the queue is full, its end is further away than the deadline, or the device is lost.
    pub(crate) fn enter(
        self: &Arc<Self>,
        terms: Terms,
        count: usize,
        deadline: Duration,
    ) -> Result<Vec<Place>, SubmitError> {
        let mut state = self.lock();
        if state.lost.is_some() {
            return Err(SubmitError::DeviceLost);
        }
        let of_tenant = state.tenants.get(&terms.tenant).copied().unwrap_or(0);
        if of_tenant + count > self.tenant_waiting_max {
            // Half of what it has, the other tenants taking turns with it.
            let starts = (of_tenant / 2 + 1) * state.tenants.len().max(1);
            let retry_after = state.wait_for(starts).unwrap_or(RETRY_AFTER_DEFAULT);
            return Err(SubmitError::TenantQueueFull { waiting: of_tenant, retry_after });
        }
        if state.waiting + count > self.waiting_max {
            let retry_after = state.wait_for(state.waiting / 2 + 1).unwrap_or(RETRY_AFTER_DEFAULT);
            return Err(SubmitError::QueueFull { waiting: state.waiting, retry_after });
        }
        let wait = state.wait_for(state.ahead_of(terms)).unwrap_or(Duration::ZERO);
        if wait > deadline {
            return Err(SubmitError::DeadlineTooShort { wait, deadline });
        }
        state.waiting += count;
        *state.tenants.entry(terms.tenant).or_default() += count;
        *state.priorities.entry(terms.priority).or_default() += count;
        drop(state);
        Ok((0..count).map(|_| Place { door: Arc::clone(self), terms }).collect())
    }

    /// Whether [`Self::enter`] would not find the queue full, or the tenant's share of it. It is not full for a device that is lost:
    /// there is nothing to be waited for.
    pub(crate) fn has_place(&self, terms: Terms) -> bool {
        let state = self.lock();
        let of_tenant = state.tenants.get(&terms.tenant).copied().unwrap_or(0);
        state.lost.is_some() || of_tenant < self.tenant_waiting_max && state.waiting < self.waiting_max
    }

    /// A number that no other family has.
    pub(crate) fn new_family(&self) -> u64 {
        let mut state = self.lock();
        state.families += 1;
        state.families
    }

    pub(crate) fn set_estimates(&self, estimates: Estimates) {
        self.lock().estimates = estimates;
    }

    /// Nobody can be served any more.
    pub(crate) fn lose(&self, why: String) {
        self.lock().lost.get_or_insert(why);
    }

    pub(crate) fn lost(&self) -> Option<String> {
        self.lock().lost.clone()
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lock().lost.is_some()
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting
    }

    fn lock(&self) -> MutexGuard<'_, DoorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DoorState {
    /// Requests that start before one that comes now: not those of lower priority, and with tenants taking turns no more of
    /// each other tenant than of its own.
    fn ahead_of(&self, terms: Terms) -> usize {
        let before = self.priorities.range(terms.priority..).map(|(_, count)| count).sum::<usize>();
        let own = self.tenants.get(&terms.tenant).copied().unwrap_or(0);
        let in_turn = own + self.tenants.len().saturating_sub(usize::from(own > 0)) * (own + 1);
        before.min(in_turn)
    }

    /// Until this many have started.
    fn wait_for(&self, starts: usize) -> Option<Duration> {
        let starts = u32::try_from(starts).unwrap_or(u32::MAX);
        self.estimates.start_interval.map(|interval| interval.saturating_mul(starts))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.door.lock();
        state.waiting = state.waiting.saturating_sub(1);
        let Terms { tenant, priority, .. } = self.terms;
        if let Some(count) = state.tenants.get_mut(&tenant) {
            *count = count.saturating_sub(1);
        }
        if state.tenants.get(&tenant) == Some(&0) {
            state.tenants.remove(&tenant);
        }
        if let Some(count) = state.priorities.get_mut(&priority) {
            *count = count.saturating_sub(1);
        }
        if state.priorities.get(&priority) == Some(&0) {
            state.priorities.remove(&priority);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn terms(tenant: &str, priority: i8) -> Terms {
        Terms { tenant: Digest::of(tenant.as_bytes()), priority, ..Terms::default() }
    }

    fn paced(door: &Door) {
        door.set_estimates(Estimates { start_interval: Some(Duration::from_secs(2)) });
    }

    #[test]
    fn a_tenant_has_its_share_and_the_rest_is_for_others() {
        let door = Arc::new(Door::new(5, 3));
        let (one, two) = (terms("one", 0), terms("two", 0));
        let enter = |terms, count| door.enter(terms, count, HOUR);
        let retry_after = RETRY_AFTER_DEFAULT;
        let mut held = enter(one, 3).expect("its share");
        assert_eq!(enter(one, 1).err(), Some(SubmitError::TenantQueueFull { waiting: 3, retry_after }));
        assert_eq!([one, two].map(|terms| door.has_place(terms)), [false, true]);
        assert_eq!(enter(two, 3).err(), Some(SubmitError::QueueFull { waiting: 3, retry_after }), "all or none");
        let _two = enter(two, 2).expect("places");
        paced(&door);
        assert!(!door.has_place(two), "two of its three, and the queue is full");
        let full = SubmitError::QueueFull { waiting: 5, retry_after: Duration::from_secs(6) };
        assert_eq!(enter(terms("three", 0), 1).err(), Some(full), "half of them, at two seconds a start");
        let share = SubmitError::TenantQueueFull { waiting: 3, retry_after: Duration::from_secs(8) };
        assert_eq!(enter(one, 1).err(), Some(share), "half of its own, and the other's turns");
        held.pop();
        assert_eq!(door.waiting(), 4);
        assert!(door.has_place(one));
        enter(one, 1).expect("the place is free again");
        drop(held);
        assert_eq!(door.waiting(), 2);
        assert_eq!(door.lock().tenants.len(), 1);
    }

    #[test]
    fn a_deadline_before_the_end_of_the_queue_is_refused_at_once() {
        let door = Arc::new(Door::new(100, 100));
        let heavy = terms("heavy", 0);
        let _held = door.enter(heavy, 10, Duration::ZERO).expect("nothing is measured yet");
        paced(&door);
        let enter = |terms, seconds| door.enter(terms, 1, Duration::from_secs(seconds)).map(drop);
        let wait = Duration::from_secs(20);
        let refused = SubmitError::DeadlineTooShort { wait, deadline: Duration::from_secs(19) };
        assert_eq!(enter(heavy, 19), Err(refused));
        assert_eq!(enter(heavy, 20), Ok(()));
        assert_eq!(enter(Terms { priority: 1, ..heavy }, 0), Ok(()), "it goes before all of them");
        assert_eq!(enter(terms("light", 0), 2), Ok(()), "its turn comes after one of them");
        assert!(enter(terms("light", 0), 1).is_err());
    }
}
