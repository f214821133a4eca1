//! What will be read soon, fetched at an even pace while something is computed: fetched all at once it would fill the
//! machine's queue of misses and be waited for. Not here: what that is.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Single lines that are fetched during one piece at most.
const LINES_MAX: usize = 1024;
/// Bytes of a cache line.
pub(crate) const LINE_BYTES: usize = 64;

/// Addresses of cache lines, the one that is wanted first in front; and two streams of memory, for which a list would cost more
/// than what it is for: weights, and what somebody else reads later.
pub(crate) struct Ahead {
    /// Not filled: that took 2 % of a step.
    lines: [MaybeUninit<*const u8>; LINES_MAX],
    /// How many are written.
    len: usize,
    stream: *const u8,
    stream_lines: usize,
    later: *const u8,
    later_lines: usize,
}

/// Fetches a few lines at once into the second-level cache. They need not be of memory.
#[inline]
pub(crate) fn fetch_lines(first: *const u8, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..count {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint, which has no effect but on the cache, at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(first.wrapping_add(line * LINE_BYTES).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (first, count);
}

/// What is fetched in each of so many steps. The addresses need not be of memory.
pub(super) struct Pace<'a> {
    /// The next line of the list, which has `lines_each` for each step that is left.
    pub(super) lines: *const *const u8,
    /// How many of them in a step.
    pub(super) lines_each: usize,
    /// The next line of the stream.
    pub(super) stream: *const u8,
    /// How many in a step: it may go on behind its end.
    pub(super) stream_each: usize,
    /// The same of the other stream.
    pub(super) later: *const u8,
    pub(super) later_each: usize,
    _list: PhantomData<&'a Ahead>,
}

impl Ahead {
    /// Nothing.
    #[inline]
    pub(crate) fn new() -> Self {
        Self {
            lines: [const { MaybeUninit::uninit() }; LINES_MAX],
            len: 0,
            stream: std::ptr::null(),
            stream_lines: 0,
            later: std::ptr::null(),
            later_lines: 0,
        }
    }

    #[inline]
    pub(crate) fn clear(&mut self) {
        (self.len, self.stream_lines, self.later_lines) = (0, 0, 0);
    }

    /// Adds these bytes, or of many the first.
    #[inline]
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.push_lines(bytes.as_ptr(), bytes.len().div_ceil(LINE_BYTES));
    }

    /// Adds lines from an address on, which need not be one of memory: it is never read.
    #[inline]
    pub(crate) fn push_lines(&mut self, first: *const u8, count: usize) {
        let room = &mut self.lines[self.len..];
        let count = count.min(room.len());
        for (index, line) in room[..count].iter_mut().enumerate() {
            line.write(first.wrapping_add(index * LINE_BYTES));
        }
        self.len += count;
    }

    /// Says which bytes are the stream.
    pub(crate) fn stream(&mut self, bytes: &[u8]) {
        (self.stream, self.stream_lines) = (bytes.as_ptr(), bytes.len().div_ceil(LINE_BYTES));
    }

    /// Says where the other stream goes on, and by how many lines. It need not be memory.
    pub(crate) fn later(&mut self, first: *const u8, lines: usize) {
        (self.later, self.later_lines) = (first, lines);
    }

    /// How it all is fetched in this many steps; the last line of the list again and again until there are as many for each.
    pub(super) fn pace(&mut self, steps: usize) -> Pace<'_> {
        let steps = steps.max(1);
        let wanted = self.len.next_multiple_of(steps);
        if wanted > LINES_MAX {
            self.len = LINES_MAX / steps * steps;
        } else if let Some(last) = self.len.checked_sub(1).map(|last| self.lines[last]) {
            self.lines[self.len..wanted].fill(last);
            self.len = wanted;
        }
        Pace {
            // The first `len` are written, by `push_lines` and here.
            lines: self.lines.as_ptr().cast(),
            lines_each: self.len / steps,
            stream: self.stream,
            stream_each: self.stream_lines.div_ceil(steps),
            later: self.later,
            later_each: self.later_lines.div_ceil(steps),
            _list: PhantomData,
        }
    }
}
