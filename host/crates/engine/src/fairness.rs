//! Who among the tenants is served next: whoever was served least. Not here: priorities, and the order among the requests
//! of one tenant.
//!
//! The virtual token counter of Sheng et al. 2024, "Fairness in Serving Large Language Models": each tenant's counter
//! grows by what is computed for it, an output token counting more than one of a prompt. A tenant that comes back after a
//! pause is lifted to those that wait, so that nobody saves up service by staying away.

use std::collections::HashMap;

use types::Digest;

/// What a token of a prompt counts, or room for one that a loaded adapter takes; one whose KV was there already counts
/// nothing.
const PROMPT_TOKEN_WEIGHT: u64 = 1;
/// What a token of an output counts, as in the paper.
const OUTPUT_TOKEN_WEIGHT: u64 = 2;
/// Tenants without requests whose counters are remembered, at most.
const ABSENT_TENANTS_MAX: usize = 4096;

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    served: u64,
    waiting: usize,
    running: usize,
}

impl Account {
    const fn is_absent(&self) -> bool {
        self.waiting == 0 && self.running == 0
    }
}

/// The counters of the tenants that have requests, and of those that had more than their share.
#[derive(Debug, Default)]
pub(crate) struct Fairness {
    accounts: HashMap<Digest, Account>,
    /// The counter of the tenant that waited last.
    last_served: u64,
}

impl Fairness {
    /// A request comes, or comes back to wait again.
    pub(crate) fn wait(&mut self, tenant: Digest) {
        let least = self.accounts.values().filter(|account| account.waiting > 0).map(|account| account.served).min();
        let floor = least.unwrap_or(self.last_served);
        let account = self.accounts.entry(tenant).or_default();
        if account.waiting == 0 {
            account.served = account.served.max(floor);
        }
        account.waiting += 1;
    }

    /// A request that waited runs.
    pub(crate) fn run(&mut self, tenant: Digest) {
        self.stop_waiting(tenant);
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.running += 1;
        }
    }

    /// A request that waited is gone.
    pub(crate) fn leave_waiting(&mut self, tenant: Digest) {
        self.stop_waiting(tenant);
        self.forget_absent();
    }

    /// A request that ran is gone, or will wait again.
    pub(crate) fn leave_running(&mut self, tenant: Digest) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.running = account.running.saturating_sub(1);
        }
        self.forget_absent();
    }

    pub(crate) fn charge_prompt(&mut self, tenant: Digest, tokens: usize) {
        self.charge(tenant, tokens as u64 * PROMPT_TOKEN_WEIGHT);
    }

    pub(crate) fn charge_output(&mut self, tenant: Digest, tokens: usize) {
        self.charge(tenant, tokens as u64 * OUTPUT_TOKEN_WEIGHT);
    }

    /// A tenant's counter: the smallest is served first.
    pub(crate) fn served(&self, tenant: Digest) -> u64 {
        self.accounts.get(&tenant).map_or(0, |account| account.served)
    }

    fn stop_waiting(&mut self, tenant: Digest) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.waiting = account.waiting.saturating_sub(1);
            self.last_served = account.served;
        }
    }

    fn charge(&mut self, tenant: Digest, amount: u64) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.served = account.served.saturating_add(amount);
        }
    }

    /// Those without requests that would be lifted anyway when they come back are not remembered; if nobody has any, nobody.
    fn forget_absent(&mut self) {
        let Some(least) = self.accounts.values().filter(|one| !one.is_absent()).map(|one| one.served).min() else {
            self.accounts.clear();
            self.last_served = 0;
            return;
        };
        self.accounts.retain(|_, account| !account.is_absent() || account.served > least);
        if self.accounts.len() > ABSENT_TENANTS_MAX {
            // The smallest debts are forgiven.
            let mut debts: Vec<u64> =
                self.accounts.values().filter(|one| one.is_absent()).map(|one| one.served).collect();
            debts.sort_unstable();
            let forgiven = debts.get(debts.len() / 2).copied().unwrap_or(0);
            self.accounts.retain(|_, account| !account.is_absent() || account.served > forgiven);
        }
    }

    /// That as many requests are counted as there are, given with their tenants.
    pub(crate) fn check_integrity(
        &self,
        waiting: impl Iterator<Item = Digest>,
        running: impl Iterator<Item = Digest>,
    ) -> Result<(), String> {
        let mut counted: HashMap<Digest, (usize, usize)> = HashMap::new();
        waiting.for_each(|tenant| counted.entry(tenant).or_default().0 += 1);
        running.for_each(|tenant| counted.entry(tenant).or_default().1 += 1);
        for (tenant, account) in &self.accounts {
            let found = counted.remove(tenant).unwrap_or_default();
            if found != (account.waiting, account.running) {
                return Err(format!("tenant {tenant} is {account:?} and has {found:?} requests"));
            }
        }
        if counted.is_empty() { Ok(()) } else { Err(format!("tenants without a counter: {counted:?}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    #[test]
    fn output_counts_more_and_a_newcomer_starts_with_those_that_wait() {
        let (one, two, new) = (tenant("one"), tenant("two"), tenant("new"));
        let mut fairness = Fairness::default();
        [one, two, two].into_iter().for_each(|tenant| fairness.wait(tenant));
        fairness.run(two);
        fairness.charge_prompt(one, 10);
        fairness.charge_output(two, 10);
        assert_eq!((fairness.served(one), fairness.served(two)), (10, 20));
        fairness.wait(new);
        assert_eq!(fairness.served(new), 10);
        fairness.check_integrity([one, two, new].into_iter(), [two].into_iter()).expect("counted");
        assert!(fairness.check_integrity([one, two].into_iter(), [two].into_iter()).is_err());
    }

    #[test]
    fn staying_away_saves_nothing_up_and_pays_no_debt_while_others_are_served() {
        let (steady, other) = (tenant("steady"), tenant("other"));
        let mut fairness = Fairness::default();
        fairness.wait(steady);
        fairness.run(steady);
        fairness.charge_output(steady, 100);
        fairness.wait(other);
        assert_eq!(fairness.served(other), 0, "nobody waits; who waited last had nothing then");
        fairness.run(other);
        fairness.charge_output(other, 500);
        fairness.leave_running(other);
        fairness.wait(other);
        assert_eq!(fairness.served(other), 1000, "it comes back with what it had");
        fairness.leave_waiting(other);
        fairness.leave_running(steady);
        fairness.wait(other);
        assert_eq!(fairness.served(other), 0, "an idle engine owes nobody");
    }

    #[test]
    fn those_that_left_are_not_remembered_for_ever() {
        let mut fairness = Fairness::default();
        fairness.wait(tenant("stays"));
        for index in 0..2 * ABSENT_TENANTS_MAX {
            let tenant = Digest::of(&index.to_le_bytes());
            fairness.wait(tenant);
            fairness.run(tenant);
            fairness.charge_output(tenant, index + 1);
            fairness.leave_running(tenant);
            assert!(fairness.accounts.len() <= ABSENT_TENANTS_MAX + 1);
        }
    }
}
