//! Passes more text, or longer lists, than the host should take: where, the request's text says. The `lying` ones give the
//! host a place and a length that do not lie in the guest's memory.

use tenon_sdk::{
    Action, Chunk, Decision, Ending, Message, Pair, Plan, Policy, PostProcessor, Prompt, Rejection, Request, Result,
    Usage, catalog, config, log,
};

/// More than one call may pass, and less than the memory.
const HUGE_BYTES: usize = 12 << 20;
/// Less than one call may pass.
const LARGE_BYTES: usize = 3 << 20;
const MANY: usize = 400_000;

struct HugeStrings;

fn huge() -> String {
    "x".repeat(HUGE_BYTES)
}

impl Policy for HugeStrings {
    fn route(request: &Request) -> Result<Decision> {
        match request.text.as_str() {
            "answer" => return Ok(Decision::Answer(huge())),
            "reject" => return Ok(Decision::Reject(Rejection { code: "huge".to_owned(), reason: huge() })),
            "error" => return Err(huge().into()),
            "long-error" => return Err("e\n".repeat(LARGE_BYTES / 2).into()),
            "log" => log::info(&huge()),
            "config" => drop(config::get(&huge())),
            "prefetch" => drop(catalog::prefetch(&vec![String::new(); MANY])),
            "lying-string" => lying::string(),
            "lying-list" => lying::list(),
            _ => return Ok(Decision::Serve),
        }
        Ok(Decision::Answer("the host took it".to_owned()))
    }

    fn compose(request: &Request) -> Result<Plan> {
        let mut plan = Plan::new(request.prompt()).token_budget(request.max_tokens).post_processed();
        match request.text.as_str() {
            "plan-text" => plan.prompt = Prompt::Text(huge()),
            "plan-messages" => plan.prompt = Prompt::Messages(vec![Message::new("", ""); MANY]),
            "plan-stops" => plan.stop.token_ids = vec![1; 4 * MANY],
            "plan-adapter" => plan = plan.adapter("a".repeat(LARGE_BYTES), 1.0),
            _ => {}
        }
        Ok(plan)
    }

    fn post_processor(request: &Request) -> Box<dyn PostProcessor> {
        Box::new(Loud(request.text.clone()))
    }
}

struct Loud(String);

impl PostProcessor for Loud {
    fn chunk(&mut self, _: &Chunk) -> Result<Vec<Action>> {
        Ok(match self.0.as_str() {
            "emit" => vec![Action::Emit(huge())],
            "emit-often" => vec![Action::Emit("x".repeat(LARGE_BYTES)), Action::Pass],
            _ => vec![Action::Pass],
        })
    }

    fn finish(&mut self, _: &Usage) -> Result<Ending> {
        let pair = |bytes| vec![Pair { name: "much".to_owned(), value: "x".repeat(bytes) }];
        let (metadata, claims) = match self.0.as_str() {
            "metadata" => (pair(HUGE_BYTES), Vec::new()),
            "claims" => (Vec::new(), pair(LARGE_BYTES)),
            _ => (Vec::new(), Vec::new()),
        };
        Ok(Ending { actions: vec![Action::Pass], metadata, claims })
    }
}

/// The imports as they are below the bindings, where a guest may say what it likes.
#[cfg(target_arch = "wasm32")]
mod lying {
    #[link(wasm_import_module = "tenon:plugin/log@0.1.0")]
    unsafe extern "C" {
        #[link_name = "write"]
        safe fn write(level: i32, message: i32, bytes: i32);
    }

    #[link(wasm_import_module = "tenon:plugin/catalog@0.1.0")]
    unsafe extern "C" {
        #[link_name = "prefetch"]
        safe fn prefetch(adapters: i32, count: i32, answer: i32);
    }

    /// Two GiB from the middle of the memory on.
    pub(crate) fn string() {
        write(1, 1 << 12, i32::MAX);
    }

    /// So many strings that their size in bytes does not fit 32 bits.
    pub(crate) fn list() {
        prefetch(1 << 12, i32::MAX, 1 << 12);
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod lying {
    pub(crate) fn string() {}
    pub(crate) fn list() {}
}

tenon_sdk::export_policy!(HugeStrings);
