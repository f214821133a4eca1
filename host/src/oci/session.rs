//! Requests to one registry about one repository: challenged at most once each, redirected a few times at most, and read no further
//! than said before. Not here: what is asked (`pull`, `push`).
//!
//! Credentials go to the registry, and to the place that it says gives out its tokens if that is asked over HTTPS or is the registry
//! itself. A redirect's target gets none.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Body, Method, Response, StatusCode, Url};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::challenge::Challenge;
use super::doors::{Doors, explain};
use super::{OciError, Reference};
use crate::adapters::{Refusal, reason, refusal};

/// For an answer's beginning, and for each piece of its body.
const STALL: Duration = Duration::from_secs(30);
/// For the answer to an upload: its body goes out first.
const UPLOAD_MAX: Duration = Duration::from_secs(900);
const REDIRECTS_MAX: usize = 5;
const TOKEN_BYTES_MAX: u64 = 64 << 10;
const COMPLAINT_BYTES_MAX: u64 = 16 << 10;

/// User name and password of a registry. Its text shows nothing of it.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) username: String,
    pub(crate) password: Zeroizing<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

/// What requests about one artefact have in common.
#[derive(Debug)]
pub(crate) struct Session {
    doors: Doors,
    reference: Reference,
    login: Option<Login>,
    scope: String,
    authorization: Option<HeaderValue>,
}

/// One request.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) accept: Option<HeaderValue>,
    pub(super) content: Option<Content<'a>>,
}

/// What is sent along; made anew for each attempt.
pub(super) struct Content<'a> {
    pub(super) media_type: &'static str,
    pub(super) bytes: usize,
    pub(super) body: &'a (dyn Fn() -> Body + Sync),
}

impl Ask<'_> {
    pub(super) const fn get(url: Url) -> Self {
        Self { method: Method::GET, url, accept: None, content: None }
    }
}

/// How long a body may be, and how it is called in messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) what: &'static str,
    pub(super) limit: &'static str,
    pub(super) max: u64,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Session {
    /// Nothing is asked yet. With `writes`, tokens are asked for that may push.
    pub(crate) fn new(doors: Doors, reference: Reference, login: Option<Login>, writes: bool) -> Self {
        let actions = if writes { "pull,push" } else { "pull" };
        let scope = format!("repository:{}:{actions}", reference.repository());
        Self { doors, reference, login, scope, authorization: None }
    }

    pub(super) const fn reference(&self) -> &Reference {
        &self.reference
    }

    pub(super) fn name(&self) -> String {
        self.reference.to_string()
    }

    /// `/v2/REPOSITORY/…` at the registry.
    pub(super) fn url(&self, rest: &str) -> Result<Url, OciError> {
        let path = format!("/v2/{}/{rest}", self.reference.repository());
        self.doors.origin.join(&path).map_err(|_| self.failed("the path of a request is none"))
    }

    pub(super) fn failed(&self, reason: impl Into<String>) -> OciError {
        OciError::Failed { name: self.name(), reason: reason.into() }
    }

    pub(super) fn not_plugin(&self, reason: impl Into<String>) -> OciError {
        OciError::NotPlugin { name: self.name(), reason: reason.into() }
    }

    pub(super) fn unverified(&self, what: &'static str) -> OciError {
        OciError::Unverified { name: self.name(), what }
    }

    pub(super) fn too_large(&self, Wanted { what, limit, max }: Wanted) -> OciError {
        OciError::TooLarge { name: self.name(), what, limit, max }
    }

    /// Asks; of a challenge it asks once more, with what was wanted. The answer has any status but 401.
    pub(super) async fn ask(&mut self, ask: &Ask<'_>) -> Result<Response, OciError> {
        let (answer, is_own) = self.follow(ask).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let challenge = Challenge::of(answer.headers()).filter(|_| is_own);
        drop(answer);
        self.authorization = Some(self.answer_to(challenge).await?);
        let (answer, _) = self.follow(ask).await?;
        if answer.status() == StatusCode::UNAUTHORIZED { Err(self.denied()) } else { Ok(answer) }
    }

    /// The answer if its status is a good one, else what is wrong.
    pub(super) async fn good(&mut self, ask: &Ask<'_>) -> Result<Response, OciError> {
        let answer = self.ask(ask).await?;
        if answer.status().is_success() { Ok(answer) } else { Err(self.complaint(answer).await) }
    }

    /// Follows redirects of what only reads; the flag says whether the registry itself answered.
    async fn follow(&self, ask: &Ask<'_>) -> Result<(Response, bool), OciError> {
        let mut url = ask.url.clone();
        let is_read = matches!(ask.method, Method::GET | Method::HEAD);
        for step in 0..=REDIRECTS_MAX {
            self.doors.check(&url).map_err(|refusal| self.refused(refusal, step > 0))?;
            let is_own = self.doors.is_own(&url);
            let mut request = self.doors.client.request(ask.method.clone(), url.clone());
            if let Some(accept) = &ask.accept {
                request = request.header(ACCEPT, accept.clone());
            }
            if let Some(Content { media_type, bytes, body }) = &ask.content {
                request = request.header(CONTENT_TYPE, *media_type).header(CONTENT_LENGTH, *bytes).body(body());
            } else if !is_read {
                request = request.header(CONTENT_LENGTH, 0);
            }
            if let Some(authorization) = self.authorization.clone().filter(|_| is_own) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let wait = if ask.content.is_some() { UPLOAD_MAX } else { STALL };
            let answer = tokio::time::timeout(wait, request.send()).await;
            let answer = answer.map_err(|_| self.unavailable("no answer began in time".to_owned()))?;
            let answer = answer.map_err(|error| self.broken(&error, step > 0))?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((answer, is_own));
            }
            if !is_read {
                return Err(self.failed("it redirects what is sent to it"));
            }
            let location = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok());
            url = next.ok_or_else(|| self.failed("it redirects to nowhere"))?;
        }
        Err(self.failed(format!("it redirects more than {REDIRECTS_MAX} times")))
    }

    /// What the registry wants to see.
    async fn answer_to(&self, challenge: Option<Challenge>) -> Result<HeaderValue, OciError> {
        let header = match (challenge, &self.login) {
            (None, _) | (Some(Challenge::Basic), None) => return Err(self.denied()),
            (Some(Challenge::Basic), Some(login)) => basic(login),
            (Some(Challenge::Bearer { realm, service }), _) => {
                Zeroizing::new(format!("Bearer {}", self.token(&realm, service.as_deref()).await?.as_str()))
            }
        };
        let mut header =
            HeaderValue::from_str(&header).map_err(|_| self.failed("its token has characters that cannot be sent"))?;
        header.set_sensitive(true);
        Ok(header)
    }

    async fn token(&self, realm: &str, service: Option<&str>) -> Result<Zeroizing<String>, OciError> {
        let mut url = Url::parse(realm).map_err(|_| self.failed("the place of its tokens is no URL"))?;
        self.doors.check(&url).map_err(|refusal| self.refused(refusal, true))?;
        let may_have_login = url.scheme() == "https" || self.doors.is_own(&url);
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", service);
        }
        url.query_pairs_mut().append_pair("scope", &self.scope);
        let mut request = self.doors.client.get(url);
        if let Some(login) = self.login.as_ref().filter(|_| may_have_login) {
            request = request.header(AUTHORIZATION, basic(login).as_str());
        }
        let answer = tokio::time::timeout(STALL, request.send()).await;
        let answer =
            answer.map_err(|_| self.unavailable("the place of its tokens did not answer in time".to_owned()))?;
        let answer = answer.map_err(|error| self.broken(&error, true))?;
        if matches!(answer.status().as_u16(), 400..=403) {
            return Err(self.denied());
        }
        if !answer.status().is_success() {
            return Err(self.complaint(answer).await);
        }
        let wanted = Wanted { what: "answer with a token", limit: "token_bytes_max", max: TOKEN_BYTES_MAX };
        let body = self.read(answer, wanted, &|_| ()).await?;
        let found: TokenAnswer =
            serde_json::from_slice(&body).map_err(|_| self.failed("the answer with its token cannot be read"))?;
        let token = found.token.or(found.access_token).ok_or_else(|| self.failed("it gives out no token"))?;
        Ok(Zeroizing::new(token))
    }

    /// A body to its end, if that comes before the limit. `came` is told of each piece.
    pub(super) async fn read(
        &self,
        mut answer: Response,
        wanted: Wanted,
        came: &(dyn Fn(u64) + Sync),
    ) -> Result<Bytes, OciError> {
        if answer.headers().get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(self.failed("its answer is compressed, which was not asked for"));
        }
        if answer.content_length().is_some_and(|length| length > wanted.max) {
            return Err(self.too_large(wanted));
        }
        let mut body = BytesMut::new();
        loop {
            let piece = tokio::time::timeout(STALL, answer.chunk()).await;
            let piece = piece.map_err(|_| self.unavailable("nothing more arrived in time".to_owned()))?;
            let Some(piece) = piece.map_err(|error| self.broken(&error, false))? else { return Ok(body.freeze()) };
            if (body.len() as u64).saturating_add(piece.len() as u64) > wanted.max {
                return Err(self.too_large(wanted));
            }
            came(piece.len() as u64);
            body.extend_from_slice(&piece);
        }
    }

    /// What an answer that is no good means. Of its body only the registry's own word is told.
    pub(super) async fn complaint(&self, answer: Response) -> OciError {
        let status = answer.status().as_u16();
        match status {
            404 | 410 => return OciError::NotFound { name: self.name() },
            401 | 403 | 407 => return self.denied(),
            408 | 425 | 429 | 500..=599 => return self.unavailable(format!("it answered with status {status}")),
            _ => {}
        }
        let wanted = Wanted { what: "complaint", limit: "complaint_bytes_max", max: COMPLAINT_BYTES_MAX };
        let body = self.read(answer, wanted, &|_| ()).await.unwrap_or_default();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let code = body.pointer("/errors/0/code").and_then(serde_json::Value::as_str).unwrap_or_default();
        let is_word = (1..=64).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
        let said = if is_word { format!(" and {code}") } else { String::new() };
        self.failed(format!("it answered with status {status}{said}"))
    }

    fn denied(&self) -> OciError {
        let advice = match self.login {
            Some(_) => "user name and password were given; check them, and what they may do in this repository",
            None => "give `--username` and `--password-stdin`, or log in with `docker login`; it may also not be there",
        };
        OciError::Denied { name: self.name(), advice }
    }

    fn refused(&self, refusal: Refusal, is_led: bool) -> OciError {
        if !is_led {
            return explain(refusal, &self.reference);
        }
        tracing::warn!(reference = %self.reference, %refusal, "where a registry led to was not asked");
        let reason = "its registry leads to where this does not go: an address that is not public, plain HTTP, or, on a host, \
                      what is not in `plugin_sources.hosts`";
        OciError::NotAllowed { name: self.name(), reason }
    }

    fn unavailable(&self, reason: String) -> OciError {
        OciError::Unavailable { name: self.name(), reason }
    }

    fn broken(&self, error: &reqwest::Error, is_led: bool) -> OciError {
        match refusal(error) {
            Some(refusal) => self.refused(refusal, is_led),
            None => self.unavailable(self.doors.told(error, reason(error))),
        }
    }
}

fn basic(login: &Login) -> Zeroizing<String> {
    let pair = Zeroizing::new(format!("{}:{}", login.username, login.password.as_str()));
    Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())))
}
