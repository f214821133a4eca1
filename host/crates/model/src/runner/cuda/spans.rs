//! Where things lie in one allocation, decided before it is made. Not here: what lies there.

/// Everything begins at a multiple of it: no two things share a line that a kernel reads at once.
const ALIGN_BYTES: usize = 256;

/// A part of the allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) at: usize,
    pub(super) bytes: usize,
}

/// Gives out places one after the other. What is beyond any memory shows as a length that none has.
#[derive(Debug, Default)]
pub(super) struct Spans {
    end: usize,
}

impl Spans {
    /// The next place for so many values of so many bytes.
    pub(super) fn take(&mut self, values: usize, value_bytes: usize) -> Span {
        let bytes = values.saturating_mul(value_bytes);
        let at = self.end;
        let end = at.saturating_add(bytes).checked_next_multiple_of(ALIGN_BYTES);
        self.end = end.unwrap_or(usize::MAX / ALIGN_BYTES * ALIGN_BYTES);
        Span { at, bytes }
    }

    /// All bytes so far.
    pub(super) fn bytes(&self) -> usize {
        self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_follow_each_other_and_none_is_lost_to_overflow() {
        let mut spans = Spans::default();
        assert_eq!(spans.take(3, 4), Span { at: 0, bytes: 12 });
        assert_eq!(spans.take(256, 1), Span { at: 256, bytes: 256 });
        assert_eq!(spans.take(0, 8), Span { at: 512, bytes: 0 });
        assert_eq!(spans.bytes(), 512);
        let huge = spans.take(usize::MAX, 2);
        assert_eq!((huge.at, huge.bytes), (512, usize::MAX));
        spans.take(1, 1);
        assert!(spans.bytes() > usize::MAX / 2, "no memory has so much");
    }
}
