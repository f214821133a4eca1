//! The DSSE envelope round a receipt: <https://github.com/secure-systems-lab/dsse>, protocol and envelope v1. Not here:
//! the order of records in a chain.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use types::Digest;

use super::record::Receipt;
use super::{PublicKeys, RECORD_BYTES_MAX, ReceiptError, ReceiptKey};

/// The payload's type, version included.
pub const PAYLOAD_TYPE: &str = "application/vnd.tenon.receipt.v1+json";

/// DSSE's pre-authentication encoding: `DSSEv1 <length> <type> <length> <body>`, lengths in bytes as ASCII decimals.
#[must_use]
pub fn pae(payload_type: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), body.len()).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// A signed record as it is stored and handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// The record's JSON in base64.
    pub payload: String,
    /// [`PAYLOAD_TYPE`].
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    /// Exactly one.
    pub signatures: Vec<EnvelopeSignature>,
}

/// One signature of an envelope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvelopeSignature {
    /// The first 16 hexadecimal digits of the BLAKE3 of the public key.
    pub keyid: String,
    /// Ed25519 over [`pae`] in base64.
    pub sig: String,
}

/// What is wrong with a record or its place in the chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Longer than any record.
    #[error("it is longer than {RECORD_BYTES_MAX} bytes")]
    TooLong,
    /// Not an envelope.
    #[error("it is not an envelope: {0}")]
    NotAnEnvelope(String),
    /// The same content in another spelling.
    #[error("it is not written as the host writes it")]
    Spelling,
    /// Of another type or version.
    #[error("its payload type is `{0}`, not `{PAYLOAD_TYPE}`")]
    PayloadType(String),
    /// The payload is not base64.
    #[error("its payload is not base64")]
    Base64,
    /// None, or several.
    #[error("it has {0} signatures, not one")]
    SignatureCount(usize),
    /// Signed by a key that is not in the list.
    #[error("it is signed by key `{0}`, which is not among the public keys given")]
    UnknownKey(String),
    /// The signature does not fit the payload and key.
    #[error("its signature is wrong: it was altered after it was signed")]
    Signature,
    /// Signed, but not a receipt.
    #[error("its payload is not a receipt: {0}")]
    NotAReceipt(String),
    /// The fields do not fit the kind.
    #[error("its fields do not fit its kind")]
    Inconsistent,
    /// A record of another chain.
    #[error("it belongs to tenant `{0}`, the records before it to another")]
    Tenant(String),
    /// A gap, a repetition or another order.
    #[error("its sequence number is {found}, {expected} was to come: records are missing, repeated or moved")]
    Sequence {
        /// What should come.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// The record before it is not the one it was chained to.
    #[error("it is chained to another record than the one before it")]
    Previous,
    /// Two started records.
    #[error("its receipt was started before")]
    StartedTwice,
    /// A final record alone.
    #[error("its receipt was never started")]
    NeverStarted,
    /// Two final records.
    #[error("its receipt has a final record already")]
    FinalTwice,
    /// Started and final record are about different things.
    #[error("it is about another request than its started record")]
    OtherSubject,
}

impl Envelope {
    /// Signs a record. Returns the envelope and the digest of its payload, to which the next record is chained.
    pub(super) fn seal(receipt: &Receipt, key: &ReceiptKey) -> Result<(Self, Digest), ReceiptError> {
        let body = serde_json::to_vec(receipt).map_err(|error| ReceiptError::Encode(error.to_string()))?;
        let sig = STANDARD.encode(key.sign(&pae(PAYLOAD_TYPE, &body)));
        let envelope = Self {
            payload: STANDARD.encode(&body),
            payload_type: PAYLOAD_TYPE.to_owned(),
            signatures: vec![EnvelopeSignature { keyid: key.id().to_owned(), sig }],
        };
        Ok((envelope, Digest::of(&body)))
    }

    /// Reads an envelope, strictly: one spelling, no unknown fields.
    ///
    /// # Errors
    /// [`Fault::TooLong`], [`Fault::NotAnEnvelope`] or [`Fault::Spelling`].
    pub fn parse(line: &[u8]) -> Result<Self, Fault> {
        if line.len() > RECORD_BYTES_MAX {
            return Err(Fault::TooLong);
        }
        let envelope: Self = serde_json::from_slice(line).map_err(|error| Fault::NotAnEnvelope(error.to_string()))?;
        if envelope.to_line().as_bytes() == line { Ok(envelope) } else { Err(Fault::Spelling) }
    }

    /// The envelope as one line of JSON, without the line's end.
    #[must_use]
    pub fn to_line(&self) -> String {
        // Three text fields cannot fail to serialise; an empty line would be refused by every reader.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Checks type, key and signature, and reads the record. Returns it with the digest of its payload.
    ///
    /// # Errors
    /// The first fault.
    pub fn open(&self, keys: &PublicKeys) -> Result<(Receipt, Digest), Fault> {
        if self.payload_type != PAYLOAD_TYPE {
            return Err(Fault::PayloadType(self.payload_type.clone()));
        }
        let [signature] = self.signatures.as_slice() else {
            return Err(Fault::SignatureCount(self.signatures.len()));
        };
        let body = STANDARD.decode(&self.payload).map_err(|_| Fault::Base64)?;
        let key = keys.find(&signature.keyid).ok_or_else(|| Fault::UnknownKey(signature.keyid.clone()))?;
        let sig = STANDARD.decode(&signature.sig).map_err(|_| Fault::Signature)?;
        let sig = ed25519_dalek::Signature::from_slice(&sig).map_err(|_| Fault::Signature)?;
        key.verify_strict(&pae(PAYLOAD_TYPE, &body), &sig).map_err(|_| Fault::Signature)?;
        let receipt: Receipt = serde_json::from_slice(&body).map_err(|error| Fault::NotAReceipt(error.to_string()))?;
        if receipt.is_consistent() { Ok((receipt, Digest::of(&body))) } else { Err(Fault::Inconsistent) }
    }

    /// Reads the record without checking its signature: to show it, never to believe it.
    ///
    /// # Errors
    /// [`Fault::Base64`] or [`Fault::NotAReceipt`].
    pub fn peek(&self) -> Result<Receipt, Fault> {
        let body = STANDARD.decode(&self.payload).map_err(|_| Fault::Base64)?;
        serde_json::from_slice(&body).map_err(|error| Fault::NotAReceipt(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pae_is_as_in_the_specification() {
        let expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world";
        assert_eq!(pae("http://example.com/HelloWorld", b"hello world"), expected);
        assert_eq!(pae("", b""), b"DSSEv1 0  0 ");
        assert_eq!(pae("ä", "ö".as_bytes()), "DSSEv1 2 ä 2 ö".as_bytes());
    }

    #[test]
    fn another_spelling_is_refused() {
        let line = r#"{"payload":"e30=","payloadType":"t","signatures":[]}"#;
        assert!(Envelope::parse(line.as_bytes()).is_ok());
        for other in [
            r#"{"payload": "e30=","payloadType":"t","signatures":[]}"#,
            r#"{"payloadType":"t","payload":"e30=","signatures":[]}"#,
            r#"{"payload":"e30=","payloadType":"\u0074","signatures":[]}"#,
            "{\"payload\":\"e30=\",\"payloadType\":\"t\",\"signatures\":[]}\r",
        ] {
            assert_eq!(Envelope::parse(other.as_bytes()), Err(Fault::Spelling), "{other}");
        }
        let unknown = r#"{"payload":"e30=","payloadType":"t","signatures":[],"x":1}"#;
        assert!(matches!(Envelope::parse(unknown.as_bytes()), Err(Fault::NotAnEnvelope(_))));
    }
}
