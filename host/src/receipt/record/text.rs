//! How single values of a receipt are written in JSON, and read back strictly: one spelling for each value.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

fn only_spelling<'de, D, T>(deserializer: D, what: &str) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr + ToString,
{
    let text = String::deserialize(deserializer)?;
    let value = text.parse::<T>().map_err(|_| D::Error::custom(format!("this is not {what}")))?;
    if value.to_string() == text {
        Ok(value)
    } else {
        Err(D::Error::custom(format!("this is not how {what} is written")))
    }
}

pub(crate) mod digest {
    use super::{Deserializer, Serializer, only_spelling};
    use types::Digest;

    pub(crate) fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(digest)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        only_spelling(deserializer, "a digest")
    }
}

pub(super) mod parsed {
    use super::{Deserializer, Serializer, only_spelling};

    pub(in super::super) fn serialize<S: Serializer, T: ToString>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&value.to_string())
    }

    pub(in super::super) fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: std::str::FromStr + ToString,
    {
        only_spelling(deserializer, "such a name or number")
    }
}

pub(super) mod finite {
    use serde::de::Error as _;
    use serde::ser::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
        // JSON would turn it into null, and the record could never be read again.
        if value.is_finite() {
            serializer.serialize_f32(*value)
        } else {
            Err(S::Error::custom("a number is not finite"))
        }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
        let value = f32::deserialize(deserializer)?;
        if value.is_finite() { Ok(value) } else { Err(D::Error::custom("a number is not finite")) }
    }
}

pub(super) mod milliseconds {
    use std::time::Duration;

    use super::{D2, Deserializer, Serializer};
    use serde::Deserialize;

    pub(in super::super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(value.as_micros() as f64 / 1e3)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let micros = (f64::deserialize(deserializer)? * 1e3).round();
        if (0.0..1e15).contains(&micros) {
            Ok(Duration::from_micros(micros as u64))
        } else {
            Err(D::refuse("this is not a duration"))
        }
    }
}

pub(super) mod finish {
    use super::{D2, Deserializer, Serializer};
    use serde::Deserialize;
    use types::FinishReason;

    const ALL: [FinishReason; 5] = [
        FinishReason::Stop,
        FinishReason::Length,
        FinishReason::StoppedByPlugin,
        FinishReason::Cancelled,
        FinishReason::Deadline,
    ];

    pub(in super::super) fn serialize<S: Serializer>(
        value: &Option<FinishReason>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value.map_or("", FinishReason::name))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<FinishReason>, D::Error> {
        let name = String::deserialize(deserializer)?;
        let reason = ALL.into_iter().find(|reason| reason.name() == name);
        reason.map(Some).ok_or_else(|| D::refuse("this is not a finish reason"))
    }
}

/// A shorter way to refuse.
trait D2<'de>: Deserializer<'de> {
    fn refuse(reason: &str) -> Self::Error {
        Self::Error::custom(reason)
    }
}

impl<'de, D: Deserializer<'de>> D2<'de> for D {}
