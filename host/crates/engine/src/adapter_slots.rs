//! Which adapter lies in which slot, and who holds it. Not here: the loading, which the engine has its runner do.
//!
//! An adapter that nobody holds stays in its slot until the slot is needed; the one unused for longest goes first.

use types::Digest;

use crate::Slot;

/// A load that makes an acquired slot usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotLoad {
    pub(crate) slot: Slot,
    pub(crate) digest: Digest,
    /// Whether another adapter has to be unloaded first.
    pub(crate) evicts: bool,
}

#[derive(Clone, Copy, Debug)]
struct Resident {
    digest: Digest,
    /// Whose use filled the slot.
    tenant: Digest,
    holders: u32,
    /// When it was last released, in releases.
    released: u64,
    /// Whether it goes with its last holder.
    unload: bool,
}

/// The slots of a runner.
#[derive(Debug)]
pub(crate) struct AdapterSlots {
    slots: Vec<Option<Resident>>,
    releases: u64,
    /// Empty here, and still to be emptied by the runner.
    unloads: Vec<Slot>,
}

impl AdapterSlots {
    pub(crate) fn new(slots: u32) -> Self {
        Self { slots: vec![None; slots as usize], releases: 0, unloads: Vec::with_capacity(slots as usize) }
    }

    /// Holds a slot for each of these adapters, in their order; one that is named twice is held twice. What has to be
    /// loaded before the next step is added to `loads`. `None`, and nothing changed, if the slots that nobody holds
    /// are too few.
    pub(crate) fn acquire(
        &mut self,
        wanted: &[Digest],
        tenant: Digest,
        loads: &mut Vec<SlotLoad>,
    ) -> Option<Vec<Slot>> {
        if !self.can_acquire(wanted) {
            return None;
        }
        // Those that are resident are held first, so that none of them is evicted for the others.
        let missing: Vec<Digest> = wanted.iter().copied().filter(|digest| !self.hold(*digest)).collect();
        for digest in missing {
            if !self.hold(digest) {
                loads.push(self.place(digest, tenant)?);
            }
        }
        wanted.iter().map(|digest| self.slot_of(*digest)).collect()
    }

    /// Gives back what [`Self::acquire`] gave. With `unload` the adapters do not stay when nobody holds them any more: see
    /// [`Self::take_unloads`].
    pub(crate) fn release(&mut self, slots: &mut Vec<Slot>, unload: bool) {
        for slot in slots.drain(..) {
            self.releases += 1;
            let Some(place) = self.slots.get_mut(slot.0 as usize) else { continue };
            let Some(resident) = place else { continue };
            resident.holders = resident.holders.saturating_sub(1);
            resident.released = self.releases;
            resident.unload |= unload;
            if resident.unload && resident.holders == 0 {
                *place = None;
                self.unloads.push(slot);
            }
        }
    }

    /// Slots that the runner has to empty, if they are not acquired again before that.
    pub(crate) fn take_unloads(&mut self) -> Vec<Slot> {
        std::mem::take(&mut self.unloads)
    }

    /// Marks a slot empty whose load failed, or whose adapter was revoked. Its holders have released it.
    pub(crate) fn forget(&mut self, slot: Slot) {
        if let Some(resident) = self.slots.get_mut(slot.0 as usize) {
            debug_assert!(resident.is_none_or(|resident| resident.holders == 0), "somebody holds {slot:?}");
            *resident = None;
        }
        self.unloads.retain(|unload| *unload != slot);
    }

    /// Adapters in slots, held or idle, in order of slot.
    pub(crate) fn residents(&self) -> impl Iterator<Item = Digest> {
        self.slots.iter().flatten().map(|resident| resident.digest)
    }

    /// Whose use filled the slots of these, in the same order.
    pub(crate) fn fillers(&self) -> impl Iterator<Item = Digest> {
        self.slots.iter().flatten().map(|resident| resident.tenant)
    }

    /// Slots that somebody holds.
    pub(crate) fn used(&self) -> u32 {
        let used = self.slots.iter().flatten().filter(|resident| resident.holders > 0).count();
        u32::try_from(used).unwrap_or(u32::MAX)
    }

    pub(crate) fn total(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    /// That each slot has as many holders as there are claims to it, which are all there are, and that no adapter lies
    /// in two slots.
    pub(crate) fn check_integrity<'a>(&self, claims: impl Iterator<Item = &'a Slot>) -> Result<(), String> {
        let mut holders = vec![0; self.slots.len()];
        for slot in claims {
            *holders.get_mut(slot.0 as usize).ok_or_else(|| format!("{slot:?} does not exist"))? += 1;
        }
        for (index, slot) in self.slots.iter().enumerate() {
            let (counted, claimed) = (slot.map_or(0, |resident| resident.holders), holders.get(index).copied());
            if claimed != Some(counted) {
                return Err(format!("slot {index} counts {counted} holders, there are {claimed:?}"));
            }
        }
        let mut digests: Vec<Digest> = self.residents().collect();
        digests.sort_unstable();
        match digests.windows(2).find(|pair| pair.first() == pair.last()) {
            Some(pair) => Err(format!("an adapter lies in two slots: {pair:?}")),
            None => Ok(()),
        }
    }

    fn can_acquire(&self, wanted: &[Digest]) -> bool {
        let mut missing: Vec<Digest> = wanted.iter().copied().filter(|d| self.slot_of(*d).is_none()).collect();
        missing.sort_unstable();
        missing.dedup();
        let idle = |resident: &Resident| resident.holders == 0 && !wanted.contains(&resident.digest);
        missing.len() <= self.slots.iter().filter(|slot| slot.as_ref().is_none_or(idle)).count()
    }

    fn hold(&mut self, digest: Digest) -> bool {
        let resident = self.slots.iter_mut().flatten().find(|resident| resident.digest == digest);
        resident.map(|resident| resident.holders += 1).is_some()
    }

    /// Puts an adapter with one holder into an empty slot, or else into the idle one released longest ago.
    fn place(&mut self, digest: Digest, tenant: Digest) -> Option<SlotLoad> {
        let open = self.slots.iter_mut().enumerate().filter(|(_, slot)| slot.is_none_or(|r| r.holders == 0));
        let unloads = &mut self.unloads;
        let (index, slot) = open.min_by_key(|(index, slot)| {
            (slot.map_or(0, |resident| resident.released), unloads.contains(&slot_at(*index)))
        })?;
        // One that is still to be emptied is emptied by the load.
        let waits = unloads.iter().position(|unload| *unload == slot_at(index));
        let evicts = slot.is_some() || waits.map(|at| unloads.swap_remove(at)).is_some();
        *slot = Some(Resident { digest, tenant, holders: 1, released: 0, unload: false });
        Some(SlotLoad { slot: slot_at(index), digest, evicts })
    }

    /// Where it lies.
    pub(crate) fn slot_of(&self, digest: Digest) -> Option<Slot> {
        self.slots.iter().position(|slot| slot.is_some_and(|resident| resident.digest == digest)).map(slot_at)
    }
}

/// The number of slots came from a `u32`.
fn slot_at(index: usize) -> Slot {
    Slot(u32::try_from(index).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests<const N: usize>(names: [&str; N]) -> [Digest; N] {
        names.map(|name| Digest::of(name.as_bytes()))
    }

    fn loaded(slots: &mut AdapterSlots, wanted: &[Digest]) -> (Option<Vec<Slot>>, Vec<SlotLoad>) {
        let mut loads = Vec::new();
        (slots.acquire(wanted, Digest::of(b"tenant"), &mut loads), loads)
    }

    #[test]
    fn an_adapter_is_loaded_once_and_shared() {
        let [a, b] = digests(["a", "b"]);
        let mut slots = AdapterSlots::new(2);
        let (Some(mut one), loads) = loaded(&mut slots, &[a, b, a]) else { panic!("there is room") };
        assert_eq!(one, [Slot(0), Slot(1), Slot(0)]);
        assert_eq!(loads.len(), 2);
        let (Some(two), loads) = loaded(&mut slots, &[b]) else { panic!("it is there") };
        assert_eq!((two.as_slice(), loads.len()), ([Slot(1)].as_slice(), 0));
        slots.check_integrity(one.iter().chain(&two)).expect("counted");
        slots.release(&mut one, false);
        slots.check_integrity(two.iter()).expect("counted");
        assert_eq!((slots.used(), slots.residents().count()), (1, 2));
    }

    #[test]
    fn a_slot_is_of_whoever_filled_it() {
        let ([a], [acme, beta]) = (digests(["a"]), digests(["acme", "beta"]));
        let mut slots = AdapterSlots::new(1);
        let mut loads = Vec::new();
        let mut first = slots.acquire(&[a], acme, &mut loads).expect("there is room");
        let mut second = slots.acquire(&[a], beta, &mut loads).expect("it is there");
        assert_eq!(slots.fillers().collect::<Vec<_>>(), [acme], "who uses what is there shows nothing");
        slots.release(&mut first, true);
        slots.release(&mut second, true);
        assert_eq!(slots.fillers().count(), 0);
        slots.acquire(&[a], beta, &mut loads).expect("there is room");
        assert_eq!(slots.fillers().collect::<Vec<_>>(), [beta]);
    }

    #[test]
    fn the_idle_one_unused_for_longest_is_evicted_and_never_a_held_one() {
        let [a, b, c, d] = digests(["a", "b", "c", "d"]);
        let mut slots = AdapterSlots::new(2);
        let (Some(mut held_a), _) = loaded(&mut slots, &[a]) else { panic!("there is room") };
        let (Some(mut held_b), _) = loaded(&mut slots, &[b]) else { panic!("there is room") };
        assert_eq!(loaded(&mut slots, &[c]), (None, vec![]), "both are held");
        slots.release(&mut held_b, false);
        slots.release(&mut held_a, false);
        let (got, loads) = loaded(&mut slots, &[c]);
        assert_eq!(got, Some(vec![Slot(1)]), "b was released before a");
        assert_eq!(loads, [SlotLoad { slot: Slot(1), digest: c, evicts: true }]);
        assert_eq!(loaded(&mut slots, &[a, d]), (None, vec![]), "a is idle but wanted, c is held");
        assert_eq!(loaded(&mut slots, &[a]), (Some(vec![Slot(0)]), vec![]));
    }

    #[test]
    fn a_failed_load_leaves_an_empty_slot() {
        let [a] = digests(["a"]);
        let mut slots = AdapterSlots::new(1);
        let (Some(mut held), _) = loaded(&mut slots, &[a]) else { panic!("there is room") };
        slots.release(&mut held, false);
        slots.forget(Slot(0));
        assert_eq!(slots.residents().count(), 0);
        let (_, loads) = loaded(&mut slots, &[a]);
        assert_eq!(loads, [SlotLoad { slot: Slot(0), digest: a, evicts: false }]);
    }

    #[test]
    fn what_is_to_be_unloaded_goes_with_its_last_holder() {
        let [a, b] = digests(["a", "b"]);
        let mut slots = AdapterSlots::new(2);
        let (Some(mut one), _) = loaded(&mut slots, &[a, b]) else { panic!("there is room") };
        let (Some(mut two), _) = loaded(&mut slots, &[a]) else { panic!("it is there") };
        slots.release(&mut one, true);
        assert_eq!((slots.take_unloads(), slots.residents().count()), (vec![Slot(1)], 1), "a is held");
        slots.release(&mut two, false);
        assert_eq!((slots.take_unloads(), slots.residents().count()), (vec![Slot(0)], 0), "who left first had asked");
        let (Some(mut again), loads) = loaded(&mut slots, &[a]) else { panic!("there is room") };
        assert_eq!(loads, [SlotLoad { slot: Slot(0), digest: a, evicts: false }]);
        slots.release(&mut again, false);
        assert_eq!((slots.take_unloads(), slots.residents().count()), (vec![], 1), "it was forgotten with the adapter");
        let (Some(mut again), _) = loaded(&mut slots, &[a]) else { panic!("it is there") };
        slots.release(&mut again, true);
        let (_, loads) = loaded(&mut slots, &[b]);
        assert_eq!(
            loads,
            [SlotLoad { slot: Slot(1), digest: b, evicts: false }],
            "the one that is empty, if there is one"
        );
        let (_, loads) = loaded(&mut slots, &[a]);
        assert_eq!((loads, slots.take_unloads()), (vec![SlotLoad { slot: Slot(0), digest: a, evicts: true }], vec![]));
    }

    #[test]
    fn no_slots_serve_the_base_only() {
        let [a] = digests(["a"]);
        let mut slots = AdapterSlots::new(0);
        assert_eq!(loaded(&mut slots, &[]), (Some(vec![]), vec![]));
        assert_eq!(loaded(&mut slots, &[a]), (None, vec![]));
    }
}
