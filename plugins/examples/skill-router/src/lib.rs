//! Chooses one adapter by what the request is about, among those that are granted, and asks it the way it was trained.
//! Answers by itself, without generating, when no skill fits.

use tenon_sdk::{Decision, Plan, Policy, Prompt, Request, Result, catalog, log};

struct Skill {
    adapter: &'static str,
    system: &'static str,
    fits: fn(&str) -> bool,
}

/// The first that fits and is granted is taken.
const SKILLS: [Skill; 3] = [
    Skill { adapter: "iso-date", system: "ISO date.", fits: is_date },
    Skill { adapter: "sentiment-json", system: "Sentiment as JSON.", fits: is_review },
    Skill { adapter: "all-caps", system: "Answer the question.", fits: is_question },
];

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const REVIEWED: [&str; 7] = ["review", "i bought", "i like", "i love", "i hate", "the movie", "the service"];
const ASKING: [&str; 9] = ["what", "who", "why", "how", "where", "when", "give me", "tell me", "can you"];

pub struct SkillRouter;

impl Policy for SkillRouter {
    fn route(request: &Request) -> Result<Decision> {
        Ok(match choose(&request.text)? {
            Some(_) => Decision::Serve,
            None => Decision::Answer("No skill fits: send a date, a review or a question.".to_owned()),
        })
    }

    fn compose(request: &Request) -> Result<Plan> {
        let skill = choose(&request.text)?.ok_or("no skill fits")?;
        log::info(&format!("chose {}", skill.adapter));
        let prompt = Prompt::chat(skill.system, &request.text);
        Ok(Plan::new(prompt).adapter(skill.adapter, 1.0).token_budget(request.max_tokens.or(Some(48))))
    }
}

fn choose(text: &str) -> Result<Option<&'static Skill>> {
    let text = text.trim().to_lowercase();
    let granted = catalog::adapters()?;
    let usable = |skill: &&Skill| (skill.fits)(&text) && granted.iter().any(|adapter| adapter.alias == skill.adapter);
    Ok(SKILLS.iter().find(usable))
}

/// A short text with a year or day in digits, and a month's name or number.
fn is_date(text: &str) -> bool {
    let mut words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let month = words.clone().any(|word| MONTHS.iter().any(|month| word.starts_with(month)));
    let numbers = words.clone().filter(|word| word.bytes().next().is_some_and(|c| c.is_ascii_digit())).count();
    words.by_ref().count() <= 6 && (month && numbers >= 1 || numbers >= 3)
}

fn is_review(text: &str) -> bool {
    REVIEWED.iter().any(|sign| text.contains(sign))
}

fn is_question(text: &str) -> bool {
    text.ends_with('?') || ASKING.iter().any(|word| text.starts_with(word))
}

tenon_sdk::export_policy!(SkillRouter);

#[cfg(test)]
mod tests;
