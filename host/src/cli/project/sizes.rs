//! What a component takes when it is started, as far as its bytes say, beside what a host with the default limits gives. Not here: what
//! it takes when it runs, which the sandbox counts.

use plugin::PluginLimits;
use serde_json::{Value, json};
use wasmparser::{Instance, Parser, Payload};

/// Bytes of a page of linear memory.
const PAGE_BYTES: u64 = 64 << 10;

/// Counted over all core modules in a component. A module that is instantiated twice counts its memories and tables once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    modules: u64,
    code_bytes: u64,
    core_instances: u64,
    memories: u64,
    memory_bytes: u64,
    tables: u64,
    table_elements: u64,
}

impl Sizes {
    /// Of a component that was found to be one.
    pub(super) fn of(bytes: &[u8]) -> Result<Self, wasmparser::BinaryReaderError> {
        let mut sizes = Self::default();
        for payload in Parser::new(0).parse_all(bytes) {
            match payload? {
                Payload::ModuleSection { .. } => sizes.modules += 1,
                Payload::CodeSectionStart { size, .. } => sizes.code_bytes += u64::from(size),
                Payload::InstanceSection(instances) => {
                    for instance in instances {
                        sizes.core_instances += u64::from(matches!(instance?, Instance::Instantiate { .. }));
                    }
                }
                Payload::MemorySection(memories) => {
                    for memory in memories {
                        sizes.memories += 1;
                        sizes.memory_bytes =
                            sizes.memory_bytes.saturating_add(memory?.initial.saturating_mul(PAGE_BYTES));
                    }
                }
                Payload::TableSection(tables) => {
                    for table in tables {
                        sizes.tables += 1;
                        sizes.table_elements = sizes.table_elements.saturating_add(table?.ty.initial);
                    }
                }
                _ => {}
            }
        }
        Ok(sizes)
    }

    /// Each with the limit that it is held to, and that one's name.
    fn rows(&self) -> [(&'static str, u64, &'static str, u64); 5] {
        let limits = PluginLimits::default();
        [
            ("core_instances", self.core_instances, "core_instances_max", limits.core_instances_max.into()),
            ("memories", self.memories, "memories_max", limits.memories_max.into()),
            ("memory_bytes", self.memory_bytes, "memory_bytes_max", limits.memory_bytes_max as u64),
            ("tables", self.tables, "tables_max", limits.tables_max.into()),
            ("table_elements", self.table_elements, "table_elements_max", limits.table_elements_max as u64),
        ]
    }

    /// What is over its limit already.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        let over =
            |(what, value, limit, max)| (value > max).then(|| format!("its {what} are {value}, over {limit} of {max}"));
        self.rows().into_iter().filter_map(over)
    }

    pub(super) fn json(&self) -> Value {
        let rows = self.rows().into_iter();
        let rows = rows.map(|(what, value, _, max)| (what.to_owned(), json!({"starts_with": value, "max": max})));
        json!({"modules": self.modules, "code_bytes": self.code_bytes, "limits": rows.collect::<serde_json::Map<_, _>>()})
    }

    /// A line for each.
    pub(super) fn lines(found: &Value) -> impl Iterator<Item = String> {
        let number = |name: &str| found.get(name).and_then(Value::as_u64).unwrap_or_default();
        let code = format!("code {} bytes in {} modules", number("code_bytes"), number("modules"));
        let limits = found.get("limits").and_then(Value::as_object).into_iter().flatten().map(|(what, row)| {
            let of = |name: &str| row.get(name).and_then(Value::as_u64).unwrap_or_default();
            format!("{what} {} at its start, of at most {}", of("starts_with"), of("max"))
        });
        std::iter::once(code).chain(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_component_starts_with_is_counted() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/guests/echo.wasm");
        let bytes = std::fs::read(path).expect("a guest");
        let sizes = Sizes::of(&bytes).expect("a component");
        assert!(sizes.modules >= 1 && sizes.core_instances >= 1 && sizes.memories == 1, "{sizes:?}");
        assert!(sizes.code_bytes > 1000 && sizes.code_bytes < bytes.len() as u64, "{sizes:?}");
        assert!(sizes.memory_bytes > 0 && sizes.memory_bytes.is_multiple_of(PAGE_BYTES), "{sizes:?}");
        assert_eq!(sizes.problems().count(), 0);
        let many = Sizes { core_instances: 1000, memory_bytes: 1 << 40, ..sizes };
        let problems: Vec<String> = many.problems().collect();
        assert!(problems[0].contains("core_instances_max") && problems[1].contains("memory_bytes_max"), "{problems:?}");
        assert_eq!(Sizes::lines(&many.json()).count(), 6);
        assert!(Sizes::of(&bytes[..bytes.len() / 2]).is_err());
    }
}
