//! Names for the contents of KV blocks: two blocks have one key only if their keys and values are the same to the last bit
//! and one tenant may see both. Not here: where the blocks are.
//!
//! BLAKE3 with domain separation and length prefixes over the tenant's salt, the runner's fingerprint (base, precision, KV
//! format), the composition by content, the key of the block before, and the tokens.

use types::{Composition, CompositionPart, Digest};

/// Everything but the tokens that the KV of a sequence depends on, and who may share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvContext(Digest);

impl KvContext {
    /// `salt` is the tenant's: a secret of the host, so that no tenant's key can be had by another. The composition is in
    /// its canonical form already: sorted by digest, without zero weights.
    pub(crate) fn new(salt: Digest, fingerprint: Digest, composition: &Composition) -> Self {
        let parts: Vec<[u8; 45]> = composition.parts().iter().map(part_bytes).collect();
        let fixed = [salt.as_bytes().as_slice(), fingerprint.as_bytes().as_slice()];
        let all = fixed.into_iter().chain(parts.iter().map(<[u8; 45]>::as_slice));
        Self(Digest::of_parts("tenon 2026-11 kv context", all))
    }

    /// The key of a full block of these tokens; `parent` is the key of the block before it, `None` for the first. The
    /// context is in every key, so that a context that changes in mid-stream changes the keys from there on. `bytes` is
    /// kept by the caller for its memory.
    pub(crate) fn block_key(&self, parent: Option<&Digest>, tokens: &[u32], bytes: &mut Vec<u8>) -> Digest {
        bytes.clear();
        tokens.iter().for_each(|token| bytes.extend_from_slice(&token.to_le_bytes()));
        let parent = parent.map_or([].as_slice(), |parent| parent.as_bytes().as_slice());
        Digest::of_parts("tenon 2026-11 kv block", [self.0.as_bytes().as_slice(), parent, bytes.as_slice()])
    }
}

/// Of fixed length and order: adapter, weight's bits, modules, layers.
fn part_bytes(part: &CompositionPart) -> [u8; 45] {
    let mut bytes = [0; 45];
    let modules = part.modules.iter().fold(0u8, |bits, module| bits | 1 << module.index());
    let fields = part.adapter.as_bytes().iter().copied();
    let fields = fields.chain(part.weight.to_bits().to_le_bytes()).chain([modules]);
    let fields = fields.chain(part.layers.first.to_le_bytes()).chain(part.layers.end.to_le_bytes());
    bytes.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
    bytes
}

#[cfg(test)]
mod tests {
    use types::{LayerRange, Module, ModuleSet};

    use super::*;

    fn part(bytes: &[u8], weight: f32) -> CompositionPart {
        let adapter = Digest::of(bytes);
        CompositionPart { adapter, weight, modules: ModuleSet::ALL, layers: LayerRange::ALL }
    }

    fn of(tenant: &[u8], base: &[u8], parts: impl IntoIterator<Item = CompositionPart>) -> KvContext {
        KvContext::new(Digest::of(tenant), Digest::of(base), &Composition::new(parts))
    }

    #[test]
    fn what_changes_the_bits_changes_the_context() {
        let one = || part(b"one", 1.0);
        let plain = of(b"t", b"base", [one(), part(b"two", 0.5)]);
        let others = [
            of(b"t", b"base", []),
            of(b"t", b"base", [one()]),
            // The name of an adapter is nowhere: other bytes under the same name are another digest.
            of(b"t", b"base", [part(b"one'", 1.0), part(b"two", 0.5)]),
            of(b"t", b"base", [one(), part(b"two", 0.25)]),
            of(b"t", b"base", [one(), part(b"two", -0.5)]),
            of(b"t", b"base", [part(b"one", 0.5), part(b"two", 1.0)]),
            of(b"t", b"base", [one(), one(), part(b"two", 0.5)]),
            of(
                b"t",
                b"base",
                [one(), CompositionPart { modules: ModuleSet::EMPTY.with(Module::Q), ..part(b"two", 0.5) }],
            ),
            of(
                b"t",
                b"base",
                [one(), CompositionPart { layers: LayerRange { first: 0, end: 3 }, ..part(b"two", 0.5) }],
            ),
            of(
                b"t",
                b"base",
                [one(), CompositionPart { layers: LayerRange { first: 3, end: 0 }, ..part(b"two", 0.5) }],
            ),
            of(b"t", b"other base", [one(), part(b"two", 0.5)]),
            of(b"another", b"base", [one(), part(b"two", 0.5)]),
        ];
        for (index, other) in others.iter().enumerate() {
            assert_ne!(*other, plain, "{index}");
            assert!(!others[..index].contains(other), "{index}");
        }
    }

    #[test]
    fn what_changes_no_bit_changes_no_context() {
        let plain = of(b"t", b"base", [part(b"one", 1.0), part(b"two", 0.5)]);
        assert_eq!(plain, of(b"t", b"base", [part(b"two", 0.5), part(b"one", 1.0)]), "another order");
        assert_eq!(
            plain,
            of(b"t", b"base", [part(b"two", 0.5), part(b"one", 1.0), part(b"three", 0.0)]),
            "zero weight"
        );
        assert_eq!(of(b"t", b"base", []), of(b"t", b"base", [part(b"one", -0.0)]));
    }

    #[test]
    fn a_key_has_all_tokens_up_to_its_block_and_the_context_in_it() {
        let mut bytes = Vec::new();
        let mut key =
            |context: KvContext, parent: Option<&Digest>, tokens: &[u32]| context.block_key(parent, tokens, &mut bytes);
        let (one, two) = (of(b"t", b"base", []), of(b"t", b"base", [part(b"one", 1.0)]));
        let first = key(one, None, &[1, 2]);
        assert_eq!(first, key(one, None, &[1, 2]));
        let second = key(one, Some(&first), &[3, 4]);
        let switched = key(two, Some(&first), &[3, 4]);
        let others =
            [key(two, None, &[1, 2]), key(one, None, &[2, 1]), key(one, None, &[3, 4]), key(one, None, &[1, 2, 3, 4])];
        let all: Vec<_> = [first, second, switched].into_iter().chain(others).collect();
        for (index, key) in all.iter().enumerate() {
            assert!(!all[..index].contains(key), "{index}");
        }
    }
}
