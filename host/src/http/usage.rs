//! `GET /v1/usage`: what a tenant used, by UTC day, function, adapter and base. Not here: how it is counted, which is
//! `receipt/usage.rs`.

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use types::TenantId;
use utoipa::{IntoParams, ToSchema};

use super::auth::Caller;
use super::receipts::blocking;
use crate::error::Error;
use crate::receipt::{Part, UsageCounts, UsageDays, UsageRow};
use crate::tenants::Right;

/// Days of an answer if the question names none.
const DAYS_DEFAULT: u64 = 30;

/// Which days, and whose.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct UsageQuery {
    /// The first day, in UTC; the last 30 days if absent. At most 92 days at once.
    #[param(format = Date)]
    from: Option<String>,
    /// The last day; today if absent.
    #[param(format = Date)]
    to: Option<String>,
    /// Another tenant, for a key with the right `admin`.
    tenant: Option<String>,
}

/// What was used on these days.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UsageAnswer {
    #[schema(example = "usage")]
    object: &'static str,
    tenant: String,
    /// The first day.
    from: String,
    /// The last day.
    to: String,
    total: UsageSum,
    /// Days on which something was used.
    data: Vec<UsageDay>,
}

/// What was used on one day.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UsageDay {
    day: String,
    #[serde(flatten)]
    sum: UsageSum,
    functions: Vec<FunctionUsage>,
    /// A request with two adapters is in the rows of both.
    adapters: Vec<DigestUsage>,
    bases: Vec<DigestUsage>,
}

/// Of one function, whichever version.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FunctionUsage {
    name: String,
    #[serde(flatten)]
    sum: UsageSum,
}

/// Of one adapter or base.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DigestUsage {
    digest: String,
    #[serde(flatten)]
    sum: UsageSum,
}

/// How much. Requests are those that ended, each with its final receipt.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct UsageSum {
    requests: u64,
    finished_requests: u64,
    failed_requests: u64,
    cancelled_requests: u64,
    /// Ended by a crash of the host; their tokens are not known.
    recovered_requests: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    /// In plugins, by the wall clock.
    plugin_ms: f64,
    /// From admission to the end.
    total_ms: f64,
}

impl From<&UsageCounts> for UsageSum {
    fn from(counts: &UsageCounts) -> Self {
        Self {
            requests: counts.requests,
            finished_requests: counts.finished,
            failed_requests: counts.failed,
            cancelled_requests: counts.cancelled,
            recovered_requests: counts.recovered,
            prompt_tokens: counts.prompt_tokens,
            completion_tokens: counts.completion_tokens,
            plugin_ms: counts.plugin_us as f64 / 1e3,
            total_ms: counts.total_us as f64 / 1e3,
        }
    }
}

/// What the tenant used, by day, function, adapter and base.
#[utoipa::path(get, path = "/v1/usage", tag = "receipts", operation_id = "usage", params(UsageQuery),
    responses((status = 200, description = "Sums of the receipts", body = UsageAnswer),
        (status = 404, description = "No such tenant")))]
pub(crate) async fn show(
    caller: Caller,
    query: Result<Query<UsageQuery>, QueryRejection>,
) -> Result<Json<UsageAnswer>, Error> {
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

fn answer(tenant: &TenantId, days: UsageDays, rows: &[UsageRow]) -> UsageAnswer {
    let totals = rows.iter().filter(|row| row.part == Part::Total).map(|row| row.counts);
    let total = totals.fold(UsageCounts::default(), UsageCounts::plus);
    UsageAnswer {
        object: "usage",
        tenant: tenant.as_str().to_owned(),
        from: days.from().to_string(),
        to: days.to().to_string(),
        total: (&total).into(),
        data: rows.chunk_by(|one, next| one.day == next.day).filter_map(of_day).collect(),
    }
}

/// One day's rows; they come in the order of their parts.
fn of_day(rows: &[UsageRow]) -> Option<UsageDay> {
    let mut day = UsageDay {
        day: rows.first()?.day.to_string(),
        sum: UsageSum::default(),
        functions: Vec::new(),
        adapters: Vec::new(),
        bases: Vec::new(),
    };
    for row in rows {
        let sum = UsageSum::from(&row.counts);
        match &row.part {
            Part::Total => day.sum = sum,
            Part::Function(name) => day.functions.push(FunctionUsage { name: name.to_string(), sum }),
            Part::Adapter(digest) => day.adapters.push(DigestUsage { digest: digest.to_string(), sum }),
            Part::Base(digest) => day.bases.push(DigestUsage { digest: digest.to_string(), sum }),
        }
    }
    Some(day)
}
