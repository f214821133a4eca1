//! Bodies of the routes for canaries and shadows.

use serde::Deserialize;
use utoipa::ToSchema;

/// `PUT /v1/functions/{name}/canary`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewCanary {
    /// Not the live one.
    pub(crate) version: u32,
    /// Of the callers, in steps of 0.01.
    #[schema(exclusive_minimum = 0.0, maximum = 100.0, multiple_of = 0.01)]
    pub(crate) percent: f64,
    /// The version that must be live now.
    #[serde(default)]
    pub(crate) expect: Option<u32>,
}

/// `PUT /v1/functions/{name}/shadow`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewShadow {
    /// Not the live one.
    pub(crate) version: u32,
    /// Of the requests, in steps of 0.01; 100 if left out.
    #[schema(exclusive_minimum = 0.0, maximum = 100.0, multiple_of = 0.01)]
    pub(crate) percent: Option<f64>,
    /// The version that must be live now.
    #[serde(default)]
    pub(crate) expect: Option<u32>,
}
