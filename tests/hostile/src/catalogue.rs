//! The catalogue, a file for some classes each. A guest's manifest has the limit that it is to meet, well below the host's:
//! what it runs into does not depend on how fast a machine is. Not here: what a guest is.

mod agents;
mod calls;
mod machine;
mod plans;
mod uploads;

use crate::guest::Guest;

/// Every hostile guest, in the order of the classes; names are unique.
#[must_use]
pub fn all() -> Vec<Guest> {
    [machine::guests(), calls::guests(), plans::guests(), uploads::guests(), agents::guests()].concat()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::guest::Source;

    #[test]
    fn there_are_enough_of_each_class_and_no_two_have_one_name() {
        let all = all();
        let names: BTreeSet<&str> = all.iter().map(|guest| guest.name.as_str()).collect();
        assert_eq!(names.len(), all.len());
        let mut classes = BTreeMap::new();
        all.iter().for_each(|guest| *classes.entry(guest.class).or_insert(0) += 1);
        assert!(classes.len() == 16 && classes.values().all(|count| *count >= 4), "{classes:?}");
        assert!(all.len() >= 60, "{}", all.len());
    }

    #[test]
    fn every_component_can_be_made_and_every_text_is_used() {
        let mut used = BTreeSet::new();
        for guest in all() {
            let component = guest.source.component().unwrap_or_else(|error| panic!("{}: {error}", guest.name));
            assert!(component.starts_with(b"\0asm"), "{}", guest.name);
            if let Source::Wat(name, _) = guest.source {
                used.insert(format!("{name}.wat"));
            }
        }
        let folder = crate::wat::repository().join("plugins/adversarial-wat");
        let files = std::fs::read_dir(folder).expect("a folder").flatten();
        let files: BTreeSet<String> = files.filter_map(|file| file.file_name().into_string().ok()).collect();
        assert_eq!(used, files);
    }
}
