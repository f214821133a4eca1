//! Which adapter lies in which slot, in which blocks, and who holds it. Not here: the loading, which the engine has its runner
//! do.
//!
//! An adapter that nobody holds stays in its slot until the slot or its blocks are needed; the one unused for longest goes
//! first. KV that is only kept goes before it: blocks are taken from idle adapters when no others can be had.

use std::sync::Arc;

use types::Digest;

use crate::active_parts::ActiveParts;
use crate::block_manager::{BlockManager, BlockTable};
use crate::{BlockCopy, Slot};

/// An adapter that a sequence needs in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WantedAdapter {
    pub(crate) digest: Digest,
    /// Blocks that it takes there.
    pub(crate) blocks: u32,
}

impl WantedAdapter {
    /// The adapter of each part, with the blocks that it takes.
    pub(crate) fn of<A>(
        parts: &ActiveParts,
        adapters: &[(Digest, Arc<A>)],
        blocks_of: impl Fn(&A) -> u32,
    ) -> Vec<Self> {
        let wanted = parts.as_slice().iter().map(|part| {
            let digest = part.part.adapter;
            let adapter = adapters.iter().find(|(name, _)| *name == digest);
            Self { digest, blocks: adapter.map_or(0, |(_, adapter)| blocks_of(adapter)) }
        });
        wanted.collect()
    }

    /// Of all blocks those that these adapters leave, each of which lies in memory once.
    pub(crate) fn blocks_beside(wanted: &[Self], blocks: usize) -> usize {
        let is_first = |index: usize, one: &Self| wanted.iter().take(index).all(|other| other.digest != one.digest);
        let taken = wanted.iter().enumerate().filter(|(index, one)| is_first(*index, one));
        blocks.saturating_sub(taken.map(|(_, one)| one.blocks as usize).sum())
    }
}

/// The memory that adapters share with KV, while a step is planned.
pub(crate) struct SharedMemory<'a> {
    pub(crate) blocks: &'a mut BlockManager,
    /// Planned already: what these copy from is not written before the step.
    pub(crate) copies: &'a [BlockCopy],
    pub(crate) loads: &'a mut Vec<SlotLoad>,
}

/// A load that makes an acquired slot usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotLoad {
    pub(crate) slot: Slot,
    pub(crate) digest: Digest,
    /// Whether another adapter has to be unloaded first.
    pub(crate) evicts: bool,
}

#[derive(Debug)]
struct Resident {
    digest: Digest,
    blocks: BlockTable,
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
        Self { slots: (0..slots).map(|_| None).collect(), releases: 0, unloads: Vec::with_capacity(slots as usize) }
    }

    /// Holds a slot for each of these adapters, in their order, and blocks for those that are not there yet; one that is named
    /// twice is held twice. What has to be loaded before the next step is added to `loads`. Afterwards `kv_blocks` more can
    /// be had. `None`, and nothing changed, if the slots or the blocks that nobody holds are too few.
    pub(crate) fn acquire(
        &mut self,
        wanted: &[WantedAdapter],
        kv_blocks: usize,
        tenant: Digest,
        memory: &mut SharedMemory<'_>,
    ) -> Option<Vec<Slot>> {
        let missing = self.missing(wanted);
        if !self.can_acquire(wanted, &missing, kv_blocks, memory) {
            return None;
        }
        // Those that are resident are held first, so that none of them is evicted for the others.
        for one in wanted {
            self.hold(one.digest);
        }
        for one in &missing {
            self.place(one.digest, tenant, memory)?;
        }
        let adapter_blocks: usize = missing.iter().map(|one| one.blocks as usize).sum();
        let unready = if adapter_blocks > 0 { memory.blocks.unheld_of_copies(memory.copies) } else { 0 };
        self.make_room(adapter_blocks + kv_blocks.max(unready), memory);
        for one in &missing {
            let resident = self.slots.iter_mut().flatten().find(|resident| resident.digest == one.digest)?;
            let taken =
                memory.blocks.take_for_adapter(&mut resident.blocks, one.blocks as usize, one.digest, memory.copies);
            debug_assert!(taken, "the blocks of {} were counted", one.digest);
            resident.holders = wanted.iter().filter(|wanted| wanted.digest == one.digest).count().try_into().ok()?;
        }
        wanted.iter().map(|one| self.slot_of(one.digest)).collect()
    }

    /// Blocks of those that have to be loaded, each once.
    pub(crate) fn missing_blocks(&self, wanted: &[WantedAdapter]) -> usize {
        self.missing(wanted).iter().map(|one| one.blocks as usize).sum()
    }

    /// Evicts idle adapters until so many blocks can be had, the one unused for longest first. False, and nothing changed, if
    /// those of all idle ones are too few.
    pub(crate) fn make_room(&mut self, blocks: usize, memory: &mut SharedMemory<'_>) -> bool {
        // Asked for each sequence in each step: that there is room is to cost nothing, however many slots there are.
        if blocks <= memory.blocks.available() {
            return true;
        }
        if blocks > memory.blocks.available() + self.idle_blocks(|_| true) {
            return false;
        }
        while memory.blocks.available() < blocks {
            let idle = self.slots.iter().enumerate().filter_map(|(index, slot)| Some((index, slot.as_ref()?)));
            let idle = idle.filter(|(_, resident)| resident.holders == 0 && !resident.blocks.blocks().is_empty());
            let Some((index, _)) = idle.min_by_key(|(_, resident)| resident.released) else { return false };
            if self.vacate(index, memory) {
                self.unloads.push(slot_at(index));
            }
        }
        true
    }

    /// Blocks of adapters that nobody holds.
    pub(crate) fn idle_blocks(&self, counts: impl Fn(&Digest) -> bool) -> usize {
        let idle = self.slots.iter().flatten().filter(|resident| resident.holders == 0 && counts(&resident.digest));
        idle.map(|resident| resident.blocks.blocks().len()).sum()
    }

    /// The blocks of a slot's adapter.
    pub(crate) fn blocks_of(&self, slot: Slot) -> &[u32] {
        let resident = self.slots.get(slot.0 as usize).and_then(Option::as_ref);
        resident.map_or(&[], |resident| resident.blocks.blocks())
    }

    /// What each adapter in a slot holds.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &BlockTable> {
        self.slots.iter().flatten().map(|resident| &resident.blocks)
    }

    /// Gives back what [`Self::acquire`] gave. With `unload` the adapters do not stay when nobody holds them any more: see
    /// [`Self::take_unloads`].
    pub(crate) fn release(&mut self, slots: &mut Vec<Slot>, unload: bool, blocks: &mut BlockManager) {
        for slot in slots.drain(..) {
            self.releases += 1;
            let Some(place) = self.slots.get_mut(slot.0 as usize) else { continue };
            let Some(resident) = place else { continue };
            resident.holders = resident.holders.saturating_sub(1);
            resident.released = self.releases;
            resident.unload |= unload;
            if resident.unload && resident.holders == 0 {
                blocks.release(&mut resident.blocks);
                *place = None;
                self.unloads.push(slot);
            }
        }
    }

    /// Has these go with their last holder, those that nobody holds now: as [`Self::release`] of one that held them.
    pub(crate) fn unload(&mut self, digests: impl Iterator<Item = Digest>, blocks: &mut BlockManager) {
        for slot in digests.filter_map(|digest| self.slot_of(digest)).collect::<Vec<_>>() {
            let Some(place) = self.slots.get_mut(slot.0 as usize) else { continue };
            let Some(resident) = place else { continue };
            resident.unload = true;
            if resident.holders == 0 {
                blocks.release(&mut resident.blocks);
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
    pub(crate) fn forget(&mut self, slot: Slot, blocks: &mut BlockManager) {
        if let Some(mut resident) = self.slots.get_mut(slot.0 as usize).and_then(Option::take) {
            debug_assert!(resident.holders == 0, "somebody holds {slot:?}");
            blocks.release(&mut resident.blocks);
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
            let (counted, claimed) =
                (slot.as_ref().map_or(0, |resident| resident.holders), holders.get(index).copied());
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

    /// Those that have to be loaded, each once, in order.
    fn missing(&self, wanted: &[WantedAdapter]) -> Vec<WantedAdapter> {
        let mut missing: Vec<WantedAdapter> = Vec::new();
        for one in wanted {
            let is_named = missing.iter().any(|other| other.digest == one.digest);
            if !is_named && self.slot_of(one.digest).is_none() {
                missing.push(*one);
            }
        }
        missing
    }

    fn can_acquire(
        &self,
        wanted: &[WantedAdapter],
        missing: &[WantedAdapter],
        kv_blocks: usize,
        memory: &SharedMemory<'_>,
    ) -> bool {
        let is_other = |digest: &Digest| wanted.iter().all(|wanted| wanted.digest != *digest);
        let idle = |resident: &Resident| resident.holders == 0 && is_other(&resident.digest);
        let adapter_blocks: usize = missing.iter().map(|one| one.blocks as usize).sum();
        let unready = if adapter_blocks > 0 { memory.blocks.unheld_of_copies(memory.copies) } else { 0 };
        let available = memory.blocks.available() + self.idle_blocks(is_other);
        missing.len() <= self.slots.iter().filter(|slot| slot.as_ref().is_none_or(idle)).count()
            && adapter_blocks + kv_blocks.max(unready) <= available
    }

    fn hold(&mut self, digest: Digest) -> bool {
        let resident = self.slots.iter_mut().flatten().find(|resident| resident.digest == digest);
        resident.map(|resident| resident.holders += 1).is_some()
    }

    /// Puts an adapter with one holder and no blocks into an empty slot, or else into the idle one released longest ago.
    fn place(&mut self, digest: Digest, tenant: Digest, memory: &mut SharedMemory<'_>) -> Option<()> {
        let is_open = |slot: &Option<Resident>| slot.as_ref().is_none_or(|resident| resident.holders == 0);
        let open = self.slots.iter().enumerate().filter(|(_, slot)| is_open(slot));
        let (index, _) = open.min_by_key(|(index, slot)| {
            (slot.as_ref().map_or(0, |resident| resident.released), self.unloads.contains(&slot_at(*index)))
        })?;
        // One that is still to be emptied is emptied by the load.
        let waits = self.unloads.iter().position(|unload| *unload == slot_at(index));
        let waits = waits.map(|at| self.unloads.swap_remove(at)).is_some();
        let evicts = self.vacate(index, memory) || waits;
        let resident =
            Resident { digest, blocks: BlockTable::default(), tenant, holders: 1, released: 0, unload: false };
        self.slots.get_mut(index)?.replace(resident);
        memory.loads.push(SlotLoad { slot: slot_at(index), digest, evicts });
        Some(())
    }

    /// Takes an adapter that nobody holds out of its slot. Whether the runner has one there: not this one, if it was to be
    /// loaded in this very step and those who wanted it were set back; then that load is off.
    fn vacate(&mut self, index: usize, memory: &mut SharedMemory<'_>) -> bool {
        let Some(mut resident) = self.slots.get_mut(index).and_then(Option::take) else { return false };
        memory.blocks.release(&mut resident.blocks);
        let load = memory.loads.iter().position(|load| load.slot == slot_at(index));
        load.is_none_or(|load| memory.loads.remove(load).evicts)
    }

    pub(crate) fn is_resident(&self, digest: Digest) -> bool {
        self.slot_of(digest).is_some()
    }

    /// Where it lies.
    pub(crate) fn slot_of(&self, digest: Digest) -> Option<Slot> {
        self.slots.iter().position(|slot| slot.as_ref().is_some_and(|one| one.digest == digest)).map(slot_at)
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

    /// Adapters that take no blocks.
    fn acquire(
        slots: &mut AdapterSlots,
        wanted: &[Digest],
        tenant: Digest,
        loads: &mut Vec<SlotLoad>,
    ) -> Option<Vec<Slot>> {
        let wanted: Vec<_> = wanted.iter().map(|digest| WantedAdapter { digest: *digest, blocks: 0 }).collect();
        slots.acquire(&wanted, 0, tenant, &mut SharedMemory { blocks: &mut no_blocks(), copies: &[], loads })
    }

    fn no_blocks() -> BlockManager {
        BlockManager::new(0, 1)
    }

    fn loaded(slots: &mut AdapterSlots, wanted: &[Digest]) -> (Option<Vec<Slot>>, Vec<SlotLoad>) {
        let mut loads = Vec::new();
        (acquire(slots, wanted, Digest::of(b"tenant"), &mut loads), loads)
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
        slots.release(&mut one, false, &mut no_blocks());
        slots.check_integrity(two.iter()).expect("counted");
        assert_eq!((slots.used(), slots.residents().count()), (1, 2));
    }

    #[test]
    fn a_slot_is_of_whoever_filled_it() {
        let ([a], [acme, beta]) = (digests(["a"]), digests(["acme", "beta"]));
        let mut slots = AdapterSlots::new(1);
        let mut loads = Vec::new();
        let mut first = acquire(&mut slots, &[a], acme, &mut loads).expect("there is room");
        let mut second = acquire(&mut slots, &[a], beta, &mut loads).expect("it is there");
        assert_eq!(slots.fillers().collect::<Vec<_>>(), [acme], "who uses what is there shows nothing");
        slots.release(&mut first, true, &mut no_blocks());
        slots.release(&mut second, true, &mut no_blocks());
        assert_eq!(slots.fillers().count(), 0);
        acquire(&mut slots, &[a], beta, &mut loads).expect("there is room");
        assert_eq!(slots.fillers().collect::<Vec<_>>(), [beta]);
    }

    #[test]
    fn the_idle_one_unused_for_longest_is_evicted_and_never_a_held_one() {
        let [a, b, c, d] = digests(["a", "b", "c", "d"]);
        let mut slots = AdapterSlots::new(2);
        let (Some(mut held_a), _) = loaded(&mut slots, &[a]) else { panic!("there is room") };
        let (Some(mut held_b), _) = loaded(&mut slots, &[b]) else { panic!("there is room") };
        assert_eq!(loaded(&mut slots, &[c]), (None, vec![]), "both are held");
        slots.release(&mut held_b, false, &mut no_blocks());
        slots.release(&mut held_a, false, &mut no_blocks());
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
        slots.release(&mut held, false, &mut no_blocks());
        slots.forget(Slot(0), &mut no_blocks());
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
        slots.release(&mut one, true, &mut no_blocks());
        assert_eq!((slots.take_unloads(), slots.residents().count()), (vec![Slot(1)], 1), "a is held");
        slots.release(&mut two, false, &mut no_blocks());
        assert_eq!((slots.take_unloads(), slots.residents().count()), (vec![Slot(0)], 0), "who left first had asked");
        let (Some(mut again), loads) = loaded(&mut slots, &[a]) else { panic!("there is room") };
        assert_eq!(loads, [SlotLoad { slot: Slot(0), digest: a, evicts: false }]);
        slots.release(&mut again, false, &mut no_blocks());
        assert_eq!((slots.take_unloads(), slots.residents().count()), (vec![], 1), "it was forgotten with the adapter");
        let (Some(mut again), _) = loaded(&mut slots, &[a]) else { panic!("it is there") };
        slots.release(&mut again, true, &mut no_blocks());
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
