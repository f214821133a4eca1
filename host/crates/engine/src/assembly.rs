//! From planned sequences to the flat arrays of a [`Batch`]. Not here: what is planned.

use std::cmp::Ordering;

use std::ops::Range;

use types::{CompositionPart, Digest, LayerRange, ModuleSet};

use crate::active_parts::ActivePart;
use crate::sequence::Sequence;
use crate::{Batch, BatchSequence, LoraSegment, Slot, UnseenToken};

/// Fills `batch` with the planned rows of these sequences, and `order` with the indices of those that have rows, in the
/// batch's order: rows of drawn tokens before those of asked ones where the runner tells them apart, then by composition, so that
/// equal ones are neighbours, then as they were.
pub(crate) fn assemble<A>(sequences: &[Sequence<A>], block_tokens: u32, order: &mut Vec<usize>, batch: &mut Batch) {
    batch.clear();
    order.clear();
    let planned = sequences.iter().enumerate().filter(|(_, sequence)| sequence.planned > 0);
    order.extend(planned.map(|(index, _)| index));
    let at = |index: usize| sequences.get(index);
    // Without allocating: no two are equal, for the index is the last to be compared.
    order.sort_unstable_by(|&one, &two| match (at(one), at(two)) {
        (Some(first), Some(second)) => {
            let kinds = second.is_drawn().cmp(&first.is_drawn());
            kinds.then_with(|| compare_compositions(first, second)).then(one.cmp(&two))
        }
        _ => one.cmp(&two),
    });
    for sequence in order.iter().filter_map(|&index| at(index)) {
        add_sequence(sequence, block_tokens, batch);
        if sequence.is_drawn() {
            batch.drawn_rows = length(&batch.tokens);
        }
    }
    add_segments(sequences, order, batch);
}

/// Rows, blocks, and the draws if the rows reach the sequence's end.
fn add_sequence<A>(sequence: &Sequence<A>, block_tokens: u32, batch: &mut Batch) {
    let first_row = length(&batch.tokens);
    let first_block = length(&batch.block_tables);
    let end = sequence.reach() + sequence.planned;
    for (row, token) in (first_row..).zip(sequence.planned_tokens()) {
        batch.tokens.push(token.unwrap_or(0));
        batch.unseen.extend(token.err().map(|sample| UnseenToken { row, sample }));
    }
    batch.positions.extend((0u32..).take(end).skip(sequence.reach()));
    let blocks = end.div_ceil(block_tokens as usize);
    batch.block_tables.extend(sequence.blocks.blocks().iter().take(blocks));
    let rows = first_row..length(&batch.tokens);
    let samples = u32::try_from(sequence.samples()).unwrap_or(0);
    if samples > 0 {
        sequence.add_samples(rows.end.saturating_sub(samples), batch);
    }
    batch.sequences.push(BatchSequence { rows, blocks: first_block..length(&batch.block_tables) });
}

/// First all first parts, then all second parts, and so on: each row meets its parts in canonical order, and neighbours
/// that have the same part at the same place share a segment even if they differ elsewhere. A sequence's rows before a part
/// begins or after it ends are not in that part's segment.
fn add_segments<A>(sequences: &[Sequence<A>], order: &[usize], batch: &mut Batch) {
    let ordered = || order.iter().filter_map(|&index| sequences.get(index));
    let depth_max = ordered().map(|sequence| sequence.slots.len()).max().unwrap_or(0);
    for depth in 0..depth_max {
        let mut open: Option<(PartKey, LoraSegment)> = None;
        for (sequence, rows) in ordered().zip(&batch.sequences) {
            let part = part_at(sequence, depth, &rows.rows);
            match (&mut open, part) {
                (Some((key, segment)), Some((part, _, rows)))
                    if *key == part_key(part) && segment.rows.end == rows.start =>
                {
                    segment.rows.end = rows.end;
                }
                (_, part) => {
                    batch.segments.extend(open.take().map(|(_, segment)| segment));
                    open = part.map(|(part, slot, rows)| {
                        let &CompositionPart { weight, modules, layers, .. } = part;
                        (part_key(part), LoraSegment { rows, slot, weight, modules, layers })
                    });
                }
            }
        }
        batch.segments.extend(open.map(|(_, segment)| segment));
    }
}

/// A part of a sequence, its slot, and those of the sequence's rows that it acts on, if there are any.
fn part_at<'a, A>(
    sequence: &'a Sequence<A>,
    depth: usize,
    rows: &Range<u32>,
) -> Option<(&'a CompositionPart, Slot, Range<u32>)> {
    let (ActivePart { part, first_token, end_token }, slot) =
        sequence.parts().iter().zip(sequence.slots.iter()).nth(depth)?;
    let before = u32::try_from(first_token.saturating_sub(sequence.reach())).unwrap_or(u32::MAX);
    let left = end_token.map(|end| u32::try_from(end.saturating_sub(sequence.reach())).unwrap_or(u32::MAX));
    let end = left.map_or(rows.end, |left| rows.start.saturating_add(left).min(rows.end));
    let rows = rows.start.saturating_add(before)..end;
    (!rows.is_empty()).then_some((part, *slot, rows))
}

type PartKey = (Digest, ModuleSet, LayerRange, u32);

/// Equal keys mean equal parts: weights are finite and not zero.
fn part_key(part: &CompositionPart) -> PartKey {
    (part.adapter, part.modules, part.layers, part.weight.to_bits())
}

fn compare_compositions<A>(one: &Sequence<A>, two: &Sequence<A>) -> Ordering {
    let keys = |sequence| Sequence::parts(sequence).iter().map(|part| part_key(&part.part));
    keys(one).cmp(keys(two))
}

/// A batch has no more rows than the runner's `u32`, and no more blocks.
fn length<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}
