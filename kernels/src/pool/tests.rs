//! The pool: every tile once and in order of operations, panics, threads that come late.

use std::sync::atomic::AtomicU32;

use super::*;

#[test]
fn every_tile_runs_once_and_is_seen_by_the_next_operation() {
    for threads in [1, 2, 3, 9] {
        let pool = Pool::new(threads).unwrap();
        assert_eq!(pool.threads(), threads);
        for step in 0..30 {
            pool.step(|team| {
                let mut values = vec![0usize; 97];
                for operation in 0..50usize {
                    let count = (operation * 7 + step) % 98;
                    let shared = SharedMut::new(&mut values);
                    team.tiles(count, |worker, index| {
                        assert!(worker < threads);
                        // SAFETY: each index is one tile's.
                        let value = unsafe { shared.slice(index..index + 1) };
                        value[0] += index + operation;
                    });
                }
                for (index, value) in values.iter().enumerate() {
                    let times = (0..50).filter(|operation| (operation * 7 + step) % 98 > index);
                    assert_eq!(*value, times.map(|operation| index + operation).sum::<usize>());
                }
            });
        }
    }
}

#[test]
fn all_threads_take_part() {
    let pool = Pool::new(3).unwrap();
    let seen: [AtomicU32; 3] = Default::default();
    pool.step(|team| {
        team.tiles(3, |worker, _| {
            seen[worker].fetch_add(1, Ordering::Relaxed);
            // Nobody can take two: each waits for the others.
            while seen.iter().map(|seen| seen.load(Ordering::Relaxed)).sum::<u32>() < 3 {
                std::thread::yield_now();
            }
        });
    });
    assert!(seen.iter().all(|seen| seen.load(Ordering::Relaxed) == 1));
}

#[test]
fn a_panic_in_a_tile_reaches_the_caller_and_the_pool_goes_on() {
    let pool = Pool::new(2).unwrap();
    for index in [0, 63] {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.step(|team| team.tiles(64, |_, tile| assert!(tile != index, "tile {tile}")));
        }));
        let text = *caught.unwrap_err().downcast::<String>().unwrap();
        assert!(text.contains(&format!("tile {index}")), "{text}");
        let sum = AtomicU64::new(0);
        pool.step(|team| {
            team.tiles(10, |_, tile| {
                let _ = sum.fetch_add(tile as u64, Ordering::Relaxed);
            })
        });
        assert_eq!(sum.into_inner(), 45);
    }
}

#[test]
fn a_thread_that_is_late_holds_up_nothing_but_its_own_tile() {
    // More threads than cores, operations of a few nanoseconds: most workers come too late for most of them.
    let pool = Pool::new(16).unwrap();
    let sum = AtomicUsize::new(0);
    pool.step(|team| {
        for operation in 0..5_000 {
            team.tiles(2 + operation % 5, |_, index| {
                let _ = sum.fetch_add(index + 1, Ordering::Relaxed);
            });
        }
    });
    let expected: usize = (0..5_000).map(|operation| (1..=2 + operation % 5).sum::<usize>()).sum();
    assert_eq!(sum.into_inner(), expected);
}

#[test]
fn who_waits_fetches_what_was_announced_up_to_a_bound() {
    let pool = Pool::new(2).unwrap();
    let memory = vec![0u8; 2 * FETCH_BYTES_MAX];
    let unfetched = || pool.shared.unfetched.0.load(Ordering::Relaxed);
    for len in [0, 1000, memory.len()] {
        pool.step(|team| {
            team.upcoming(&memory[..len]);
            assert!(unfetched() <= FETCH_BYTES_MAX);
            // The worker has nothing else to do.
            let started = std::time::Instant::now();
            while unfetched() > 0 {
                assert!(started.elapsed().as_secs() < 30, "{} bytes were not fetched", unfetched());
                std::thread::yield_now();
            }
        });
    }
}
