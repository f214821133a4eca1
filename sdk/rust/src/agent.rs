//! A plugin that drives its own generations: sessions that hold a prompt, grow and are forked. Natively the harness answers. Not here:
//! plugins that only decide (`policy.rs`).

use crate::{Chunk, CompositionEntry, Error, Prompt, Request, Result, Sampling, StopConditions, Usage};

pub use crate::bindings::agent::exports::tenon::plugin::driver::Answer;
pub use crate::bindings::agent::tenon::plugin::sessions::{Bounds, Generated, Opening, Step};

#[cfg(not(target_arch = "wasm32"))]
use crate::testing::agents as sys;

#[cfg(target_arch = "wasm32")]
use crate::bindings::agent::tenon::plugin::{output as sys_output, sessions as sys};

/// A plugin of world `agent`. The manifest must set `grants.generations` for it to generate.
pub trait Agent: 'static {
    /// Called once for each request. What it wrote with [`write`] goes out first, then the answer's text.
    fn run(request: &Request) -> Result<Answer>;
}

/// Sends text to the caller now. Waits while the caller is slow to read.
pub fn write(text: &str) -> Result<()> {
    #[cfg(target_arch = "wasm32")]
    return Ok(sys_output::write(text)?);
    #[cfg(not(target_arch = "wasm32"))]
    Ok(sys::write(text)?)
}

/// A prompt under a composition, which grows by what is appended and generated. Dropping it gives back what it holds.
#[derive(Debug)]
pub struct Session(sys::Session);

impl Session {
    /// A session that begins so.
    pub fn open(opening: &Opening) -> Result<Self> {
        Ok(Self(sys::Session::open(opening)?))
    }

    /// Tokens that it holds.
    pub fn tokens(&self) -> u32 {
        self.0.tokens()
    }

    /// Adds text, special tokens included; how many tokens it holds then.
    pub fn append(&self, text: &str) -> Result<u32> {
        Ok(self.0.append(text)?)
    }

    /// Generates to the end; what was generated stays in the session.
    pub fn generate(&self, bounds: &Bounds) -> Result<Generated> {
        Ok(self.0.generate(bounds)?)
    }

    /// Generates, and hands over text as it is decoded.
    pub fn stream(&self, bounds: &Bounds, mut each: impl FnMut(Chunk) -> Result<()>) -> Result<Usage> {
        self.0.start(bounds)?;
        loop {
            match self.0.next()? {
                Step::Text(chunk) => each(chunk).inspect_err(|_| self.0.stop())?,
                Step::Done(usage) => return Ok(usage),
            }
        }
    }

    /// Begins to generate; [`Self::next`] gives the text.
    pub fn start(&self, bounds: &Bounds) -> Result<()> {
        Ok(self.0.start(bounds)?)
    }

    /// What comes next of what was started.
    pub fn next(&self) -> Result<Step> {
        Ok(self.0.next()?)
    }

    /// Ends what was started; what was read of it stays in the session.
    pub fn stop(&self) {
        self.0.stop();
    }

    /// Another session that holds the same. What both begin with is computed once.
    pub fn fork(&self) -> Result<Self> {
        Ok(Self(self.0.fork()?))
    }
}

impl Opening {
    /// This prompt on the base alone; greedy.
    pub fn new(prompt: Prompt) -> Self {
        let stop = StopConditions { strings: Vec::new(), token_ids: Vec::new(), ignore_eos: false };
        Self { prompt, composition: Vec::new(), sampling: Sampling::default(), stop, cold: None }
    }

    /// Adds an adapter, by alias or digest.
    #[must_use]
    pub fn adapter(mut self, adapter: impl Into<String>, weight: f32) -> Self {
        self.composition.push(CompositionEntry::whole(adapter, weight));
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
}

impl Bounds {
    /// As the session was opened.
    pub const fn new() -> Self {
        Self { max_tokens: None, sampling: None, stop: None, constraint: None }
    }

    /// At most so many tokens; `None` leaves it to the function's default.
    pub fn tokens(tokens: impl Into<Option<u32>>) -> Self {
        Self { max_tokens: tokens.into(), ..Self::new() }
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self::new()
    }
}

impl Generated {
    /// The mean log-probability of its tokens; an error if the sampling did not ask for any.
    pub fn mean_logprob(&self) -> Result<f32> {
        let logprobs: Option<Vec<f32>> = self.tokens.iter().map(|token| token.logprob).collect();
        let logprobs =
            logprobs.ok_or_else(|| Error("no log-probabilities: set `logprobs` in the sampling".to_owned()))?;
        Ok(logprobs.iter().sum::<f32>() / logprobs.len().max(1) as f32)
    }
}

impl Answer {
    /// This text, after what was written.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), metadata: Vec::new(), claims: Vec::new() }
    }

    /// With one more pair of metadata.
    #[must_use]
    pub fn metadata(mut self, name: &str, value: impl Into<String>) -> Self {
        self.metadata.push(crate::Pair { name: name.to_owned(), value: value.into() });
        self
    }
}

impl Default for Answer {
    /// Nothing but what was written.
    fn default() -> Self {
        Self::text("")
    }
}
