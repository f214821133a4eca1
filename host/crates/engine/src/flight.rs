//! A step from its plan to its end: the batch, and whose rows it has. Two of them take turns where steps overlap. Not here: when
//! one is submitted and when it is collected (`engine.rs`).

use crate::scheduler::Scheduler;
use crate::{Batch, RunnerError, RunnerShape};

/// What a sequence has in a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// [`crate::sequence::Sequence::number`].
    pub(crate) number: u64,
    /// Where it was among those that run: where to look first.
    pub(crate) index: usize,
    pub(crate) rows: usize,
    pub(crate) samples: usize,
}

/// A step.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    pub(crate) batch: Batch,
    /// Which running sequence each of the batch's sequences is, when it is assembled.
    pub(crate) order: Vec<usize>,
    /// Likewise, by what still holds when others have come and gone.
    pub(crate) parts: Vec<Part>,
    /// Why it could not be submitted.
    pub(crate) refused: Option<RunnerError>,
}

impl Flight {
    /// An empty one with memory for a full step.
    pub(crate) fn for_shape(shape: &RunnerShape, rows_max: usize) -> Self {
        Self {
            batch: Batch::for_shape(shape, rows_max),
            order: Vec::with_capacity(rows_max),
            parts: Vec::with_capacity(rows_max),
            refused: None,
        }
    }

    /// Notes in the sequences that their planned rows are under way, and here what each of them has.
    pub(crate) fn begin<A>(&mut self, scheduler: &mut Scheduler<A>) {
        self.parts.clear();
        self.refused = None;
        let mut first_sample = 0;
        for &index in &self.order {
            let Some(sequence) = scheduler.running_mut().get_mut(index) else { continue };
            let (rows, samples) = sequence.submitted(u32::try_from(first_sample).unwrap_or(u32::MAX));
            self.parts.push(Part { number: sequence.number, index, rows, samples });
            first_sample += samples;
        }
    }

    /// Whether this sequence has rows in it.
    pub(crate) fn has(&self, number: u64) -> bool {
        self.parts.iter().any(|part| part.number == number)
    }
}
