//! Builders for plans and their parts. The neutral plan is greedy, on the base alone, passed through.

use std::ops::{Bound, RangeBounds};

use crate::{Chunk, CompositionEntry, LayerRange, Message, Plan, Prompt, Sampling, Span, StopConditions};

impl Plan {
    /// A greedy plan on the base, passed through.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            composition: Vec::new(),
            sampling: Sampling::default(),
            stop: StopConditions { strings: Vec::new(), token_ids: Vec::new(), ignore_eos: false },
            constraint: None,
            cold: None,
            deadline_ms: None,
            token_budget: None,
            prefetch: Vec::new(),
            post_process: false,
        }
    }

    /// Adds an adapter, by alias or digest, over all its modules and layers.
    #[must_use]
    pub fn adapter(mut self, adapter: impl Into<String>, weight: f32) -> Self {
        self.composition.push(CompositionEntry::whole(adapter, weight));
        self
    }

    /// Adds any composition entry.
    #[must_use]
    pub fn entry(mut self, entry: CompositionEntry) -> Self {
        self.composition.push(entry);
        self
    }

    /// Has an adapter loaded that this answer may switch to, or that the next request is likely to need. Nothing waits for it.
    #[must_use]
    pub fn prefetch(mut self, adapter: impl Into<String>) -> Self {
        self.prefetch.push(adapter.into());
        self
    }

    /// Sets the sampling.
    #[must_use]
    pub fn sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// Stops before this text appears.
    #[must_use]
    pub fn stop_at(mut self, text: impl Into<String>) -> Self {
        self.stop.strings.push(text.into());
        self
    }

    /// At most this many tokens are generated. `None` leaves it to the function's limit, which is also what the host
    /// applies on top.
    #[must_use]
    pub fn token_budget(mut self, tokens: impl Into<Option<u32>>) -> Self {
        self.token_budget = tokens.into();
        self
    }

    /// Asks for the post-processor.
    #[must_use]
    pub fn post_processed(mut self) -> Self {
        self.post_process = true;
        self
    }
}

impl CompositionEntry {
    /// The whole adapter with this weight.
    pub fn whole(adapter: impl Into<String>, weight: f32) -> Self {
        Self { adapter: adapter.into(), weight, modules: None, layers: None, span: Span::Whole }
    }

    /// The same, acting on these tokens of the answer only (`4..`, `..4`, `2..6`), counted from 0.
    #[must_use]
    pub fn on_output(mut self, tokens: impl RangeBounds<u32>) -> Self {
        let after = |bound: &u32| bound.saturating_add(1);
        let first = match tokens.start_bound() {
            Bound::Included(first) => *first,
            Bound::Excluded(before) => after(before),
            Bound::Unbounded => 0,
        };
        self.span = match tokens.end_bound() {
            Bound::Included(last) => Span::Output(LayerRange { first, end: after(last) }),
            Bound::Excluded(end) => Span::Output(LayerRange { first, end: *end }),
            Bound::Unbounded => Span::OutputFrom(first),
        };
        self
    }
}

impl Prompt {
    /// A system prompt and one question.
    pub fn chat(system: &str, user: &str) -> Self {
        Self::Messages(vec![Message::new("system", system), Message::new("user", user)])
    }
}

impl Message {
    /// One turn.
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.to_owned(), content: content.to_owned() }
    }
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            logprobs: None,
        }
    }
}

impl Chunk {
    /// Text alone, for tests.
    pub fn of_text(text: &str) -> Self {
        Self { text: text.to_owned(), tokens: Vec::new() }
    }
}
