//! The exact sum of adapters, in canonical form. Not here: weights or where they live.

use crate::Digest;

/// A linear module of a transformer layer, by the name that PEFT uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Module {
    /// `q_proj`
    Q,
    /// `k_proj`
    K,
    /// `v_proj`
    V,
    /// `o_proj`
    O,
    /// `gate_proj`
    Gate,
    /// `up_proj`
    Up,
    /// `down_proj`
    Down,
}

impl Module {
    /// All modules, in order of their numbers.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The name in PEFT and transformers: `q_proj`, …
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The module of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|module| module.name() == name)
    }

    /// Position in [`Self::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// A set of modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleSet(u8);

impl ModuleSet {
    /// Every module.
    pub const ALL: Self = Self(0x7f);
    /// None.
    pub const EMPTY: Self = Self(0);

    /// This set and one more.
    #[must_use]
    pub const fn with(self, module: Module) -> Self {
        Self(self.0 | 1 << module as u8)
    }

    /// Whether the module is in the set.
    #[must_use]
    pub const fn contains(self, module: Module) -> bool {
        self.0 & (1 << module as u8) != 0
    }

    /// Whether nothing is in the set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The modules, in order.
    pub fn iter(self) -> impl Iterator<Item = Module> {
        Module::ALL.into_iter().filter(move |module| self.contains(*module))
    }
}

impl FromIterator<Module> for ModuleSet {
    fn from_iter<I: IntoIterator<Item = Module>>(modules: I) -> Self {
        modules.into_iter().fold(Self::EMPTY, Self::with)
    }
}

/// Layers `first .. end`, half open, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerRange {
    /// The first layer.
    pub first: u32,
    /// One past the last layer.
    pub end: u32,
}

impl LayerRange {
    /// Every layer.
    pub const ALL: Self = Self { first: 0, end: u32::MAX };

    /// Whether the layer lies in the range.
    #[must_use]
    pub const fn contains(self, layer: u32) -> bool {
        self.first <= layer && layer < self.end
    }
}

/// Tokens of the answer `first .. end`, half open, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutputRange {
    /// The first token.
    pub first: u32,
    /// One past the last; `u32::MAX` for the rest.
    pub end: u32,
}

impl OutputRange {
    /// The positions of a sequence that it stands for, half open; no end for the rest. The pass over a token yields the next one:
    /// what is to act on the first token of the answer acts on the last one of the prompt.
    #[must_use]
    pub fn positions(self, prompt_tokens: usize) -> (usize, Option<usize>) {
        let position = |token: u32| (prompt_tokens + token as usize).saturating_sub(1);
        (position(self.first), (self.end != u32::MAX).then(|| position(self.end)))
    }
}

/// One term of y = Wx + Σᵢ wᵢ·sᵢ·Bᵢ(Aᵢx). The weight is finite and not zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CompositionPart {
    /// The adapter's content.
    pub adapter: Digest,
    /// wᵢ.
    pub weight: f32,
    /// The modules it acts on, of those that the adapter has.
    pub modules: ModuleSet,
    /// The layers it acts on, of those that the adapter has.
    pub layers: LayerRange,
    /// The tokens of the answer that it acts on; `None` for all of the prompt and of the answer.
    pub output: Option<OutputRange>,
}

impl CompositionPart {
    fn order(&self) -> (Digest, ModuleSet, LayerRange, u32, Option<OutputRange>) {
        (self.adapter, self.modules, self.layers, self.weight.to_bits(), self.output)
    }
}

/// A composition in canonical form: sorted by digest, zero weights dropped, executed in that order. Two compositions
/// that mean the same list of terms are equal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Composition(Vec<CompositionPart>);

impl Composition {
    /// Puts the parts into canonical form.
    #[must_use]
    pub fn new(parts: impl IntoIterator<Item = CompositionPart>) -> Self {
        let mut parts: Vec<_> = parts.into_iter().filter(|part| part.weight != 0.0).collect();
        parts.sort_by_key(CompositionPart::order);
        Self(parts)
    }

    /// The parts, in canonical order.
    #[must_use]
    pub fn parts(&self) -> &[CompositionPart] {
        &self.0
    }

    /// Whether it is the base alone.
    #[must_use]
    pub fn is_base(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, weight: f32) -> CompositionPart {
        let adapter = Digest::of(name.as_bytes());
        CompositionPart { adapter, weight, modules: ModuleSet::ALL, layers: LayerRange::ALL, output: None }
    }

    #[test]
    fn order_and_zero_weights_do_not_matter() {
        let one = Composition::new([part("a", 0.5), part("b", -1.0), part("c", 0.0)]);
        let two = Composition::new([part("b", -1.0), part("a", 0.5)]);
        assert_eq!(one, two);
        assert_ne!(one, Composition::new([part("b", 1.0), part("a", 0.5)]));
        assert!(Composition::new([part("a", -0.0)]).is_base());
    }

    #[test]
    fn module_names_round_trip() {
        for module in Module::ALL {
            assert_eq!(Module::from_name(module.name()), Some(module));
            assert!(ModuleSet::ALL.contains(module));
        }
        assert_eq!(ModuleSet::ALL.iter().collect::<ModuleSet>(), ModuleSet::ALL);
        assert_eq!(Module::from_name("lm_head"), None);
    }
}
