//! `functions`: calls of other functions. While one runs, the time of the call that made it stands still: the other function has
//! limits of its own, and the request its deadline.

use crate::bindings::tenon::plugin::functions::{Host, HostError, Input, Reply};
use crate::convert::{error_to_wit, pair_to_wit, usage_to_wit};
use crate::meter::NestedWait;
use crate::state::InstanceState;
use crate::{CallInput, CapabilityError, FunctionReply};

impl Host for InstanceState {
    async fn call(
        &mut self,
        function: String,
        input: Input,
        max_tokens: Option<u32>,
    ) -> wasmtime::Result<Result<Reply, HostError>> {
        self.count_host_call()?;
        let input = match input {
            Input::Text(text) => CallInput::Text(text),
            Input::Json(json) => CallInput::Json(json),
        };
        let called = self.called(function, input, max_tokens).await;
        Ok(called.map(reply_to_wit).map_err(error_to_wit))
    }
}

impl InstanceState {
    async fn called(
        &mut self,
        function: String,
        input: CallInput,
        max_tokens: Option<u32>,
    ) -> Result<FunctionReply, CapabilityError> {
        let max = self.limits.function_calls_max;
        let over = || CapabilityError::Limit(format!("function_calls_max of {max} calls in one request"));
        self.left.function_calls = self.left.function_calls.checked_sub(1).ok_or_else(over)?;
        let _waiting = NestedWait::begin(&self.meter);
        self.session.functions.call(function, input, max_tokens).await
    }
}

fn reply_to_wit(reply: FunctionReply) -> Reply {
    let FunctionReply { text, function, version, usage, metadata, receipt } = reply;
    let metadata = metadata.iter().map(pair_to_wit).collect();
    Reply { text, function, version, usage: usage_to_wit(usage), metadata, receipt }
}
