//! Plans as hostile plugins would write them, by the generator that the fuzz target uses too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod properties;

use generators::seeded_bytes;
use properties::{Verdict, hold};

#[test]
fn plans_of_all_kinds_are_accepted_within_the_limits_or_refused() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..4000 {
        println!("seed {seed}");
        match hold(&seeded_bytes(seed, 40 + seed as usize % 400)) {
            Verdict::Accepted => accepted += 1,
            Verdict::Refused => refused += 1,
        }
    }
    println!("{accepted} accepted, {refused} refused");
    assert!(accepted > 200 && refused > 200, "both sides of the check are tried: {accepted} and {refused}");
}
