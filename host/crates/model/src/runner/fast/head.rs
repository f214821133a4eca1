//! The end of a step: from the last layer's rows to tokens. Not here: the rules of a draw (`sampler.rs`).

use engine::{Batch, SampledToken};
use kernels::{HeadOutput, HeadWant, Isa, PackedMatrix, QuantisedRows, Team, lm_head, matmul_packed};

use crate::sampler::{Sampler, head_want};

/// Memory of the output layer.
pub(super) struct Head {
    wants: Vec<HeadWant>,
    output: HeadOutput,
    /// One of each thread.
    samplers: Vec<Sampler>,
}

impl Head {
    pub(super) fn new(threads: usize, isa: Isa) -> Self {
        let samplers = (0..threads).map(|_| Sampler::new(isa)).collect();
        Self { wants: Vec::new(), output: HeadOutput::new(), samplers }
    }

    /// Draws a token for each of the batch's samples, whose rows are `rows`.
    pub(super) fn sample(
        &mut self,
        team: &Team<'_>,
        isa: Isa,
        batch: &Batch,
        output: &PackedMatrix,
        rows: &QuantisedRows,
        sampled: &mut Vec<SampledToken>,
    ) {
        self.wants.clear();
        self.wants.extend(batch.samples.iter().map(head_want));
        lm_head(team, isa, output, rows, &self.wants, &mut self.output);
        let first = sampled.len();
        sampled.resize_with(first + batch.samples.len(), SampledToken::default);
        self.output.for_each_row(team, &mut self.samplers, &mut sampled[first..], |sampler, sample, row, token| {
            *token = sampler.sample_head(row, &batch.samples[sample], batch);
        });
    }

    /// All logits of the samples, `[samples, vocabulary]`.
    pub(super) fn logits(
        &self,
        team: &Team<'_>,
        isa: Isa,
        samples: usize,
        output: &PackedMatrix,
        rows: &QuantisedRows,
    ) -> Vec<f32> {
        let mut logits = vec![0.0; samples * output.outputs()];
        matmul_packed(team, isa, &[output], rows, &mut logits, false);
        logits
    }
}
