//! Random adapters on a base made here, written and mapped; files that are not what they say; and the layout, held fast.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs::{self, Permissions};
use std::mem::offset_of;
use std::os::unix::fs::PermissionsExt as _;

use engine::{Batch, BatchSequence, LoraSegment, ModelRunner as _, SampleRequest, Slot};
use generators::{Draw, Sizes, adapter, base_file, seeded_bytes};
use types::LayerRange;

use super::*;
use crate::{Base, CpuRunner, CpuRunnerConfig, Prompts, canonical_adapter};

const KEY: [u8; 32] = [7; 32];
const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Quantised, Precision::Bf16];
/// Seeds whose adapters are admitted: about 50 of them.
const SEEDS: std::ops::Range<u64> = 0..120;

fn base() -> Arc<Base> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), base_file(&Sizes::TINY)).unwrap();
    Base::open(file.path()).unwrap()
}

fn is(number: u64) -> Digest {
    Digest::of(&number.to_le_bytes())
}

/// What random bytes make, if it is an adapter: of any kind, any modules, any ranks.
fn packed(seed: u64, base: &Base, precision: Precision) -> Option<LoraAdapter> {
    let bytes = seeded_bytes(seed, 200);
    let files = adapter(&mut Draw::new(&bytes), &Sizes::TINY);
    let limits = AdapterLimits::default();
    let canonical = canonical_adapter(&files.config, &files.weights, base, &limits).ok()?;
    Some(LoraAdapter::from_canonical(&canonical.bytes, base, &limits, precision).unwrap())
}

/// Rank 3 on v of both layers, rank 1 on down of the second, with growth: written out here, so that it is always the same.
fn plain(base: &ModelConfig, precision: Precision) -> LoraAdapter {
    let values = |count: usize| (0..count).map(|at| (at % 13) as f32 * 0.25 - 1.5).collect::<Vec<f32>>();
    let mut layers: Vec<[Option<PackedTerm>; 7]> = (0..base.layers).map(|_| Default::default()).collect();
    for (layer, module, rank) in [(0, Module::V, 3), (1, Module::V, 3), (1, Module::Down, 1)] {
        let (inputs, outputs) = base.module_shape(module);
        let pair = LoraPair::new(rank, inputs, outputs, values(rank * inputs), values(rank * outputs)).unwrap();
        let growth = (module == Module::Down).then(|| values(outputs).into());
        layers[layer][module.index()] = Some(PackedTerm { pair, scale: 2.0, growth });
    }
    let modules = ModuleSet::EMPTY.with(Module::V).with(Module::Down);
    let layers = match precision {
        Precision::F32 => Layers::Reference(layers),
        Precision::Quantised => super::super::packed::grouped(layers).unwrap(),
        Precision::Bf16 => Layers::Device(DeviceFactors::pack(&layers)),
    };
    let invocation = Some(Invocation::new(vec![5, 6, 5]));
    LoraAdapter::new(Traits { rank: 3, modules, invocation }, layers, base.clone(), None)
}

fn written(adapter: &LoraAdapter, is: Digest) -> Vec<u8> {
    let image = adapter.image().unwrap();
    let mut bytes = Vec::new();
    image.write(&mut bytes, &KEY, is).unwrap();
    assert_eq!(image.bytes(), bytes.len() as u64);
    bytes
}

/// Maps these bytes from a file of our own, and of no name by then.
fn mapped(bytes: &[u8], is: Digest, base: &ModelConfig) -> Result<LoraAdapter, PackedFileError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    fs::set_permissions(file.path(), Permissions::from_mode(0o400)).unwrap();
    LoraAdapter::map(&File::open(file.path()).unwrap(), &KEY, is, base).map(|(adapter, _)| adapter)
}

fn logits(base: &Base, precision: Precision, adapter: LoraAdapter) -> Vec<f32> {
    let config = CpuRunnerConfig {
        precision,
        block_tokens: 16,
        kv_blocks: 4,
        adapter_slots: 1,
        batch_rows_max: 16,
        threads: 2,
        prompts: Prompts::Auto,
    };
    let mut runner = CpuRunner::new(base, config).unwrap();
    runner.load_adapter(Slot(0), &Arc::new(adapter), &[]).unwrap();
    let segment =
        LoraSegment { rows: 0..9, slot: Slot(0), weight: 0.75, modules: ModuleSet::ALL, layers: LayerRange::ALL };
    let batch = Batch {
        tokens: (1..10).collect(),
        positions: (0..9).collect(),
        block_tables: vec![0],
        sequences: vec![BatchSequence { rows: 0..9, blocks: 0..1 }],
        segments: vec![segment],
        samples: (0..9).map(SampleRequest::greedy).collect(),
        ..Batch::default()
    };
    runner.step_logits(&batch).unwrap()
}

#[test]
fn what_is_mapped_is_what_was_packed_bit_for_bit() {
    let base = base();
    let (mut adapters, mut grown, mut ranks, mut partial) = (0, 0, std::collections::BTreeSet::new(), 0);
    for (seed, precision) in SEEDS.flat_map(|seed| PRECISIONS.map(|precision| (seed, precision))) {
        let Some(packed) = packed(seed, &base, precision) else { continue };
        let bytes = written(&packed, is(seed));
        let mapped = mapped(&bytes, is(seed), base.config()).unwrap();
        assert!(written(&mapped, is(seed)) == bytes, "seed {seed}");
        assert_eq!((mapped.rank(), mapped.modules()), (packed.rank(), packed.modules()));
        assert_eq!(mapped.invocation(), packed.invocation());
        assert_eq!(mapped.memory_bytes(), packed.memory_bytes(), "a mapped one counts its bytes");
        assert!(mapped.fits(base.config(), precision));
        assert_eq!((packed.mapping().strong_count(), mapped.mapping().strong_count() > 0), (0, true));
        adapters += 1;
        ranks.insert(packed.rank());
        partial += usize::from(packed.modules() != ModuleSet::ALL);
        if let Layers::Reference(layers) = packed.layers() {
            grown += usize::from(layers.iter().flatten().flatten().any(|term| term.growth.is_some()));
        }
        if let (Some(packed), Some(mapped)) = (packed.device_factors(), mapped.device_factors()) {
            assert!(packed.terms() == mapped.terms() && packed.bytes() == mapped.bytes(), "seed {seed}");
            continue;
        }
        let (of_packed, of_mapped) = (logits(&base, precision, packed), logits(&base, precision, mapped));
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert!(bits(&of_packed) == bits(&of_mapped), "seed {seed}: other results");
    }
    assert!(
        adapters >= 40 && grown >= 5 && partial >= 10 && ranks.len() >= 3,
        "{adapters} {grown} {partial} {ranks:?}"
    );
}

#[test]
fn the_mapping_ends_with_the_adapter() {
    let base = base();
    let adapter = plain(base.config(), Precision::Quantised);
    let adapter = Arc::new(mapped(&written(&adapter, is(1)), is(1), base.config()).unwrap());
    assert_eq!(adapter.invocation(), Some(&Invocation::new(vec![5, 6, 5])));
    let (mapping, second) = (adapter.mapping(), Arc::clone(&adapter));
    drop(adapter);
    assert!(mapping.upgrade().is_some());
    drop(second);
    assert!(mapping.upgrade().is_none());
}

#[test]
fn any_other_byte_is_refused_before_it_is_read() {
    let base = base();
    for precision in PRECISIONS {
        let bytes = written(&plain(base.config(), precision), is(1));
        let refused = |bytes: &[u8], what: &str| match mapped(bytes, is(1), base.config()) {
            Err(PackedFileError::Mark) => {}
            Err(other) => panic!("{what}: {other}"),
            Ok(_) => panic!("{what}: mapped"),
        };
        // Every byte of head, index and mark, and some of the values.
        let index_at = usize::try_from(u64::from_le_bytes(bytes[8..16].try_into().unwrap())).unwrap();
        let places = (0..HEAD_BYTES).chain((HEAD_BYTES..index_at).step_by(61)).chain(index_at..bytes.len());
        for at in places {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            refused(&changed, &format!("byte {at}"));
        }
        for len in [1, 31, 32, 33, 63, 64, 65, index_at, bytes.len() / 2, bytes.len() - 32, bytes.len() - 1] {
            refused(&bytes[..len], &format!("cut to {len}"));
        }
        refused(&[&bytes[..], &[0]].concat(), "one more");
        refused(&[&bytes[..], &bytes[..]].concat(), "twice");
        refused(&vec![0; bytes.len()], "zeros");
        let mut draw = 0;
        for seed in 0..200 {
            let mut changed = bytes.clone();
            let random = seeded_bytes(seed, 200);
            Draw::new(&random).damage(&mut changed);
            if changed != bytes && !changed.is_empty() {
                refused(&changed, &format!("seed {seed}"));
                draw += 1;
            }
        }
        assert!(draw > 100, "{draw}");
        assert!(mapped(&bytes, is(1), base.config()).is_ok());
    }
}

#[test]
fn a_file_is_of_one_name_one_key_and_one_base() {
    let base = base();
    let adapter = plain(base.config(), Precision::Quantised);
    let bytes = written(&adapter, is(1));
    assert!(matches!(mapped(&bytes, is(2), base.config()), Err(PackedFileError::Mark)), "another's");
    let mut foreign = Vec::new();
    adapter.image().unwrap().write(&mut foreign, &[8; 32], is(1)).unwrap();
    assert!(matches!(mapped(&foreign, is(1), base.config()), Err(PackedFileError::Mark)), "another key");
    assert_eq!(foreign.len(), bytes.len());
    assert_eq!(foreign[..foreign.len() - 32], bytes[..bytes.len() - 32], "the mark alone depends on the key");

    // Marked, but for other sizes: the caller named the wrong base.
    let wider = ModelConfig { hidden: 128, ..base.config().clone() };
    let shallow = ModelConfig { layers: 1, ..base.config().clone() };
    for precision in PRECISIONS {
        let bytes = written(&plain(base.config(), precision), is(1));
        for other in [&wider, &shallow] {
            assert!(matches!(mapped(&bytes, is(1), other), Err(PackedFileError::Index(_))));
        }
    }
    // Marked by us, of another version.
    let mut newer = bytes.clone();
    newer[7] = b'3';
    let end = newer.len() - MARK_BYTES;
    let mark = marker(&KEY, is(1)).update(&newer[..end]).finalize();
    newer[end..].copy_from_slice(mark.as_bytes());
    assert!(matches!(mapped(&newer, is(1), base.config()), Err(PackedFileError::Index(_))));
}

#[test]
fn a_marked_index_that_lies_is_an_error_and_no_panic() {
    let base = base();
    let outside = Section { at: 1 << 40, bytes: 64 };
    let overflowing = Section { at: u64::MAX - 3, bytes: 64 };
    let shifted = Section { at: HEAD_BYTES as u64 + 1, bytes: 2048 };
    let empty = Section { at: HEAD_BYTES as u64, bytes: 0 };
    let mut indexes = Vec::new();
    for section in [outside, overflowing, shifted, empty] {
        for (layer, group, slot) in [(0, 0, 2), (9, 0, 2), (0, 9, 2), (0, 0, 9), (u32::MAX, 1, 0)] {
            for rank in [0, 1, u32::MAX] {
                let term = || TermEntry { slot, rank, scale: 1.0, growth: Some(section) };
                let plain = || TermEntry { growth: None, ..term() };
                for terms in [vec![], vec![term()], vec![plain()], vec![plain(), plain()]] {
                    indexes.push(Terms::Grouped(vec![GroupEntry { layer, group, values: section, terms }]));
                }
                for (rank, grows) in [(rank, false), (8, true), (!7, true)] {
                    let entry = || DeviceEntry { layer, module: slot, rank, scale: 1.0, grows };
                    indexes.push(Terms::Device(section, vec![entry()]));
                    indexes.push(Terms::Device(section, vec![entry(), entry()]));
                }
                let (a, b, growth) = (section, section, None);
                indexes.push(Terms::Reference(vec![PairEntry { layer, module: slot, rank, scale: 1.0, a, b, growth }]));
            }
        }
    }
    for terms in indexes {
        let index = Index { rank: 1, invocation: Vec::new(), terms };
        let image = PackedImage {
            sections: vec![Values::Packed(&[0; 4096])],
            index_at: (HEAD_BYTES + 4096) as u64,
            index: rkyv::to_bytes::<rancor::Error>(&index).unwrap(),
        };
        let mut bytes = Vec::new();
        image.write(&mut bytes, &KEY, is(1)).unwrap();
        assert!(matches!(mapped(&bytes, is(1), base.config()), Err(PackedFileError::Index(_))), "{index:?}");
    }
}

#[test]
fn a_file_that_may_be_written_is_not_mapped() {
    let base = base();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), written(&plain(base.config(), Precision::F32), is(1))).unwrap();
    let error = LoraAdapter::map(&File::open(file.path()).unwrap(), &KEY, is(1), base.config()).err().unwrap();
    assert!(matches!(error, PackedFileError::File(_)), "{error}");
}

/// Moves when the layout does, in whatever crate: then [`MAGIC`] must be another one, and these values with it.
#[test]
fn the_layout_is_that_of_this_version() {
    assert_eq!(MAGIC, b"tenonpk2");
    let base = base();
    let digest = |precision| Digest::of(&written(&plain(base.config(), precision), is(1))).to_string();
    let digests = PRECISIONS.map(digest);
    let index = [
        size_of::<ArchivedIndex>(),
        offset_of!(ArchivedIndex, rank),
        offset_of!(ArchivedIndex, invocation),
        offset_of!(ArchivedIndex, terms),
    ];
    let group = [
        size_of::<ArchivedGroupEntry>(),
        offset_of!(ArchivedGroupEntry, layer),
        offset_of!(ArchivedGroupEntry, group),
        offset_of!(ArchivedGroupEntry, values),
        offset_of!(ArchivedGroupEntry, terms),
    ];
    let term = [
        size_of::<ArchivedTermEntry>(),
        offset_of!(ArchivedTermEntry, slot),
        offset_of!(ArchivedTermEntry, rank),
        offset_of!(ArchivedTermEntry, scale),
        offset_of!(ArchivedTermEntry, growth),
    ];
    let pair = [
        size_of::<ArchivedPairEntry>(),
        offset_of!(ArchivedPairEntry, layer),
        offset_of!(ArchivedPairEntry, module),
        offset_of!(ArchivedPairEntry, rank),
        offset_of!(ArchivedPairEntry, scale),
        offset_of!(ArchivedPairEntry, a),
        offset_of!(ArchivedPairEntry, b),
        offset_of!(ArchivedPairEntry, growth),
    ];
    let device = [
        size_of::<ArchivedDeviceEntry>(),
        offset_of!(ArchivedDeviceEntry, layer),
        offset_of!(ArchivedDeviceEntry, module),
        offset_of!(ArchivedDeviceEntry, rank),
        offset_of!(ArchivedDeviceEntry, scale),
        offset_of!(ArchivedDeviceEntry, grows),
    ];
    let section = [size_of::<ArchivedSection>(), offset_of!(ArchivedSection, at), offset_of!(ArchivedSection, bytes)];
    let pinned = [
        "8afbdeeff234668c6fe83754d3e755c096694536aae1f2af3f2a3cf988cba9af",
        "1377d6fa24834ad918b2d0efde19ba55c72e3dc0bc4904f6ed125489745a0d9b",
        "377981445095fda58ca8c10348f1d9c98a3b728e2e419d0de8b2123e3847ba91",
    ];
    assert_eq!(digests, pinned);
    assert_eq!((index, group, term), ([48, 0, 4, 16], [32, 0, 4, 8, 24], [40, 0, 4, 8, 16]));
    assert_eq!(device, [20, 0, 4, 8, 12, 16]);
    assert_eq!((pair, section), ([72, 0, 4, 8, 12, 16, 32, 48], [16, 0, 8]));
}

#[test]
fn a_layout_is_of_one_base_precision_and_set_of_limits() {
    let limits = AdapterLimits::default();
    let stricter = AdapterLimits { dora_gain_max: 1, ..limits.clone() };
    let layout = packed_layout(is(1), Precision::F32, &limits);
    assert_eq!(layout, packed_layout(is(1), Precision::F32, &limits));
    for other in [
        packed_layout(is(2), Precision::F32, &limits),
        packed_layout(is(1), Precision::Quantised, &limits),
        packed_layout(is(1), Precision::F32, &stricter),
    ] {
        assert_ne!(layout, other);
    }
}
