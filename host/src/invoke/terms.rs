//! For whom the engine serves a request, and how: who shares KV with whom, and what a caller may say about its turn. Not
//! here: what the engine makes of it.

use engine::Terms;
use types::{Digest, TenantId};

use crate::error::Error;

/// What a caller may say about how its request is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handling {
    /// How far the request steps back behind others; 0 is the usual.
    pub(crate) yields: u8,
    /// Whether tokens may be guessed and verified.
    pub(crate) speculation: bool,
    /// A shadow's copy, which nobody waits for: it gives way to everything, on nobody's share.
    pub(crate) is_copy: bool,
}

impl Default for Handling {
    fn default() -> Self {
        Self { yields: 0, speculation: true, is_copy: false }
    }
}

impl Handling {
    /// `priority` is vLLM's: a larger one is served later. Nobody pushes ahead of others: it is at least 0.
    pub(crate) fn new(priority: Option<i64>, speculation: Option<bool>) -> Result<Self, Error> {
        match u8::try_from(priority.unwrap_or(0)) {
            Ok(yields) if yields <= 100 => {
                Ok(Self { yields, speculation: speculation.unwrap_or(true), is_copy: false })
            }
            _ => {
                let message = "priority is 0 to 100: a larger one is served later, and nobody goes before the others";
                Err(Error::invalid("invalid_request", "priority", message))
            }
        }
    }
}

/// Makes of each tenant a salt that nobody else can make. KV lives no longer than the process, and so does this.
pub(crate) struct TenantSalts {
    secret: [u8; 32],
}

impl TenantSalts {
    /// With a new secret.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub(crate) fn new() -> Result<Self, Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| Error::Internal(format!("no randomness: {error}")))?;
        Ok(Self { secret })
    }

    /// How this tenant's request is served.
    pub(crate) fn terms(&self, tenant: &TenantId, handling: Handling) -> Terms {
        let of = |domain| Digest::of_parts(domain, [self.secret.as_slice(), tenant.as_str().as_bytes()]);
        // What is computed for copies is not held against the tenant's own requests.
        let turn = if handling.is_copy { "tenon 2026-11 engine tenant, copies" } else { "tenon 2026-11 engine tenant" };
        Terms {
            tenant: of(turn),
            kv_salt: of("tenon 2026-11 kv salt"),
            priority: if handling.is_copy { i8::MIN } else { 0i8.saturating_sub_unsigned(handling.yields) },
            speculation: handling.speculation,
            author: None,
            unload: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_steps_back_and_never_ahead() {
        let new = |priority| Handling::new(Some(priority), None).map_err(|error| error.param().map(str::to_owned));
        assert_eq!(new(0), Ok(Handling::default()));
        assert_eq!(new(100).map(|handling| handling.yields), Ok(100));
        for bad in [-1, 101, 256, i64::MAX] {
            assert_eq!(new(bad), Err(Some("priority".into())), "{bad}");
        }
        let salts = TenantSalts::new().expect("randomness");
        let tenant: TenantId = "one".parse().expect("a name");
        let priority = |yields| salts.terms(&tenant, Handling { yields, ..Handling::default() }).priority;
        assert!(priority(100) < priority(1) && priority(1) < priority(0));
        let copy = salts.terms(&tenant, Handling { is_copy: true, ..Handling::default() });
        assert!(copy.priority < priority(100), "behind whoever steps back furthest");
        let own = salts.terms(&tenant, Handling::default());
        assert_ne!(copy.tenant, own.tenant, "on nobody's share");
        assert_eq!(copy.kv_salt, own.kv_salt);
    }

    #[test]
    fn salts_are_the_tenants_own_and_the_processs() {
        let [one, two] = ["one", "two"].map(|name| name.parse::<TenantId>().expect("a name"));
        let (salts, other) = (TenantSalts::new().expect("randomness"), TenantSalts::new().expect("randomness"));
        let of = |salts: &TenantSalts, tenant| salts.terms(tenant, Handling::default());
        assert_eq!(of(&salts, &one), of(&salts, &one));
        assert_ne!(of(&salts, &one).kv_salt, of(&salts, &two).kv_salt);
        assert_ne!(of(&salts, &one).tenant, of(&salts, &two).tenant);
        assert_ne!(of(&salts, &one).kv_salt, of(&other, &one).kv_salt);
    }
}
