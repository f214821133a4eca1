//! Uploads that cost a compiler more than their sender, or are no plugins at all.

use crate::bombs::Bomb;
use crate::guest::Outcome::{Refused, Served};
use crate::guest::{Act, Class, Guest, Outcome, Source};

/// An upload that waits behind others may be told that it is too many.
const INVALID: Outcome = Refused(&["plugin_invalid", "plugin_busy"]);
const COSTLY: Outcome = Refused(&["plugin_compile_failed", "plugin_busy"]);

pub(super) fn guests() -> Vec<Guest> {
    let bomb = |(name, bomb, outcome): (&str, Bomb, Outcome)| {
        let guest = Guest::new(Class::CompileBombs, format!("bomb-{name}"), Source::Bomb(bomb), "hello", outcome);
        if matches!(guest.outcome, Refused(_)) { guest.act(Act::Upload) } else { guest }
    };
    [
        ("functions", Bomb::Functions(20_000), Served),
        ("nesting", Bomb::Nesting(20_000), Served),
        ("branches", Bomb::BranchTable(60_000), Served),
        ("locals", Bomb::Locals(30), Served),
        ("merges", Bomb::Merges { locals: 300, branches: 1500 }, Served),
        ("types", Bomb::Types(100_000), Served),
        ("data", Bomb::Data(2 << 20), Served),
        ("sections", Bomb::CustomSections(50_000), Served),
        ("exports", Bomb::Exports(50_000), Served),
        ("components", Bomb::Components(2000), INVALID),
        ("memories", Bomb::Memories(20), INVALID),
        ("memory64", Bomb::Memory64, INVALID),
        ("shared-memory", Bomb::SharedMemory, INVALID),
        ("pages", Bomb::Pages(60_000), INVALID),
        ("elements", Bomb::Elements(9_000_000), INVALID),
        ("instances", Bomb::Instances { count: 60, pages: 0 }, INVALID),
        ("many-functions", Bomb::Functions(1_000_001), INVALID),
        ("many-targets", Bomb::BranchTable(2_000_000), INVALID),
        ("large", Bomb::Noise(33 << 20), Refused(&["body_too_large"])),
        ("deep", Bomb::Merges { locals: 20_000, branches: 60_000 }, COSTLY),
        ("cut-off", Bomb::CutOff, INVALID),
        ("noise", Bomb::Noise(100_000), INVALID),
        ("lie", Bomb::Lie, INVALID),
    ]
    .map(bomb)
    .into()
}
