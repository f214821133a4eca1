//! What a step tells the kernels beside their addresses: tokens, positions, block tables, tiles of attention, adapters. All of
//! it is written into one host buffer and copied at once. Where each table lies depends on the bucket of the step alone, so
//! that a recorded graph finds the next step's tables where it found the last one's. Not here: what is drawn (`draw.rs`).

use engine::Batch;
use kernels::cuda::ops::embed::UNSEEN;

use super::runs::Runs;
use super::spans::{Span, Spans};

const WORD_BYTES: usize = size_of::<u32>();
/// Words of `AttentionTile`, `LoraEntry` and `LoraItem`.
const TILE_WORDS: usize = 4;
const ENTRY_WORDS: usize = 8;
const ITEM_WORDS: usize = 4;
/// Positions of which attention makes one partial result.
const CHUNK_TOKENS: u32 = 256;

/// Sizes that tables are laid out for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TableSizes {
    /// Of the bucket.
    pub(super) rows: usize,
    /// Samples of one pass of the output layer.
    pub(super) head_rows: usize,
    /// Entries of adapters.
    pub(super) entries: usize,
    /// Passes of the LoRA kernels.
    pub(super) passes: usize,
    /// Blocks in the tables of all sequences.
    pub(super) blocks: usize,
}

/// Where each table lies, in words of four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TableLayout {
    pub(super) sizes: TableSizes,
    /// Rows, then tiles.
    pub(super) counts: Span,
    pub(super) tokens: Span,
    pub(super) positions: Span,
    /// Where the table of each row's sequence begins.
    pub(super) table_begins: Span,
    pub(super) tiles: Span,
    pub(super) sample_rows: Span,
    /// Samples of each pass of the output layer.
    pub(super) sample_counts: Span,
    pub(super) entries: Span,
    pub(super) items: Span,
    /// Items of each pass of the LoRA kernels.
    pub(super) item_counts: Span,
    /// Last: only as much of it is copied as there is.
    pub(super) block_tables: Span,
    pub(super) bytes: usize,
}

/// Which of the two kernels reads the KV, and how its work is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttentionWay {
    /// Each chunk of positions by itself, for few rows: rows of a tile, and units of partial results.
    Split { tile_rows: u32, units_max: u32 },
    /// All positions at once, for many rows.
    Rows { tile_rows: u32 },
}

/// What came of writing a step's tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// Words from the start of the buffer that hold something.
    pub(super) words: usize,
    pub(super) tiles: usize,
}

impl TableLayout {
    pub(super) fn new(sizes: TableSizes) -> Self {
        let mut spans = Spans::default();
        let TableSizes { rows, head_rows, entries, passes, blocks } = sizes;
        let mut take = |words: usize| spans.take(words, WORD_BYTES);
        let counts = take(2);
        let (tokens, positions, table_begins) = (take(rows), take(rows), take(rows));
        let (tiles, sample_rows) = (take(rows * TILE_WORDS), take(rows));
        let sample_counts = take(rows.div_ceil(head_rows.max(1)).max(1));
        let (entries, items) = (take(entries * ENTRY_WORDS), take(rows * ITEM_WORDS));
        let item_counts = take(passes);
        let block_tables = take(blocks);
        let bytes = spans.bytes();
        Self {
            sizes,
            counts,
            tokens,
            positions,
            table_begins,
            tiles,
            sample_rows,
            sample_counts,
            entries,
            items,
            item_counts,
            block_tables,
            bytes,
        }
    }

    /// Whether these runs and this batch, which was checked, find room.
    pub(super) fn holds(&self, batch: &Batch, runs: &Runs) -> bool {
        let TableSizes { rows, entries, passes, blocks, .. } = self.sizes;
        batch.tokens.len() <= rows
            && batch.samples.len() <= rows
            && batch.block_tables.len() <= blocks
            && runs.entries.len() <= entries
            && runs.items.len() <= rows
            && runs.passes.len() <= passes
    }

    /// Writes all tables of a batch that [`Self::holds`]; `None` if it does not after all, or if the partial results of
    /// attention find no room.
    pub(super) fn write(&self, batch: &Batch, runs: &Runs, way: AttentionWay, words: &mut [u32]) -> Option<Written> {
        let tiles = self.write_tiles(batch, way, words)?;
        part(words, self.counts, 2)?.copy_from_slice(&[small(batch.tokens.len()), small(tiles)]);
        let tokens = part(words, self.tokens, batch.tokens.len())?;
        tokens.copy_from_slice(&batch.tokens);
        for unseen in &batch.unseen {
            *tokens.get_mut(unseen.row as usize)? = UNSEEN | unseen.sample;
        }
        part(words, self.positions, batch.positions.len())?.copy_from_slice(&batch.positions);
        let begins = part(words, self.table_begins, batch.tokens.len())?;
        for sequence in &batch.sequences {
            begins.get_mut(sequence.rows.start as usize..sequence.rows.end as usize)?.fill(sequence.blocks.start);
        }
        let rows = part(words, self.sample_rows, batch.samples.len())?;
        rows.iter_mut().zip(&batch.samples).for_each(|(row, sample)| *row = sample.row);
        let head_rows = self.sizes.head_rows.max(1);
        let counts = part(words, self.sample_counts, self.sample_counts.bytes / WORD_BYTES)?;
        for (pass, count) in counts.iter_mut().enumerate() {
            *count = small(batch.samples.len().saturating_sub(pass * head_rows).min(head_rows));
        }
        self.write_runs(runs, words)?;
        part(words, self.block_tables, batch.block_tables.len())?.copy_from_slice(&batch.block_tables);
        Some(Written { words: self.block_tables.at / WORD_BYTES + batch.block_tables.len(), tiles })
    }

    /// Rows of one sequence, at most as many as a tile has, and for the split kernel the units of its partial results.
    fn write_tiles(&self, batch: &Batch, way: AttentionWay, words: &mut [u32]) -> Option<usize> {
        let (tile_rows, units_max) = match way {
            AttentionWay::Split { tile_rows, units_max } => (tile_rows.max(1), units_max),
            AttentionWay::Rows { tile_rows } => (tile_rows.max(1), u32::MAX),
        };
        let all = part(words, self.tiles, self.tiles.bytes / WORD_BYTES)?;
        let mut places = all.as_chunks_mut::<TILE_WORDS>().0.iter_mut();
        let (mut units, mut tiles) = (0u32, 0);
        for sequence in &batch.sequences {
            for row in sequence.rows.clone().step_by(tile_rows as usize) {
                let rows = (sequence.rows.end - row).min(tile_rows);
                let last = *batch.positions.get((row + rows) as usize - 1)?;
                *places.next()? = [row, rows, sequence.blocks.start, units];
                tiles += 1;
                let chunks = last / CHUNK_TOKENS + 1;
                if chunks > 1 && matches!(way, AttentionWay::Split { .. }) {
                    units = units.checked_add(chunks.checked_mul(rows)?)?;
                }
            }
        }
        (units <= units_max).then_some(tiles)
    }

    fn write_runs(&self, runs: &Runs, words: &mut [u32]) -> Option<()> {
        let entries = part(words, self.entries, runs.entries.len() * ENTRY_WORDS)?;
        for (place, entry) in entries.as_chunks_mut::<ENTRY_WORDS>().0.iter_mut().zip(&runs.entries) {
            let [first, end] = entry.layers;
            let weight = entry.weight.to_bits();
            *place = [entry.slot, weight, entry.modules, first, end, entry.scratch, entry.stride, entry.row];
        }
        let items = part(words, self.items, runs.items.len() * ITEM_WORDS)?;
        for (place, item) in items.as_chunks_mut::<ITEM_WORDS>().0.iter_mut().zip(&runs.items) {
            let [begin, end] = item.entries;
            *place = [item.row, item.rows, begin, end];
        }
        let counts = part(words, self.item_counts, self.item_counts.bytes / WORD_BYTES)?;
        let own = runs.passes.iter().map(|pass| pass.end - pass.start).chain(std::iter::repeat(0));
        counts.iter_mut().zip(own).for_each(|(count, items)| *count = items);
        Some(())
    }
}

fn part(words: &mut [u32], span: Span, count: usize) -> Option<&mut [u32]> {
    let first = span.at / WORD_BYTES;
    if count > span.bytes / WORD_BYTES {
        return None;
    }
    words.get_mut(first..first + count)
}

/// No table has more than a `u32` counts.
fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use engine::{BatchSequence, LoraSegment, SampleRequest, Slot};
    use types::{LayerRange, ModuleSet};

    use super::super::runs::RunLimits;
    use super::*;

    const SPLIT: AttentionWay = AttentionWay::Split { tile_rows: 2, units_max: 13 };

    fn sizes() -> TableSizes {
        TableSizes { rows: 8, head_rows: 2, entries: 4, passes: 2, blocks: 40 }
    }

    /// Five rows of a sequence that has a prefix of 510 tokens, and one of another.
    fn batch() -> Batch {
        let modules = ModuleSet::EMPTY.with(types::Module::Q).with(types::Module::Down);
        let layers = LayerRange { first: 1, end: 3 };
        Batch {
            tokens: vec![9, 8, 7, 6, 5, 4],
            positions: vec![510, 511, 512, 513, 514, 0],
            sequences: vec![BatchSequence { rows: 0..5, blocks: 0..33 }, BatchSequence { rows: 5..6, blocks: 33..34 }],
            block_tables: (100..134).collect(),
            segments: vec![LoraSegment { rows: 4..6, slot: Slot(3), weight: 0.5, modules, layers }],
            samples: [3, 4, 5].map(SampleRequest::greedy).to_vec(),
            ..Batch::default()
        }
    }

    fn runs(batch: &Batch) -> Runs {
        let mut runs = Runs::default();
        assert!(runs.build(&batch.segments, RunLimits { tile_rows: 8, scratch: 100 }, |_| 24));
        runs
    }

    fn table(words: &[u32], span: Span) -> &[u32] {
        &words[span.at / 4..(span.at + span.bytes) / 4]
    }

    #[test]
    fn a_step_is_written_where_its_bucket_has_it() {
        let (layout, batch) = (TableLayout::new(sizes()), batch());
        let runs = runs(&batch);
        let mut words = vec![77; layout.bytes / 4];
        assert!(layout.holds(&batch, &runs));
        let written = layout.write(&batch, &runs, SPLIT, &mut words).expect("it fits");
        assert_eq!(written, Written { words: layout.block_tables.at / 4 + 34, tiles: 4 });
        assert_eq!(table(&words, layout.counts), [6, 4]);
        assert_eq!(table(&words, layout.tokens), [9, 8, 7, 6, 5, 4, 77, 77]);
        assert_eq!(table(&words, layout.positions)[..6], batch.positions);
        assert_eq!(table(&words, layout.table_begins)[..6], [0, 0, 0, 0, 0, 33]);
        // Two rows up to position 511 have two chunks each; those up to 513 three; the last row writes none.
        let tiles = [[0, 2, 0, 0], [2, 2, 0, 4], [4, 1, 0, 10], [5, 1, 33, 13]].concat();
        assert_eq!(table(&words, layout.tiles)[..16], tiles);
        assert_eq!(table(&words, layout.sample_rows)[..3], [3, 4, 5]);
        assert_eq!(table(&words, layout.sample_counts), [2, 1, 0, 0]);
        let weight = 0.5f32.to_bits();
        assert_eq!(table(&words, layout.entries)[..8], [3, weight, 1 | 1 << 6, 1, 3, 0, 24, 4]);
        assert_eq!(table(&words, layout.items)[..4], [4, 2, 0, 1]);
        assert_eq!(table(&words, layout.item_counts), [1, 0]);
        assert_eq!(table(&words, layout.block_tables)[..34], batch.block_tables);
    }

    #[test]
    fn what_finds_no_room_is_not_written() {
        let (layout, batch) = (TableLayout::new(sizes()), batch());
        let runs = runs(&batch);
        let mut words = vec![0; layout.bytes / 4];
        let short = AttentionWay::Split { tile_rows: 2, units_max: 12 };
        assert_eq!(layout.write(&batch, &runs, short, &mut words), None);
        let rows = AttentionWay::Rows { tile_rows: 64 };
        assert_eq!(layout.write(&batch, &runs, rows, &mut words).map(|written| written.tiles), Some(2));
        let fewer = |change: fn(&mut TableSizes)| {
            let mut sizes = sizes();
            change(&mut sizes);
            TableLayout::new(sizes)
        };
        let changes: [fn(&mut TableSizes); 4] =
            [|to| to.rows = 5, |to| to.blocks = 33, |to| to.entries = 0, |to| to.passes = 0];
        assert!(changes.into_iter().all(|change| !fewer(change).holds(&batch, &runs)));
        assert!(TableLayout::new(sizes()).holds(&Batch::default(), &Runs::default()));
    }
}
