//! Names for the contents of KV blocks: two blocks have one key only if their keys and values are the same to the last bit
//! and one tenant may see both. Not here: where the blocks are.
//!
//! BLAKE3 with domain separation and length prefixes over the tenant's salt, the runner's fingerprint (base, precision, KV
//! format), the composition of each token by content, the key of the block before, and the tokens. A block on whose tokens
//! nothing acts has the base's key, whatever acts after it. Where a runner computes drawn tokens in another way than asked ones,
//! which of the two a token is belongs to what it depends on.

use types::{CompositionPart, Digest};

use crate::active_parts::ActiveParts;
use crate::kinds::Kinds;

/// Everything but the tokens that the KV of a token depends on, and who may share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvContext(Digest);

impl KvContext {
    /// `salt` is the tenant's: a secret of the host, so that no tenant's key can be had by another. The parts are those of a
    /// composition in its canonical form: sorted by digest, without zero weights.
    fn new<'a>(
        salt: Digest,
        fingerprint: Digest,
        parts: impl Iterator<Item = &'a CompositionPart>,
        is_drawn: bool,
    ) -> Self {
        let parts: Vec<[u8; 45]> = parts.map(part_bytes).collect();
        let fixed = [salt.as_bytes().as_slice(), fingerprint.as_bytes().as_slice()];
        let all = fixed.into_iter().chain(parts.iter().map(<[u8; 45]>::as_slice));
        let domain = if is_drawn { "tenon 2026-11 kv context of drawn tokens" } else { "tenon 2026-11 kv context" };
        Self(Digest::of_parts(domain, all))
    }
}

/// The contexts of a sequence's tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KvContexts {
    /// Of the first token.
    first: KvContext,
    /// Where it changes, ascending, and the context from there on. Empty unless an adapter begins in mid-stream or kinds of
    /// tokens are told apart.
    changes: Vec<(usize, KvContext)>,
}

impl KvContexts {
    /// As [`KvContext::new`], for each position.
    pub(crate) fn new(salt: Digest, fingerprint: Digest, parts: &ActiveParts, kinds: &Kinds) -> Self {
        let at = |position| KvContext::new(salt, fingerprint, parts.at(position), kinds.is_drawn(position));
        let mut changes = parts.changes();
        changes.extend_from_slice(kinds.changes());
        changes.sort_unstable();
        changes.dedup();
        Self { first: at(0), changes: changes.into_iter().map(|position| (position, at(position))).collect() }
    }

    /// The key of a full block of these tokens, the first of which is at position `start`; `parent` is the key of the block
    /// before it, `None` for the first. The context is in every key, so that a context that changes in mid-stream changes the
    /// keys from there on. `bytes` is kept by the caller for its memory.
    pub(crate) fn block_key(
        &self,
        start: usize,
        parent: Option<&Digest>,
        tokens: &[u32],
        bytes: &mut Vec<u8>,
    ) -> Digest {
        bytes.clear();
        tokens.iter().for_each(|token| bytes.extend_from_slice(&token.to_le_bytes()));
        let parent = parent.map_or([].as_slice(), |parent| parent.as_bytes().as_slice());
        let before = self.changes.partition_point(|(position, _)| *position <= start);
        let (before, after) = self.changes.split_at(before);
        let KvContext(context) = before.last().map_or(self.first, |(_, context)| *context);
        let inside = after.iter().take_while(|(position, _)| *position - start < tokens.len());
        if inside.clone().next().is_none() {
            return Digest::of_parts(
                "tenon 2026-11 kv block",
                [context.as_bytes().as_slice(), parent, bytes.as_slice()],
            );
        }
        // Where in the block, and to what.
        let place = |position: usize| u32::try_from(position - start).unwrap_or(u32::MAX).to_le_bytes();
        let changes: Vec<u8> =
            inside.flat_map(|(position, context)| place(*position).into_iter().chain(*context.0.as_bytes())).collect();
        let parts = [context.as_bytes().as_slice(), parent, bytes.as_slice(), changes.as_slice()];
        Digest::of_parts("tenon 2026-11 kv block of several contexts", parts)
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
    use types::{Composition, LayerRange, Module, ModuleSet};

    use super::*;
    use crate::Activation;

    fn part(bytes: &[u8], weight: f32) -> CompositionPart {
        let adapter = Digest::of(bytes);
        CompositionPart { adapter, weight, modules: ModuleSet::ALL, layers: LayerRange::ALL, output: None }
    }

    /// Adapters by name and weight that begin at these positions, the others at once.
    fn begun(
        tenant: &[u8],
        base: &[u8],
        parts: impl IntoIterator<Item = CompositionPart>,
        begin: &[(&[u8], Option<u32>)],
    ) -> KvContexts {
        let activation =
            |(name, first_token): &(&[u8], _)| Activation { adapter: Digest::of(name), first_token: *first_token };
        let activations: Vec<_> = begin.iter().map(activation).collect();
        let parts = ActiveParts::new(&Composition::new(parts), &activations, &[], 1);
        KvContexts::new(Digest::of(tenant), Digest::of(base), &parts, &Kinds::ONE)
    }

    fn of(tenant: &[u8], base: &[u8], parts: impl IntoIterator<Item = CompositionPart>) -> KvContexts {
        begun(tenant, base, parts, &[])
    }

    /// Keys of the blocks of four of these tokens.
    fn keys(contexts: &KvContexts, tokens: &[u32]) -> Vec<Digest> {
        let mut keys = Vec::new();
        for (block, tokens) in tokens.chunks_exact(4).enumerate() {
            keys.push(contexts.block_key(4 * block, keys.last(), tokens, &mut Vec::new()));
        }
        keys
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
        let mut key = |contexts: &KvContexts, parent: Option<&Digest>, tokens: &[u32]| {
            contexts.block_key(0, parent, tokens, &mut bytes)
        };
        let (one, two) = (of(b"t", b"base", []), of(b"t", b"base", [part(b"one", 1.0)]));
        let first = key(&one, None, &[1, 2]);
        assert_eq!(first, key(&one, None, &[1, 2]));
        let second = key(&one, Some(&first), &[3, 4]);
        let switched = key(&two, Some(&first), &[3, 4]);
        let others = [
            key(&two, None, &[1, 2]),
            key(&one, None, &[2, 1]),
            key(&one, None, &[3, 4]),
            key(&one, None, &[1, 2, 3, 4]),
        ];
        let all: Vec<_> = [first, second, switched].into_iter().chain(others).collect();
        for (index, key) in all.iter().enumerate() {
            assert!(!all[..index].contains(key), "{index}");
        }
    }

    #[test]
    fn a_block_before_an_adapter_begins_has_the_key_that_it_has_without_it() {
        let tokens: Vec<u32> = (0..24).collect();
        let (one, two) = (|| part(b"one", 1.0), || part(b"two", 0.5));
        let plain = keys(&of(b"t", b"base", []), &tokens);
        for first in 0..24 {
            let begins = keys(&begun(b"t", b"base", [one()], &[(b"one", Some(first))]), &tokens);
            let alike = begins.iter().zip(&plain).take_while(|(one, other)| one == other).count();
            assert_eq!(alike, first as usize / 4, "from {first} on");
            assert!(begins[alike..].iter().all(|key| !plain.contains(key)));
            // Beside an adapter that always acts it is the same with that one.
            let beside = keys(&begun(b"t", b"base", [one(), two()], &[(b"one", Some(first))]), &tokens);
            let always = keys(&of(b"t", b"base", [two()]), &tokens);
            assert_eq!(beside.iter().zip(&always).filter(|(one, other)| one == other).count(), first as usize / 4);
            assert!(!beside.iter().any(|key| plain.contains(key) || begins.contains(key)));
        }
        assert_eq!(keys(&begun(b"t", b"base", [one()], &[(b"one", None)]), &tokens), plain, "it is never invoked");
        assert_eq!(keys(&begun(b"t", b"base", [one()], &[(b"one", Some(24))]), &tokens), plain, "it is invoked later");
        let always = keys(&of(b"t", b"base", [one()]), &tokens);
        assert_eq!(keys(&begun(b"t", b"base", [one()], &[(b"one", Some(0))]), &tokens), always, "at once is always");
    }

    #[test]
    fn no_two_ways_in_which_adapters_can_begin_share_a_block_that_one_acts_on() {
        let tokens: Vec<u32> = (0..12).collect();
        let mut all: Vec<(String, Vec<Digest>)> = Vec::new();
        let starts = || (0..12).map(Some).chain([None]);
        for (first, second) in starts().flat_map(|first| starts().map(move |second| (first, second))) {
            for weight in [1.0, 0.5] {
                let parts = [part(b"one", 1.0), part(b"two", weight)];
                let contexts = begun(b"t", b"base", parts, &[(b"one", first), (b"two", second)]);
                all.push((format!("{first:?} {second:?} {weight}"), keys(&contexts, &tokens)));
            }
        }
        // What acts on each token of a block and of those before it says its key.
        let acts = |name: &str, block: usize| {
            let mut words = name.split(' ');
            let mut start =
                || words.next().and_then(|word| word.strip_prefix("Some(")?.strip_suffix(')')?.parse().ok());
            let (first, second): (Option<usize>, Option<usize>) = (start(), start());
            let acts = |start: Option<usize>, at| start.is_some_and(|start| start <= at);
            let weight = name.rsplit(' ').next().filter(|_| acts(second, 4 * block + 3)).map(str::to_owned);
            let at = (0..4 * block + 4).map(|at| (acts(first, at), acts(second, at))).collect::<Vec<_>>();
            (at, weight)
        };
        for (index, (name, keys)) in all.iter().enumerate() {
            for (other, others) in all.iter().take(index) {
                for block in 0..3 {
                    let same = acts(name, block) == acts(other, block);
                    assert_eq!(keys[block] == others[block], same, "{name} and {other}, block {block}");
                }
            }
        }
    }
}
