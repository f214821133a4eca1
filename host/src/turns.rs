//! Turns at what only few may do at a time. A tenant has few of them at once: a flood waits behind itself, and others overtake it.
//! Not here: what they are taken for, and how long somebody waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use types::TenantId;

/// Who may begin. Both rows are in the order of coming.
#[derive(Debug)]
pub(crate) struct Turns {
    all: Arc<Semaphore>,
    of_tenant_max: usize,
    /// Of tenants that have a turn or wait.
    tenants: Mutex<HashMap<TenantId, Weak<Semaphore>>>,
}

/// Given back when it is dropped: work that nobody can end takes it along.
#[derive(Debug)]
pub(crate) struct Turn {
    _of_all: OwnedSemaphorePermit,
    _of_tenant: OwnedSemaphorePermit,
}

impl Turns {
    /// So many at once, and so many of one tenant.
    pub(crate) fn new(max: usize, of_tenant_max: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(max)), of_tenant_max, tenants: Mutex::new(HashMap::new()) }
    }

    /// Waits for a turn. The error is for form: nobody closes the row.
    pub(crate) async fn take(&self, tenant: &TenantId) -> Result<Turn, AcquireError> {
        let (own, all) = (self.of_tenant(tenant), Arc::clone(&self.all));
        // In this order: who waits for its own turn takes nobody's place among all.
        let _of_tenant = own.acquire_owned().await?;
        Ok(Turn { _of_all: all.acquire_owned().await?, _of_tenant })
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
        drop(own);
        assert!(!waits(&turns, "one").await);
        drop(other);
    }
}
