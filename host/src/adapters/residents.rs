//! Which packed adapters stay in memory, under a budget of bytes: a table, and the order in which they give way. Not here:
//! loading, waiting and time's passing (`memory`).
//!
//! GreedyDual-Size-Frequency (Cherkasova 1998): what is worth least goes first, and the worth of an adapter is how often it was
//! used since it came, times what it costs to bring back for each byte that it takes; what went last is where newcomers begin, so
//! that old glory fades. Against plain LRU it keeps what is asked for again and again when a long tail passes through once (the
//! popularity of adapters is Zipf's), and it counts sizes: of two that are used alike, the smaller one stays.
//!
//! Nothing that is on lease gives way: its bytes would not come free. So leases may hold the table over its budget; whatever is
//! idle then is gone.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use types::{Digest, TenantId};

/// Whose, and which. Nobody's are shared by all tenants, where that was opted for.
pub(super) type Key = (Option<TenantId>, Digest);

/// To bring one back costs its bytes, and as much as this many more: opening, checking, entering.
const FIXED_COST_BYTES: f64 = 1024.0 * 1024.0;
/// Of one entry; more is no sign of more.
const USES_MAX: u32 = 1 << 20;

/// When an adapter leaves memory after it was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReleasePolicy {
    /// When others need the room.
    #[default]
    Lru,
    /// When nobody has used it for so long, or before.
    Idle(Duration),
    /// As soon as nobody uses it.
    Immediate,
}

impl ReleasePolicy {
    /// Whoever keeps it shorter is obeyed.
    fn strictest(self, other: Self) -> Self {
        match (self, other) {
            (Self::Immediate, _) | (_, Self::Immediate) => Self::Immediate,
            (Self::Idle(one), Self::Idle(two)) => Self::Idle(one.min(two)),
            (Self::Idle(time), Self::Lru) | (Self::Lru, Self::Idle(time)) => Self::Idle(time),
            (Self::Lru, Self::Lru) => Self::Lru,
        }
    }
}

/// Why adapters left memory, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evictions {
    /// Others needed the room.
    pub budget: u64,
    /// A function's release policy: at once.
    pub released: u64,
    /// A function's release policy: idle for long enough.
    pub idle: u64,
    /// Its owner removed or replaced it, or it was revoked.
    pub forgotten: u64,
}

#[derive(Debug)]
struct Entry<A> {
    adapter: Arc<A>,
    bytes: u64,
    uses: u32,
    /// What it is worth, as bits of a positive number: they have its order; and of those worth the same, when it was used.
    worth: (u64, u64),
    leases: u32,
    is_pinned: bool,
    /// The strictest of those who have it now.
    release: ReleasePolicy,
    /// When it goes, if nobody uses it before.
    expires: Option<Instant>,
}

/// The table.
#[derive(Debug)]
pub(super) struct Residents<A> {
    entries: HashMap<Key, Entry<A>>,
    /// Those that may give way, the least worth first.
    idle: BTreeSet<((u64, u64), Key)>,
    /// Counts uses.
    clock: u64,
    bytes: u64,
    bytes_max: u64,
    pinned_bytes: u64,
    /// The worth of what gave way last.
    floor: f64,
    evictions: Evictions,
}

impl<A> Residents<A> {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            entries: HashMap::new(),
            idle: BTreeSet::new(),
            clock: 0,
            bytes: 0,
            bytes_max,
            pinned_bytes: 0,
            floor: 0.0,
            evictions: Evictions::default(),
        }
    }

    /// A lease on what is there.
    pub(super) fn lease(&mut self, key: &Key, release: ReleasePolicy) -> Option<Arc<A>> {
        let floor = self.floor;
        let entry = self.entries.get_mut(key)?;
        self.clock += 1;
        self.idle.remove(&(entry.worth, key.clone()));
        entry.release = if entry.leases == 0 { release } else { entry.release.strictest(release) };
        entry.leases += 1;
        entry.expires = None;
        entry.uses = entry.uses.saturating_add(1).min(USES_MAX);
        entry.worth = (worth(floor, entry.uses, entry.bytes), self.clock);
        Some(Arc::clone(&entry.adapter))
    }

    /// The end of a lease on this very adapter; `now` begins its time of rest. True if there is now something that expires.
    pub(super) fn give_back(&mut self, key: &Key, adapter: &Arc<A>, now: Instant) -> bool {
        // It may have been forgotten since, and even loaded again.
        let Some(entry) = self.entries.get_mut(key).filter(|entry| Arc::ptr_eq(&entry.adapter, adapter)) else {
            return false;
        };
        entry.leases = entry.leases.saturating_sub(1);
        if entry.leases > 0 {
            return false;
        }
        if !entry.is_pinned {
            self.idle.insert((entry.worth, key.clone()));
            match entry.release {
                ReleasePolicy::Immediate => {
                    self.remove(key);
                    self.evictions.released += 1;
                    return false;
                }
                ReleasePolicy::Idle(time) => entry.expires = now.checked_add(time),
                ReleasePolicy::Lru => {}
            }
        }
        let expires = entry.expires.is_some();
        self.make_room();
        expires
    }

    /// Enters what was loaded, used by nobody yet. What was there under the key goes.
    pub(super) fn enter(&mut self, key: Key, adapter: Arc<A>, bytes: u64) {
        self.remove(&key);
        self.clock += 1;
        let worth = (worth(self.floor, 1, bytes), self.clock);
        let release = ReleasePolicy::Lru;
        self.bytes += bytes;
        self.idle.insert((worth, key.clone()));
        let entry = Entry { adapter, bytes, uses: 0, worth, leases: 0, is_pinned: false, release, expires: None };
        self.entries.insert(key.clone(), entry);
        // Whoever asked for it has not taken it yet: it is not the one that gives way to itself.
        self.idle.remove(&(worth, key.clone()));
        self.make_room();
        self.idle.insert((worth, key));
    }

    /// Takes it out, whoever uses it. Leases on it stay good.
    pub(super) fn forget(&mut self, key: &Key) {
        self.evictions.forgotten += u64::from(self.remove(key));
    }

    /// Takes out what has rested long enough. When the next one will have.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Instant> {
        let due = |entry: &Entry<A>| entry.expires.filter(|_| entry.leases == 0 && !entry.is_pinned);
        let expired = self.entries.iter().filter(|(_, entry)| due(entry).is_some_and(|at| at <= now));
        for key in expired.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.remove(&key);
            self.evictions.idle += 1;
        }
        self.entries.values().filter_map(due).min()
    }

    /// Keeps it whatever else comes, if all that is kept so takes no more than `pinned_max`. `None` if it is not there, else
    /// whether there was room.
    pub(super) fn pin(&mut self, key: &Key, pinned_max: u64) -> Option<bool> {
        let entry = self.entries.get_mut(key)?;
        if entry.is_pinned {
            return Some(true);
        }
        if self.pinned_bytes.saturating_add(entry.bytes) > pinned_max {
            return Some(false);
        }
        entry.is_pinned = true;
        self.pinned_bytes += entry.bytes;
        self.idle.remove(&(entry.worth, key.clone()));
        Some(true)
    }

    /// Lets it give way again.
    pub(super) fn unpin(&mut self, key: &Key) {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.is_pinned) else { return };
        entry.is_pinned = false;
        self.pinned_bytes -= entry.bytes;
        if entry.leases == 0 {
            self.idle.insert((entry.worth, key.clone()));
        }
        self.make_room();
    }

    /// Takes out what is worth least until the budget is kept, or nothing is idle.
    pub(super) fn make_room(&mut self) {
        while self.bytes > self.bytes_max
            && let Some(((worth, _), key)) = self.idle.pop_first()
        {
            self.floor = self.floor.max(f64::from_bits(worth));
            self.remove(&key);
            self.evictions.budget += 1;
        }
    }

    pub(super) fn contains(&self, key: &Key) -> bool {
        self.entries.contains_key(key)
    }

    /// Those of this adapter, of all tenants.
    pub(super) fn keys_of(&self, digest: Digest) -> Vec<Key> {
        self.entries.keys().filter(|key| key.1 == digest).cloned().collect()
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) const fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes
    }

    pub(super) fn count(&self) -> usize {
        self.entries.len()
    }

    pub(super) const fn evictions(&self) -> Evictions {
        self.evictions
    }

    fn remove(&mut self, key: &Key) -> bool {
        let Some(entry) = self.entries.remove(key) else { return false };
        self.idle.remove(&(entry.worth, key.clone()));
        self.bytes -= entry.bytes;
        if entry.is_pinned {
            self.pinned_bytes -= entry.bytes;
        }
        true
    }

    /// That what is counted is what is there.
    #[cfg(test)]
    pub(super) fn check_integrity(&self) {
        let sum = |pinned: bool| {
            self.entries.values().filter(|entry| entry.is_pinned || !pinned).map(|entry| entry.bytes).sum::<u64>()
        };
        assert_eq!((self.bytes, self.pinned_bytes), (sum(false), sum(true)));
        let idle = self.entries.iter().filter(|(_, entry)| entry.leases == 0 && !entry.is_pinned);
        let idle: BTreeSet<_> = idle.map(|(key, entry)| (entry.worth, key.clone())).collect();
        assert_eq!(idle, self.idle);
    }
}

/// Bits of a number that is not negative.
fn worth(floor: f64, uses: u32, bytes: u64) -> u64 {
    let bytes = (bytes as f64).max(1.0);
    (floor + f64::from(uses) * (bytes + FIXED_COST_BYTES) / bytes).to_bits()
}

#[cfg(test)]
mod tests;
