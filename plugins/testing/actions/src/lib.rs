//! Answers each chunk with the actions that its configuration lists, so that a test can play every one. A key is the
//! number of a chunk, counted from 1, or `*` for those that have none, or `finish`; its value is a list of `pass`, `hold`,
//! `stop`, `switch`, `emit:TEXT` and `replace:TEXT`, separated by `|`. In TEXT, `{chunk}` stands for the chunk's own text
//! and `{tokens}` for the number of its tokens. Without a key for it, a chunk is answered with no action. `spans` lists adapters
//! and the tokens of the answer that they act on.

use tenon_sdk::{Action, Chunk, CompositionEntry, Ending, Plan, Policy, PostProcessor, Request, Result, Usage, config};

struct Actions;

impl Policy for Actions {
    fn compose(request: &Request) -> Result<Plan> {
        let mut plan = Plan::new(request.prompt()).token_budget(request.max_tokens).post_processed();
        plan.stop.ignore_eos = config::get("ignore-eos").is_some();
        let spans = config::get("spans").unwrap_or_default();
        plan.composition = spans.split('|').filter(|span| !span.is_empty()).map(entry).collect::<Result<_>>()?;
        Ok(plan)
    }

    fn post_processor(_: &Request) -> Box<dyn PostProcessor> {
        // Once: what is asked of the host for each chunk costs more than all the rest of it.
        Box::new(Scripted { chunks: 0, scripts: config::all() })
    }
}

/// `ADAPTER:FIRST-END` or `ADAPTER:FIRST-`
fn entry(span: &str) -> Result<CompositionEntry> {
    let wrong = || format!("`{span}` is no span");
    let (adapter, range) = span.split_once(':').ok_or_else(wrong)?;
    let (first, end) = range.split_once('-').ok_or_else(wrong)?;
    let number = |text: &str| text.parse::<u32>().map_err(|_| wrong());
    let (entry, first) = (CompositionEntry::whole(adapter, 1.0), number(first)?);
    Ok(if end.is_empty() { entry.on_output(first..) } else { entry.on_output(first..number(end)?) })
}

struct Scripted {
    chunks: u32,
    scripts: Vec<(String, String)>,
}

impl Scripted {
    fn script(&self, name: &str) -> Option<&str> {
        self.scripts.iter().find(|(named, _)| named == name).map(|(_, script)| script.as_str())
    }
}

impl PostProcessor for Scripted {
    fn chunk(&mut self, chunk: &Chunk) -> Result<Vec<Action>> {
        self.chunks += 1;
        let script = self.script(&self.chunks.to_string()).or_else(|| self.script("*")).unwrap_or_default();
        actions(script, chunk)
    }

    fn finish(&mut self, _: &Usage) -> Result<Ending> {
        let script = self.script("finish").unwrap_or_default();
        Ok(Ending { actions: actions(script, &Chunk::of_text(""))?, metadata: Vec::new(), claims: Vec::new() })
    }
}

fn actions(script: &str, chunk: &Chunk) -> Result<Vec<Action>> {
    script.split('|').filter(|word| !word.is_empty()).map(|word| action(word, chunk)).collect()
}

fn action(word: &str, chunk: &Chunk) -> Result<Action> {
    let filled = |text: &str| text.replace("{chunk}", &chunk.text).replace("{tokens}", &chunk.tokens.len().to_string());
    Ok(match word.split_once(':').unwrap_or((word, "")) {
        ("pass", _) => Action::Pass,
        ("hold", _) => Action::Hold,
        ("stop", _) => Action::Stop,
        ("switch", _) => Action::SwitchComposition(Vec::new()),
        ("emit", text) => Action::Emit(filled(text)),
        ("replace", text) => Action::Replace(filled(text)),
        _ => return Err(format!("there is no action `{word}`").into()),
    })
}

tenon_sdk::export_policy!(Actions);

#[cfg(test)]
mod tests {
    use tenon_sdk::testing::{Harness, request};

    use super::*;

    #[test]
    fn the_script_is_played() {
        let harness = Harness::new().config("1", "hold").config("*", "emit:<{chunk}>|pass").config("3", "stop");
        let played = harness.post_process::<Actions>(&request(""), &["a", "b", "c", "d"]).unwrap();
        assert_eq!(played.0, "<b>abc");
        let wrong = Harness::new().config("*", "shout").post_process::<Actions>(&request(""), &["a"]);
        assert!(wrong.unwrap_err().to_string().contains("`shout`"));
    }
}
