//! Ties a [`Policy`] or an [`Agent`] to the generated exports. Not here: anything that a plugin's author calls, but the macro.

use std::cell::RefCell;
use std::marker::PhantomData;

use crate::agent::{Agent, Answer};
use crate::bindings::exports::tenon::plugin::hooks::{Guest, GuestPostProcessor};
use crate::{Action, Chunk, Decision, Ending, Plan, Policy, PostProcessor, Request, Usage};

/// The exports of the policy `P`.
#[doc(hidden)]
pub struct Exported<P>(PhantomData<P>);

/// The exported resource.
#[doc(hidden)]
pub struct Processor<P>(RefCell<Box<dyn PostProcessor>>, PhantomData<P>);

impl<P: Policy> Guest for Exported<P> {
    type PostProcessor = Processor<P>;

    fn route(request: Request) -> Result<Decision, String> {
        P::route(&request).map_err(|error| error.0)
    }

    fn compose(request: Request) -> Result<Plan, String> {
        P::compose(&request).map_err(|error| error.0)
    }
}

impl<P: Policy> GuestPostProcessor for Processor<P> {
    fn new(request: Request) -> Self {
        Self(RefCell::new(P::post_processor(&request)), PhantomData)
    }

    fn chunk(&self, chunk: Chunk) -> Result<Vec<Action>, String> {
        self.0.borrow_mut().chunk(&chunk).map_err(|error| error.0)
    }

    fn finish(&self, usage: Usage) -> Result<Ending, String> {
        self.0.borrow_mut().finish(&usage).map_err(|error| error.0)
    }
}

/// The exports of the agent `A`.
#[doc(hidden)]
pub struct ExportedAgent<A>(PhantomData<A>);

impl<A: Agent> crate::bindings::agent::exports::tenon::plugin::driver::Guest for ExportedAgent<A> {
    fn run(request: Request) -> Result<Answer, String> {
        A::run(&request).map_err(|error| error.0)
    }
}

/// Makes this crate a plugin of world `agent`. Use it once, in a crate of type `cdylib`.
#[macro_export]
macro_rules! export_agent {
    ($agent:ty) => {
        #[doc(hidden)]
        type TenonExportedAgent = $crate::ExportedAgent<$agent>;
        $crate::bindings::agent::export_agent!(TenonExportedAgent with_types_in $crate::bindings::agent);
    };
}

/// Makes this crate a plugin whose policy is the given type. Use it once, in a crate of type `cdylib`.
#[macro_export]
macro_rules! export_policy {
    ($policy:ty) => {
        #[doc(hidden)]
        type TenonExportedPolicy = $crate::Exported<$policy>;
        $crate::bindings::export!(TenonExportedPolicy with_types_in $crate::bindings);
    };
}
