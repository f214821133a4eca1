//! `GET /v1/usage`: what a tenant used, by UTC day, function, adapter and base. Not here: how it is counted, which is
//! `receipt/usage.rs`.

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use chrono::NaiveDate;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use types::TenantId;

use super::auth::Caller;
use super::receipts::blocking;
use crate::error::Error;
use crate::receipt::{Part, UsageCounts, UsageDays, UsageRow};
use crate::tenants::Right;

/// Days of an answer if the question names none.
const DAYS_DEFAULT: u64 = 30;

/// `?from=YYYY-MM-DD&to=YYYY-MM-DD&tenant=NAME`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UsageQuery {
    from: Option<String>,
    to: Option<String>,
    tenant: Option<String>,
}

/// Of the caller's tenant; of another one for an administrator.
pub(crate) async fn show(
    caller: Caller,
    query: Result<Query<UsageQuery>, QueryRejection>,
) -> Result<Json<Value>, Error> {
    let Query(query) = query.map_err(|error| Error::invalid("invalid_request", "", error.body_text()))?;
    let tenant = tenant(&caller, query.tenant.as_deref()).await?;
    let days = days(query.from.as_deref(), query.to.as_deref())?;
    let of = tenant.clone();
    let rows = blocking(&caller, move |host, _| Ok(host.receipts.usage(&of, days)?)).await?;
    Ok(Json(answer(&tenant, days, &rows)))
}

async fn tenant(caller: &Caller, asked: Option<&str>) -> Result<TenantId, Error> {
    let own = &caller.principal.tenant;
    let Some(asked) = asked.filter(|asked| *asked != own.as_str()) else { return Ok(own.clone()) };
    if !caller.principal.rights.has(Right::Admin) {
        return Err(Error::Forbidden(Right::Admin.name()));
    }
    let unknown = || Error::NotFound(format!("tenant `{}`", asked.chars().take(64).collect::<String>()));
    let tenant: TenantId = asked.parse().map_err(|_| unknown())?;
    let is_there = caller.host.tenants.list_tenants().await?.contains(&tenant);
    if is_there { Ok(tenant) } else { Err(unknown()) }
}

fn days(from: Option<&str>, to: Option<&str>) -> Result<UsageDays, Error> {
    let to = match to {
        Some(text) => day("to", text)?,
        None => today(),
    };
    match from {
        Some(text) => Ok(UsageDays::new(day("from", text)?, to)?),
        None => Ok(UsageDays::last(DAYS_DEFAULT, to)),
    }
}

fn day(param: &str, text: &str) -> Result<NaiveDate, Error> {
    NaiveDate::parse_from_str(text, "%Y-%m-%d")
        .map_err(|_| Error::invalid("invalid_request", param, format!("`{param}` is a day such as 2026-11-21")))
}

fn today() -> NaiveDate {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    crate::receipt::day_of(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn answer(tenant: &TenantId, days: UsageDays, rows: &[UsageRow]) -> Value {
    let totals = rows.iter().filter(|row| row.part == Part::Total).map(|row| row.counts);
    let total = totals.fold(UsageCounts::default(), UsageCounts::plus);
    let data: Vec<Value> = rows.chunk_by(|one, next| one.day == next.day).map(day_json).collect();
    let (from, to) = (days.from().to_string(), days.to().to_string());
    json!({
        "object": "usage", "tenant": tenant.as_str(), "from": from, "to": to, "total": counts(&total), "data": data,
    })
}

/// One day's rows; they come in the order of their parts.
fn day_json(rows: &[UsageRow]) -> Value {
    let mut day = Map::new();
    day.insert("day".into(), rows.first().map(|row| row.day.to_string()).into());
    let (mut functions, mut adapters, mut bases) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        let named = |name: &str, value: String| {
            let mut object = Map::from_iter([(name.to_owned(), value.into())]);
            object.extend(counts(&row.counts));
            Value::Object(object)
        };
        match &row.part {
            Part::Total => day.extend(counts(&row.counts)),
            Part::Function(name) => functions.push(named("name", name.to_string())),
            Part::Adapter(digest) => adapters.push(named("digest", digest.to_string())),
            Part::Base(digest) => bases.push(named("digest", digest.to_string())),
        }
    }
    day.extend([
        ("functions".to_owned(), functions.into()),
        ("adapters".to_owned(), adapters.into()),
        ("bases".to_owned(), bases.into()),
    ]);
    Value::Object(day)
}

fn counts(counts: &UsageCounts) -> Map<String, Value> {
    let ms = |us: u64| Value::from(us as f64 / 1e3);
    Map::from_iter([
        ("requests".to_owned(), counts.requests.into()),
        ("finished_requests".to_owned(), counts.finished.into()),
        ("failed_requests".to_owned(), counts.failed.into()),
        ("cancelled_requests".to_owned(), counts.cancelled.into()),
        ("recovered_requests".to_owned(), counts.recovered.into()),
        ("prompt_tokens".to_owned(), counts.prompt_tokens.into()),
        ("completion_tokens".to_owned(), counts.completion_tokens.into()),
        ("plugin_ms".to_owned(), ms(counts.plugin_us)),
        ("total_ms".to_owned(), ms(counts.total_us)),
    ])
}
