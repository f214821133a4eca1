//! The table by itself: the order in which adapters give way, the policies of release, and a long run at random beside what must
//! hold after each operation.

use super::*;

fn key(name: &str) -> Key {
    (Some("acme".parse().expect("a tenant")), Digest::of(name.as_bytes()))
}

type Table = Residents<u32>;

fn enter(table: &mut Table, name: &str, bytes: u64) {
    table.enter(key(name), Arc::new(0), bytes);
    table.check_integrity();
}

/// Uses it so often.
fn used(table: &mut Table, name: &str, times: usize) {
    for _ in 0..times {
        let adapter = table.lease(&key(name), ReleasePolicy::Lru).expect("there");
        table.give_back(&key(name), &adapter, Instant::now());
        table.check_integrity();
    }
}

fn there(table: &Table, names: &[&str]) -> Vec<bool> {
    names.iter().map(|name| table.contains(&key(name))).collect()
}

#[test]
fn what_is_used_often_outlasts_a_tail_that_passes_through_once() {
    let mut table = Table::new(1000);
    enter(&mut table, "hot", 100);
    used(&mut table, "hot", 5);
    for number in 0..30 {
        enter(&mut table, &format!("tail {number}"), 100);
        used(&mut table, &format!("tail {number}"), 1);
    }
    // Ten have room: the hot one, and the last nine of the tail.
    assert_eq!(there(&table, &["hot", "tail 0", "tail 20", "tail 21", "tail 29"]), [true, false, false, true, true]);
    assert_eq!((table.bytes(), table.count(), table.evictions().budget), (1000, 10, 21));
    // What it once was fades: the tail goes on, and at last it is worth less than a newcomer.
    for number in 30..200 {
        enter(&mut table, &format!("tail {number}"), 100);
        used(&mut table, &format!("tail {number}"), 1);
    }
    assert!(!table.contains(&key("hot")));
}

#[test]
fn of_two_that_are_used_alike_the_larger_one_goes() {
    let mut table = Table::new(10 << 20);
    enter(&mut table, "small", 1 << 20);
    enter(&mut table, "large", 8 << 20);
    used(&mut table, "small", 1);
    used(&mut table, "large", 1);
    enter(&mut table, "next", 2 << 20);
    assert_eq!(there(&table, &["small", "large", "next"]), [true, false, true]);
}

#[test]
fn what_is_on_lease_or_pinned_does_not_give_way() {
    let mut table = Table::new(100);
    enter(&mut table, "leased", 60);
    let leased = table.lease(&key("leased"), ReleasePolicy::Lru).expect("there");
    enter(&mut table, "pinned", 40);
    assert_eq!(table.pin(&key("pinned"), 39), Some(false), "over what may be pinned");
    assert_eq!((table.pin(&key("pinned"), 40), table.pin(&key("gone"), 40)), (Some(true), None));
    enter(&mut table, "newcomer", 50);
    assert_eq!((table.bytes(), table.pinned_bytes()), (150, 40), "nothing is idle but the newcomer");
    table.make_room();
    assert_eq!(there(&table, &["leased", "pinned", "newcomer"]), [true, true, false]);
    enter(&mut table, "next", 50);
    // The lease ends: what is worth least goes.
    assert!(!table.give_back(&key("leased"), &leased, Instant::now()));
    assert!(table.bytes() <= 100 && table.contains(&key("pinned")));
    table.unpin(&key("pinned"));
    enter(&mut table, "large", 100);
    assert_eq!((there(&table, &["pinned", "large"]), table.pinned_bytes()), (vec![false, true], 0));
    table.check_integrity();
}

#[test]
fn the_strictest_policy_of_those_who_had_it_holds() {
    let mut table = Table::new(1000);
    let (now, second) = (Instant::now(), Duration::from_secs(1));
    let idle = |seconds| ReleasePolicy::Idle(second * seconds);
    let mut after = |policies: &[ReleasePolicy]| {
        enter(&mut table, "one", 10);
        let leases: Vec<_> = policies.iter().map(|policy| table.lease(&key("one"), *policy).expect("there")).collect();
        let expires = leases.iter().map(|lease| table.give_back(&key("one"), lease, now)).last().expect("one");
        let left = table.contains(&key("one")).then(|| table.expire(now).map(|at| at - now));
        table.check_integrity();
        (expires, left)
    };
    use ReleasePolicy::{Immediate, Lru};
    assert_eq!(after(&[Lru]), (false, Some(None)));
    assert_eq!(after(&[Immediate]), (false, None));
    assert_eq!(after(&[Lru, Immediate, Lru]), (false, None));
    assert_eq!(after(&[idle(5), Lru, idle(3)]), (true, Some(Some(second * 3))));
    assert_eq!(after(&[idle(5), Immediate]), (false, None));
    assert_eq!(table.evictions(), Evictions { released: 3, ..Evictions::default() });
}

#[test]
fn who_rests_long_enough_goes_and_a_use_begins_anew() {
    let mut table = Table::new(1000);
    let (start, second) = (Instant::now(), Duration::from_secs(1));
    enter(&mut table, "one", 10);
    let idle = ReleasePolicy::Idle(second * 10);
    let lease = table.lease(&key("one"), idle).expect("there");
    assert_eq!(table.expire(start + second * 100), None, "it is in use");
    assert!(table.give_back(&key("one"), &lease, start));
    assert_eq!(table.expire(start + second * 9), Some(start + second * 10));
    let lease = table.lease(&key("one"), idle).expect("there");
    assert_eq!(table.expire(start + second * 10), None, "in use again");
    table.give_back(&key("one"), &lease, start + second * 12);
    assert_eq!(table.expire(start + second * 21), Some(start + second * 22));
    assert_eq!((table.expire(start + second * 22), table.count()), (None, 0));
    assert_eq!(table.evictions(), Evictions { idle: 1, ..Evictions::default() });
}

#[test]
fn a_lease_on_an_earlier_generation_does_not_touch_the_next_one() {
    let mut table = Table::new(1000);
    enter(&mut table, "one", 10);
    let old = table.lease(&key("one"), ReleasePolicy::Immediate).expect("there");
    table.forget(&key("one"));
    assert_eq!((table.bytes(), table.evictions().forgotten), (0, 1));
    enter(&mut table, "one", 20);
    let new = table.lease(&key("one"), ReleasePolicy::Lru).expect("there");
    table.give_back(&key("one"), &old, Instant::now());
    table.check_integrity();
    assert!(table.contains(&key("one")), "the new one is in use, and stays after it");
    table.give_back(&key("one"), &new, Instant::now());
    assert_eq!((table.bytes(), table.evictions().released), (20, 0));
}

#[test]
fn at_random_nothing_is_counted_wrong_and_the_budget_is_kept() {
    let mut state = 7u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let (mut table, mut leases, start) = (Table::new(500), Vec::new(), Instant::now());
    for step in 0..20_000 {
        let (name, now) = (format!("{}", draw(20)), start + Duration::from_millis(step));
        match draw(8) {
            0 | 1 => enter(&mut table, &name, 10 + draw(100)),
            2..=4 => {
                let policy =
                    [ReleasePolicy::Lru, ReleasePolicy::Immediate, ReleasePolicy::Idle(Duration::from_millis(20))];
                let lease = table.lease(&key(&name), policy[draw(3) as usize]);
                leases.extend(lease.map(|lease| (name, lease)));
            }
            5 => table.forget(&key(&name)),
            6 => drop(table.pin(&key(&name), 100)),
            _ => table.unpin(&key(&name)),
        }
        while leases.len() as u64 > draw(6) {
            let (name, lease) = leases.swap_remove(draw(leases.len() as u64) as usize);
            table.give_back(&key(&name), &lease, now);
        }
        table.expire(now);
        table.make_room();
        table.check_integrity();
        assert!(table.bytes() <= 500 || table.idle.is_empty(), "step {step}");
        assert!(table.pinned_bytes() <= 100);
    }
    let Evictions { budget, released, idle, forgotten } = table.evictions();
    assert!([budget, released, idle, forgotten].iter().all(|count| *count > 50), "{:?}", table.evictions());
}
