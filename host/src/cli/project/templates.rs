//! The files of a new project, as `sdk/templates/README.md` lists them; they are part of the program. Not here: filling them in.

use super::{Language, World};

/// Where a file goes, and its text.
type File = (&'static str, &'static str);

/// The files of a project in this language, if there are any of this world.
pub(super) fn of(language: Language, world: World) -> Option<Vec<File>> {
    let agent_s = match (world, language) {
        (World::Policy, _) => &[],
        (World::Agent, Language::Rust) => AGENT_RUST,
        (World::Agent, Language::Python) => AGENT_PYTHON,
        (World::Agent, Language::Js) => AGENT_JS,
        (World::Agent, Language::Ts) => AGENT_TS,
        (World::Agent, Language::C) => return None,
    };
    let policy_s = match language {
        Language::Rust => RUST,
        Language::Python => PYTHON,
        Language::Js => JS,
        Language::Ts => TS,
        Language::C => C,
    };
    let is_kept = |(file, _): &&File| agent_s.iter().all(|(other, _)| other != file);
    Some(policy_s.iter().filter(is_kept).chain(agent_s).copied().collect())
}

const RUST: &[File] = &[
    ("Cargo.toml", include_str!("../../../../sdk/templates/rust/Cargo.toml")),
    (".cargo/config.toml", include_str!("../../../../sdk/templates/rust/cargo-config.toml")),
    ("src/lib.rs", include_str!("../../../../sdk/templates/rust/src/lib.rs")),
    ("README.md", include_str!("../../../../sdk/templates/rust/README.md")),
    (".gitignore", include_str!("../../../../sdk/templates/rust/gitignore")),
];

const PYTHON: &[File] = &[
    ("app.py", include_str!("../../../../sdk/templates/python/app.py")),
    ("test_app.py", include_str!("../../../../sdk/templates/python/test_app.py")),
    ("requirements.txt", include_str!("../../../../sdk/templates/python/requirements.txt")),
    ("README.md", include_str!("../../../../sdk/templates/python/README.md")),
    (".gitignore", include_str!("../../../../sdk/templates/python/gitignore")),
];

const JS: &[File] = &[
    ("package.json", include_str!("../../../../sdk/templates/js/package.json")),
    ("src/plugin.js", include_str!("../../../../sdk/templates/js/src/plugin.js")),
    ("test/plugin.test.js", include_str!("../../../../sdk/templates/js/test/plugin.test.js")),
    ("README.md", include_str!("../../../../sdk/templates/js/README.md")),
    (".gitignore", include_str!("../../../../sdk/templates/js/gitignore")),
    (".npmrc", include_str!("../../../../sdk/templates/js/npmrc")),
];

const TS: &[File] = &[
    ("package.json", include_str!("../../../../sdk/templates/ts/package.json")),
    ("tsconfig.json", include_str!("../../../../sdk/templates/ts/tsconfig.json")),
    ("src/plugin.ts", include_str!("../../../../sdk/templates/ts/src/plugin.ts")),
    ("test/plugin.test.ts", include_str!("../../../../sdk/templates/ts/test/plugin.test.ts")),
    ("README.md", include_str!("../../../../sdk/templates/ts/README.md")),
    (".gitignore", include_str!("../../../../sdk/templates/ts/gitignore")),
    (".npmrc", include_str!("../../../../sdk/templates/ts/npmrc")),
];

/// What an agent has in place of a policy's files, and beside them.
const AGENT_RUST: &[File] = &[
    ("src/lib.rs", include_str!("../../../../sdk/templates/agent/rust/src/lib.rs")),
    ("README.md", include_str!("../../../../sdk/templates/agent/rust/README.md")),
    ("manifest.json", include_str!("../../../../sdk/templates/agent/manifest.json")),
];

const AGENT_PYTHON: &[File] = &[
    ("app.py", include_str!("../../../../sdk/templates/agent/python/app.py")),
    ("test_app.py", include_str!("../../../../sdk/templates/agent/python/test_app.py")),
    ("README.md", include_str!("../../../../sdk/templates/agent/python/README.md")),
    ("manifest.json", include_str!("../../../../sdk/templates/agent/manifest.json")),
];

const AGENT_JS: &[File] = &[
    ("src/plugin.js", include_str!("../../../../sdk/templates/agent/js/src/plugin.js")),
    ("test/plugin.test.js", include_str!("../../../../sdk/templates/agent/js/test/plugin.test.js")),
    ("README.md", include_str!("../../../../sdk/templates/agent/js/README.md")),
    ("manifest.json", include_str!("../../../../sdk/templates/agent/manifest.json")),
];

const AGENT_TS: &[File] = &[
    ("src/plugin.ts", include_str!("../../../../sdk/templates/agent/ts/src/plugin.ts")),
    ("test/plugin.test.ts", include_str!("../../../../sdk/templates/agent/ts/test/plugin.test.ts")),
    ("README.md", include_str!("../../../../sdk/templates/agent/ts/README.md")),
    ("manifest.json", include_str!("../../../../sdk/templates/agent/manifest.json")),
];

const C: &[File] = &[
    ("plugin.c", include_str!("../../../../sdk/templates/c/plugin.c")),
    ("rules.h", include_str!("../../../../sdk/templates/c/rules.h")),
    ("test_rules.c", include_str!("../../../../sdk/templates/c/test_rules.c")),
    ("requirements.txt", include_str!("../../../../sdk/templates/c/requirements.txt")),
    ("README.md", include_str!("../../../../sdk/templates/c/README.md")),
    (".gitignore", include_str!("../../../../sdk/templates/c/gitignore")),
    ("build.py", include_str!("../../../../sdk/c/build.py")),
    ("tenon.h", include_str!("../../../../sdk/c/tenon.h")),
    ("wit/agent.wit", include_str!("../../../../wit/agent.wit")),
    ("wit/deps/wasi-clocks/clocks.wit", include_str!("../../../../wit/deps/wasi-clocks/clocks.wit")),
    ("wit/deps/wasi-config/config.wit", include_str!("../../../../wit/deps/wasi-config/config.wit")),
    ("wit/deps/wasi-http/http.wit", include_str!("../../../../wit/deps/wasi-http/http.wit")),
    ("wit/deps/wasi-io/io.wit", include_str!("../../../../wit/deps/wasi-io/io.wit")),
    ("wit/deps/wasi-keyvalue/keyvalue.wit", include_str!("../../../../wit/deps/wasi-keyvalue/keyvalue.wit")),
    ("wit/deps/wasi-logging/logging.wit", include_str!("../../../../wit/deps/wasi-logging/logging.wit")),
    ("wit/imports.wit", include_str!("../../../../wit/imports.wit")),
    ("wit/policy.wit", include_str!("../../../../wit/policy.wit")),
    ("wit/types.wit", include_str!("../../../../wit/types.wit")),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    use super::*;

    const LANGUAGES: [Language; 5] = [Language::Rust, Language::Python, Language::Js, Language::Ts, Language::C];

    fn repository() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").to_path_buf()
    }

    /// The contract's files, below `wit`.
    fn contract(folder: &Path, below: &str, found: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
            let name = format!("{below}/{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                contract(&entry.path(), &name, found);
            } else if name.ends_with(".wit") {
                found.insert(name, std::fs::read_to_string(entry.path()).expect("text"));
            }
        }
    }

    #[test]
    fn a_project_is_what_the_page_of_the_templates_says() {
        let templates = repository().join("sdk/templates");
        let page = std::fs::read_to_string(templates.join("README.md")).expect("the page");
        assert_eq!(of(Language::C, World::Agent), None);
        let agents = LANGUAGES.into_iter().filter(|language| *language != Language::C);
        let worlds = LANGUAGES.map(|language| (language, World::Policy)).into_iter();
        for (language, world) in worlds.chain(agents.map(|language| (language, World::Agent))) {
            let mut listed = BTreeMap::new();
            let own = format!("{}/", language.name());
            let agent_s = [format!("agent/{own}"), "agent/manifest.json".to_owned()];
            for line in page.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")) {
                let Some((template, written)) = line.split_once(" | ") else { continue };
                let template = template.trim_end_matches(" (`{{sdk}}`)");
                let is_agent_s = world == World::Agent && agent_s.iter().any(|own| template.starts_with(own.as_str()));
                // An agent's files come after those that they replace.
                if is_agent_s
                    || template.starts_with(own.as_str())
                    || (language == Language::C && template.starts_with("../c/"))
                {
                    let text = std::fs::read_to_string(templates.join(template)).expect(template);
                    listed.insert(written.to_owned(), text);
                }
            }
            if language == Language::C {
                contract(&repository().join("wit"), "wit", &mut listed);
            }
            let own: BTreeMap<String, String> = of(language, world)
                .expect("files")
                .into_iter()
                .map(|(file, text)| (file.to_owned(), text.to_owned()))
                .collect();
            assert!(own.len() >= 4, "{language:?}");
            assert_eq!(own.contains_key("manifest.json"), world == World::Agent);
            assert_eq!(own.keys().collect::<Vec<_>>(), listed.keys().collect::<Vec<_>>(), "{language:?}");
            assert!(own == listed, "{language:?}: a file has another text");
        }
    }
}
