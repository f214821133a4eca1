//! The HTTP surface: routes, each with the access that it declares, and the listener. JSON and HTTP types exist here and
//! below, nowhere else. Not here: what a request means, which is `invoke.rs` and the parts behind it.

mod adapters;
mod admin;
mod answers;
mod auth;
mod dialect;
mod drain;
mod error;
mod functions;
#[cfg(feature = "in-process")]
mod in_process;
mod invoke;
mod kv;
mod listen;
mod logs;
mod lorax;
mod malformed;
mod openai;
mod openapi;
mod operations;
mod pace;
mod pins;
mod plugins;
mod quotas;
mod receipts;
mod recordings;
mod revocations;
mod rollouts;
mod secrets;
mod shares;
mod sticky;
mod stream;
mod tags;
mod tls;
mod usage;
mod vllm;
mod wire;

pub(crate) use answers::AdapterReport;
#[cfg(feature = "in-process")]
pub use in_process::{Answer, InProcess};
pub(crate) use listen::{Listener, Serving, serve};
pub(crate) use tls::Tls;
pub(crate) use wire::json_request;

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use bytes::Bytes;

use crate::config::HttpLimits;
use crate::error::Error;
use crate::host::Host;
use crate::metrics::Metrics;
use crate::tenants::Right;
use auth::Access;
use dialect::Dialect;

/// Sent with every answer.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Sent with every answer that has a receipt.
pub(crate) const RECEIPT_ID: HeaderName = HeaderName::from_static("x-tenon-receipt");

/// What the listener has from its first moment; the host comes when the base is loaded.
#[derive(Clone)]
pub(crate) struct App {
    host: Arc<OnceLock<Arc<Host>>>,
    pub(crate) metrics: Arc<Metrics>,
    limits: HttpLimits,
    document: Arc<OnceLock<Bytes>>,
}

impl App {
    /// Without a host yet.
    pub(crate) fn new(metrics: Arc<Metrics>, limits: HttpLimits) -> Self {
        Self { host: Arc::default(), metrics, limits, document: Arc::default() }
    }

    /// The host, once it is ready.
    pub(crate) fn ready(&self) -> Option<Arc<Host>> {
        self.host.get().cloned()
    }

    /// From now on requests are served.
    pub(crate) fn set_ready(&self, host: Arc<Host>) {
        let _already = self.host.set(host);
    }

    pub(crate) const fn limits(&self) -> &HttpLimits {
        &self.limits
    }

    /// What `GET /openapi.json` answers, made when it is first asked for.
    pub(crate) fn document(&self) -> Bytes {
        self.document.get_or_init(|| openapi::document(&routes(&self.limits))).clone()
    }
}

/// Identifier of a request, made here; sent back and written into the log and the receipt.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) String);

fn new_request_id() -> String {
    format!("req_{}", ulid::Ulid::generate())
}

struct Route {
    path: &'static str,
    access: Access,
    /// How its errors are told.
    dialect: Dialect,
    methods: MethodRouter<App>,
}

impl Route {
    /// The same, whose errors have another server's shape.
    fn speaking(self, dialect: Dialect) -> Self {
        Self { dialect, ..self }
    }
}

/// Every route that there is. A route cannot be written down without its access.
fn routes(limits: &HttpLimits) -> Vec<Route> {
    use Access::{Needs, Public};
    use Right::{Adapters, Admin, Deploy, Invoke, Receipts};
    let route = |path, access, methods| Route { path, access, dialect: Dialect::Own, methods };
    let plugin_body = DefaultBodyLimit::max(plugins::body_bytes_max(limits.upload_bytes_max));
    let adapter_body = DefaultBodyLimit::max(adapters::adapter_bytes_max(limits));
    vec![
        route("/health", Public, get(operations::health)),
        route("/ready", Public, get(operations::ready)),
        route("/metrics", Public, get(operations::metrics)),
        route("/openapi.json", Public, get(openapi::serve)),
        route("/v1/plugins", Needs(Deploy), post(plugins::upload).layer(plugin_body)),
        route("/v1/plugins/{digest}", Needs(Deploy), get(plugins::download)),
        route("/v1/functions", Needs(Deploy), get(functions::list)),
        route(
            "/v1/functions/{name}",
            Needs(Deploy),
            put(functions::put).get(functions::show).delete(functions::delete),
        ),
        route("/v1/functions/{name}/versions", Needs(Deploy), get(functions::versions)),
        route("/v1/functions/{name}/promote", Needs(Deploy), post(functions::promote)),
        route("/v1/functions/{name}/canary", Needs(Deploy), put(rollouts::put_canary).delete(rollouts::end_canary)),
        route(
            "/v1/functions/{name}/shadow",
            Needs(Deploy),
            put(rollouts::put_shadow).get(rollouts::show_shadow).delete(rollouts::end_shadow),
        ),
        route("/v1/functions/{name}/logs", Needs(Deploy), get(logs::read)),
        route("/v1/functions/{name}/recordings", Needs(Deploy), get(recordings::list)),
        route("/v1/recordings/{request}", Needs(Deploy), get(recordings::show)),
        route("/v1/functions/{name}/invoke", Needs(Invoke), post(invoke::invoke)),
        route("/v1/adapters", Needs(Adapters), get(adapters::list)),
        route(
            "/v1/adapters/{alias}",
            Needs(Adapters),
            put(adapters::put).layer(adapter_body).get(adapters::show).delete(adapters::remove),
        ),
        route("/v1/adapters/{alias}/tags", Needs(Adapters), put(tags::put)),
        route("/v1/adapters/{alias}/pin", Needs(Adapters), put(pins::put).delete(pins::remove)),
        route(
            "/v1/adapters/{alias}/readers",
            Needs(Adapters),
            put(shares::put).get(shares::show).delete(shares::remove),
        ),
        route("/v1/shared-adapters", Needs(Adapters), get(shares::list)),
        route("/v1/adapters/{alias}/derive", Needs(Adapters), post(adapters::derive::derive)),
        route("/v1/secrets", Needs(Adapters), get(secrets::list)),
        route("/v1/secrets/{name}", Needs(Adapters), put(secrets::put).delete(secrets::remove)),
        route("/v1/kv", Needs(Deploy), get(kv::buckets)),
        route("/v1/kv/{bucket}", Needs(Deploy), get(kv::keys).delete(kv::remove_bucket)),
        route("/v1/kv/{bucket}/{key}", Needs(Deploy), get(kv::get).put(kv::put).delete(kv::remove)),
        route("/v1/models", Needs(Invoke), get(openai::models)),
        route("/v1/models/{id}", Needs(Invoke), get(openai::model)),
        route("/v1/completions", Needs(Invoke), post(openai::completions)),
        route("/v1/chat/completions", Needs(Invoke), post(openai::chat)),
        route("/", Needs(Invoke), post(lorax::compatible)).speaking(Dialect::Lorax),
        route("/generate", Needs(Invoke), post(lorax::generate)).speaking(Dialect::Lorax),
        route("/generate_stream", Needs(Invoke), post(lorax::generate_stream)).speaking(Dialect::Lorax),
        route("/info", Needs(Invoke), get(lorax::info)).speaking(Dialect::Lorax),
        route("/v1/load_lora_adapter", Needs(Adapters), post(vllm::load)).speaking(Dialect::Vllm),
        route("/v1/unload_lora_adapter", Needs(Adapters), post(vllm::unload)).speaking(Dialect::Vllm),
        route("/v1/receipts", Needs(Receipts), get(receipts::list)),
        route("/v1/receipts/export", Needs(Receipts), get(receipts::export)),
        route("/v1/receipts/keys", Needs(Receipts), get(receipts::keys)),
        route("/v1/receipts/{id}", Needs(Receipts), get(receipts::show)),
        route("/v1/usage", Needs(Receipts), get(usage::show)),
        route("/v1/tenants", Needs(Admin), post(admin::create_tenant).get(admin::list_tenants)),
        route("/v1/tenants/{tenant}/signers", Needs(Admin), get(admin::signers).put(admin::set_signers)),
        route("/v1/tenants/{tenant}/quota", Needs(Admin), get(quotas::show).put(quotas::put).delete(quotas::remove)),
        route("/v1/quota", Needs(Invoke), get(quotas::own)),
        route("/v1/keys", Needs(Admin), post(admin::create_key)),
        route("/v1/revocations", Needs(Admin), get(revocations::list)),
        route("/v1/revocations/{digest}", Needs(Admin), put(revocations::put)),
        route("/v1/keys/{id}", Needs(Admin), delete(admin::revoke_key)),
    ]
}

/// The router with access, limits and request ids in place.
pub(crate) fn router(app: App) -> Router {
    let mut router = Router::new();
    for Route { path, access, dialect, methods } in routes(app.limits()) {
        let methods = match access {
            Access::Public => methods,
            Access::Needs(right) => {
                methods.route_layer(middleware::from_fn_with_state((app.clone(), right), auth::require))
            }
        };
        // Outermost, so that a refused key is told in the route's own words too.
        let methods = match dialect {
            Dialect::Own => methods,
            _ => methods.layer(middleware::map_response(move |response| dialect.translate(response))),
        };
        router = router.route(path, methods);
    }
    router
        .fallback(async || Error::NotFound("this path is".into()).into_response())
        .method_not_allowed_fallback(async || Error::invalid("method_not_allowed", "", "this path has other methods"))
        .layer(DefaultBodyLimit::max(app.limits().body_bytes_max))
        .layer(middleware::from_fn(drain::drain))
        .layer(middleware::from_fn_with_state(pace::Room::default(), pace::keep_pace))
        .layer(middleware::from_fn_with_state(app.clone(), identify))
        .with_state(app)
}

/// Gives every request an identifier, and logs and counts its answer.
async fn identify(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let id = new_request_id();
    let route =
        request.extensions().get::<MatchedPath>().map_or_else(|| "unmatched".into(), |path| path.as_str().to_owned());
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    if let Some(error::LoggedError(error)) = response.extensions().get() {
        error::log(error, &id);
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    app.metrics.request(&route, response.status().as_u16());
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::StatusCode;
    use tower::ServiceExt as _;

    use super::*;

    fn app() -> App {
        App::new(Arc::new(Metrics::new()), HttpLimits::default())
    }

    #[test]
    fn only_operations_and_the_document_are_public() {
        let routes = routes(&HttpLimits::default());
        let public: Vec<_> =
            routes.iter().filter(|route| route.access == Access::Public).map(|route| route.path).collect();
        assert_eq!(public, ["/health", "/ready", "/metrics", "/openapi.json"]);
    }

    #[tokio::test]
    async fn nothing_is_served_before_the_base_is_loaded() {
        let ask = async |path: &str| {
            let request = Request::get(path).body(Body::empty()).expect("request");
            router(app()).oneshot(request).await.expect("answer")
        };
        assert_eq!(ask("/health").await.status(), StatusCode::OK);
        for path in ["/ready", "/v1/models", "/v1/adapters", "/v1/receipts", "/v1/tenants", "/info"] {
            let answer = ask(path).await;
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
            assert!(
                answer.headers().contains_key(REQUEST_ID) && answer.headers().contains_key("retry-after"),
                "{path}"
            );
        }
        assert_eq!(ask("/nowhere").await.status(), StatusCode::NOT_FOUND);
    }
}
