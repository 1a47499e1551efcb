//! The signature algorithms that exist for this control. `none` and the symmetric ones (HS256 and kin) have no variant,
//! so no configuration, no key and no token can ask for them (RFC 8725 sections 3.1 and 3.2).

use schemars::JsonSchema;
use serde::Deserialize;

/// A JWS algorithm (RFC 7518 section 3.1, RFC 8037 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[expect(
    missing_docs,
    reason = "the names are the documentation: they are the registered ones"
)]
pub enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

/// What the host's `verify_signature` can check: it takes a hash and a key, and knows neither PSS nor Ed25519.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostScheme {
    /// The name of the hash as Envoy spells it.
    pub(crate) hash: &'static str,
    /// Whether the signature must be turned from `r ‖ s` into DER.
    pub(crate) ecdsa: bool,
}

impl Algorithm {
    /// What is allowed unless the operator lists algorithms.
    pub(crate) const DEFAULT: [Self; 5] = [
        Self::RS256,
        Self::PS256,
        Self::ES256,
        Self::ES384,
        Self::EdDSA,
    ];

    /// The algorithm of that registered name; names are case-sensitive (RFC 7515 section 4.1.1).
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::RS256,
            "RS384" => Self::RS384,
            "RS512" => Self::RS512,
            "PS256" => Self::PS256,
            "PS384" => Self::PS384,
            "PS512" => Self::PS512,
            "ES256" => Self::ES256,
            "ES384" => Self::ES384,
            "EdDSA" => Self::EdDSA,
            _ => return None,
        })
    }

    /// The same in the words of `jsonwebtoken`.
    pub(crate) fn jose(self) -> jsonwebtoken::Algorithm {
        use jsonwebtoken::Algorithm as Jose;
        match self {
            Self::RS256 => Jose::RS256,
            Self::RS384 => Jose::RS384,
            Self::RS512 => Jose::RS512,
            Self::PS256 => Jose::PS256,
            Self::PS384 => Jose::PS384,
            Self::PS512 => Jose::PS512,
            Self::ES256 => Jose::ES256,
            Self::ES384 => Jose::ES384,
            Self::EdDSA => Jose::EdDSA,
        }
    }

    /// How the host checks it, if it can.
    pub(crate) fn host_scheme(self) -> Option<HostScheme> {
        let (hash, ecdsa) = match self {
            Self::RS256 => ("sha256", false),
            Self::RS384 => ("sha384", false),
            Self::RS512 => ("sha512", false),
            Self::ES256 => ("sha256", true),
            Self::ES384 => ("sha384", true),
            Self::PS256 | Self::PS384 | Self::PS512 | Self::EdDSA => return None,
        };
        Some(HostScheme { hash, ecdsa })
    }
}
