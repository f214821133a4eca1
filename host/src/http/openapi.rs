//! `GET /openapi.json`: the OpenAPI 3.1 document of every route, made from the handlers' own attributes and types. What
//! holds for many routes (access, errors, headers, parts of paths) is written down once, here, and access comes from the
//! route table itself. Not here: what single routes take and answer.

mod common;
mod openai;
mod shapes;

pub(crate) use openai::{ChatCompletion, Completion, Model};
pub(crate) use shapes::{AdapterUpload, Bytes, Event, PluginUpload};

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;

use super::{
    App, Route, adapters, admin, error, functions, invoke, kv, logs, lorax, operations, pins, plugins, quotas,
    receipts, recordings, revocations, rollouts, secrets, shares, tags, usage, vllm,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tenon",
        description = "A serverless host for LoRA adapters and WebAssembly plugins round one resident base model. \
            A `code` in an error is stable; its status says whose fault it is."
    ),
    paths(
        operations::health,
        operations::ready,
        operations::metrics,
        serve,
        plugins::upload,
        plugins::download,
        functions::list,
        functions::put,
        functions::show,
        functions::delete,
        functions::versions,
        functions::promote,
        rollouts::put_canary,
        rollouts::end_canary,
        rollouts::put_shadow,
        rollouts::show_shadow,
        rollouts::end_shadow,
        logs::read,
        recordings::list,
        recordings::show,
        invoke::invoke,
        adapters::list,
        adapters::put,
        adapters::show,
        adapters::remove,
        tags::put,
        pins::put,
        pins::remove,
        adapters::derive::derive,
        shares::put,
        shares::show,
        shares::remove,
        shares::list,
        secrets::list,
        secrets::put,
        secrets::remove,
        kv::buckets,
        kv::keys,
        kv::remove_bucket,
        kv::get,
        kv::put,
        kv::remove,
        super::openai::models,
        super::openai::model,
        super::openai::completions,
        super::openai::chat,
        lorax::compatible,
        lorax::generate,
        lorax::generate_stream,
        lorax::info,
        vllm::load,
        vllm::unload,
        receipts::list,
        receipts::export,
        receipts::keys,
        receipts::show,
        usage::show,
        admin::create_tenant,
        admin::list_tenants,
        admin::signers,
        admin::set_signers,
        quotas::show,
        quotas::put,
        quotas::remove,
        quotas::own,
        admin::create_key,
        admin::revoke_key,
        revocations::list,
        revocations::put,
    ),
    components(schemas(error::ErrorBody, lorax::LoraxError, lorax::LoraxEvent, vllm::VllmError))
)]
struct Document;

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "operations", operation_id = "openapi",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value, content_type = "application/json")))]
pub(crate) async fn serve(State(app): State<App>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], app.document()).into_response()
}

/// The document for these routes, as JSON.
pub(super) fn document(routes: &[Route]) -> bytes::Bytes {
    let mut document = Document::openapi();
    common::complete(&mut document, routes);
    serde_json::to_vec(&document).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use axum::body::Body;
    use axum::http::{Method, Request, StatusCode};
    use serde_json::Value;
    use tower::ServiceExt as _;

    use super::super::{router, routes};
    use super::*;
    use crate::config::HttpLimits;
    use crate::http::Metrics;

    const METHODS: [Method; 8] = [
        Method::GET,
        Method::PUT,
        Method::POST,
        Method::DELETE,
        Method::PATCH,
        Method::OPTIONS,
        Method::TRACE,
        Method::HEAD,
    ];

    fn parsed() -> Value {
        serde_json::from_slice(&document(&routes(&HttpLimits::default()))).expect("the document is JSON")
    }

    /// `METHOD path` of every operation in the document.
    fn documented() -> BTreeSet<String> {
        let document = parsed();
        let paths = document["paths"].as_object().expect("paths");
        let of_path = |(path, item): (&String, &Value)| -> Vec<String> {
            let methods = METHODS.map(|method| method.to_string());
            let there = methods.into_iter().filter(|method| item.get(method.to_lowercase()).is_some());
            there.map(|method| format!("{method} {path}")).collect()
        };
        paths.iter().flat_map(of_path).collect()
    }

    #[tokio::test]
    async fn the_document_has_every_route_and_method_and_no_other() {
        let app = App::new(std::sync::Arc::new(Metrics::new()), HttpLimits::default());
        let mut served = BTreeSet::new();
        for route in routes(&HttpLimits::default()) {
            for method in METHODS {
                let path = route.path.replace(['{', '}'], "");
                let request = Request::builder().method(method.clone()).uri(path).body(Body::empty()).expect("request");
                let status = router(app.clone()).oneshot(request).await.expect("an answer").status();
                // `HEAD` goes with every `GET`, by HTTP's own rule.
                if status != StatusCode::METHOD_NOT_ALLOWED && method != Method::HEAD {
                    served.insert(format!("{method} {}", route.path));
                }
            }
        }
        assert_eq!(served, documented());
    }

    #[test]
    fn public_operations_ask_for_no_key_and_all_others_do() {
        let document = parsed();
        for route in routes(&HttpLimits::default()) {
            let item = document["paths"][route.path].as_object().expect("a path");
            for (method, operation) in item {
                let is_public = operation["security"] == serde_json::json!([]);
                assert_eq!(is_public, route.access == crate::http::Access::Public, "{method} {}", route.path);
                assert_eq!(is_public, operation["responses"].get("401").is_none(), "{method} {}", route.path);
            }
        }
    }

    #[test]
    fn every_error_has_the_error_object_and_every_answer_a_request_id() {
        let document = parsed();
        for route in routes(&HttpLimits::default()) {
            let schema = Value::from(format!("#/components/schemas/{}", route.dialect.schema()));
            for operation in document["paths"][route.path].as_object().expect("an item").values() {
                for (status, response) in operation["responses"].as_object().expect("responses") {
                    assert!(response["headers"].get("x-request-id").is_some(), "{operation}");
                    let is_error = response.pointer("/content/application~1json/schema/$ref") == Some(&schema);
                    assert_eq!(is_error, status.as_str() >= "400", "{status} {operation}");
                }
            }
        }
    }

    /// Two types of one name would be one schema, and one of them wrong.
    #[test]
    fn every_schema_has_a_name_of_its_own() {
        let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        let mut folders = vec![sources];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
                if entry.is_dir() {
                    folders.push(entry);
                    continue;
                }
                let text = std::fs::read_to_string(&entry).expect("a source");
                let derived = text.split("ToSchema)]").skip(1);
                let names = derived.filter_map(|rest| {
                    let words = rest.split_once("struct ").into_iter().chain(rest.split_once("enum "));
                    let (_, rest) = words.min_by_key(|(before, _)| before.len())?;
                    rest.split(|c: char| !c.is_alphanumeric()).next().map(str::to_owned)
                });
                names.for_each(|name| *found.entry(name).or_default() += 1);
            }
        }
        assert!(found.len() > 40, "the types are found: {found:?}");
        let twice: Vec<_> = found.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "give one of them another name: {twice:?}");
    }
}
