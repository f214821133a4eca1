//! Turns at what only few may do at a time. A tenant has few of them at once: a flood waits behind itself, and others overtake it.
//! Not here: what they are taken for, and how long somebody waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use types::TenantId;

/// Who may begin. Both rows are in the order of coming.
#[derive(Debug)]
pub struct Turns {
    all: Arc<Semaphore>,
    of_tenant_max: usize,
    /// Of tenants that have a turn or wait.
    tenants: Mutex<HashMap<TenantId, Weak<Semaphore>>>,
}

/// Given back when it is dropped: work that nobody can end takes it along.
#[derive(Debug)]
pub struct Turn {
    _of_all: OwnedSemaphorePermit,
    _of_tenant: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// So many at once, and so many of one tenant.
    #[must_use]
    pub fn new(max: usize, of_tenant_max: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(max)), of_tenant_max, tenants: Mutex::new(HashMap::new()) }
    }

    /// Waits for a turn; the host's own work, without a tenant, only for one among all.
    ///
    /// # Errors
    /// For form: nobody closes the row.
    pub async fn take(&self, tenant: impl Into<Option<&TenantId>>) -> Result<Turn, AcquireError> {
        let own = tenant.into().map(|tenant| self.of_tenant(tenant));
        // In this order: who waits for its own turn takes nobody's place among all.
        let _of_tenant = match own {
            Some(own) => Some(own.acquire_owned().await?),
            None => None,
        };
        Ok(Turn { _of_all: Arc::clone(&self.all).acquire_owned().await?, _of_tenant })
    }

    /// A turn now, if there is one.
    #[must_use]
    pub fn try_take(&self, tenant: Option<&TenantId>) -> Option<Turn> {
        let _of_tenant = match tenant {
            Some(tenant) => Some(self.of_tenant(tenant).try_acquire_owned().ok()?),
            None => None,
        };
        Some(Turn { _of_all: Arc::clone(&self.all).try_acquire_owned().ok()?, _of_tenant })
    }

    /// Lives as long as somebody waits for it or has it.
    fn of_tenant(&self, tenant: &TenantId) -> Arc<Semaphore> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = tenants.get(tenant).and_then(Weak::upgrade) {
            return own;
        }
        tenants.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Semaphore::new(self.of_tenant_max));
        tenants.insert(tenant.clone(), Arc::downgrade(&own));
        own
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn tenant(name: &str) -> TenantId {
        name.parse().unwrap()
    }

    /// Whether it is still without a turn after a while.
    async fn waits(turns: &Turns, name: &str) -> bool {
        tokio::time::timeout(Duration::from_millis(20), turns.take(&tenant(name))).await.is_err()
    }

    #[tokio::test]
    async fn a_tenant_waits_behind_itself_and_others_do_not() {
        let turns = Turns::new(2, 1);
        let first = turns.take(&tenant("flood")).await.unwrap();
        assert!(waits(&turns, "flood").await);
        let other = turns.take(&tenant("other")).await.unwrap();
        assert!(waits(&turns, "third").await);
        drop(first);
        let third = turns.take(&tenant("third")).await.unwrap();
        drop((other, third));
        drop(turns.take(&tenant("flood")).await.unwrap());
        assert_eq!(turns.tenants.lock().unwrap().len(), 1, "those that are idle are forgotten");
    }

    #[tokio::test]
    async fn a_tenant_has_as_many_as_it_may() {
        let turns = Turns::new(3, 2);
        let own = (turns.take(&tenant("one")).await.unwrap(), turns.take(&tenant("one")).await.unwrap());
        assert!(waits(&turns, "one").await);
        let other = turns.take(&tenant("other")).await.unwrap();
        assert!(turns.try_take(Some(&tenant("one"))).is_none());
        assert!(turns.try_take(None).is_none(), "three are all");
        drop(own);
        assert!(!waits(&turns, "one").await);
        assert!(turns.try_take(Some(&tenant("one"))).is_some());
        drop(other);
    }
}
