//! Rounded rows against plain arithmetic, and their bits whatever the batch and the instructions.

use super::*;
use crate::dot::tests::values;

#[test]
fn panels_cover_all_rows_evenly() {
    for rows in 1..300 {
        let mut next = 0;
        let panels = row_panels(rows);
        for panel in 0..panels {
            let at = row_panel(rows, panel);
            assert!(at.start == next && (1..=PANEL_ROWS).contains(&at.len()), "{rows}");
            assert!(at.len() + 1 >= row_panel(rows, 0).len());
            next = at.end;
        }
        assert_eq!(next, rows);
    }
}

#[test]
fn words_are_the_rounded_values_and_their_sums() {
    let (count, width) = (13, 96);
    let x: Vec<f32> = values(1, count * width).iter().map(|x| x * 3.0).collect();
    for isa in Isa::available() {
        let mut rows = QuantisedRows::new();
        rows.fill(&Team::alone(), isa, &x, count, width);
        for panel in 0..row_panels(count) {
            let at = row_panel(count, panel);
            for (block, words) in rows.words(&at).chunks(at.len() * BLOCK_WORDS).enumerate() {
                for (index, row) in at.clone().enumerate() {
                    let word = |word: usize| words[word * at.len() + index];
                    let x = &x[row * width + block * 32..][..32];
                    let scale = f32::from_bits(word(Words::SCALE));
                    let largest = x.iter().fold(0.0f32, |largest, x| x.abs().max(largest));
                    assert_eq!(scale, largest / 127.0);
                    let codes: Vec<i32> =
                        (0..8).flat_map(|group| word(group).to_le_bytes().map(|code| i32::from(code as i8))).collect();
                    for (x, code) in x.iter().zip(&codes) {
                        assert!((x - scale * *code as f32).abs() <= scale * 0.5001);
                    }
                    let sum: i32 = codes.iter().sum();
                    assert_eq!(f32::from_bits(word(Words::SCALED_SUM)), scale * sum as f32);
                    assert_eq!(word(Words::MINUS_8) as i32, -8 * sum);
                    assert_eq!(word(Words::MINUS_128) as i32, -128 * sum);
                    assert_eq!(word(Words::MINUS_32[0]) as i32, -32 * codes[..16].iter().sum::<i32>());
                    assert_eq!(word(Words::MINUS_32[1]) as i32, -32 * codes[16..].iter().sum::<i32>());
                }
            }
        }
    }
}

#[test]
fn bf16_rounds_as_half_does() {
    for bits in (0..=u32::MAX).step_by(4099) {
        let value = f32::from_bits(bits);
        let (ours, theirs) = (bf16(value) as u16, half::bf16::from_f32(value).to_bits());
        assert!(ours == theirs || value.is_nan() && half::bf16::from_bits(ours).is_nan(), "{bits:08x}");
    }
}

#[test]
fn the_largest_value_becomes_127_even_where_its_inverse_rounds() {
    for exponent in -118..=127 {
        for mantissa in [1.0f32, 1.000_000_1, 1.3, 1.999_999_9] {
            let mut x = [0.0; 32];
            x[7] = -mantissa * 2.0f32.powi(exponent);
            let block = quantise_block(&x);
            assert_eq!(block.codes[7], -127, "{exponent} {mantissa}");
            assert_eq!(block.sums, [-127, 0]);
        }
    }
}

#[test]
fn threads_and_tiles_change_nothing() {
    let pool = crate::Pool::new(3).unwrap();
    for (count, width) in [(1, 32), (1, 9216), (11, 1504), (40, 416), (200, 64), (0, 64)] {
        let x = values(3, count * width);
        let [mut one, mut many] = [QuantisedRows::new(), QuantisedRows::new()];
        // Filled before, so that what is not written shows.
        many.fill(&Team::alone(), Isa::detect(), &vec![9.0; 201 * 9216], 201, 9216);
        for panel in 0..row_panels(count) {
            // Each panel alone is one tile or a few; a panel of 12 rows or less is the same alone.
            let at = row_panel(count, panel);
            one.fill(&Team::alone(), Isa::plain(), &x[at.start * width..at.end * width], at.len(), width);
            pool.step(|team| many.fill(team, Isa::detect(), &x, count, width));
            let all = 0..at.len();
            assert!(many.words(&at) == one.words(&all) && many.pairs(&at) == one.pairs(&all), "{count} x {width}");
            assert!(many.floats(&at) == one.floats(&all), "{count} x {width}");
        }
    }
}

#[test]
fn every_version_gives_the_same_words() {
    for count in 1..=25 {
        let mut x = values(count as u64, count * 64);
        for (index, x) in x.iter_mut().enumerate() {
            match index % 397 {
                0 => *x = f32::NAN,
                50 => *x = f32::NEG_INFINITY,
                100 => *x = f32::MAX,
                150..280 => *x *= 1e-37,
                280..340 => *x = 0.0,
                _ => {}
            }
        }
        let mut expected = QuantisedRows::new();
        expected.fill(&Team::alone(), Isa::plain(), &x, count, 64);
        for isa in Isa::available() {
            let mut rows = QuantisedRows::new();
            rows.fill(&Team::alone(), isa, &x, count, 64);
            assert!(*rows.words == *expected.words, "{isa:?} {count}");
            assert!(*rows.pairs == *expected.pairs, "{isa:?} {count}");
        }
    }
}
