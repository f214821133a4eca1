//! Causal attention of many sequences over paged keys and values, for prefill and decode alike (grouped query heads:
//! Ainslie et al., 2023; spans of a long context side by side: flash-decoding, Dao et al., 2023).
//!
//! A row's bits depend on its own sequence alone. Its positions are taken in tiles at fixed places (multiples of 128), of
//! which the last ends with the row's own group of 16; tiles make spans at fixed places (multiples of 1024), and spans are
//! merged in order. Which rows are computed together, on which thread, and whether spans are computed side by side or one
//! after the other changes nothing of that. AMX's tiles give other bits, and are used for whom the caller says
//! ([`AttentionSequence::amx`]). Not here: the arithmetic (`attention_tile`).
//!
//! Error against the softmax in f64 of the same f32 inputs, for scores and values of order one (asserted by the tests):
//!
//! | keys and values | largest difference |
//! |---|---|
//! | bf16 | 0.02 |
//! | int8 | 0.04 |

use std::ops::Range;

use crate::attention_lanes::tile_lanes;
use crate::attention_tile::{
    AMX_ROWS, AMX_ROWS_AT_ONCE, Between, QueryRows, Scales, State, TILE_GROUPS, TILE_POSITIONS, Tile,
};
use crate::isa::{Amx, Level};
use crate::paged::{GROUP_POSITIONS, KvFormat, Line, PagedKv};
use crate::paged_expand::expand_group;
use crate::paged_write::bf16_bits;
use crate::pool::SharedMut;
use crate::{Isa, Team};

/// Positions of a span.
const SPAN_POSITIONS: usize = 1024;
/// Query rows of an item of work, unless one position has more: their state and a tile fit the first-level cache.
const ITEM_ROWS: usize = 48;
/// Positions of a sequence's new rows up to which its spans are computed side by side.
const SPLIT_ROWS_MAX: usize = 8;
/// Below this many pairs of a query row and a position the caller does the work alone (about 2 µs).
const ALONE_MAX: usize = 1500;

/// New rows of one sequence.
#[derive(Clone, Debug)]
pub struct AttentionSequence<'a> {
    /// Block table: position p lies in block `blocks[p / block_tokens]`.
    pub blocks: &'a [u32],
    /// Position of the first row; the others follow.
    pub first_position: usize,
    /// Its rows in the batch.
    pub rows: Range<usize>,
    /// Whether its rows are computed with AMX's tiles, and so with other bits: all rows of a token's kind must be.
    pub amx: Option<Amx>,
}

/// Memory that [`paged_attention`] works in. It only grows.
#[derive(Default)]
pub struct AttentionScratch {
    items: Vec<Item>,
    merges: Vec<Merge>,
    workers: Vec<Vec<Line>>,
    partials: Vec<Line>,
}

/// Query rows of one sequence and key head, and the spans that they look at.
struct Item {
    sequence: usize,
    kv_head: usize,
    /// Positions, counted from the sequence's first new row.
    rows: Range<usize>,
    spans: Range<usize>,
    /// Where its state goes in the partial states; none if it is the whole result.
    partial: Option<usize>,
}

/// Partial states of the same rows, one for each span.
struct Merge {
    item: Item,
    first_line: usize,
}

/// What does not change within a call.
struct Job<'a> {
    isa: Isa,
    kv: &'a PagedKv,
    layer: usize,
    sequences: &'a [AttentionSequence<'a>],
    queries: &'a [f32],
    stride: usize,
    query_first: usize,
    heads: usize,
}

/// Attention of every row of `sequences`, whose own keys and values are stored already. A row's queries are
/// `queries[row * stride + query_first ..]`, `[heads, head_dim]`; its result goes to row `row` of `out`, `[rows, heads *
/// head_dim]`. Scores are scaled by 1 / sqrt(head_dim). Rows of no sequence stay as they are. Every ISA gives the same bits
/// without tiles, but for numbers that are too small to be normal. A sequence with values that are not finite disturbs no other.
///
/// # Panics
/// If a shape is wrong, a block table too short or not in the cache, or rows of sequences do not ascend.
#[expect(clippy::too_many_arguments, reason = "an operation on slices")]
pub fn paged_attention(
    team: &Team<'_>,
    isa: Isa,
    kv: &PagedKv,
    layer: usize,
    sequences: &[AttentionSequence<'_>],
    queries: &[f32],
    stride: usize,
    query_first: usize,
    heads: usize,
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    let job = Job { isa, kv, layer, sequences, queries, stride, query_first, heads };
    job.check(out.len());
    let work = job.plan(scratch);
    let AttentionScratch { items, merges, workers, partials } = scratch;
    workers.resize_with(workers.len().max(team.threads()), Vec::new);
    let workers = SharedMut::new(workers);
    let partials = SharedMut::new(partials);
    let out = SharedMut::new(out);
    let run = |worker: usize, index: usize| {
        // SAFETY: a worker runs one tile at a time.
        let memory = unsafe { &mut workers.slice(worker..worker + 1)[0] };
        job.run(&items[index], memory, &partials, &out);
    };
    let merge = |_: usize, index: usize| job.merge(&merges[index], &partials, &out);
    if work <= ALONE_MAX {
        (0..items.len()).for_each(|index| run(0, index));
        (0..merges.len()).for_each(|index| merge(0, index));
    } else {
        team.tiles(items.len(), run);
        team.tiles(merges.len(), merge);
    }
}

impl Job<'_> {
    fn check(&self, out_len: usize) {
        let shape = self.kv.shape;
        let width = self.heads * shape.head_dim;
        assert!(self.heads > 0 && self.heads.is_multiple_of(shape.kv_heads) && self.query_first + width <= self.stride);
        let mut rows_end = 0;
        for sequence in self.sequences {
            assert!(sequence.rows.start >= rows_end && sequence.rows.end >= sequence.rows.start, "rows do not ascend");
            rows_end = sequence.rows.end;
            let positions = sequence.first_position + sequence.rows.len();
            let known = sequence.blocks.len() * self.kv.block_tokens();
            assert!(positions <= known, "{positions} positions in blocks for {known}");
        }
        assert!(rows_end * width <= out_len && rows_end * self.stride <= self.queries.len() + self.stride);
        assert!(rows_end == 0 || (rows_end - 1) * self.stride + self.query_first + width <= self.queries.len());
    }

    /// Query heads that share a key head.
    fn group_heads(&self) -> usize {
        self.heads / self.kv.shape.kv_heads
    }

    /// Splits the work; how much there is, in pairs of a query row and a position.
    fn plan(&self, scratch: &mut AttentionScratch) -> usize {
        scratch.items.clear();
        scratch.merges.clear();
        let (mut lines, mut work) = (0, 0);
        let rows_max = (ITEM_ROWS / self.group_heads()).clamp(1, GROUP_POSITIONS);
        for (index, sequence) in self.sequences.iter().enumerate() {
            // From the end: the items that take longest come first.
            let mut end = sequence.rows.len();
            while end > 0 {
                let last = sequence.first_position + end - 1;
                // Rows of an item end in the same group.
                let rows = (end.saturating_sub((last % GROUP_POSITIONS + 1).min(rows_max)))..end;
                end = rows.start;
                let spans = 0..last / SPAN_POSITIONS + 1;
                work += rows.len() * self.heads * (last + 1);
                let split = sequence.rows.len() <= SPLIT_ROWS_MAX && spans.len() > 1;
                for kv_head in 0..self.kv.shape.kv_heads {
                    let (sequence, rows) = (index, rows.clone());
                    let item = |spans, partial| Item { sequence, kv_head, rows: rows.clone(), spans, partial };
                    if split {
                        let merge = Merge { item: item(spans.clone(), None), first_line: lines };
                        for span in spans.clone() {
                            scratch.items.push(item(span..span + 1, Some(lines)));
                            lines += self.state_lines(index, &rows);
                        }
                        scratch.merges.push(merge);
                    } else {
                        scratch.items.push(item(spans.clone(), None));
                    }
                }
            }
        }
        if scratch.partials.len() < lines {
            scratch.partials.resize(lines, Line::ZERO);
        }
        work
    }

    /// Query rows that memory is needed for: tiles have so many.
    fn memory_rows(&self, sequence: usize, rows: &Range<usize>) -> usize {
        let count = rows.len() * self.group_heads();
        if self.sequences[sequence].amx.is_some() { count.next_multiple_of(AMX_ROWS) } else { count }
    }

    fn state_lines(&self, sequence: usize, rows: &Range<usize>) -> usize {
        State::lines(self.memory_rows(sequence, rows), self.kv.shape.head_dim)
    }

    fn run(&self, item: &Item, memory: &mut Vec<Line>, partials: &SharedMut<'_, Line>, out: &SharedMut<'_, f32>) {
        let (head_dim, count) = (self.kv.shape.head_dim, self.memory_rows(item.sequence, &item.rows));
        let (state_lines, query_lines) =
            (self.state_lines(item.sequence, &item.rows), (count * head_dim / 2).div_ceil(16));
        let tile_lines =
            TILE_GROUPS * head_dim + AMX_ROWS_AT_ONCE.min(count) * size_of::<Between>() / size_of::<Line>();
        let needed = query_lines + 2 * state_lines + tile_lines;
        if memory.len() < needed {
            memory.resize(needed, Line::ZERO);
        }
        let (query_memory, rest) = memory.split_at_mut(query_lines);
        let (total_memory, rest) = rest.split_at_mut(state_lines);
        let (span_memory, tile_memory) = rest.split_at_mut(state_lines);
        let rows = self.convert_queries(item, query_memory);
        let total_memory = match item.partial {
            // SAFETY: this part belongs to this item alone.
            Some(first) => unsafe { partials.slice(first..first + state_lines) },
            None => total_memory,
        };
        let mut total = State::new(total_memory, count, head_dim);
        for span in item.spans.clone() {
            if span == item.spans.start {
                self.run_span(item, rows, span, tile_memory, &mut total);
            } else {
                let mut state = State::new(span_memory, count, head_dim);
                self.run_span(item, rows, span, tile_memory, &mut state);
                total.merge(&state);
            }
        }
        if item.partial.is_none() {
            self.finish(item, &total, out);
        }
    }

    fn merge(&self, merge: &Merge, partials: &SharedMut<'_, Line>, out: &SharedMut<'_, f32>) {
        let Item { sequence, rows, .. } = &merge.item;
        let (head_dim, count) = (self.kv.shape.head_dim, self.memory_rows(*sequence, rows));
        let lines = self.state_lines(*sequence, rows);
        let part = |span: usize| {
            let first = merge.first_line + span * lines;
            // SAFETY: the items that wrote this part are done, and no other merge has it.
            State::new(unsafe { partials.slice(first..first + lines) }, count, head_dim)
        };
        let mut total = part(0);
        for span in 1..merge.item.spans.end {
            total.merge(&part(span));
        }
        self.finish(&merge.item, &total, out);
    }

    fn finish(&self, item: &Item, total: &State<'_>, out: &SharedMut<'_, f32>) {
        let (head_dim, group) = (self.kv.shape.head_dim, self.group_heads());
        let first_row = self.sequences[item.sequence].rows.start + item.rows.start;
        for row in 0..item.rows.len() {
            let at = ((first_row + row) * self.heads + item.kv_head * group) * head_dim;
            // SAFETY: rows of sequences do not overlap (`check`), rows of a sequence's items do not either, and each
            // (row, key head) has one item or one merge.
            let out = unsafe { out.slice(at..at + group * head_dim) };
            total.finish(self.isa, row * group..(row + 1) * group, out);
        }
    }

    fn convert_queries<'m>(&self, item: &Item, memory: &'m mut [Line]) -> QueryRows<'m> {
        let (head_dim, group) = (self.kv.shape.head_dim, self.group_heads());
        let sequence = &self.sequences[item.sequence];
        let count = item.rows.len() * group;
        let words = words_of_mut(memory);
        for (row, words) in item.rows.clone().zip(words.chunks_mut(group * head_dim / 2)) {
            let at = (sequence.rows.start + row) * self.stride + self.query_first + item.kv_head * group * head_dim;
            round_pairs(self.isa, &self.queries[at..][..group * head_dim], words);
        }
        QueryRows {
            pairs: words,
            head_dim,
            count,
            heads: group,
            first_position: sequence.first_position + item.rows.start,
            factor: std::f32::consts::LOG2_E / (head_dim as f32).sqrt(),
        }
    }

    fn run_span(&self, item: &Item, rows: QueryRows<'_>, span: usize, memory: &mut [Line], state: &mut State<'_>) {
        state.reset();
        let last_group = rows.first_position / GROUP_POSITIONS;
        let first = span * SPAN_POSITIONS / GROUP_POSITIONS;
        let end = (first + SPAN_POSITIONS / GROUP_POSITIONS).min(last_group + 1);
        for first_group in (first..end).step_by(TILE_GROUPS) {
            let groups = (end - first_group).min(TILE_GROUPS);
            self.run_tile(item, rows, first_group, groups, memory, state);
        }
    }

    fn run_tile(
        &self,
        item: &Item,
        rows: QueryRows<'_>,
        first_group: usize,
        groups: usize,
        memory: &mut [Line],
        state: &mut State<'_>,
    ) {
        let (expanded, between) = memory.split_at_mut(TILE_GROUPS * self.kv.shape.head_dim);
        let (shape, blocks) = (self.kv.shape, self.sequences[item.sequence].blocks);
        let stored = |group: usize| {
            let group = first_group + group;
            let (block, inside) = (blocks[group / shape.block_groups], group % shape.block_groups);
            self.kv.group(self.layer, block, item.kv_head, inside)
        };
        let mut scales = Scales::default();
        let mut tile = Tile {
            keys: [&[]; TILE_GROUPS],
            values: [&[]; TILE_GROUPS],
            scales: None,
            groups,
            first_position: first_group * GROUP_POSITIONS,
        };
        let half = shape.head_dim / 2;
        match shape.format {
            KvFormat::Bf16 => {
                for group in 0..groups {
                    (tile.keys[group], tile.values[group]) = stored(group).split_at(half);
                }
            }
            KvFormat::Int8 => {
                for (group, out) in expanded.chunks_mut(2 * half).enumerate().take(groups) {
                    [scales.keys[group], scales.values[group]] =
                        expand_group(self.isa, stored(group), shape.head_dim, out);
                    (tile.keys[group], tile.values[group]) = out.split_at(half);
                }
                tile.scales = Some(&scales);
            }
        }
        debug_assert!(tile.first_position.is_multiple_of(TILE_POSITIONS));
        #[cfg(not(target_arch = "x86_64"))]
        let _ = between;
        match (self.sequences[item.sequence].amx, self.isa.level()) {
            #[cfg(target_arch = "x86_64")]
            (Some(amx), _) => crate::attention_amx::tile_amx(amx, rows, &tile, state, between.as_chunks_mut().0),
            // SAFETY: this level exists only where `Isa::available` (isa.rs) found AVX-512 BF16 and what it builds on.
            #[cfg(target_arch = "x86_64")]
            (None, Level::Avx512Vnni) => unsafe { crate::attention_bf16::tile_bf16(rows, &tile, state) },
            _ => tile_lanes(self.isa, rows, &tile, state),
        }
    }
}

/// Values as pairs of bf16.
fn round_pairs(isa: Isa, values: &[f32], to: &mut [u32]) {
    match isa.level() {
        // SAFETY: this level exists only where `Isa::available` (isa.rs) found AVX-512 BF16 and what it builds on.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => unsafe { crate::attention_bf16::round_pairs(values, to) },
        _ => {
            for (word, [first, second]) in to.iter_mut().zip(values.as_chunks::<2>().0) {
                *word = bf16_bits(*first) | bf16_bits(*second) << 16;
            }
        }
    }
}

/// The words of lines.
fn words_of_mut(lines: &mut [Line]) -> &mut [u32] {
    // SAFETY: a line is 16 words.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

#[cfg(test)]
mod tests;
