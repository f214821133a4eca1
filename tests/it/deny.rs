//! `deny.toml` held against the real dependency graph: licences, bans, sources. Takes a second where building cargo-deny
//! takes minutes. Not here: advisories, whose database is not in the package registry.

use std::collections::BTreeSet;

use cargo_metadata::{CargoOpt, Metadata, MetadataCommand, Package};
use tests::repository;
use toml::{Table, Value};

#[test]
fn licences_are_allowed() {
    let policy = policy();
    let allowed: Vec<spdx::Licensee> = strings(&policy, "licenses", "allow")
        .map(|text| spdx::Licensee::parse(text).expect("deny.toml: SPDX"))
        .collect();
    let mut refused = BTreeSet::new();
    for package in foreign(&graph()) {
        let license = package.license.clone().unwrap_or_default();
        let expression = spdx::Expression::parse_mode(&license, spdx::ParseMode::LAX);
        let is_allowed = expression
            .is_ok_and(|expression| expression.evaluate(|needed| allowed.iter().any(|one| one.satisfies(needed))));
        if !is_allowed {
            refused.insert(format!("{} {}: `{license}`", package.name, package.version));
        }
    }
    assert!(
        refused.is_empty(),
        "{refused:#?}: replace the dependency, or allow its licence in deny.toml with a reason"
    );
}

#[test]
fn banned_crates_are_absent() {
    let policy = policy();
    let denied = policy.get("bans").and_then(|bans| bans.get("deny")).and_then(Value::as_array).expect("bans.deny");
    let graph = graph();
    for ban in denied {
        let name = ban.get("crate").and_then(Value::as_str).expect("a ban names a crate");
        let reason = ban.get("reason").and_then(Value::as_str).expect("a ban has a reason");
        let found = foreign(&graph).any(|package| package.name.as_str() == name);
        assert!(!found, "{name} is in the graph (cargo tree -i {name}) but banned: {reason}");
    }
}

#[test]
fn every_dependency_comes_from_an_allowed_registry() {
    let policy = policy();
    let allowed: Vec<&str> = strings(&policy, "sources", "allow-registry").collect();
    for package in foreign(&graph()) {
        let source = package.source.as_ref().map(|source| source.repr.as_str()).unwrap_or_default();
        let registry = source.strip_prefix("registry+").unwrap_or(source);
        assert!(allowed.contains(&registry), "{} comes from `{source}`, which deny.toml does not allow", package.name);
    }
}

#[test]
fn every_shared_dependency_says_what_it_is_for() {
    let manifest = std::fs::read_to_string(repository().join("Cargo.toml")).expect("Cargo.toml can be read");
    let section = manifest.split("[workspace.dependencies]").nth(1).and_then(|rest| rest.split("\n[").next());
    let lines = section.expect("Cargo.toml has [workspace.dependencies]").lines();
    for line in lines.filter(|line| line.contains(" = ") && !line.contains("path = ")) {
        assert!(line.contains(" # "), "Cargo.toml: `{line}`: say at the end of the line what it is for");
    }
}

fn policy() -> Table {
    let text = std::fs::read_to_string(repository().join("deny.toml")).expect("deny.toml can be read");
    text.parse().expect("deny.toml is TOML")
}

fn strings<'a>(policy: &'a Table, section: &str, key: &str) -> impl Iterator<Item = &'a str> {
    let list = policy.get(section).and_then(|section| section.get(key)).and_then(Value::as_array);
    list.unwrap_or_else(|| panic!("deny.toml: {section}.{key} is a list")).iter().filter_map(Value::as_str)
}

fn graph() -> Metadata {
    let mut command = MetadataCommand::new();
    command.manifest_path(repository().join("Cargo.toml")).features(CargoOpt::AllFeatures);
    command.exec().expect("cargo metadata")
}

/// Everything that is not a member of the workspace.
fn foreign(graph: &Metadata) -> impl Iterator<Item = &Package> {
    graph.packages.iter().filter(|package| !graph.workspace_members.contains(&package.id))
}
