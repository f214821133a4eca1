//! Which base an adapter is for, as its files may say in a way that can be checked: by the digest of the base. Not here: the
//! base's name, which proves nothing and only makes a warning.

use types::Digest;

use super::rejection::short;
use super::{AdapterBase, AdapterRejection};

/// A key of `adapter_config.json`, and of the `__metadata__` of the weights: 64 hexadecimal digits, the BLAKE3 of the base as
/// `/v1/models` and receipts show it. A trainer may write either; where there is one, the adapter is for that base alone.
pub(super) const BASE_DIGEST_KEY: &str = "tenon.base_digest";

/// Whether the base is named. What names another one, or none that can be read, is refused.
pub(super) fn check<'a>(
    stated: impl IntoIterator<Item = &'a str>,
    base: &dyn AdapterBase,
) -> Result<bool, AdapterRejection> {
    let mut is_named = false;
    for stated in stated {
        let digest = stated.parse::<Digest>().map_err(|error| {
            AdapterRejection::Malformed(format!("`{BASE_DIGEST_KEY}` is {}: {error}", short(stated)))
        })?;
        match base.digest() {
            Some(own) if own == digest => is_named = true,
            Some(own) => {
                return Err(AdapterRejection::OtherBase(format!(
                    "`{BASE_DIGEST_KEY}` is {digest}, this base is {own}"
                )));
            }
            None => {
                let what = format!("`{BASE_DIGEST_KEY}` is {digest}, and the digest of this base is not known here");
                return Err(AdapterRejection::OtherBase(what));
            }
        }
    }
    Ok(is_named)
}
