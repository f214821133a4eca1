//! What a plugin implements.

use crate::{Action, Chunk, Decision, Ending, Plan, Request, Result, Usage};

/// A plugin of world `policy`. The host calls `route`, and `compose` if that said [`Decision::Serve`].
pub trait Policy: 'static {
    /// Serve here (unless overridden), hand over, answer directly, or reject.
    fn route(request: &Request) -> Result<Decision> {
        let _ = request;
        Ok(Decision::Serve)
    }

    /// Prompt, adapters, sampling.
    fn compose(request: &Request) -> Result<Plan>;

    /// Made for each request whose plan has `post_process` set.
    fn post_processor(request: &Request) -> Box<dyn PostProcessor> {
        let _ = request;
        Box::new(PassThrough)
    }
}

/// Sees an answer as it is decoded.
pub trait PostProcessor {
    /// Called with text as it is decoded, in order. The actions are applied in order.
    fn chunk(&mut self, chunk: &Chunk) -> Result<Vec<Action>>;

    /// Called once, after the last chunk. Ends by sending what is held back, unless overridden.
    fn finish(&mut self, usage: &Usage) -> Result<Ending> {
        let _ = usage;
        Ok(Ending { actions: vec![Action::Pass], metadata: Vec::new(), claims: Vec::new() })
    }
}

/// Sends everything as it comes.
#[derive(Clone, Copy, Debug, Default)]
pub struct PassThrough;

impl PostProcessor for PassThrough {
    fn chunk(&mut self, _: &Chunk) -> Result<Vec<Action>> {
        Ok(vec![Action::Pass])
    }
}
