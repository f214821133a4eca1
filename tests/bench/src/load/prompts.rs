//! Prompts of a realistic length that begin differently, so that no cache of prompts helps. Not here: what is asked of whom.

use crate::adapters::split_mix;

const TOPICS: [&str; 24] = [
    "the weather in the mountains",
    "a river that changes its course",
    "bread and how it is baked",
    "old clocks",
    "a small harbour town",
    "the history of printing",
    "bees in a garden",
    "railways",
    "the stars in winter",
    "a school of music",
    "paper boats",
    "the price of wheat",
    "a museum of maps",
    "how bridges are built",
    "volcanoes",
    "the first telephones",
    "a marathon",
    "wooden furniture",
    "a market on a Sunday",
    "lighthouses",
    "the desert at night",
    "a chess game",
    "glass and how it is blown",
    "migrating birds",
];
const TASKS: [&str; 8] = [
    "Write a short summary",
    "List the most important facts",
    "Explain to a child",
    "Compare the past and the present",
    "Describe in plain words",
    "Name three surprising details",
    "Tell a brief story",
    "Draft a friendly letter",
];

/// Prompt number so-and-so: 40 to 60 tokens.
pub(crate) fn prompt(number: usize) -> String {
    let mut state = number as u64;
    let mut pick = |list: &[&'static str]| {
        let place = split_mix(&mut state) as usize % list.len().max(1);
        list.get(place).copied().unwrap_or_default()
    };
    let (task, one, two, three) = (pick(&TASKS), pick(&TOPICS), pick(&TOPICS), pick(&TOPICS));
    format!(
        "Note {number}. {task} about {one}, and mention {two} where it fits. The reader knows little about {three}, so keep \
         the sentences simple, avoid long lists, and end with one question.\nAnswer:"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_differ_from_their_beginning_on() {
        let (one, two) = (prompt(1), prompt(2));
        assert!(one.starts_with("Note 1. ") && two.starts_with("Note 2. ") && prompt(1) == one);
        assert!((25..60).contains(&one.split_whitespace().count()), "{one}");
    }
}
