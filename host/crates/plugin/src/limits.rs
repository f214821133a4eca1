//! What a plugin may use, each limit with its unit last in its name, and how a function narrows it. Not here: where each
//! is enforced.

use serde::{Deserialize, Serialize};

/// Limits on one plugin: its upload, its compilation, its instance and each call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PluginLimits {
    /// Bytes of an uploaded component.
    pub upload_bytes_max: usize,
    /// Bytes of all the linear memories of one instance together.
    pub memory_bytes_max: usize,
    /// Elements of all the tables of one instance together.
    pub table_elements_max: usize,
    /// Core instances inside one component.
    pub core_instances_max: u32,
    /// Linear memories inside one component.
    pub memories_max: u32,
    /// Tables inside one component.
    pub tables_max: u32,
    /// Handles that a guest may hold at once.
    pub handles_max: usize,
    /// Guest stack, in bytes.
    pub stack_bytes_max: usize,
    /// Milliseconds that one call may run WebAssembly code, counted in epochs.
    pub call_cpu_ms_max: u64,
    /// Milliseconds that all calls of one request may run WebAssembly code, its start included.
    pub request_cpu_ms_max: u64,
    /// Milliseconds that one call may take, waiting in host functions included, but for other functions that it called.
    pub call_wall_ms_max: u64,
    /// Milliseconds that the start of an instance may run WebAssembly code (interpreters start slowly).
    pub start_cpu_ms_max: u64,
    /// Bytes of log lines for each request; what is over is dropped and counted.
    pub log_bytes_max: usize,
    /// Log lines for each request, however short.
    pub log_lines_max: u32,
    /// Calls of host functions during one call of the guest.
    pub host_calls_max: u32,
    /// Calls of host functions during one request.
    pub request_host_calls_max: u32,
    /// Bytes of lists and strings that a guest may pass to the host at once: the arguments of one host function, or the
    /// answer to one call.
    pub transfer_bytes_max: usize,
    /// Random bytes for each request.
    pub random_bytes_max: u32,
    /// Actions that one chunk may be answered with, and pairs of metadata or claims.
    pub actions_max: usize,
    /// Writes to key-value buckets for each request, however many keys: each is a durable transaction.
    pub kv_writes_max: u32,
    /// Outgoing HTTP requests for each request.
    pub http_requests_max: u32,
    /// Bytes of the body of one outgoing HTTP request.
    pub http_request_bytes_max: usize,
    /// Bytes of the body of the answer to one.
    pub http_response_bytes_max: usize,
    /// Bytes of the headers of one, and of its answer, each.
    pub http_headers_bytes_max: usize,
    /// Calls of tools for each request, and questions which there are.
    pub tool_calls_max: u32,
    /// Bytes of text, and of the text that tokens stand for, that the tokenizer takes for each request.
    pub tokenizer_bytes_max: usize,
    /// Calls of other functions for each request.
    pub function_calls_max: u32,
    /// Generation sessions that an agent may hold at once.
    pub sessions_max: u32,
    /// Generations of an agent for each request.
    pub generations_max: u32,
    /// Tokens that an agent may have generated for each request.
    pub generated_tokens_max: u32,
    /// Tokens of all the prompts of an agent's generations, for each request; those whose KV is there already count.
    pub session_tokens_max: u32,
    /// Milliseconds that an agent may run WebAssembly code.
    pub run_cpu_ms_max: u64,
    /// Milliseconds that an agent may take, waiting for generations and calls included.
    pub run_wall_ms_max: u64,
    /// CPU seconds of the child that compiles.
    pub compile_cpu_seconds_max: u64,
    /// Address space of the child that compiles, in bytes.
    pub compile_memory_bytes_max: u64,
    /// Milliseconds that the child may take.
    pub compile_wall_ms_max: u64,
    /// Bytes of a compiled component.
    pub compiled_bytes_max: usize,
}

impl Default for PluginLimits {
    fn default() -> Self {
        Self {
            upload_bytes_max: 32 << 20,
            memory_bytes_max: 64 << 20,
            table_elements_max: 64 << 10,
            core_instances_max: 64,
            memories_max: 4,
            tables_max: 32,
            handles_max: 1024,
            stack_bytes_max: 512 << 10,
            call_cpu_ms_max: 50,
            request_cpu_ms_max: 10_000,
            call_wall_ms_max: 2_000,
            start_cpu_ms_max: 200,
            log_bytes_max: 64 << 10,
            log_lines_max: 512,
            host_calls_max: 1024,
            request_host_calls_max: 64 << 10,
            transfer_bytes_max: 4 << 20,
            random_bytes_max: 64 << 10,
            actions_max: 64,
            kv_writes_max: 64,
            http_requests_max: 16,
            http_request_bytes_max: 1 << 20,
            http_response_bytes_max: 1 << 20,
            http_headers_bytes_max: 16 << 10,
            tool_calls_max: 16,
            tokenizer_bytes_max: 1 << 20,
            function_calls_max: 8,
            sessions_max: 8,
            generations_max: 32,
            generated_tokens_max: 4096,
            session_tokens_max: 64 << 10,
            run_cpu_ms_max: 1_000,
            run_wall_ms_max: 120_000,
            compile_cpu_seconds_max: 60,
            compile_memory_bytes_max: 4 << 30,
            compile_wall_ms_max: 120_000,
            compiled_bytes_max: 128 << 20,
        }
    }
}

/// The limits that a function may narrow, of one instance and its calls.
macro_rules! own_limits {
    ($($name:ident: $number:ty,)*) => {
        /// Limits of one function. Each narrows the one of the same name in [`PluginLimits`], whose documentation says what it
        /// counts, and never widens it; what is left out stays as the operator has it.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct OwnLimits {
            $(#[doc = concat!("As [`PluginLimits::", stringify!($name), "`].")] pub $name: Option<$number>,)*
        }

        impl OwnLimits {
            /// Every one, by name.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];
        }

        impl PluginLimits {
            /// The narrower of both, limit by limit.
            #[must_use]
            pub fn narrowed(&self, own: &OwnLimits) -> Self {
                Self { $($name: own.$name.map_or(self.$name, |own| own.min(self.$name)),)* ..self.clone() }
            }
        }
    };
}

own_limits! {
    memory_bytes_max: usize,
    table_elements_max: usize,
    handles_max: usize,
    call_cpu_ms_max: u64,
    request_cpu_ms_max: u64,
    call_wall_ms_max: u64,
    start_cpu_ms_max: u64,
    log_bytes_max: usize,
    log_lines_max: u32,
    host_calls_max: u32,
    request_host_calls_max: u32,
    transfer_bytes_max: usize,
    random_bytes_max: u32,
    actions_max: usize,
    kv_writes_max: u32,
    http_requests_max: u32,
    http_request_bytes_max: usize,
    http_response_bytes_max: usize,
    http_headers_bytes_max: usize,
    tool_calls_max: u32,
    tokenizer_bytes_max: usize,
    function_calls_max: u32,
    sessions_max: u32,
    generations_max: u32,
    generated_tokens_max: u32,
    session_tokens_max: u32,
    run_cpu_ms_max: u64,
    run_wall_ms_max: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_narrows_and_never_widens() {
        let host = PluginLimits::default();
        assert_eq!(host.narrowed(&OwnLimits::default()), host);
        let own = OwnLimits { call_cpu_ms_max: Some(5), memory_bytes_max: Some(usize::MAX), ..OwnLimits::default() };
        assert_eq!(host.narrowed(&own), PluginLimits { call_cpu_ms_max: 5, ..host });
        assert_eq!(OwnLimits::NAMES.len(), 28);
    }
}
