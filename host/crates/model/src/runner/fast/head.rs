//! The end of a step: from the last layer's rows to tokens. Not here: the rules of a draw (`sampler.rs`).

use engine::{Batch, SampledToken};
use kernels::{Isa, PackedMatrix, QuantisedRows, Team, matmul_packed};

use crate::sampler::sample;

/// Memory of the output layer.
pub(super) struct Head {
    logits: Vec<f32>,
}

impl Head {
    pub(super) fn new(_threads: usize) -> Self {
        Self { logits: Vec::new() }
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
        self.logits.resize(batch.samples.len() * output.outputs(), 0.0);
        matmul_packed(team, isa, &[output], rows, &mut self.logits, false);
        let rows = self.logits.chunks_exact_mut(output.outputs());
        sampled.extend(rows.zip(&batch.samples).map(|(logits, request)| sample(logits, request, batch)));
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
