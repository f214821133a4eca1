//! The packed form as a file: written once, then mapped and used where it lies, without conversion. Not here: the folder of
//! such files, their names and their budget (the host's), and how values lie within a section (`kernels`).
//!
//! | bytes | |
//! |---|---|
//! | 0..8 | [`MAGIC`], which has the version |
//! | 8..24 | where the index begins and how long it is, two u64, little-endian |
//! | 24..64 | zeros |
//! | 64.. | sections, each at a multiple of 64: codes and scales of a group, or numbers in f32 |
//! | index | rkyv's archive of [`Index`]: which section is what |
//! | last 32 | the mark |
//!
//! The mark is a keyed BLAKE3 over what the file is said to be and all bytes before it. The key is the host's, so a file
//! cannot carry its own proof, and one adapter's file is none of another's. Nothing but the length is looked at before the
//! mark was found right, and rkyv reads, with all its checks, only an index that we wrote.
//!
//! A changed layout, here or in `kernels`, needs another [`MAGIC`]: the tests hold both.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernels::{Floats, LoraGroup, LoraPair, LoraTermHead, MappedPart, Mapping};
use rkyv::rancor;
use types::{Digest, Module, ModuleSet};

use super::device_form::{DeviceFactors, DeviceTerm};
use super::packed::{GROUPS, Layers, PackedTerm, Traits};
use super::{AdapterLimits, Invocation, LoraAdapter};
use crate::{ModelConfig, Precision};

/// How a file begins. The last digit is the version.
const MAGIC: &[u8; 8] = b"tenonpk2";
const HEAD_BYTES: usize = 64;
/// Sections and the index begin at a multiple of it.
const ALIGN_BYTES: usize = 64;
const MARK_BYTES: usize = blake3::OUT_LEN;

/// What is where.
#[derive(Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Index {
    rank: u32,
    /// Token ids; none if it acts on every token.
    invocation: Vec<u32>,
    terms: Terms,
}

/// For which runner.
#[derive(Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
enum Terms {
    Reference(Vec<PairEntry>),
    Grouped(Vec<GroupEntry>),
    Device(Section, Vec<DeviceEntry>),
}

/// A [`PackedTerm`].
#[derive(Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct PairEntry {
    layer: u32,
    /// [`Module::index`]
    module: u8,
    rank: u32,
    scale: f32,
    a: Section,
    b: Section,
    growth: Option<Section>,
}

/// A [`LoraGroup`].
#[derive(Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct GroupEntry {
    layer: u32,
    /// Of [`GROUPS`].
    group: u8,
    values: Section,
    terms: Vec<TermEntry>,
}

/// A [`LoraTermHead`].
#[derive(Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct TermEntry {
    slot: u8,
    rank: u32,
    scale: f32,
    growth: Option<Section>,
}

/// A [`DeviceTerm`], without what follows from the base.
#[derive(Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct DeviceEntry {
    layer: u32,
    /// [`Module::index`]
    module: u8,
    rank: u32,
    scale: f32,
    grows: bool,
}

/// Bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Section {
    at: u64,
    bytes: u64,
}

/// Why a file was not written, or is not used.
#[derive(Debug, thiserror::Error)]
pub enum PackedFileError {
    /// It cannot be written, opened or mapped, or it is not a file of ours by its owner and mode.
    #[error("{0}")]
    File(#[from] io::Error),
    /// Its bytes are not what was written: it is torn, changed, of another version, or of something else.
    #[error("it does not carry the right mark")]
    Mark,
    /// It is marked, but is not an adapter that fits: a bug.
    #[error("its index is wrong: {0}")]
    Index(&'static str),
}

/// What decides how an adapter is packed, beside the adapter: files of another layout are of no use. Limits are in it, as
/// they were met when the adapter was packed and are not looked at again.
#[must_use]
pub fn packed_layout(base: Digest, precision: Precision, limits: &AdapterLimits) -> Digest {
    let (precision, limits) = (precision.to_string(), format!("{limits:?}"));
    // Numbers of sections are this machine's own.
    let order = 1u16.to_ne_bytes();
    let parts = [MAGIC, base.as_bytes().as_slice(), precision.as_bytes(), limits.as_bytes(), &order];
    Digest::of_parts("tenon 2026-11 layout of packed adapters", parts)
}

/// A packed adapter, ready to be written.
pub struct PackedImage<'a> {
    sections: Vec<Values<'a>>,
    index_at: u64,
    index: rkyv::util::AlignedVec,
}

#[derive(Clone, Copy)]
enum Values<'a> {
    Packed(&'a [u8]),
    Floats(&'a [f32]),
}

/// Where sections are put.
#[derive(Default)]
struct Places<'a> {
    sections: Vec<Values<'a>>,
    bytes: usize,
}

impl<'a> Places<'a> {
    fn place(&mut self, values: Values<'a>) -> Section {
        let at = HEAD_BYTES + self.bytes;
        self.bytes += values.bytes().next_multiple_of(ALIGN_BYTES);
        self.sections.push(values);
        Section { at: at as u64, bytes: values.bytes() as u64 }
    }
}

impl Values<'_> {
    fn bytes(self) -> usize {
        match self {
            Self::Packed(bytes) => bytes.len(),
            Self::Floats(values) => size_of_val(values),
        }
    }

    /// And zeros up to where the next section begins.
    fn write(self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Packed(bytes) => out.write_all(bytes)?,
            Self::Floats(values) => {
                let mut buffer = Vec::new();
                for values in values.chunks(1 << 14) {
                    buffer.clear();
                    buffer.extend(values.iter().flat_map(|value| value.to_ne_bytes()));
                    out.write_all(&buffer)?;
                }
            }
        }
        let end = self.bytes();
        out.write_all(&[0; ALIGN_BYTES][..end.next_multiple_of(ALIGN_BYTES) - end])
    }
}

impl LoraAdapter {
    /// This adapter as a file.
    ///
    /// # Errors
    /// [`PackedFileError::Index`] if a number is too large for a file, which is a bug.
    pub fn image(&self) -> Result<PackedImage<'_>, PackedFileError> {
        let mut places = Places::default();
        let terms = match self.layers() {
            Layers::Reference(layers) => Terms::Reference(pair_entries(layers, &mut places)?),
            Layers::Grouped(groups, layers) => Terms::Grouped(group_entries(groups, layers, &mut places)?),
            Layers::Device(factors) => {
                let section = places.place(Values::Packed(factors.bytes()));
                Terms::Device(section, factors.terms().iter().map(device_entry).collect::<Result<_, _>>()?)
            }
        };
        let invocation = self.invocation().map_or_else(Vec::new, |invocation| invocation.tokens().to_vec());
        let index = rkyv::to_bytes::<rancor::Error>(&Index { rank: self.rank(), invocation, terms });
        let index = index.map_err(|_| PackedFileError::Index("it cannot be archived"))?;
        let index_at = (HEAD_BYTES + places.bytes) as u64;
        Ok(PackedImage { sections: places.sections, index_at, index })
    }

    /// The adapter that a file holds, mapped: its factors are not copied; and how long it took to read the file and check its
    /// mark. `is` is what [`PackedImage::write`] was told.
    ///
    /// # Errors
    /// If the file is not a sealed one of our own, was not written with this key as this, or does not fit the base.
    pub fn map(
        file: &File,
        key: &[u8; 32],
        is: Digest,
        base: &ModelConfig,
    ) -> Result<(Self, Duration), PackedFileError> {
        let mapping = Arc::new(Mapping::of(file)?);
        let begun = Instant::now();
        let index = read_index(mapping.bytes(), key, is)?;
        let checked = begun.elapsed();
        let wrong = || PackedFileError::Index("a section, a layer or a shape does not fit");
        let (layers, modules) = match index.terms {
            Terms::Reference(entries) => reference(entries, &mapping, base).ok_or_else(wrong)?,
            Terms::Grouped(entries) => grouped(entries, &mapping, base).ok_or_else(wrong)?,
            Terms::Device(section, entries) => device(section, entries, &mapping, base).ok_or_else(wrong)?,
        };
        let invocation = (!index.invocation.is_empty()).then(|| Invocation::new(index.invocation));
        let traits = Traits { rank: index.rank, modules, invocation };
        Ok((Self::new(traits, layers, base.clone(), Some(mapping)), checked))
    }
}

impl PackedImage<'_> {
    /// Bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.index_at + (self.index.len() + MARK_BYTES) as u64
    }

    /// Writes the file, marked with the key as what it `is`: a name for the adapter, its owner and its layout.
    ///
    /// # Errors
    /// The writer's.
    pub fn write(&self, out: impl Write, key: &[u8; 32], is: Digest) -> io::Result<()> {
        let mut out = Marked { out, hasher: marker(key, is) };
        let mut head = [0; HEAD_BYTES];
        let numbers = [self.index_at, self.index.len() as u64];
        let fields = MAGIC.iter().copied().chain(numbers.into_iter().flat_map(u64::to_le_bytes));
        head.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        out.write_all(&head)?;
        self.sections.iter().try_for_each(|section| section.write(&mut out))?;
        out.write_all(&self.index)?;
        let mark = out.hasher.finalize();
        out.out.write_all(mark.as_bytes())
    }
}

/// Hashes what it writes.
struct Marked<W> {
    out: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for Marked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or(bytes));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn marker(key: &[u8; 32], is: Digest) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(is.as_bytes());
    hasher
}

/// The index of a file whose mark is right.
fn read_index(bytes: &[u8], key: &[u8; 32], is: Digest) -> Result<Index, PackedFileError> {
    let (marked, mark) = bytes.split_last_chunk::<MARK_BYTES>().ok_or(PackedFileError::Mark)?;
    // `blake3::Hash` compares in constant time.
    if marker(key, is).update(marked).finalize() != blake3::Hash::from_bytes(*mark) {
        return Err(PackedFileError::Mark);
    }
    let number = |at: usize| {
        let bytes = marked.get(at..)?.first_chunk::<8>()?;
        usize::try_from(u64::from_le_bytes(*bytes)).ok()
    };
    let index = || {
        let (at, bytes) = (number(8)?, number(16)?);
        marked.starts_with(MAGIC).then_some(())?;
        marked.get(at..at.checked_add(bytes)?)
    };
    let index = index().ok_or(PackedFileError::Index("the head is of another version"))?;
    rkyv::from_bytes::<Index, rancor::Error>(index).map_err(|_| PackedFileError::Index("it is no archive of one"))
}

fn small<T: TryFrom<usize>>(number: usize) -> Result<T, PackedFileError> {
    T::try_from(number).map_err(|_| PackedFileError::Index("a number is too large"))
}

fn pair_entries<'a>(
    layers: &'a [[Option<PackedTerm>; 7]],
    places: &mut Places<'a>,
) -> Result<Vec<PairEntry>, PackedFileError> {
    let mut entries = Vec::new();
    for (layer, modules) in layers.iter().enumerate() {
        for (module, term) in modules.iter().enumerate() {
            let Some(PackedTerm { pair, scale, growth }) = term else { continue };
            entries.push(PairEntry {
                layer: small(layer)?,
                module: small(module)?,
                rank: small(pair.rank())?,
                scale: *scale,
                a: places.place(Values::Floats(pair.a())),
                b: places.place(Values::Floats(pair.b())),
                growth: growth.as_ref().map(|growth| places.place(Values::Floats(growth))),
            });
        }
    }
    Ok(entries)
}

fn group_entries<'a>(
    groups: &'a [LoraGroup],
    layers: &[[Option<usize>; 4]],
    places: &mut Places<'a>,
) -> Result<Vec<GroupEntry>, PackedFileError> {
    let mut entries = Vec::new();
    for (layer, numbers) in layers.iter().enumerate() {
        for (group, number) in numbers.iter().enumerate() {
            let Some(found) = number.and_then(|number| groups.get(number)) else { continue };
            let values = places.place(Values::Packed(found.values()));
            let mut terms = Vec::new();
            for head in found.heads() {
                terms.push(TermEntry {
                    slot: small(head.module_slot)?,
                    rank: small(head.rank)?,
                    scale: head.scale,
                    growth: head.growth.map(|growth| places.place(Values::Floats(growth))),
                });
            }
            entries.push(GroupEntry { layer: small(layer)?, group: small(group)?, values, terms });
        }
    }
    Ok(entries)
}

fn device_entry(term: &DeviceTerm) -> Result<DeviceEntry, PackedFileError> {
    Ok(DeviceEntry {
        layer: small(term.layer)?,
        module: small(term.module.index())?,
        rank: small(term.rank)?,
        scale: term.scale,
        grows: term.growth.is_some(),
    })
}

/// In the order in which they were written, from which their places follow.
fn device(
    section: Section,
    entries: Vec<DeviceEntry>,
    mapping: &Arc<Mapping>,
    base: &ModelConfig,
) -> Option<(Layers, ModuleSet)> {
    let mut found = ModuleSet::EMPTY;
    let mut terms = Vec::with_capacity(entries.len());
    for DeviceEntry { layer, module, rank, scale, grows } in entries {
        let module = Module::ALL.into_iter().find(|known| known.index() == usize::from(module))?;
        let (layer, rank) = (usize::try_from(layer).ok()?, usize::try_from(rank).ok()?);
        let shape = base.module_shape(module);
        terms.push(DeviceTerm::new(layer, module, rank, shape, scale, grows));
        found = found.with(module);
    }
    let factors = DeviceFactors::new(terms, part(section, mapping)?, base.layers)?;
    Some((Layers::Device(factors), found))
}

fn part(section: Section, mapping: &Arc<Mapping>) -> Option<MappedPart> {
    let at = usize::try_from(section.at).ok()?;
    MappedPart::new(mapping, at..at.checked_add(usize::try_from(section.bytes).ok()?)?)
}

fn floats(section: Section, mapping: &Arc<Mapping>) -> Option<Floats> {
    Floats::mapped(part(section, mapping)?)
}

/// `None` inside if there is none, outside if it does not fit.
fn growth(section: Option<Section>, outputs: usize, mapping: &Arc<Mapping>) -> Option<Option<Floats>> {
    let Some(section) = section else { return Some(None) };
    floats(section, mapping).filter(|growth| growth.len() == outputs).map(Some)
}

fn reference(entries: Vec<PairEntry>, mapping: &Arc<Mapping>, base: &ModelConfig) -> Option<(Layers, ModuleSet)> {
    let mut layers: Vec<[Option<PackedTerm>; 7]> = (0..base.layers).map(|_| Default::default()).collect();
    let mut found = ModuleSet::EMPTY;
    for entry in entries {
        let module = Module::ALL.into_iter().find(|module| module.index() == usize::from(entry.module))?;
        let (inputs, outputs) = base.module_shape(module);
        let (a, b) = (floats(entry.a, mapping)?, floats(entry.b, mapping)?);
        let pair = LoraPair::new(usize::try_from(entry.rank).ok()?, inputs, outputs, a, b)?;
        let growth = growth(entry.growth, outputs, mapping)?;
        let slot = layers.get_mut(usize::try_from(entry.layer).ok()?)?.get_mut(module.index())?;
        *slot = Some(PackedTerm { pair, scale: entry.scale, growth });
        found = found.with(module);
    }
    Some((Layers::Reference(layers), found))
}

fn grouped(entries: Vec<GroupEntry>, mapping: &Arc<Mapping>, base: &ModelConfig) -> Option<(Layers, ModuleSet)> {
    let (mut groups, mut numbers) = (Vec::new(), vec![[None; 4]; base.layers]);
    let mut found = ModuleSet::EMPTY;
    for entry in entries {
        let modules = GROUPS.get(usize::from(entry.group))?;
        let (inputs, _) = base.module_shape(*modules.first()?);
        let mut heads = Vec::new();
        for TermEntry { slot, rank, scale, growth: section } in entry.terms {
            let module = *modules.get(usize::from(slot))?;
            let (_, outputs) = base.module_shape(module);
            let (module_slot, rank) = (usize::from(slot), usize::try_from(rank).ok()?);
            heads.push(LoraTermHead { module_slot, rank, outputs, scale, growth: growth(section, outputs, mapping)? });
            found = found.with(module);
        }
        let number = numbers.get_mut(usize::try_from(entry.layer).ok()?)?.get_mut(usize::from(entry.group))?;
        *number = Some(groups.len());
        groups.push(LoraGroup::mapped(inputs, heads, part(entry.values, mapping)?)?);
    }
    Some((Layers::Grouped(groups, numbers), found))
}

#[cfg(test)]
mod tests;
