//! Which requests of a function are recorded, and how many recordings are kept. Not here: the recordings.

use serde::{Deserialize, Serialize};
use types::Digest;
use utoipa::ToSchema;

use super::ManifestError;

/// Recordings of a function that may be kept.
const RECORDINGS_MAX: u32 = 10_000;

/// Which requests are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ManifestRecord {
    /// Of so many requests in a hundred, over 0.
    #[schema(exclusive_minimum = 0.0, maximum = 100.0)]
    pub percent: f64,
    /// The newest so many are kept, as far as they have room: one has at most 1 MiB, all of a function 32 MiB.
    #[schema(minimum = 1, maximum = 10_000)]
    pub recordings_max: u32,
}

impl Default for ManifestRecord {
    fn default() -> Self {
        Self { percent: 100.0, recordings_max: 100 }
    }
}

impl ManifestRecord {
    pub(super) fn check(self) -> Result<(), ManifestError> {
        if !(self.percent > 0.0 && self.percent <= 100.0) {
            return Err(ManifestError::BadRecord(
                "percent must be over 0 and at most 100; leave `record` out for none",
            ));
        }
        if !(1..=RECORDINGS_MAX).contains(&self.recordings_max) {
            return Err(ManifestError::BadRecord("recordings_max must be 1 to 10,000; leave `record` out for none"));
        }
        Ok(())
    }

    /// Whether this request is one of them: all functions of the same share take the same ones, so that a request that is handed
    /// over is recorded in each or in none.
    #[must_use]
    pub fn takes(self, request: &str) -> bool {
        let digest = Digest::of_parts("tenon 2026-11 recorded requests", [request.as_bytes()]);
        let first: [u8; 4] = digest.as_bytes().first_chunk().copied().unwrap_or_default();
        f64::from(u32::from_le_bytes(first)) < self.percent / 100.0 * (f64::from(u32::MAX) + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_requests_is_recorded_and_always_the_same() {
        let taken = |percent| {
            let record = ManifestRecord { percent, ..ManifestRecord::default() };
            (0..2000).filter(|number| record.takes(&format!("req_{number}"))).count()
        };
        assert_eq!(taken(100.0), 2000);
        assert!((800..1200).contains(&taken(50.0)), "{}", taken(50.0));
        assert!((1..60).contains(&taken(1.0)), "{}", taken(1.0));
        assert_eq!(taken(10.0), taken(10.0));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let check = |text: &str| {
            let read = serde_json::from_str::<ManifestRecord>(text).map_err(|error| error.to_string())?;
            read.check().map_err(|error| error.to_string())
        };
        assert_eq!(check("{}"), Ok(()));
        assert_eq!(check(r#"{"percent":0.5,"recordings_max":1}"#), Ok(()));
        for (text, said) in [
            (r#"{"percent":0}"#, "record.percent"),
            (r#"{"percent":100.1}"#, "record.percent"),
            (r#"{"percent":-1}"#, "record.percent"),
            (r#"{"recordings_max":0}"#, "record.recordings_max"),
            (r#"{"recordings_max":10001}"#, "record.recordings_max"),
            (r#"{"share":1}"#, "unknown field"),
        ] {
            assert!(check(text).expect_err(text).contains(said), "{text}");
        }
    }
}
