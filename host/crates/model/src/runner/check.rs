//! The rules of a batch, checked before a step so that nothing inside it can go out of bounds.

use engine::{Batch, BatchSequence, BlockCopy, RunnerError, RunnerShape, Slot};

/// Checks everything that the step will index with.
/// `drawn` is how many tokens the step before drew that this one may name; 0 for a runner that does not overlap steps.
pub(super) fn batch(
    batch: &Batch,
    shape: &RunnerShape,
    drawn: usize,
    is_loaded: impl Fn(Slot) -> bool,
) -> Result<(), RunnerError> {
    let rows = batch.tokens.len();
    require(rows <= shape.batch_rows_max as usize, || format!("{rows} rows, at most {}", shape.batch_rows_max))?;
    require(batch.positions.len() == rows, || format!("{rows} tokens and {} positions", batch.positions.len()))?;
    let outside = batch.tokens.iter().find(|token| **token >= shape.vocabulary);
    require(outside.is_none(), || format!("token {outside:?} is outside the vocabulary"))?;
    for unseen in &batch.unseen {
        let is_there = (unseen.row as usize) < rows && (unseen.sample as usize) < drawn;
        require(is_there, || format!("{unseen:?} of {rows} rows and {drawn} draws"))?;
    }
    let mut next_row = 0;
    for sequence in &batch.sequences {
        require(sequence.rows.start == next_row, || format!("rows {:?} do not begin at {next_row}", sequence.rows))?;
        next_row = sequence.rows.end;
        check_sequence(batch, sequence, shape)?;
    }
    require(next_row as usize == rows, || format!("the sequences cover {next_row} of {rows} rows"))?;
    let blocks = |copy: &&BlockCopy| copy.from.max(copy.to) >= shape.kv_blocks;
    let outside = batch.copies.iter().find(blocks);
    require(outside.is_none(), || format!("{outside:?} of {} blocks", shape.kv_blocks))?;
    let outside = batch.wipes.iter().find(|block| **block >= shape.kv_blocks);
    require(outside.is_none(), || format!("block {outside:?} of {} is to be wiped", shape.kv_blocks))?;
    for segment in &batch.segments {
        let range = &segment.rows;
        let inside = range.start <= range.end && range.end as usize <= rows;
        require(inside, || format!("a segment covers rows {range:?} of {rows}"))?;
        require(is_loaded(segment.slot), || format!("slot {} is empty", segment.slot.0))?;
        require(segment.weight.is_finite(), || format!("a weight is {}", segment.weight))?;
    }
    let mut previous = None;
    for sample in &batch.samples {
        let ascending = previous.is_none_or(|previous| previous < sample.row) && (sample.row as usize) < rows;
        require(ascending, || format!("sample of row {} after {previous:?} of {rows}", sample.row))?;
        previous = Some(sample.row);
        let has_mask = sample.mask.is_none_or(|mask| (mask as usize) < batch.masks.len());
        require(has_mask, || format!("mask {:?} of {}", sample.mask, batch.masks.len()))?;
        let sound = sample.temperature >= 0.0 && sample.temperature.is_finite() && sample.top_p >= 0.0;
        require(sound, || format!("temperature {} with top-p {}", sample.temperature, sample.top_p))?;
    }
    Ok(())
}

fn check_sequence(batch: &Batch, sequence: &BatchSequence, shape: &RunnerShape) -> Result<(), RunnerError> {
    let rows = sequence.rows.start as usize..sequence.rows.end as usize;
    let positions = batch.positions.get(rows.clone()).unwrap_or_default();
    let (Some(first), Some(last)) = (positions.first(), positions.last()) else {
        return require(false, || format!("rows {rows:?} are empty or outside the batch"));
    };
    let consecutive = positions.iter().zip(*first..).all(|(position, expected)| *position == expected);
    require(consecutive && *last < shape.context_tokens_max, || {
        format!("positions {first} to {last} are not consecutive or beyond {}", shape.context_tokens_max)
    })?;
    let blocks = sequence.blocks.start as usize..sequence.blocks.end as usize;
    let table = batch.block_tables.get(blocks).unwrap_or_default();
    let needed = *last as usize / shape.block_tokens as usize + 1;
    require(table.len() >= needed, || format!("{} blocks for position {last}, {needed} are needed", table.len()))?;
    let outside = table.iter().find(|block| **block >= shape.kv_blocks);
    require(outside.is_none(), || format!("block {outside:?} of {}", shape.kv_blocks))
}

fn require(holds: bool, reason: impl FnOnce() -> String) -> Result<(), RunnerError> {
    if holds { Ok(()) } else { Err(RunnerError::Malformed(reason())) }
}

#[cfg(test)]
mod tests {
    use engine::{LoraSegment, SampleRequest, UnseenToken};
    use types::{LayerRange, ModuleSet};

    use super::*;

    fn shape() -> RunnerShape {
        let sizes = (4, 10, 2, 32, 16, 100);
        RunnerShape {
            block_tokens: sizes.0,
            kv_blocks: sizes.1,
            adapter_slots: sizes.2,
            context_tokens_max: sizes.3,
            batch_rows_max: sizes.4,
            vocabulary: sizes.5,
        }
    }

    /// Two sequences: positions 3..6 in blocks 7 and 2, position 0 in block 9.
    fn sound() -> Batch {
        let sample = |row| SampleRequest { temperature: 0.5, seed: 1, ..SampleRequest::greedy(row) };
        Batch {
            tokens: vec![1, 2, 3, 4],
            positions: vec![3, 4, 5, 0],
            sequences: vec![BatchSequence { rows: 0..3, blocks: 0..2 }, BatchSequence { rows: 3..4, blocks: 2..3 }],
            block_tables: vec![7, 2, 9],
            segments: Vec::new(),
            samples: vec![sample(2), sample(3)],
            ..Batch::default()
        }
    }

    #[test]
    fn a_sound_batch_passes_and_each_broken_rule_is_found() {
        let unseen = |row, sample| vec![UnseenToken { row, sample }];
        assert!(super::batch(&sound(), &shape(), 0, |_| false).is_ok());
        assert!(super::batch(&Batch { unseen: unseen(3, 1), ..sound() }, &shape(), 2, |_| false).is_ok());
        assert!(super::batch(&Batch { unseen: unseen(3, 1), ..sound() }, &shape(), 1, |_| false).is_err());
        assert!(super::batch(&Batch::default(), &shape(), 0, |_| false).is_ok());
        let breaks: [fn(&mut Batch); 22] = [
            |batch| batch.unseen = vec![UnseenToken { row: 4, sample: 0 }],
            |batch| batch.unseen = vec![UnseenToken { row: 3, sample: 2 }],
            |batch| batch.tokens[0] = 100,
            |batch| batch.positions[1] = 5,
            |batch| batch.positions.truncate(2),
            |batch| batch.positions[3] = 32,
            |batch| batch.positions[3] = 4,
            |batch| batch.sequences[1].rows = 2..4,
            |batch| batch.sequences[1].rows = 3..9,
            |batch| batch.sequences[1].rows = 3..3,
            |batch| batch.sequences.truncate(1),
            |batch| batch.sequences[0].blocks = 0..1,
            |batch| batch.sequences[1].blocks = 2..4,
            |batch| batch.block_tables[1] = 10,
            |batch| batch.copies = vec![BlockCopy { from: 7, to: 10 }],
            |batch| batch.wipes = vec![10],
            |batch| batch.samples[1].row = 4,
            |batch| batch.samples[1].row = 2,
            |batch| batch.samples[0].mask = Some(0),
            |batch| batch.samples[0].temperature = f32::NAN,
            |batch| batch.samples[0].top_p = f32::NAN,
            |batch| {
                let (modules, layers) = (ModuleSet::ALL, LayerRange::ALL);
                batch.segments.push(LoraSegment { rows: 0..1, slot: Slot(0), weight: 1.0, modules, layers });
            },
        ];
        for (index, break_rule) in breaks.into_iter().enumerate() {
            let mut broken = sound();
            break_rule(&mut broken);
            assert!(
                matches!(super::batch(&broken, &shape(), 2, |_| false), Err(RunnerError::Malformed(_))),
                "rule {index}"
            );
        }
    }
}
