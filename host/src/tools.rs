//! Tools of MCP servers (Model Context Protocol, streamable HTTP) for plugins, by the official SDK of the protocol. Which servers and
//! which of their tools a function may use is in its manifest; the credential is a secret of the tenant that the plugin never sees.
//!
//! What is sent goes through the client of plugins' own requests (`outbound`), with its guard and its bounds: an answer is whole
//! before it is read, redirects are not followed, and nothing is listened to that a server sends by itself. Requests of a server to
//! its client, such as for a generation, are refused. A session lasts for one request of a caller, so that nothing is shared by two.
//!
//! Not here: how often a plugin may call (`plugin`).

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use plugin::{CapabilityError, OutboundBounds, OutboundError, Secrets, ToolDescription, ToolOutcome, Tools};
use rmcp::model::{
    CallToolRequestParams, ClientJsonRpcMessage, ContentBlock, JsonRpcMessage, PaginatedRequestParams,
    ServerJsonRpcMessage, Tool,
};
use rmcp::service::{ClientInitializeError, RoleClient, RunningService, ServiceError};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::{
    SseError, StreamableHttpClient, StreamableHttpClientTransportConfig, StreamableHttpError,
    StreamableHttpPostResponse,
};
use sse_stream::{Sse, SseStream};
use tokio::sync::Mutex;
use types::TenantId;

use crate::host::Host;
use crate::outbound::HttpGrant;
use crate::registry::{ManifestGrants, ManifestToolServer};

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";
/// Pages of a server's list of tools that are read.
const PAGES_MAX: usize = 16;
/// Tools of one server that are told.
const TOOLS_MAX: usize = 256;
/// Characters of what a server or a plugin says that a message quotes.
const QUOTED_CHARS_MAX: usize = 256;

/// A session, and the credential that it was made with.
type Session = (Arc<RunningService<RoleClient, ()>>, Option<Arc<str>>);
type PostResult = Result<StreamableHttpPostResponse, StreamableHttpError<OutboundError>>;

/// The granted servers of one request, each with a session once it was asked.
pub(crate) struct FunctionTools {
    host: Arc<Host>,
    tenant: TenantId,
    secrets: Arc<dyn Secrets>,
    granted: Vec<ManifestToolServer>,
    sessions: Mutex<HashMap<String, Session>>,
}

impl FunctionTools {
    /// `secrets` gives those that the grants name as credentials.
    pub(crate) fn new(host: &Arc<Host>, tenant: &TenantId, secrets: Arc<dyn Secrets>, grants: &ManifestGrants) -> Self {
        let (tenant, granted) = (tenant.clone(), grants.tools.clone());
        Self { host: Arc::clone(host), tenant, secrets, granted, sessions: Mutex::default() }
    }

    fn server(&self, name: &str) -> Result<&ManifestToolServer, CapabilityError> {
        let found = self.granted.iter().find(|server| server.server == name);
        let name = shown(name);
        found.ok_or_else(|| {
            let denied = format!("the tool server `{name}`: the manifest's grants.tools does not name it");
            CapabilityError::Denied(denied)
        })
    }

    /// A session with the server, new if there is none.
    async fn session(&self, server: &ManifestToolServer, bounds: OutboundBounds) -> Result<Session, CapabilityError> {
        // Held while a session is made: a request's calls come one after the other anyway.
        let mut sessions = self.sessions.lock().await;
        if let Some(session) = sessions.get(&server.server) {
            return Ok(session.clone());
        }
        let grant = server.url.parse().map_err(|_| CapabilityError::Failed("the server's URL".to_owned()))?;
        let (host, tenant) = (Arc::clone(&self.host), self.tenant.clone());
        let transport = Guarded { host, tenant, grant: Arc::new(grant), bounds };
        let mut config = StreamableHttpClientTransportConfig::with_uri(server.url.as_str());
        config.max_concurrent_requests = 1;
        let mut credential = None;
        if let Some(secret) = &server.secret {
            let value = self.secrets.get(secret).await?;
            credential = Some(Arc::from(value.as_str()));
            config.auth_header = Some(value);
        }
        let transport = StreamableHttpClientTransport::with_client(transport, config);
        let session = rmcp::serve_client((), transport)
            .await
            .map_err(|error| not_connected(&server.server, &error, credential.as_deref()))?;
        let session = (Arc::new(session), credential);
        sessions.insert(server.server.clone(), session.clone());
        Ok(session)
    }
}

#[async_trait]
impl Tools for FunctionTools {
    async fn list(&self, server: &str, bounds: OutboundBounds) -> Result<Vec<ToolDescription>, CapabilityError> {
        let server = self.server(server)?;
        in_time(bounds, async {
            let (session, credential) = self.session(server, bounds).await?;
            let told = |tool: Tool| described(tool, credential.as_deref());
            let mut found = Vec::new();
            let mut cursor = None;
            for _ in 0..PAGES_MAX {
                let page = PaginatedRequestParams::default().with_cursor(cursor.take());
                let page = session
                    .peer()
                    .list_tools(Some(page))
                    .await
                    .map_err(|error| failed(&server.server, &error, credential.as_deref()))?;
                found.extend(page.tools.into_iter().filter(|tool| server.allows(&tool.name)).map(told));
                let text = |tool: &ToolDescription| tool.name.len() + tool.description.len() + tool.input_schema.len();
                if found.iter().map(text).sum::<usize>() > bounds.response_bytes_max {
                    let max = bounds.response_bytes_max;
                    let what = format!("http_response_bytes_max of {max} bytes: the tools of `{}`", server.server);
                    return Err(CapabilityError::Limit(what));
                }
                cursor = page.next_cursor;
                if cursor.is_none() || found.len() >= TOOLS_MAX {
                    break;
                }
            }
            found.truncate(TOOLS_MAX);
            Ok(found)
        })
        .await
    }

    async fn call(
        &self,
        server: &str,
        tool: &str,
        arguments: &str,
        bounds: OutboundBounds,
    ) -> Result<ToolOutcome, CapabilityError> {
        let server = self.server(server)?;
        if !server.allows(tool) {
            let (tool, server) = (shown(tool), &server.server);
            let denied = format!("the tool `{tool}` of `{server}`: the manifest's grants.tools does not name it");
            return Err(CapabilityError::Denied(denied));
        }
        let mut params = CallToolRequestParams::new(tool.to_owned());
        if !arguments.trim().is_empty() {
            let object = serde_json::from_str(arguments);
            let no_object =
                |error| CapabilityError::Failed(format!("the tool's arguments are no JSON object: {error}"));
            params.arguments = Some(object.map_err(no_object)?);
        }
        in_time(bounds, async {
            let (session, credential) = self.session(server, bounds).await?;
            let hidden = |text: String| without(text, credential.as_deref());
            let result = session
                .peer()
                .call_tool(params)
                .await
                .map_err(|error| failed(&server.server, &error, credential.as_deref()))?;
            let text: Vec<Cow<'_, str>> = result.content.iter().map(block).collect();
            Ok(ToolOutcome {
                text: hidden(text.join("\n")),
                structured: result.structured_content.map(|value| hidden(value.to_string())),
                is_error: result.is_error.unwrap_or(false),
            })
        })
        .await
    }
}

async fn in_time<T>(
    bounds: OutboundBounds,
    work: impl Future<Output = Result<T, CapabilityError>>,
) -> Result<T, CapabilityError> {
    let late = || CapabilityError::Failed(OutboundError::Timeout(bounds.time.as_millis()).to_string());
    tokio::time::timeout(bounds.time, work).await.unwrap_or_else(|_| Err(late()))
}

fn described(tool: Tool, credential: Option<&str>) -> ToolDescription {
    let schema = serde_json::Value::Object((*tool.input_schema).clone());
    ToolDescription {
        name: without(tool.name.into_owned(), credential),
        description: without(tool.description.unwrap_or_default().into_owned(), credential),
        input_schema: without(schema.to_string(), credential),
    }
}

/// The credential is not the plugin's to see, also where a server repeats it.
fn without(text: String, credential: Option<&str>) -> String {
    match credential {
        Some(credential) if text.contains(credential) => text.replace(credential, "[credential]"),
        _ => text,
    }
}

/// A block's text, or its kind.
fn block(block: &ContentBlock) -> Cow<'_, str> {
    match block {
        ContentBlock::Text(text) => Cow::Borrowed(&text.text),
        ContentBlock::Image(_) => Cow::Borrowed("[image]"),
        ContentBlock::Audio(_) => Cow::Borrowed("[audio]"),
        ContentBlock::Resource(_) => Cow::Borrowed("[resource]"),
        ContentBlock::ResourceLink(link) => Cow::Owned(format!("[resource {}]", link.uri)),
        _ => Cow::Borrowed("[other]"),
    }
}

fn not_connected(server: &str, error: &ClientInitializeError, credential: Option<&str>) -> CapabilityError {
    let said = match error {
        ClientInitializeError::JsonRpcError(said) => Some(without(said.message.clone().into_owned(), credential)),
        _ => None,
    };
    told(server, error, said.as_deref())
}

fn failed(server: &str, error: &ServiceError, credential: Option<&str>) -> CapabilityError {
    let said = match error {
        ServiceError::McpError(said) => Some(without(said.message.clone().into_owned(), credential)),
        _ => None,
    };
    told(server, error, said.as_deref())
}

/// What a plugin and its log are told: our own refusal, or what the server itself says.
fn told(server: &str, error: &(dyn std::error::Error + 'static), said: Option<&str>) -> CapabilityError {
    if let Some(said) = said {
        return CapabilityError::Failed(format!("the tool server `{server}` answers: {}", shown(said)));
    }
    match sent(error) {
        Some(OutboundError::Denied(_) | OutboundError::Address(_)) => {
            let reason = sent(error).map(ToString::to_string).unwrap_or_default();
            CapabilityError::Denied(format!("the tool server `{server}`: {reason}"))
        }
        Some(OutboundError::Limit { limit, max }) => {
            CapabilityError::Limit(format!("{limit} of {max} bytes: what the tool server `{server}` answers"))
        }
        Some(other) => CapabilityError::Failed(format!("the tool server `{server}`: {other}")),
        None => CapabilityError::Failed(format!("the tool server `{server}` does not speak MCP as it should")),
    }
}

/// Our own error, where it is behind the SDK's.
fn sent<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a OutboundError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(StreamableHttpError::Client(own)) = error.downcast_ref::<StreamableHttpError<OutboundError>>() {
            return Some(own);
        }
        next = match error.downcast_ref::<ClientInitializeError>() {
            Some(ClientInitializeError::TransportError { error, .. }) => Some(&*error.error),
            _ => match error.downcast_ref::<ServiceError>() {
                Some(ServiceError::TransportSend(error)) => Some(&*error.error),
                _ => error.source(),
            },
        };
    }
    None
}

fn shown(text: &str) -> String {
    text.chars().take(QUOTED_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The SDK's transport over the guarded client.
#[derive(Clone)]
struct Guarded {
    host: Arc<Host>,
    tenant: TenantId,
    grant: Arc<HttpGrant>,
    bounds: OutboundBounds,
}

impl Guarded {
    async fn send(
        &self,
        method: Method,
        uri: &str,
        session_id: Option<&str>,
        credential: Option<&str>,
        headers: HashMap<HeaderName, HeaderValue>,
        body: Vec<u8>,
    ) -> Result<http::Response<Bytes>, StreamableHttpError<OutboundError>> {
        let malformed = || StreamableHttpError::Client(OutboundError::Failed("a header of it is none".into()));
        let value = |text: &str| HeaderValue::from_str(text).map_err(|_| malformed());
        let mut request = http::Request::builder().method(method).uri(uri);
        if let Some(own) = request.headers_mut() {
            own.extend(headers);
            own.insert(ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
            if !body.is_empty() {
                own.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
            }
            if let Some(session_id) = session_id {
                own.insert(SESSION_ID, value(session_id)?);
            }
            if let Some(credential) = credential {
                let mut credential = value(&format!("Bearer {credential}"))?;
                credential.set_sensitive(true);
                own.insert(AUTHORIZATION, credential);
            }
        }
        let request = request.body(Bytes::from(body)).map_err(|_| malformed())?;
        let grants = std::slice::from_ref(&*self.grant);
        self.host.outbound.send(&self.tenant, grants, request, self.bounds).await.map_err(StreamableHttpError::Client)
    }
}

impl StreamableHttpClient for Guarded {
    type Error = OutboundError;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> PostResult {
        let body = serde_json::to_vec(&message)?;
        let (session, credential) = (session_id.as_deref(), auth_header.as_deref());
        let answer = self.send(Method::POST, &uri, session, credential, custom_headers, body).await?;
        read(answer, session_id.is_some())
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), StreamableHttpError<OutboundError>> {
        let (session, credential) = (Some(&*session_id), auth_header.as_deref());
        // Whatever it answers: a server may refuse to forget.
        self.send(Method::DELETE, &uri, session, credential, custom_headers, Vec::new()).await.map(drop)
    }

    async fn get_stream(
        &self,
        _: Arc<str>,
        _: Option<Arc<str>>,
        _: Option<String>,
        _: Option<String>,
        _: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, StreamableHttpError<OutboundError>> {
        Err(StreamableHttpError::ServerDoesNotSupportSse)
    }
}

/// What a whole answer to a message is.
fn read(answer: http::Response<Bytes>, had_session: bool) -> PostResult {
    let status = answer.status();
    let header = |name| answer.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let session_id = header(SESSION_ID).map(str::to_owned);
    let content_type = header(CONTENT_TYPE).unwrap_or_default().to_owned();
    let is_of =
        |wanted: &str| content_type.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(wanted));
    let refused = |reason: &'static str| Err(StreamableHttpError::Client(OutboundError::Failed(reason.into())));
    match status {
        StatusCode::ACCEPTED | StatusCode::NO_CONTENT => return Ok(StreamableHttpPostResponse::Accepted),
        StatusCode::NOT_FOUND if had_session => return Err(StreamableHttpError::SessionExpired),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            return refused("it wants another credential: set the secret that grants.tools names");
        }
        _ => {}
    }
    let body = answer.into_body();
    if !status.is_success() {
        // A refusal in the protocol's own words is passed on.
        return match serde_json::from_slice::<ServerJsonRpcMessage>(&body) {
            Ok(message @ JsonRpcMessage::Error(_)) => Ok(StreamableHttpPostResponse::Json(message, session_id)),
            _ if status.is_redirection() => refused("it answers with a redirect, which is not followed"),
            _ => refused("it answers with an HTTP error"),
        };
    }
    if is_of(EVENTS) {
        let bytes = stream::once(std::future::ready(Ok::<_, std::convert::Infallible>(body)));
        return Ok(StreamableHttpPostResponse::Sse(SseStream::from_bytes_stream(bytes).boxed(), session_id));
    }
    if body.is_empty() {
        return Ok(StreamableHttpPostResponse::Accepted);
    }
    if is_of(JSON) {
        let message = serde_json::from_slice(&body)?;
        return Ok(StreamableHttpPostResponse::Json(message, session_id));
    }
    Err(StreamableHttpError::UnexpectedContentType(Some(shown(&content_type))))
}

#[cfg(test)]
mod tests {
    use rmcp::model::ErrorData;

    use super::*;

    /// Where its text is cut off lies within the credential.
    fn said(credential: &str) -> ErrorData {
        let padding = "x".repeat(QUOTED_CHARS_MAX - 14 - credential.len() / 2);
        ErrorData::invalid_request(format!("{credential} is bad{padding} {credential}"), None)
    }

    #[test]
    fn a_credential_is_in_nothing_that_a_server_says() {
        let credential = "sk-a-long-credential";
        let failed = failed("notes", &ServiceError::McpError(said(credential)), Some(credential)).to_string();
        let error = ClientInitializeError::JsonRpcError(said(credential));
        let refused = not_connected("notes", &error, Some(credential)).to_string();
        for text in [failed, refused] {
            assert!(text.contains("`notes` answers: [credential] is bad"), "{text}");
            assert!(!text.contains("sk-"), "{text}");
        }
        let tool = Tool::new(format!("read-{credential}"), format!("with {credential}"), Arc::default());
        let told = described(tool, Some(credential));
        assert_eq!((told.name.as_str(), told.description.as_str()), ("read-[credential]", "with [credential]"));
    }
}
