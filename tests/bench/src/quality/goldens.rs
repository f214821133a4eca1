//! Golden outputs of transformers and PEFT on the base dequantised to f32, and how well a path agrees with them: the
//! log-probabilities after a prompt, and the greedy answer, token by token after the golden ones. Not here: how they were made
//! (`lora/scripts` of the larger sets).

use std::path::Path;

use serde_json::{Map, Value, json};

use super::divergence::{best, log_sum_exp};
use super::{Composition, Forward};
use crate::Outcome;
use crate::report::rounded;

/// `golden.json`.
pub(super) struct Goldens {
    prompts: Map<String, Value>,
    configurations: Map<String, Value>,
}

/// How a path agrees with one configuration's goldens.
#[derive(Clone, Debug, Default)]
pub(super) struct Agreement {
    /// Of the 20 most likely tokens after each prompt: the absolute error of the log-probability.
    errors: Vec<f64>,
    /// Greedy tokens that were compared, and those that are equal.
    compared: usize,
    equal: usize,
    /// Answers that are equal from beginning to end, and all.
    whole: usize,
    answers: usize,
}

impl Goldens {
    /// # Errors
    /// If the file is not there or not what it should be.
    pub(super) fn read(path: &Path) -> Outcome<Self> {
        let bytes = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let all: Value = serde_json::from_slice(&bytes)?;
        let member = |name: &str| {
            let member = all.get(name).and_then(Value::as_object).cloned();
            member.ok_or_else(|| format!("{} has no `{name}`", path.display()))
        };
        Ok(Self { prompts: member("prompts")?, configurations: member("configs")? })
    }

    /// Name and composition of each.
    pub(super) fn configurations(&self) -> impl Iterator<Item = (String, Composition)> + '_ {
        self.configurations.iter().map(|(name, configuration)| {
            let adapters = configuration.get("adapters").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let one = |adapter: &Value| {
                Some((adapter.get("name")?.as_str()?.to_owned(), adapter.get("weight")?.as_f64()? as f32))
            };
            (name.clone(), adapters.iter().filter_map(one).collect())
        })
    }

    /// Runs every prompt of a configuration.
    ///
    /// # Errors
    /// If a golden is not what it should be, or a step fails.
    pub(super) fn compare(&self, name: &str, composition: &Composition, forward: &mut Forward) -> Outcome<Agreement> {
        let mut agreement = Agreement::default();
        let results = self.configurations.get(name).and_then(|all| all.get("results")).and_then(Value::as_object);
        for (prompt, result) in results.into_iter().flatten() {
            let ids = self.prompts.get(prompt).and_then(|prompt| prompt.get("ids")).and_then(tokens);
            let ids = ids.ok_or_else(|| format!("golden.json has no tokens of {prompt}"))?;
            let greedy = result.get("greedy_ids").and_then(tokens).unwrap_or_default();
            let all: Vec<u32> = ids.iter().chain(greedy.iter().take(greedy.len().saturating_sub(1))).copied().collect();
            let logits = forward.logits(&all, ids.len() - 1..all.len(), composition)?;
            let rows: Vec<&[f32]> = logits.chunks_exact(forward.vocabulary()).collect();
            agreement.add_prompt(rows.first().copied().unwrap_or_default(), result);
            agreement.add_answer(&rows, &greedy, result);
        }
        Ok(agreement)
    }
}

impl Agreement {
    fn add_prompt(&mut self, logits: &[f32], result: &Value) {
        let Some(golden_norm) = result.get("logsumexp").and_then(Value::as_f64) else { return };
        let norm = log_sum_exp(logits);
        for entry in result.get("top20").and_then(Value::as_array).into_iter().flatten() {
            let (id, logit) = (entry.get(0).and_then(Value::as_u64), entry.get(1).and_then(Value::as_f64));
            let found = id.and_then(|id| logits.get(id as usize));
            if let (Some(found), Some(logit)) = (found, logit) {
                self.errors.push(((f64::from(*found) - norm) - (logit - golden_norm)).abs());
            }
        }
    }

    /// The answer up to its end-of-sequence token: what a reader sees.
    fn add_answer(&mut self, rows: &[&[f32]], greedy: &[u32], result: &Value) {
        let end = result.get("first_im_end_index").and_then(Value::as_u64).map_or(greedy.len(), |end| end as usize + 1);
        let pairs = rows.iter().zip(greedy).take(end);
        let equal = pairs.clone().filter(|(row, id)| best(row) == Some(**id as usize)).count();
        self.compared += pairs.len();
        self.equal += equal;
        self.answers += usize::from(!greedy.is_empty());
        self.whole += usize::from(!greedy.is_empty() && equal == pairs.len());
    }

    /// A row of the report.
    pub(super) fn json(&self, name: &str, path: &str) -> Value {
        let mean = self.errors.iter().sum::<f64>() / self.errors.len().max(1) as f64;
        json!({
            "golden": name, "path": path, "greedy_tokens_equal": format!("{}/{}", self.equal, self.compared),
            "answers_equal": format!("{}/{}", self.whole, self.answers), "logprob_error_mean": rounded(mean),
            "logprob_error_max": rounded(self.errors.iter().copied().fold(0.0, f64::max)),
        })
    }
}

fn tokens(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_up_to_its_end() {
        let rows: [&[f32]; 3] = [&[0.0, 1.0], &[1.0, 0.0], &[0.0, 1.0]];
        let mut agreement = Agreement::default();
        // The third token lies behind the end and is wrong.
        agreement.add_answer(&rows, &[1, 0, 0], &json!({"first_im_end_index": 1}));
        assert_eq!((agreement.equal, agreement.compared, agreement.whole, agreement.answers), (2, 2, 1, 1));
        agreement.add_answer(&rows, &[1, 0, 0], &json!({"first_im_end_index": null}));
        assert_eq!((agreement.equal, agreement.compared, agreement.whole, agreement.answers), (4, 5, 1, 2));
    }

    #[test]
    fn errors_are_of_log_probabilities_and_not_of_logits() {
        let mut agreement = Agreement::default();
        // All logits moved by 3: the same distribution.
        let golden = json!({"top20": [[0, 1.0, "a"], [1, 0.0, "b"]], "logsumexp": (1f64.exp() + 1.0).ln()});
        agreement.add_prompt(&[4.0, 3.0], &golden);
        assert!(agreement.errors.len() == 2 && agreement.errors.iter().all(|error| *error < 1e-6), "{agreement:?}");
        agreement.add_prompt(&[4.0, 2.0], &golden);
        assert!(agreement.errors.iter().any(|error| *error > 0.1));
    }

    #[test]
    fn the_committed_goldens_can_be_read() {
        let path = crate::machine::repository().join("tests/fixtures/lora/golden/golden.json");
        let goldens = Goldens::read(&path).expect("goldens");
        let all: Vec<(String, Composition)> = goldens.configurations().collect();
        assert!(all.iter().any(|(name, composition)| name == "base" && composition.is_empty()));
        assert!(all.iter().any(|(_, composition)| composition.len() > 1));
    }
}
