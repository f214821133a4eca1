//! `tokenizer`: the base's. What it takes is counted over the request, because it computes outside of the guest's CPU time.

use crate::CapabilityError;
use crate::bindings::tenon::plugin::tokenizer::{Host, HostError};
use crate::convert::error_to_wit;
use crate::state::InstanceState;

/// Bytes that a token costs at least, whatever text it stands for.
const TOKEN_BYTES: usize = 4;

impl Host for InstanceState {
    async fn encode(&mut self, text: String) -> wasmtime::Result<Result<Vec<u32>, HostError>> {
        self.count_host_call()?;
        Ok(self.encoded(text).await.map_err(error_to_wit))
    }

    async fn decode(&mut self, tokens: Vec<u32>) -> wasmtime::Result<Result<String, HostError>> {
        self.count_host_call()?;
        let bytes = tokens.len().saturating_mul(TOKEN_BYTES);
        if let Err(error) = self.take_tokenizer_bytes(bytes) {
            return Ok(Err(error_to_wit(error)));
        }
        // What was taken is the least that the text may have.
        let bytes_max = self.tokenizer_bytes_left.saturating_add(bytes);
        let text = self.session.tokenizer.decode(tokens, bytes_max).await;
        let counted = text.and_then(|text| {
            self.take_tokenizer_bytes(text.len().saturating_sub(bytes))?;
            Ok(text)
        });
        Ok(counted.map_err(error_to_wit))
    }

    async fn count(&mut self, text: String) -> wasmtime::Result<Result<u32, HostError>> {
        self.count_host_call()?;
        let tokens = self.encoded(text).await;
        Ok(tokens.map(|tokens| u32::try_from(tokens.len()).unwrap_or(u32::MAX)).map_err(error_to_wit))
    }
}

impl InstanceState {
    async fn encoded(&mut self, text: String) -> Result<Vec<u32>, CapabilityError> {
        self.take_tokenizer_bytes(text.len())?;
        self.session.tokenizer.encode(text).await
    }

    pub(crate) fn take_tokenizer_bytes(&mut self, bytes: usize) -> Result<(), CapabilityError> {
        let max = self.limits.tokenizer_bytes_max;
        let left = self.tokenizer_bytes_left.checked_sub(bytes);
        let over = || CapabilityError::Limit(format!("tokenizer_bytes_max of {max} bytes in one request"));
        self.tokenizer_bytes_left = left.ok_or_else(over)?;
        Ok(())
    }
}
