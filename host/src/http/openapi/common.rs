//! What holds for many operations of the document, added to each that it holds for.

use utoipa::openapi::header::Header;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Ref, Schema, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, OpenApi, PathItem, RefOr, Required, Response};

use crate::http::auth::Access;
use crate::http::dialect::Dialect;
use crate::http::{REQUEST_ID, Route};

/// The name of the one way to say who calls.
const KEY: &str = "key";

/// The variable parts of paths, and how they may look.
const PARTS: &[(&str, &str, &str, &str)] = &[
    ("/v1/functions/", "name", "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", "The function's name"),
    ("/v1/adapters/", "alias", "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", "The adapter's alias"),
    ("/v1/secrets/", "name", "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", "The secret's name"),
    ("/v1/plugins/", "digest", "^[0-9a-fA-F]{64}$", "The plugin's digest"),
    ("/v1/recordings/", "request", "", "The request's identifier, as `x-request-id` has it"),
    ("/v1/kv/", "bucket", "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", "The bucket's name"),
    ("/v1/kv/", "key", "", "The key, percent-encoded"),
    ("/v1/models/", "id", "", "The model's name"),
    ("/v1/receipts/", "id", "", "The receipt's identifier"),
    ("/v1/keys/", "id", "", "The key's identifier"),
    ("/v1/revocations/", "digest", "^[0-9a-fA-F]{64}$", "The digest of an adapter or a plugin"),
    ("/v1/tenants/", "tenant", "", "The tenant's name"),
];

/// Completes a document that was made from the handlers.
pub(super) fn complete(document: &mut OpenApi, routes: &[Route]) {
    let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("A key of a tenant"));
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(KEY, SecurityScheme::Http(scheme.build()));
    for (path, item) in &mut document.paths.paths {
        let route = routes.iter().find(|route| route.path == path);
        let access = route.map(|route| route.access);
        let dialect = route.map_or(Dialect::Own, |route| route.dialect);
        for operation in operations(item) {
            if let Some(access) = access {
                secure(operation, access);
            }
            add_parts(operation, path);
            add_errors(operation, dialect);
            finish_responses(operation, dialect);
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete].into_iter().flatten()
}

/// The access that the route table declares.
fn secure(operation: &mut Operation, access: Access) {
    let Access::Needs(right) = access else {
        operation.security = Some(Vec::new());
        return;
    };
    operation.security = Some(vec![SecurityRequirement::new(KEY, Vec::<String>::new())]);
    let sentence = format!("Needs a key with the right `{}`.", right.name());
    let more = operation.description.take().map(|text| format!("{text}\n\n"));
    operation.description = Some(more.unwrap_or_default() + &sentence);
    for (status, description) in [
        ("401", "No key, or one that does not hold"),
        ("403", "A key without the right"),
        ("500", "A fault of the host, whose log has the reason under the request's id"),
        ("503", "The base is loading, the host drains, or its capacity is used up"),
        ("507", "The host's disk is full: make room"),
    ] {
        add(operation, status, description);
    }
}

/// The variable parts of the path as parameters.
fn add_parts(operation: &mut Operation, path: &str) {
    for (prefix, name, pattern, description) in PARTS {
        if !path.starts_with(prefix) || !path.contains(&format!("{{{name}}}")) {
            continue;
        }
        let schema = ObjectBuilder::new().schema_type(Type::String);
        let schema = if pattern.is_empty() { schema.min_length(Some(1)) } else { schema.pattern(Some(*pattern)) };
        let parameter = ParameterBuilder::new().name(*name).parameter_in(ParameterIn::Path);
        let parameter = parameter.required(Required::True).description(Some(*description)).schema(Some(schema));
        operation.parameters.get_or_insert_default().push(RefOr::T(parameter.build()));
    }
}

/// The errors that follow from what the operation takes.
fn add_errors(operation: &mut Operation, dialect: Dialect) {
    let takes = |place| operation.parameters.iter().flatten().any(|one| is_in(one, place));
    let (has_part, has_query, has_body) =
        (takes(&ParameterIn::Path), takes(&ParameterIn::Query), operation.request_body.is_some());
    if has_part || has_query || has_body {
        add(operation, dialect.refused().as_str(), "A request that makes no sense; the error names the field");
    }
    if has_part || has_body {
        add(operation, "404", "Not there, or not the caller's");
    }
    if has_body {
        add(operation, "408", "The body came too slowly");
        add(operation, "410", "An adapter or a plugin that it needs was revoked");
        add(operation, "413", "The body is too large");
        add(operation, "429", "A quota of the tenant is used up, or its share of the queue");
    }
}

fn is_in(parameter: &RefOr<Parameter>, place: &ParameterIn) -> bool {
    matches!(parameter, RefOr::T(parameter) if parameter.parameter_in == *place)
}

/// What the handler says itself stands.
fn add(operation: &mut Operation, status: &str, description: &str) {
    let responses = &mut operation.responses.responses;
    responses.entry(status.to_owned()).or_insert_with(|| Response::new(description).into());
}

/// Every answer has a request id, and every error the error object.
fn finish_responses(operation: &mut Operation, dialect: Dialect) {
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        response.headers.insert(REQUEST_ID.to_string(), text_header("The request's identifier, as in the log"));
        if status.as_str() >= "400" && response.content.is_empty() {
            let content = Content::new(Some(RefOr::<Schema>::Ref(Ref::from_schema_name(dialect.schema()))));
            response.content.insert("application/json".into(), RefOr::T(content));
        }
        if matches!(status.as_str(), "429" | "503" | "507") {
            response.headers.insert("retry-after".into(), text_header("Seconds after which trying again may help"));
        }
        if status == "401" {
            response.headers.insert("www-authenticate".into(), text_header("`Bearer`"));
        }
    }
}

fn text_header(description: &str) -> RefOr<Header> {
    let mut header = Header::new(ObjectBuilder::new().schema_type(Type::String).build());
    header.description = Some(description.to_owned());
    RefOr::T(header)
}
