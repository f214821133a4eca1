//! What will be read soon, fetched at an even pace while something is computed: fetched all at once it would fill the
//! machine's queue of misses and be waited for. Not here: what that is.

use std::mem::MaybeUninit;

/// Lines that are fetched during one piece at most.
const LINES_MAX: usize = 1024;
/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Addresses of cache lines, the one that is wanted first in front.
pub(crate) struct Ahead {
    /// Not filled: that took 2 % of a step.
    lines: [MaybeUninit<*const u8>; LINES_MAX],
    /// How many are written.
    len: usize,
}

impl Ahead {
    /// Nothing.
    #[inline]
    pub(crate) fn new() -> Self {
        Self { lines: [const { MaybeUninit::uninit() }; LINES_MAX], len: 0 }
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Adds these bytes, or of many the first.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.push_lines(bytes.as_ptr(), bytes.len().div_ceil(LINE_BYTES));
    }

    /// Adds lines from an address on, which need not be one of memory: it is never read.
    pub(crate) fn push_lines(&mut self, first: *const u8, count: usize) {
        let room = &mut self.lines[self.len..];
        let count = count.min(room.len());
        for (index, line) in room[..count].iter_mut().enumerate() {
            line.write(first.wrapping_add(index * LINE_BYTES));
        }
        self.len += count;
    }

    /// The lines, the last one repeated until there are as many for each of `steps` steps.
    pub(crate) fn lines(&mut self, steps: usize) -> &[*const u8] {
        let steps = steps.max(1);
        let wanted = self.len.next_multiple_of(steps);
        if wanted > LINES_MAX {
            self.len = LINES_MAX / steps * steps;
        } else if let Some(last) = self.len.checked_sub(1).map(|last| self.lines[last]) {
            self.lines[self.len..wanted].fill(last);
            self.len = wanted;
        }
        let lines = &self.lines[..self.len];
        // SAFETY: the first `len` are written, by `push_lines` and here.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len()) }
    }
}
