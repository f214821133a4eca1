//! Which parts of a composition act on a token: a function of the token's position. Not here: what a composition is (`types`).
//!
//! An activated adapter (aLoRA; Greenewald et al. 2025) acts from its invocation on, and what lies before is as it would be
//! without it, KV included.

use types::{Composition, CompositionPart, Digest};

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
    /// It acts on this token and on every later one.
    pub(crate) first_token: usize,
}

/// The parts that act on some token, in canonical order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ActiveParts(Vec<ActivePart>);

impl ActiveParts {
    /// A part whose adapter has no activation acts on every token; one that acts on none is left out.
    pub(crate) fn new(composition: &Composition, activations: &[Activation]) -> Self {
        let first_token = |adapter: Digest| match activations.iter().find(|activation| activation.adapter == adapter) {
            Some(activation) => activation.first_token.map(|first| first as usize),
            None => Some(0),
        };
        let active = |part: &CompositionPart| Some(ActivePart { part: *part, first_token: first_token(part.adapter)? });
        Self(composition.parts().iter().filter_map(active).collect())
    }

    pub(crate) fn as_slice(&self) -> &[ActivePart] {
        &self.0
    }

    /// The parts that act on the token at this position, in canonical order.
    pub(crate) fn at(&self, position: usize) -> impl Iterator<Item = &CompositionPart> {
        self.0.iter().filter(move |part| part.first_token <= position).map(|part| &part.part)
    }

    /// Positions at which other parts act than on the token before, ascending.
    pub(crate) fn changes(&self) -> Vec<usize> {
        let mut changes: Vec<usize> = self.0.iter().map(|part| part.first_token).filter(|first| *first > 0).collect();
        changes.sort_unstable();
        changes.dedup();
        changes
    }
}

#[cfg(test)]
mod tests {
    use types::{LayerRange, ModuleSet};

    use super::*;

    #[test]
    fn each_part_begins_where_its_adapter_does_and_those_that_never_do_are_left_out() {
        let [one, two, three, four] = ["one", "two", "three", "four"].map(|name| Digest::of(name.as_bytes()));
        let part = |adapter, weight, end| CompositionPart {
            adapter,
            weight,
            modules: ModuleSet::ALL,
            layers: LayerRange { first: 0, end },
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
        let parts = ActiveParts::new(&composition, &activations);
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
        assert_eq!(ActiveParts::new(&composition, &[]).at(0).count(), 5);
    }
}
