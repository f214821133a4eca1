//! What will be read soon, fetched at an even pace while something is computed: fetched all at once it would fill the
//! machine's queue of misses and be waited for. Not here: what that is.

/// Lines that are fetched during one piece at most.
const LINES_MAX: usize = 512;
/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Addresses of cache lines, the one that is wanted first in front.
pub(crate) struct Ahead {
    lines: [*const u8; LINES_MAX],
    len: usize,
}

impl Ahead {
    /// Nothing.
    pub(crate) fn new() -> Self {
        Self { lines: [std::ptr::null(); LINES_MAX], len: 0 }
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
            *line = first.wrapping_add(index * LINE_BYTES);
        }
        self.len += count;
    }

    pub(crate) fn lines(&self) -> &[*const u8] {
        &self.lines[..self.len]
    }
}
