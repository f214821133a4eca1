//! Salted commitments to content: BLAKE3 keyed by a random salt. Not here: the content.
//!
//! A commitment whose salt is published lets anybody guess short content, so the record holds the commitment alone. The
//! salts lie in a private table, are given only to the tenant that owns the receipt ([`super::ReceiptLog::salts`]), and
//! are in no export. With a salt and the content the owner proves to anybody what was asked or answered; once the salts are
//! gone, the commitments say nothing about content.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use types::Digest;

use super::ReceiptError;
use super::record::text;

/// 32 random bytes; the key under which content was hashed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Salt([u8; 32]);

impl Salt {
    pub(super) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for the owner.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt(..)")
    }
}

/// A receipt's salts, for its owner only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Salts {
    /// Of the prompt's commitment.
    pub prompt: Option<Salt>,
    /// Of the answer's commitment.
    pub answer: Option<Salt>,
}

/// A commitment to content. Serialised without its salt; one that was read from a record has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commitment {
    digest: Digest,
    salt: Option<Salt>,
}

impl Commitment {
    /// Commits to content that is there as a whole.
    ///
    /// # Errors
    /// [`ReceiptError::Random`].
    pub fn to(content: &[u8]) -> Result<Self, ReceiptError> {
        let mut committer = Committer::new()?;
        committer.update(content);
        Ok(committer.commit())
    }

    /// What the record holds.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    pub(super) const fn salt(&self) -> Option<Salt> {
        self.salt
    }

    /// Whether this is the commitment to that content under that salt.
    #[must_use]
    pub fn is_to(&self, content: &[u8], salt: &Salt) -> bool {
        blake3::keyed_hash(&salt.0, content) == *self.digest.as_bytes()
    }
}

/// Commits to content that comes in pieces, such as a streamed answer. The pieces' borders do not matter.
#[derive(Clone, Debug)]
pub struct Committer {
    hasher: blake3::Hasher,
    salt: Salt,
}

impl Committer {
    /// A committer with a fresh salt.
    ///
    /// # Errors
    /// [`ReceiptError::Random`].
    pub fn new() -> Result<Self, ReceiptError> {
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).map_err(|error| ReceiptError::Random(error.to_string()))?;
        Ok(Self { hasher: blake3::Hasher::new_keyed(&salt), salt: Salt(salt) })
    }

    /// Adds content.
    pub fn update(&mut self, content: &[u8]) {
        self.hasher.update(content);
    }

    /// The commitment to what was added so far.
    #[must_use]
    pub fn commit(&self) -> Commitment {
        Commitment { digest: Digest::from_bytes(*self.hasher.finalize().as_bytes()), salt: Some(self.salt) }
    }
}

impl Serialize for Commitment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        text::digest::serialize(&self.digest, serializer)
    }
}

impl<'de> Deserialize<'de> for Commitment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { digest: text::digest::deserialize(deserializer)?, salt: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commitment_is_to_its_content_alone() {
        let mut committer = Committer::new().expect("random");
        committer.update(b"hel");
        committer.update(b"lo");
        let commitment = committer.commit();
        let salt = commitment.salt().expect("fresh");
        assert!(commitment.is_to(b"hello", &salt));
        assert!(!commitment.is_to(b"hello!", &salt));
        assert!(!commitment.is_to(b"hello", &Salt::from_bytes([0; 32])));
        assert_ne!(Commitment::to(b"hello").expect("random").digest(), commitment.digest());
    }

    #[test]
    fn the_salt_is_not_serialised() {
        let commitment = Commitment::to(b"hello").expect("random");
        let json = serde_json::to_string(&commitment).expect("json");
        assert_eq!(json, format!("\"{}\"", commitment.digest()));
        assert!(!format!("{commitment:?}").contains(&format!("{:?}", commitment.salt.expect("fresh").0)));
        let read: Commitment = serde_json::from_str(&json).expect("json");
        assert_eq!((read.digest(), read.salt()), (commitment.digest(), None));
    }
}
