//! `tools`: what the manifest grants of MCP servers. A request has a number of calls, of which asking what there is counts as one. Not
//! here: the protocol, and which addresses may be connected to.

use std::time::Duration;

use crate::bindings::tenon::plugin::tools::{Host, HostError, Outcome, Tool};
use crate::convert::error_to_wit;
use crate::state::InstanceState;
use crate::{CapabilityError, OutboundBounds};

impl Host for InstanceState {
    async fn list(&mut self, server: String) -> wasmtime::Result<Result<Vec<Tool>, HostError>> {
        self.count_host_call()?;
        let bounds = match self.take_tool_call(0) {
            Ok(bounds) => bounds,
            Err(error) => return Ok(Err(error_to_wit(error))),
        };
        let tools = self.session.tools.list(&server, bounds).await.map_err(error_to_wit);
        Ok(tools.map(|tools| {
            let tool = |tool: crate::ToolDescription| Tool {
                name: tool.name,
                description: tool.description,
                input_schema: tool.input_schema,
            };
            tools.into_iter().map(tool).collect()
        }))
    }

    async fn call(
        &mut self,
        server: String,
        tool: String,
        arguments: String,
    ) -> wasmtime::Result<Result<Outcome, HostError>> {
        self.count_host_call()?;
        let bounds = match self.take_tool_call(arguments.len()) {
            Ok(bounds) => bounds,
            Err(error) => return Ok(Err(error_to_wit(error))),
        };
        let outcome = self.session.tools.call(&server, &tool, &arguments, bounds).await.map_err(error_to_wit);
        Ok(outcome.map(|outcome| Outcome {
            text: outcome.text,
            structured: outcome.structured,
            is_error: outcome.is_error,
        }))
    }
}

impl InstanceState {
    fn take_tool_call(&mut self, argument_bytes: usize) -> Result<OutboundBounds, CapabilityError> {
        let limits = &self.limits;
        if argument_bytes > limits.http_request_bytes_max {
            let max = limits.http_request_bytes_max;
            return Err(CapabilityError::Limit(format!("http_request_bytes_max of {max} bytes: the tool's arguments")));
        }
        let over =
            || CapabilityError::Limit(format!("tool_calls_max of {} calls in one request", limits.tool_calls_max));
        self.tool_calls_left = self.tool_calls_left.checked_sub(1).ok_or_else(over)?;
        Ok(OutboundBounds {
            time: Duration::from_millis(limits.call_wall_ms_max),
            response_bytes_max: limits.http_response_bytes_max,
            headers_bytes_max: limits.http_headers_bytes_max,
        })
    }
}
