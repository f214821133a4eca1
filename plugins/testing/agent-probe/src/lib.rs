//! Does what the request's text says, a command a line, so that a test can have an agent do anything; the answer is a line for each
//! command that has something to say, errors included. `open S PROMPT`, `adapted S ADAPTER PROMPT`, `append S TEXT`, `gen S TOKENS`,
//! `draw S TOKENS SEED`, `until S STOP`, `json S SCHEMA`, `start S TOKENS`, `next S`, `read S`, `stop S`, `fork S NEW`, `keep S`, `drop S`,
//! `tokens S`, `write TEXT`, `call FUNCTION TEXT`, `repeat COUNT COMMAND`, `big COUNT` (writes so many bytes), `spin`, `trap`, `fail TEXT`.

use tenon_sdk::agent::{Bounds, Opening, Session, Step, write};
use tenon_sdk::{
    Agent, Answer, Constraint, Error, FinishReason, Prompt, Request, Result, Sampling, StopConditions, functions,
};

struct Probe;

#[derive(Default)]
struct Machine {
    sessions: Vec<(String, Session)>,
    kept: Vec<Session>,
    lines: Vec<String>,
}

impl Agent for Probe {
    fn run(request: &Request) -> Result<Answer> {
        let mut machine = Machine::default();
        for line in request.text.lines() {
            if let Some(reason) = line.strip_prefix("fail ") {
                return Err(Error::from(reason));
            }
            machine.noted(line);
        }
        Ok(Answer::text(machine.lines.join("\n")).metadata("lines", machine.lines.len().to_string()))
    }
}

fn number(text: &str) -> Result<u32> {
    text.trim().parse().map_err(|_| Error::from(format!("`{text}` is no number")))
}

impl Machine {
    fn noted(&mut self, line: &str) {
        match self.done(line) {
            Ok(said) if said.is_empty() => {}
            Ok(said) => self.lines.push(said),
            Err(error) => self.lines.push(format!("error: {error}")),
        }
    }

    fn session(&self, name: &str) -> Result<&Session> {
        let found = self.sessions.iter().find(|(other, _)| other == name);
        found.map(|(_, session)| session).ok_or_else(|| Error::from(format!("there is no session {name}")))
    }

    fn put(&mut self, name: &str, session: Session) {
        self.sessions.retain(|(other, _)| other != name);
        self.sessions.push((name.to_owned(), session));
    }

    fn done(&mut self, line: &str) -> Result<String> {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (name, argument) = rest.split_once(' ').unwrap_or((rest, ""));
        match command {
            "open" => {
                let opening = Opening::new(Prompt::Text(argument.to_owned()));
                self.put(name, Session::open(&opening)?);
            }
            "adapted" => {
                let (adapter, prompt) = argument.split_once(' ').unwrap_or((argument, ""));
                let opening = Opening::new(Prompt::Text(prompt.to_owned())).adapter(adapter, 1.0);
                self.put(name, Session::open(&opening)?);
            }
            "append" => return Ok(self.session(name)?.append(argument)?.to_string()),
            "tokens" => return Ok(self.session(name)?.tokens().to_string()),
            "gen" => return generated(self.session(name)?, &Bounds::tokens(number(argument)?)),
            "draw" => {
                let (tokens, seed) = argument.split_once(' ').unwrap_or((argument, "0"));
                let sampling =
                    Sampling { temperature: 1.0, seed: Some(number(seed)?), logprobs: Some(0), ..Sampling::default() };
                let bounds = Bounds { sampling: Some(sampling), ..Bounds::tokens(number(tokens)?) };
                return generated(self.session(name)?, &bounds);
            }
            "until" => {
                let strings = vec![argument.to_owned()];
                let stop = StopConditions { strings, token_ids: Vec::new(), ignore_eos: false };
                return generated(self.session(name)?, &Bounds { stop: Some(stop), ..Bounds::tokens(64) });
            }
            "json" => {
                let constraint = Some(Constraint::JsonSchema(argument.to_owned()));
                return generated(self.session(name)?, &Bounds { constraint, ..Bounds::tokens(64) });
            }
            "start" => self.session(name)?.start(&Bounds::tokens(number(argument)?))?,
            "next" => {
                return Ok(match self.session(name)?.next()? {
                    Step::Text(chunk) => format!("text {}", chunk.text),
                    Step::Done(usage) => format!("done {}", usage.completion_tokens),
                });
            }
            "read" => {
                while let Step::Text(chunk) = self.session(name)?.next()? {
                    write(&chunk.text)?;
                }
            }
            "stop" => self.session(name)?.stop(),
            "fork" => {
                let forked = self.session(name)?.fork()?;
                self.put(argument, forked);
            }
            "keep" => {
                let forked = self.session(name)?.fork()?;
                self.kept.push(forked);
            }
            "drop" => self.sessions.retain(|(other, _)| other != name),
            "write" => write(rest)?,
            "big" => write(&"x".repeat(number(name)? as usize))?,
            "call" => {
                let reply = functions::call(name, argument)?;
                return Ok(format!("{} {} said {}", reply.function, reply.version, reply.text));
            }
            "repeat" => {
                for _ in 0..number(name)? {
                    let said = self.done(argument)?;
                    if !said.is_empty() {
                        self.lines.push(said);
                    }
                }
            }
            "spin" => loop {
                std::hint::black_box(0);
            },
            "trap" => panic!("it is told to trap"),
            other => return Err(Error::from(format!("there is no command `{other}`"))),
        }
        Ok(String::new())
    }
}

/// The text, how many tokens there were before, how many it has, why it ended, and how likely they were, in thousandths.
fn generated(session: &Session, bounds: &Bounds) -> Result<String> {
    let generated = session.generate(bounds)?;
    let usage = generated.usage;
    let likely = generated.mean_logprob().map_or(String::new(), |mean| format!(" {}", (mean * 1000.0) as i32));
    let finish = match usage.finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        _ => "other",
    };
    let text = generated.text.replace('\n', "\\n");
    Ok(format!("{text}|{}+{} {finish}{likely}", usage.prompt_tokens, usage.completion_tokens))
}

tenon_sdk::export_agent!(Probe);

#[cfg(test)]
mod tests {
    use tenon_sdk::testing::{Harness, request};

    use super::*;

    #[test]
    fn it_does_as_it_is_told() {
        let harness = Harness::new().says("one", -1.0).says("two", -1.0).replies("other", "yes");
        let script = "open a hi\nfork a b\ngen a 10\ngen b 2\ntokens a\nwrite so:\ncall other?\ncall other now\nnext a";
        let (text, _) = harness.run::<Probe>(&request(script)).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "so:one|2+3 stop -1000");
        assert_eq!(lines[1..3], ["tw|2+2 length -1000", "5"]);
        assert!(lines[3].starts_with("error: denied") && lines[4] == "other 1 said yes", "{text}");
        assert!(lines[5].starts_with("error: failed"), "{text}");
    }
}
