//! Measuring sides in turn. Not here: what becomes of the values (`statistics`).

use std::time::{Duration, Instant};

use crate::Outcome;
use crate::calm::Calm;

/// Between two sides, so that the threads of one sleep before the other starts.
const PAUSE: Duration = Duration::from_millis(15);

/// Values of each side, round by round. Every side is measured once before, to warm it up; from round to round the order
/// turns around, so that nobody always comes first. A value is taken when the machine is calm, and again if it no longer was
/// when it had been taken.
///
/// # Errors
/// The first that a measurement gives.
pub(crate) fn interleaved(
    calm: &mut Calm,
    rounds: usize,
    sides: usize,
    mut measure: impl FnMut(usize) -> Outcome<f64>,
) -> Outcome<Vec<Vec<f64>>> {
    let mut values = vec![Vec::with_capacity(rounds); sides];
    for side in 0..sides {
        measure(side)?;
    }
    for round in 0..rounds {
        for place in 0..sides {
            let side = if round.is_multiple_of(2) { place } else { sides - 1 - place };
            std::thread::sleep(PAUSE);
            let value = calmly(calm, || measure(side))?;
            if let Some(values) = values.get_mut(side) {
                values.push(value);
            }
        }
    }
    Ok(values)
}

/// A value that was taken while the machine was calm, as long as there is patience for it.
fn calmly(calm: &mut Calm, mut measure: impl FnMut() -> Outcome<f64>) -> Outcome<f64> {
    while !calm.has_given_up() {
        let started = Instant::now();
        if calm.settle() {
            let value = measure()?;
            if calm.is_calm() {
                return Ok(value);
            }
            calm.repeated += 1;
        }
        calm.lost(started.elapsed());
    }
    calm.disturbed += 1;
    measure()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_take_turns_in_both_directions_after_a_warm_up() {
        let mut order = Vec::new();
        let values = interleaved(&mut Calm::never_asked(), 2, 3, |side| {
            order.push(side);
            Ok(order.len() as f64)
        });
        assert_eq!(order, [0, 1, 2, 0, 1, 2, 2, 1, 0]);
        assert_eq!(values.expect("values"), [[4.0, 9.0], [5.0, 8.0], [6.0, 7.0]]);
    }
}
