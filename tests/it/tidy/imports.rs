//! Who may import whom, read off cargo's own graph: the layers of ARCHITECTURE.md.

use cargo_metadata::{CargoOpt, Dependency, DependencyKind, Metadata, MetadataCommand, Package};
use tests::repository;

/// Which members of the workspace a member may depend on. `kernels` is for tests of `model` only through `model` itself.
/// `generators` may serve the tests of every member, and nothing that ships.
const LAYERS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("kernels", &[]),
    ("engine", &["types"]),
    ("plugin", &["types"]),
    ("model", &["engine", "kernels", "types"]),
    ("host", &["plugin", "model", "engine", "types"]),
    ("generators", &["types"]),
    ("hostile", &[]),
    ("tests", &["generators", "host", "hostile", "types"]),
    ("bench", &["engine", "hostile", "kernels", "model", "plugin", "types"]),
    ("cuda-bench", &["engine", "kernels", "model", "types"]),
    ("xtask", &["generators"]),
];

/// What a member must not import directly, and why.
const NEVER: &[(&str, &[&str], &str)] = &[
    (
        "engine",
        &["candle", "cudarc", "wasmtime", "hyper", "axum", "reqwest", "object_store", "redb"],
        "it schedules; tensors, sandboxes and I/O are other rooms",
    ),
    (
        "plugin",
        &["candle", "cudarc", "hyper", "axum", "object_store", "redb"],
        "a guest reaches the accelerator only through a ValidPlan",
    ),
    ("model", &["wasmtime", "hyper", "axum", "tokio"], "it computes batches; who runs and who asks is decided above"),
    ("kernels", &["candle", "tokio", "serde"], "it is numerics on raw slices"),
    ("types", &["tokio", "serde", "candle", "wasmtime", "hyper", "axum"], "it is vocabulary, without formats or I/O"),
];

#[test]
fn members_depend_only_on_the_layers_below_them() {
    let metadata = metadata(&repository().join("Cargo.toml"));
    let members = metadata.workspace_packages();
    for member in &members {
        let name = member.name.as_str();
        let (_, allowed) = LAYERS.iter().find(|(layer, _)| *layer == name).unwrap_or_else(|| {
            panic!("`{name}` is a new member: say in LAYERS ({}) which members it may depend on", file!())
        });
        for dependency in &member.dependencies {
            let is_member = members.iter().any(|other| other.name.as_str() == dependency.name);
            assert!(
                !is_member || allowed.contains(&dependency.name.as_str()) || is_generators_in_tests(dependency),
                "{name} must not depend on {} ({:?}): move the code, or put a trait into `{name}` that {} implements",
                dependency.name,
                dependency.kind,
                dependency.name,
            );
        }
    }
}

#[test]
fn members_keep_out_what_is_not_theirs() {
    let metadata = metadata(&repository().join("Cargo.toml"));
    for member in metadata.workspace_packages() {
        let rules = NEVER.iter().filter(|(name, ..)| *name == member.name.as_str());
        for (name, never, why) in rules {
            for dependency in &member.dependencies {
                let family = never.iter().find(|family| is_of(&dependency.name, family));
                assert!(
                    family.is_none() || is_allowed_test_oracle(member, dependency.kind, &dependency.name),
                    "{name} must not import {}: {why}",
                    dependency.name
                );
            }
        }
    }
}

#[test]
fn the_engine_reaches_neither_network_nor_files_through_tokio() {
    let metadata = metadata(&repository().join("Cargo.toml"));
    let engine =
        metadata.workspace_packages().into_iter().find(|member| member.name.as_str() == "engine").expect("engine");
    let sources = engine.targets.iter().flat_map(|target| target.src_path.parent()).collect::<Vec<_>>();
    for folder in sources {
        for (path, text) in rust_files(folder.as_std_path()) {
            for word in ["tokio::fs", "tokio::net", "tokio::spawn", "std::fs", "std::net", "SystemTime"] {
                assert!(!text.contains(word), "{path}: engine must not use {word}: pass in what it needs from above");
            }
        }
    }
}

#[test]
fn guests_know_only_the_contract() {
    let members: Vec<&str> = LAYERS.iter().map(|(name, _)| *name).collect();
    for manifest in ["sdk/rust/Cargo.toml", "plugins/Cargo.toml"] {
        let path = repository().join(manifest);
        if !path.is_file() {
            continue;
        }
        for package in metadata(&path).workspace_packages() {
            for dependency in &package.dependencies {
                assert!(
                    !members.contains(&dependency.name.as_str()),
                    "{manifest}: {} must not depend on {}: the WIT is the only link between guests and host",
                    package.name,
                    dependency.name
                );
            }
        }
    }
}

#[test]
fn every_member_takes_the_workspace_lints() {
    for member in metadata(&repository().join("Cargo.toml")).workspace_packages() {
        let manifest = std::fs::read_to_string(&member.manifest_path).expect("a manifest can be read");
        // These two hold the unsafe code, and say so in lints of their own.
        let has_own = ["kernels", "plugin"].contains(&member.name.as_str());
        let expected = if has_own { "[lints.rust]" } else { "[lints]\nworkspace = true" };
        assert!(manifest.contains(expected), "{}: add `{expected}`", member.manifest_path);
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

fn is_generators_in_tests(dependency: &Dependency) -> bool {
    dependency.kind == DependencyKind::Development && dependency.name == "generators"
}

/// Candle is the oracle of `kernels` in its tests, never in what ships.
fn is_allowed_test_oracle(member: &Package, kind: DependencyKind, dependency: &str) -> bool {
    member.name.as_str() == "kernels" && kind == DependencyKind::Development && is_of(dependency, "candle")
}

/// `candle` covers `candle-core`; `serde` covers `serde_json`.
fn is_of(dependency: &str, family: &str) -> bool {
    let rest = dependency.strip_prefix(family);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']))
}

fn metadata(manifest: &std::path::Path) -> Metadata {
    let mut command = MetadataCommand::new();
    command.manifest_path(manifest).features(CargoOpt::AllFeatures).no_deps();
    command.exec().unwrap_or_else(|error| panic!("cargo metadata of {}: {error}", manifest.display()))
}

fn rust_files(folder: &std::path::Path) -> Vec<(String, String)> {
    let files = tests::tracked_files().into_iter().map(|file| repository().join(file));
    let ours = files.filter(|file| file.starts_with(folder) && file.extension().is_some_and(|found| found == "rs"));
    ours.map(|file| (file.display().to_string(), std::fs::read_to_string(&file).expect("a source can be read")))
        .collect()
}
