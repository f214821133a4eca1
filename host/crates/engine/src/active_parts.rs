//! Which parts of a composition act on a token: a function of the token's position. Not here: what a composition is (`types`).
//!
//! An activated adapter (aLoRA; Greenewald et al. 2025) acts from its invocation on, and what lies before is as it would be
//! without it, KV included.

use types::{Composition, CompositionPart, Digest};

use crate::Stretch;

/// From where on an adapter acts, if not on every token. Made by the host, which knows what the adapter is invoked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activation {
    /// Which: every part of the composition that names it.
    pub adapter: Digest,
    /// Position of the first token that it acts on, counted from 0. `None` if it acts on none.
    pub first_token: Option<u32>,
}

/// One part of a composition and the tokens that it acts on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ActivePart {
    pub(crate) part: CompositionPart,
    /// It acts on this token and on those after it.
    pub(crate) first_token: usize,
    /// And no more on this one, if there is an end.
    pub(crate) end_token: Option<usize>,
}

/// The parts that act on some token, in canonical order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ActiveParts(Vec<ActivePart>);

impl ActiveParts {
    /// A part whose adapter has no activation acts on every token of its stretch, or on those of its range of the answer, which
    /// begins after so many tokens of the prompt; one that acts on none is left out.
    pub(crate) fn new(
        composition: &Composition,
        activations: &[Activation],
        stretches: &[Stretch],
        prompt_tokens: usize,
    ) -> Self {
        let (mut parts, mut start) = (Vec::new(), 0);
        for Stretch { composition, activations, end } in stretches {
            let end = *end as usize;
            parts.extend(acting(composition, activations, start, Some(end), prompt_tokens));
            start = end;
        }
        parts.extend(acting(composition, activations, start, None, prompt_tokens));
        Self(parts)
    }

    pub(crate) fn as_slice(&self) -> &[ActivePart] {
        &self.0
    }

    /// The parts that act on the token at this position, in canonical order.
    pub(crate) fn at(&self, position: usize) -> impl Iterator<Item = &CompositionPart> {
        let acts =
            move |part: &&ActivePart| part.first_token <= position && part.end_token.is_none_or(|end| position < end);
        self.0.iter().filter(acts).map(|part| &part.part)
    }

    /// Positions at which other parts act than on the token before, ascending.
    pub(crate) fn changes(&self) -> Vec<usize> {
        let ends = self.0.iter().filter_map(|part| part.end_token);
        let starts = self.0.iter().map(|part| part.first_token).filter(|first| *first > 0);
        let mut changes: Vec<usize> = starts.chain(ends).collect();
        changes.sort_unstable();
        changes.dedup();
        changes
    }
}

/// The parts of a composition that acts on the tokens from `start` to `end`.
fn acting<'a>(
    composition: &'a Composition,
    activations: &'a [Activation],
    start: usize,
    end: Option<usize>,
    prompt_tokens: usize,
) -> impl Iterator<Item = ActivePart> + 'a {
    composition.parts().iter().filter_map(move |part| {
        let begins = match activations.iter().find(|activation| activation.adapter == part.adapter) {
            Some(activation) => activation.first_token? as usize,
            None => 0,
        };
        let (first, last) = part.output.map_or((0, None), |output| output.positions(prompt_tokens));
        let first_token = begins.max(start).max(first);
        let end_token = end.into_iter().chain(last).min();
        let acts = end_token.is_none_or(|end| first_token < end);
        acts.then_some(ActivePart { part: *part, first_token, end_token })
    })
}

#[cfg(test)]
mod tests {
    use types::{LayerRange, ModuleSet, OutputRange};

    use super::*;

    #[test]
    fn each_part_begins_where_its_adapter_does_and_those_that_never_do_are_left_out() {
        let [one, two, three, four] = ["one", "two", "three", "four"].map(|name| Digest::of(name.as_bytes()));
        let part = |adapter, weight, end| CompositionPart {
            adapter,
            weight,
            modules: ModuleSet::ALL,
            layers: LayerRange { first: 0, end },
            output: None,
        };
        let composition = Composition::new([
            part(one, 1.0, 9),
            part(two, 1.0, 9),
            part(two, 0.5, 3),
            part(three, 1.0, 9),
            part(four, 2.0, 9),
        ]);
        let activation = |adapter, first_token| Activation { adapter, first_token };
        let activations = [activation(two, Some(5)), activation(three, None), activation(four, Some(0))];
        let parts = ActiveParts::new(&composition, &activations, &[], 1);
        let at = |position| parts.at(position).map(|part| (part.adapter, part.layers.end)).collect::<Vec<_>>();
        let without = |gone: &[Digest]| {
            let left = composition.parts().iter().filter(|part| !gone.contains(&part.adapter));
            left.map(|part| (part.adapter, part.layers.end)).collect::<Vec<_>>()
        };
        assert_eq!(at(0), without(&[two, three]));
        assert_eq!(at(4), without(&[two, three]));
        assert_eq!(at(5), without(&[three]));
        assert_eq!(at(5).len(), 4);
        assert_eq!(parts.changes(), [5]);
        assert_eq!(ActiveParts::new(&composition, &[], &[], 1).at(0).count(), 5);
    }

    #[test]
    fn after_a_switch_the_next_composition_acts_and_the_last_one_no_more() {
        let [one, two, three] = ["one", "two", "three"].map(|name| Digest::of(name.as_bytes()));
        let of = |adapters: &[Digest]| {
            let part = |adapter: &Digest| CompositionPart {
                adapter: *adapter,
                weight: 1.0,
                modules: ModuleSet::ALL,
                layers: LayerRange::ALL,
                output: None,
            };
            Composition::new(adapters.iter().map(part))
        };
        let begins = |adapter, first| vec![Activation { adapter, first_token: Some(first) }];
        let stretches = [
            Stretch { composition: of(&[one, two]), activations: begins(two, 2), end: 4 },
            Stretch { composition: of(&[]), activations: Vec::new(), end: 6 },
            Stretch { composition: of(&[three]), activations: begins(three, 9), end: 8 },
        ];
        let parts = ActiveParts::new(&of(&[one, three]), &begins(three, 10), &stretches, 1);
        let at = |position| parts.at(position).map(|part| part.adapter).collect::<Vec<_>>();
        let both = of(&[one, two]).parts().iter().map(|part| part.adapter).collect::<Vec<_>>();
        assert_eq!((at(0), at(1), at(2), at(3)), (vec![one], vec![one], both.clone(), both));
        assert_eq!((at(4), at(5), at(6), at(7)), (vec![], vec![], vec![], vec![]));
        assert_eq!((at(8), at(9), at(10).len()), (vec![one], vec![one], 2));
        assert_eq!(parts.changes(), [2, 4, 8, 10]);
    }

    #[test]
    fn a_part_acts_on_what_yields_its_range_of_the_answer() {
        let [one, two] = ["one", "two"].map(|name| Digest::of(name.as_bytes()));
        let part = |adapter, first, end| CompositionPart {
            adapter,
            weight: 1.0,
            modules: ModuleSet::ALL,
            layers: LayerRange::ALL,
            output: Some(OutputRange { first, end }),
        };
        // The token at 3 is the prompt's last; the pass over it yields the answer's first.
        let composition = Composition::new([part(one, 0, 2), part(two, 2, u32::MAX)]);
        let at = |parts: &ActiveParts, position| parts.at(position).map(|part| part.adapter).collect::<Vec<_>>();
        let parts = ActiveParts::new(&composition, &[], &[], 4);
        assert_eq!(parts.changes(), [3, 5]);
        assert_eq!(
            (at(&parts, 2), at(&parts, 3), at(&parts, 4), at(&parts, 5)),
            (vec![], vec![one], vec![one], vec![two])
        );
        // An activation within it, and a switch that ends it.
        let begins = [Activation { adapter: two, first_token: Some(7) }];
        let parts = ActiveParts::new(&composition, &begins, &[], 4);
        assert_eq!((at(&parts, 6), at(&parts, 7)), (vec![], vec![two]));
        let stretch = Stretch { composition, activations: Vec::new(), end: 6 };
        let parts = ActiveParts::new(&Composition::default(), &[], &[stretch], 4);
        assert_eq!((at(&parts, 4), at(&parts, 5), at(&parts, 6)), (vec![one], vec![two], vec![]));
    }
}
