//! The best k of many values that come in pieces, in any order and from several threads: best first, the lower id first on
//! ties (0 and −0 are one), what is not a number never. The order is total over what may be kept, so that the result
//! does not depend on the pieces. Not here: the logits.

use std::cmp::Ordering;

use crate::Isa;
use crate::isa::multiversion;

/// An id and its value.
pub(crate) type Scored = (u32, f32);

/// Values that are looked through together.
const BLOCK: usize = 128;
/// Above this, keeping places in order costs more than a look at all values.
const COUNT_KEPT_MAX: usize = 128;

/// The best `count` of a row of values by their place in it: best first, the lower place first on ties (0 and −0 are one),
/// none that is not a number.
pub fn best_of(isa: Isa, values: &[f32], count: usize, into: &mut Vec<(u32, f32)>) {
    into.clear();
    if count > COUNT_KEPT_MAX {
        into.extend((0..).zip(values.iter().copied()).filter(|scored| !scored.1.is_nan()));
        let order = |a: &Scored, b: &Scored| if is_before(*a, *b) { Ordering::Less } else { Ordering::Greater };
        if count < into.len() {
            into.select_nth_unstable_by(count, order);
            into.truncate(count);
        }
        into.sort_unstable_by(order);
        return;
    }
    into.resize(count.min(values.len()), (0, 0.0));
    let mut found = 0;
    let mut best = Best { places: into, count: &mut found };
    for (block, values) in values.chunks(BLOCK).enumerate() {
        best.offer_all(isa, u32::try_from(block * BLOCK).unwrap_or(u32::MAX), values);
    }
    into.truncate(found);
}

/// The best so far.
pub(crate) struct Best<'a> {
    /// As many places as are wanted, the first `count` in order.
    pub(crate) places: &'a mut [Scored],
    pub(crate) count: &'a mut usize,
}

impl Best<'_> {
    /// Considers values whose ids ascend by one from `first`.
    pub(crate) fn offer_all(&mut self, isa: Isa, first: u32, values: &[f32]) {
        if self.places.is_empty() {
            return;
        }
        // Nearly always nothing reaches the last place; a tie with it may have the lower id.
        let mut reaches = false;
        reach(isa, values, self.last_value(), &mut reaches);
        if reaches {
            (first..).zip(values).for_each(|(id, value)| self.offer((id, *value)));
        }
    }

    /// Considers one.
    pub(crate) fn offer(&mut self, scored: Scored) {
        let kept = &self.places[..*self.count];
        if scored.1.is_nan()
            || (kept.len() == self.places.len() && !kept.last().is_some_and(|last| is_before(scored, *last)))
        {
            return;
        }
        let at = kept.partition_point(|other| is_before(*other, scored));
        *self.count = self.places.len().min(*self.count + 1);
        self.places[at..*self.count].rotate_right(1);
        self.places[at] = scored;
    }

    /// What a value must reach to be kept.
    fn last_value(&self) -> f32 {
        let is_full = *self.count == self.places.len();
        self.places.last().filter(|_| is_full).map_or(f32::NEG_INFINITY, |last| last.1)
    }
}

/// Whether a has the better place of two that are numbers.
pub(crate) fn is_before(a: Scored, b: Scored) -> bool {
    a.1 > b.1 || (a.1 == b.1 && a.0 < b.0)
}

multiversion! {
    fn reach(values: &[f32], least: f32, reaches: &mut bool) {
        *reaches = values.iter().fold(false, |reaches, value| reaches | (*value >= least));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dot::tests::values;

    #[test]
    fn keeps_what_a_full_sort_begins_with_in_whatever_pieces_it_comes() {
        for (seed, k) in [(1, 1), (2, 3), (3, 64), (4, 300), (5, 500)] {
            // Many ties, and what is no number.
            let mut values: Vec<f32> = values(seed, 400).iter().map(|value| (value * 20.0).round() / 4.0).collect();
            (values[7], values[250], values[251]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
            let mut sorted: Vec<Scored> = (0..).zip(values.iter().copied()).filter(|one| !one.1.is_nan()).collect();
            sorted.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
            sorted.truncate(k);
            for isa in Isa::available() {
                let (mut places, mut count) = (vec![(0, 0.0); k], 0);
                let mut best = Best { places: &mut places, count: &mut count };
                for piece in [9, 0, 4, 1, 3, 2, 8, 7, 6, 5] {
                    best.offer_all(isa, piece * 40, &values[piece as usize * 40..][..40]);
                }
                assert_eq!(places[..count], sorted, "{isa:?} {k}");
                best_of(isa, &values, k, &mut places);
                assert_eq!(places, sorted, "{isa:?} {k}");
            }
        }
    }

    #[test]
    fn a_tie_that_comes_later_has_its_place_by_its_id() {
        for isa in Isa::available() {
            let (mut places, mut count) = ([(0, 0.0); 2], 0);
            let mut best = Best { places: &mut places, count: &mut count };
            for piece in [2, 0, 1] {
                best.offer_all(isa, piece * 40, &[1.5; 40]);
            }
            assert_eq!(places, [(0, 1.5), (1, 1.5)]);
        }
    }
}
