//! Pages that the instances of a component touch, made ready before they do. A memory begins as a private mapping of the component's
//! file. The first touch of each page of it is a fault, in which the kernel maps the page or, at a write, copies it: hundreds in each
//! request of an interpreter, which are most of the time that it takes. The kernel tells which pages were touched and which of them
//! were written, and maps and copies them when it is asked to (`MADV_POPULATE_READ`, `MADV_POPULATE_WRITE`), all in one go and
//! while nobody waits.
//!
//! Nothing here changes what is in a memory: a page that is made a mapping's own has the content that it had. wasmtime does not tell where
//! a memory lies, so they are found by the file that they begin with, and pages may be copied for an instance that does not need
//! them, or for a place in wasmtime's pool that is free: that costs memory until the place is used again, which is why few pages in
//! few places are (`WRITTEN_MAX`, `MAPPINGS_MAX`); a page that is only mapped is the file's, and costs none. Not here: when
//! (`spares.rs`).
#![allow(
    unsafe_code,
    reason = "rustix offers advice on memory only as an unsafe function, since other advice drops pages"
)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{major, minor};
use rustix::mm::{Advice, madvise};
use rustix::param::page_size;

/// Pages of one component that are copied: 2 MiB.
const WRITTEN_MAX: usize = 512;
/// Pages of one component that are mapped: 32 MiB.
const TOUCHED_MAX: usize = 8192;
/// Places with the component's memory, in use or not. With more of them none is looked at.
const MAPPINGS_MAX: usize = 4;
/// Times that it is looked which pages are touched.
const LOOKS_MAX: u32 = 4;
/// Of the list of the process' mappings. A host with thousands of components at hand has a longer one, and goes without.
const LIST_BYTES_MAX: u64 = 256 << 10;
/// Bytes of an entry of `/proc/self/pagemap`, and the bits that say that a page is there, and that it is still the file's.
const ENTRY_BYTES: u64 = 8;
const IS_PRESENT: u64 = 1 << 63;
const IS_THE_FILES: u64 = 1 << 61;

/// The file that a component's memories begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ImageFile {
    device: (u32, u32),
    inode: u64,
}

impl ImageFile {
    pub(crate) fn of(file: &File) -> Option<Self> {
        let stat = rustix::fs::fstat(file).ok()?;
        Some(Self { device: (major(stat.st_dev), minor(stat.st_dev)), inode: stat.st_ino })
    }
}

/// The pages of one component that its instances touch.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    touched: Touched,
    looks: u32,
}

/// Pages of a file, by their number in it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Touched {
    /// Those that are there, written or not. The kernel maps the neighbours of a page that is read as well.
    all: BTreeSet<u64>,
    written: BTreeSet<u64>,
}

impl Pages {
    /// Looks which pages of the component's instances that live have been touched.
    pub(crate) fn look(&self, image: ImageFile) -> io::Result<()> {
        if self.lock().looks >= LOOKS_MAX {
            return Ok(());
        }
        let found: Vec<Touched> = few(mappings(image)?).iter().map(Mapping::touched).collect::<io::Result<_>>()?;
        let mut state = self.lock();
        state.looks += 1;
        for found in found {
            state.touched.all.extend(found.all);
            state.touched.written.extend(found.written);
        }
        if state.touched.written.len() > WRITTEN_MAX || state.touched.all.len() > TOUCHED_MAX {
            state.touched = Touched::default();
            state.looks = LOOKS_MAX;
        }
        Ok(())
    }

    /// Maps these pages in all places that have the component's memory, and makes those their own that are written to.
    pub(crate) fn populate(&self, image: ImageFile) -> io::Result<()> {
        let (all, written) = {
            let touched = &self.lock().touched;
            (runs(&touched.all), runs(&touched.written))
        };
        if all.is_empty() {
            return Ok(());
        }
        for mapping in few(mappings(image)?) {
            mapping.populate(&written, Touch::Write)?;
            mapping.populate(&all, Touch::Read)?;
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A private, writable mapping of a part of a file, in pages.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    memory: Range<u64>,
    in_file: u64,
}

impl Mapping {
    /// The pages that are there, and those of them that are no longer the file's.
    fn touched(&self) -> io::Result<Touched> {
        let count = self.memory.end - self.memory.start;
        let mut entries = vec![0; usize::try_from(count * ENTRY_BYTES).unwrap_or(0)];
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entries, self.memory.start * ENTRY_BYTES)?;
        let (entries, _) = entries.as_chunks();
        let mut touched = Touched::default();
        for (page, entry) in (self.in_file..).zip(entries).map(|(page, entry)| (page, u64::from_ne_bytes(*entry))) {
            if entry & IS_PRESENT != 0 {
                touched.all.insert(page);
                if entry & IS_THE_FILES == 0 {
                    touched.written.insert(page);
                }
            }
        }
        Ok(touched)
    }

    fn populate(&self, runs: &[Range<u64>], touch: Touch) -> io::Result<()> {
        let advice = match touch {
            Touch::Read => Advice::LinuxPopulateRead,
            Touch::Write => Advice::LinuxPopulateWrite,
        };
        let size = page_size();
        let end = self.in_file + (self.memory.end - self.memory.start);
        for run in runs {
            let (from, to) = (run.start.max(self.in_file), run.end.min(end));
            if from >= to {
                continue;
            }
            let address = usize::try_from(self.memory.start + (from - self.in_file)).unwrap_or(0) * size;
            let bytes = usize::try_from(to - from).unwrap_or(0) * size;
            // SAFETY: either advice reads and writes no memory and unmaps none: as if a byte of each page were read, or written with the
            // value that it has. Whatever lies at the address by now, mapped by whomever, has the content that it had; where nothing is
            // mapped, or nothing may be written, it is an error.
            unsafe { madvise(std::ptr::without_provenance_mut(address), bytes, advice) }?;
        }
        Ok(())
    }
}

/// What a page is made ready for.
#[derive(Clone, Copy, Debug)]
enum Touch {
    Read,
    Write,
}

fn few(mappings: Vec<Mapping>) -> Vec<Mapping> {
    if mappings.len() <= MAPPINGS_MAX { mappings } else { Vec::new() }
}

fn runs(pages: &BTreeSet<u64>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for &page in pages {
        match runs.last_mut() {
            Some(run) if run.end == page => run.end += 1,
            _ => runs.push(page..page + 1),
        }
    }
    runs
}

fn mappings(image: ImageFile) -> io::Result<Vec<Mapping>> {
    let mut list = String::new();
    File::open("/proc/self/maps")?.take(LIST_BYTES_MAX).read_to_string(&mut list)?;
    if list.len() as u64 == LIST_BYTES_MAX {
        return Ok(Vec::new());
    }
    let size = u64::try_from(page_size()).unwrap_or(u64::MAX);
    Ok(list.lines().filter_map(|line| mapping(line, image, size)).collect())
}

/// `7f0000000000-7f0000001000 rw-p 00002000 fe:00 1234  /a/path`, all numbers but the inode in hexadecimal.
fn mapping(line: &str, image: ImageFile, page_size: u64) -> Option<Mapping> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut words = line.split_ascii_whitespace();
    let (memory, access, in_file) = (words.next()?, words.next()?, words.next()?);
    let (device, inode) = (words.next()?.split_once(':')?, words.next()?);
    let device = (u32::try_from(hex(device.0)?).ok()?, u32::try_from(hex(device.1)?).ok()?);
    if access != "rw-p" || device != image.device || inode.parse() != Ok(image.inode) {
        return None;
    }
    let (start, end) = memory.split_once('-')?;
    Some(Mapping { memory: hex(start)? / page_size..hex(end)? / page_size, in_file: hex(in_file)? / page_size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_found_by_their_file() {
        let image = ImageFile { device: (0xfe, 0), inode: 1234 };
        let found = mapping("7f0000001000-7f0000004000 rw-p 00002000 fe:00 1234   /a b/c.cwasm (deleted)", image, 4096);
        assert_eq!(found, Some(Mapping { memory: 0x7_f000_0001..0x7_f000_0004, in_file: 2 }));
        for other in [
            "7f0000001000-7f0000004000 rw-s 00002000 fe:00 1234   /a",
            "7f0000001000-7f0000004000 r--p 00002000 fe:00 1234   /a",
            "7f0000001000-7f0000004000 rw-p 00002000 fe:01 1234   /a",
            "7f0000001000-7f0000004000 rw-p 00002000 fe:00 123   /a",
            "7f0000001000-7f0000004000 rw-p 00000000 00:00 0",
            "7f0000001000 rw-p 00000000 00:00 0",
            "",
        ] {
            assert_eq!(mapping(other, image, 4096), None, "{other}");
        }
    }

    #[test]
    fn pages_are_put_together() {
        assert_eq!(runs(&BTreeSet::new()), []);
        assert_eq!(runs(&BTreeSet::from([1, 2, 3, 7, 9, 10])), [1..4, 7..8, 9..11]);
    }

    /// Of a file that this process has mapped itself, as the loader maps a library's data: its own pages are told from the file's, and
    /// become its own when they are asked for, with what is in them.
    #[test]
    fn populated_pages_are_the_mappings_own_and_have_its_content() {
        let list = std::fs::read_to_string("/proc/self/maps").expect("the list");
        let size = page_size() as u64;
        let image_of = |line: &str| {
            let mut words = line.split_ascii_whitespace().skip(3);
            let (device, inode) = (words.next()?.split_once(':')?, words.next()?.parse().ok()?);
            let device = (u32::from_str_radix(device.0, 16).ok()?, u32::from_str_radix(device.1, 16).ok()?);
            (inode > 0).then_some(ImageFile { device, inode })
        };
        let lines = list.lines().filter(|line| line.contains(" rw-p "));
        let found: Vec<Mapping> =
            lines.filter_map(|line| image_of(line).and_then(|image| mapping(line, image, size))).collect();
        assert!(!found.is_empty(), "{list}");
        for mapping in &found {
            let pages = mapping.memory.end - mapping.memory.start;
            let all = mapping.in_file..mapping.in_file + pages;
            let runs = [0..all.start, all.clone(), all.end..u64::MAX];
            mapping.populate(&runs, Touch::Read).expect("populated");
            let before = mapping.touched().expect("told");
            assert_eq!(before.all, all.clone().collect());
            mapping.populate(&runs, Touch::Write).expect("populated");
            let after = mapping.touched().expect("told");
            assert_eq!(after, Touched { all: all.clone().collect(), written: all.collect() });
            assert!(before.written.is_subset(&after.written));
        }
        let gone = Mapping { memory: 0..1, in_file: 0 };
        for touch in [Touch::Read, Touch::Write] {
            assert!(gone.populate(&runs(&BTreeSet::from([0])), touch).is_err(), "there is nothing at address 0");
        }
    }
}
