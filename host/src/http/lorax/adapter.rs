//! Which adapters LoRAX's fields name. An id is an alias or digest of the tenant's, or says where an adapter lies; at its
//! first use that one is added under an alias of its own. Not here: what may be fetched (`adapters/source.rs`).

use std::time::Duration;

use types::PlanEntry;
use zeroize::Zeroizing;

use super::body::{ApiToken, LoraxParameters, MergedAdapters};
use crate::adapters::Credential;
use crate::error::Error;
use crate::http::auth::Caller;
use crate::http::secrets;
use crate::tenants::Right;

/// What LoRAX calls the base.
const BASE_MODEL: &str = "__base_model__";
/// Before the name of a secret.
const SECRET: &str = "secret:";

/// What an id stands for.
#[derive(Debug, PartialEq, Eq)]
enum Named {
    /// An alias or digest of the tenant's.
    Alias(String),
    /// A URL of ours.
    Source(String),
    /// A folder below the root, by its path.
    Folder(String),
}

/// The composition that the fields ask for, all of it the tenant's own by then.
pub(super) async fn composition(caller: &Caller, parameters: &LoraxParameters) -> Result<Vec<PlanEntry>, Error> {
    let entries = entries(parameters)?;
    // A body has room for a million ids; the plan's check comes after each of them would have been fetched.
    let max = caller.host.plan_limits.composition_entries_max;
    if entries.len() > max {
        let message = format!("{} adapters are over the limit composition_entries_max of {max}", entries.len());
        return Err(Error::invalid("limit_exceeded", "merged_adapters", message));
    }
    let mut composition = Vec::new();
    for (id, weight) in entries {
        let named = named(id, parameters.adapter_source.as_deref())?;
        composition.push(PlanEntry::whole(own(caller, named, parameters.api_token.as_ref()).await?, weight));
    }
    Ok(composition)
}

/// Ids and weights. LoRAX's `linear` is here the exact sum.
fn entries(parameters: &LoraxParameters) -> Result<Vec<(&str, f32)>, Error> {
    let id = parameters.adapter_id.as_deref().filter(|id| !["", BASE_MODEL].contains(id));
    let Some(merged) = &parameters.merged_adapters else {
        return Ok(id.map(|id| (id, 1.0)).into_iter().collect());
    };
    let invalid = |message: &str| Error::invalid("invalid_request", "merged_adapters", message);
    if parameters.adapter_id.is_some() {
        return Err(invalid("send either adapter_id or merged_adapters"));
    }
    let MergedAdapters { ids, weights, merge_strategy, .. } = merged;
    match merge_strategy.as_deref().unwrap_or("linear") {
        "linear" => {}
        other @ ("ties" | "dare_linear" | "dare_ties") => {
            let message = format!(
                "merge_strategy {other} is not done at each request: make the adapter once with \
                 POST /v1/adapters/{{alias}}/derive, and name it as adapter_id"
            );
            return Err(Error::invalid("unsupported", "merge_strategy", message));
        }
        _ => {
            let message = "merge_strategy is linear, ties, dare_linear or dare_ties";
            return Err(Error::invalid("invalid_request", "merge_strategy", message));
        }
    }
    if ids.is_empty() {
        return Err(invalid("merged_adapters.ids is empty: name at least one"));
    }
    if ids.len() != weights.len() {
        return Err(invalid("merged_adapters has other numbers of ids and weights: send one weight for each id"));
    }
    Ok(ids.iter().map(String::as_str).zip(weights.iter().copied()).collect())
}

/// Reads an id. An alias has no `/`, so that one with it is of the hub, as LoRAX has it by default.
fn named(id: &str, source: Option<&str>) -> Result<Named, Error> {
    let invalid = |field: &str, message: String| Err(Error::invalid("invalid_request", field, message));
    if let Some((scheme, _)) = id.split_once("://") {
        let expected = match source {
            None | Some("local") => return Ok(Named::Source(id.to_owned())),
            Some("hub") => "hf",
            Some(other) => other,
        };
        if scheme.eq_ignore_ascii_case(expected) {
            return Ok(Named::Source(id.to_owned()));
        }
    }
    match source {
        None if id.starts_with('/') => Ok(Named::Folder(id.to_owned())),
        None if id.contains('/') => Ok(Named::Source(format!("hf://{id}"))),
        Some("local") if id.contains('/') => Ok(Named::Folder(id.to_owned())),
        None | Some("local") => Ok(Named::Alias(id.to_owned())),
        Some("file") => Ok(Named::Folder(id.to_owned())),
        Some(_) if id.contains("://") => {
            invalid("adapter_id", "adapter_id is a URL of another kind than adapter_source says".into())
        }
        Some("hub") => Ok(Named::Source(format!("hf://{id}"))),
        Some("s3") => Ok(Named::Source(format!("s3://{id}"))),
        Some("pbase") => {
            let message = "adapter_source pbase is not supported: use local, hub, s3 or file";
            Err(Error::invalid("unsupported", "adapter_source", message))
        }
        Some(_) => invalid("adapter_source", "adapter_source is none of local, hub, s3 and file".into()),
    }
}

/// A name that the tenant owns by now: its own, or the alias of a source, which is added if it is not there.
async fn own(caller: &Caller, named: Named, token: Option<&ApiToken>) -> Result<String, Error> {
    let Caller { host, principal } = caller;
    let url = match named {
        Named::Alias(alias) => {
            // Asked here, so that it is told as what it is: the plan's check only knows that it is not granted.
            return match host.adapters.resolve(&principal.tenant, &alias).await? {
                Some(_) => Ok(alias),
                None => Err(crate::adapters::AdapterError::NotFound(alias.chars().take(96).collect()).into()),
            };
        }
        Named::Source(url) => url,
        Named::Folder(path) => host.adapters.folder_url(&path)?,
    };
    let alias = host.adapters.alias_of_source(&url)?;
    if host.adapters.resolve(&principal.tenant, alias.as_str()).await?.is_none() {
        // To add one is more than to invoke.
        if !principal.rights.has(Right::Adapters) {
            return Err(Error::Forbidden(Right::Adapters.name()));
        }
        let credential = credential(caller, &url, token).await?;
        let added = host.adapters.add_url_once(&principal.tenant, &alias, &url, credential.as_ref());
        let deadline = Duration::from_millis(host.plan_limits.deadline_ms_max.into());
        tokio::time::timeout(deadline, added).await.map_err(|_| Error::Deadline)??;
    }
    Ok(alias.to_string())
}

async fn credential(caller: &Caller, url: &str, token: Option<&ApiToken>) -> Result<Option<Credential>, Error> {
    let Caller { host, principal } = caller;
    let Some(ApiToken(token)) = token else { return Ok(None) };
    if let Some(name) = token.strip_prefix(SECRET) {
        return Ok(Some(host.secrets.read(&principal.tenant, &secrets::name(name, "api_token")?).await?));
    }
    let origin = host.adapters.token_origin(url)?;
    Ok(Some(Credential::Bearer { origin, token: Zeroizing::new(token.as_str().to_owned()) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::lorax::body::GenerateBody;
    use crate::http::wire::parse;

    #[test]
    fn an_id_is_an_alias_or_says_where_it_lies() {
        let alias = |id: &str| Ok(Named::Alias(id.into()));
        let url = |id: &str| Ok(Named::Source(id.into()));
        let folder = |id: &str| Ok(Named::Folder(id.into()));
        for (id, source, expected) in [
            ("iso-date", None, alias("iso-date")),
            ("iso-date", Some("local"), alias("iso-date")),
            ("acme/iso", None, url("hf://acme/iso")),
            ("acme/iso@v1", Some("hub"), url("hf://acme/iso@v1")),
            ("hf://acme/iso", Some("hub"), url("hf://acme/iso")),
            ("hf://acme/iso", None, url("hf://acme/iso")),
            ("bucket/prefix", Some("s3"), url("s3://bucket/prefix")),
            ("s3://bucket/prefix", Some("s3"), url("s3://bucket/prefix")),
            ("https://a.example/x", None, url("https://a.example/x")),
            ("file:///srv/a", Some("file"), url("file:///srv/a")),
            ("/srv/a", None, folder("/srv/a")),
            ("/srv/a", Some("local"), folder("/srv/a")),
            ("a/b", Some("local"), folder("a/b")),
            ("a", Some("file"), folder("a")),
            ("a/b", Some("pbase"), Err("unsupported")),
            ("a/b", Some("ftp"), Err("invalid_request")),
            ("s3://a/b", Some("hub"), Err("invalid_request")),
        ] {
            let found = named(id, source).map_err(|error| error.code().to_owned());
            assert_eq!(found, expected.map_err(str::to_owned), "{id} {source:?}");
        }
    }

    fn merged(fields: &str) -> Result<Vec<(String, f32)>, (String, String)> {
        let body = format!(r#"{{"inputs": "a", "parameters": {{{fields}}}}}"#);
        let parameters = parse::<GenerateBody>(body).expect("parsed").parameters;
        let owned = |(id, weight): (&str, f32)| (id.to_owned(), weight);
        entries(&parameters)
            .map(|entries| entries.into_iter().map(owned).collect())
            .map_err(|error| (error.code().to_owned(), error.to_string()))
    }

    #[test]
    fn a_linear_merge_is_a_list_and_others_say_where_to_go() {
        assert_eq!(merged(r#""adapter_id": "a""#), Ok(vec![("a".into(), 1.0)]));
        for base in ["null", "\"\"", "\"__base_model__\""] {
            assert_eq!(merged(&format!(r#""adapter_id": {base}"#)), Ok(Vec::new()));
        }
        let two = |more: &str| {
            merged(&format!(r#""merged_adapters": {{"ids": ["a", "b"], "weights": [0.5, -1], "density": 0.2{more}}}"#))
        };
        let expected = vec![("a".to_owned(), 0.5), ("b".to_owned(), -1.0)];
        assert_eq!(two(""), Ok(expected.clone()));
        assert_eq!(two(r#", "merge_strategy": "linear", "majority_sign_method": "total""#), Ok(expected));
        for strategy in ["ties", "dare_linear", "dare_ties"] {
            let (code, message) = two(&format!(r#", "merge_strategy": "{strategy}""#)).expect_err("refused");
            assert_eq!(code, "unsupported");
            assert!(message.contains("POST /v1/adapters/{alias}/derive") && message.contains(strategy), "{message}");
        }
        for wrong in [
            r#""merged_adapters": {"ids": [], "weights": []}"#,
            r#""merged_adapters": {"ids": ["a"], "weights": []}"#,
            r#""merged_adapters": {"ids": ["a"]}"#,
            r#""merged_adapters": {"ids": ["a"], "weights": [1], "merge_strategy": "slerp"}"#,
            r#""adapter_id": "a", "merged_adapters": {"ids": ["a"], "weights": [1]}"#,
        ] {
            assert_eq!(merged(wrong).map_err(|(code, _)| code), Err("invalid_request".into()), "{wrong}");
        }
    }
}
