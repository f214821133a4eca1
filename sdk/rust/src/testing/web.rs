//! Outgoing requests as the harness answers them. Not here: anything that is sent.

use super::STATE;
use crate::{HttpRequest, HttpResponse};

pub(crate) fn send(request: &HttpRequest) -> Result<HttpResponse, String> {
    STATE.with_borrow_mut(|state| {
        state.requests.push(request.clone());
        let found = state.answers.iter().find(|(url, _)| request.url.starts_with(url.as_str()));
        let answer = found.map(|(_, answer)| answer.clone());
        answer.ok_or_else(|| "denied: see the manifest's grants.http".to_owned())
    })
}
