//! What a step that is under way has on the host: the buffers that the device copies from and to. There are two, so that a step
//! is written while the one before it is read. Not here: what is written (`tables.rs`, `draw.rs`), and when (`step.rs`).

use engine::{Batch, RunnerError, SampledToken};
use kernels::cuda::{CudaError, Device, Event, Pinned, Stream};

use super::draw::Draw;
use super::plan::{MOVES_WORDS, Plan};
use super::step_failed;

/// Host memory of one launch of the sampling kernel.
pub(super) struct DrawBuffers {
    pub(super) asked: Pinned<u32>,
    pub(super) answers: Pinned<u32>,
}

/// One step's buffers.
pub(super) struct Flight {
    pub(super) tables: Pinned<u32>,
    pub(super) copies: Pinned<u32>,
    pub(super) wipes: Pinned<u32>,
    /// Of as many launches as a step has at most, unless it asks for much.
    draws: Vec<DrawBuffers>,
    /// The launches whose answers are not read, each with the buffers of its place.
    launched: Vec<Draw>,
    /// What was read early, to make room for further launches.
    read: Vec<SampledToken>,
    /// Reached when the device has done all of it.
    end: Event,
}

impl Flight {
    pub(super) fn new(device: &Device, plan: &Plan, table_words: usize) -> Result<Self, CudaError> {
        let launches = plan.draws_max.div_ceil(plan.head_rows.max(1)).max(1);
        let buffers = |_| {
            let (asked, answers) = (device.pinned(plan.draw.words())?, device.pinned(plan.draw.answer_words())?);
            Ok(DrawBuffers { asked, answers })
        };
        Ok(Self {
            tables: device.pinned(table_words)?,
            copies: device.pinned(MOVES_WORDS)?,
            wipes: device.pinned(MOVES_WORDS)?,
            draws: (0..launches).map(buffers).collect::<Result<_, CudaError>>()?,
            launched: Vec::with_capacity(launches),
            read: Vec::new(),
            end: Event::new(device)?,
        })
    }

    /// Forgets a step that was collected, or that failed.
    pub(super) fn clear(&mut self) {
        self.launched.clear();
        self.read.clear();
    }

    /// The buffers of the next launch. If all are in use it waits for what was drawn.
    pub(super) fn next_draw(&mut self, batch: &Batch) -> Result<&mut DrawBuffers, RunnerError> {
        if self.launched.len() >= self.draws.len() {
            let mut read = std::mem::take(&mut self.read);
            let done = self.read_launched(batch, &mut read);
            self.read = read;
            done?;
        }
        let place = self.launched.len();
        self.draws.get_mut(place).ok_or_else(|| RunnerError::Failed("a draw has no buffers".into()))
    }

    /// Notes that the draw was launched with the buffers that were given last.
    pub(super) fn note_launched(&mut self, draw: Draw) {
        self.launched.push(draw);
    }

    /// Everything that the step has to do was given to the device.
    pub(super) fn ends_here(&self, compute: &Stream) -> Result<(), RunnerError> {
        compute.record(&self.end).map_err(step_failed)
    }

    /// Waits for its end, a step's that draws nothing too, and appends what it drew.
    pub(super) fn collect(&mut self, batch: &Batch, sampled: &mut Vec<SampledToken>) -> Result<(), RunnerError> {
        self.end.synchronize().map_err(step_failed)?;
        sampled.append(&mut self.read);
        self.read_launched(batch, sampled)
    }

    fn read_launched(&mut self, batch: &Batch, sampled: &mut Vec<SampledToken>) -> Result<(), RunnerError> {
        for (draw, buffers) in self.launched.drain(..).zip(&self.draws) {
            let words = buffers.answers.as_slice().map_err(step_failed)?;
            let read = draw.read(batch, words, sampled);
            read.ok_or_else(|| RunnerError::Failed("the answers of a draw are too short".into()))?;
        }
        Ok(())
    }
}
