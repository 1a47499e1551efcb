//! Why a request is refused, and the answer that the client gets: RFC 6750 section 3. What a client may learn is one of
//! a few fixed sentences; the reason goes to metric and log.

use portcullis_sdk::LocalResponse;

use crate::limits;

/// Why a request is not let through. `Copy`, and all texts are constants: nothing of a token can get into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No bearer token.
    Missing,
    /// More than one token, or no token68 behind `Bearer`.
    Request,
    /// A token that is not one, is too long, or is not signed in a way that is allowed here; the reason says which.
    Malformed(&'static str),
    /// A token whose key, signature or claims do not hold; the reason says which.
    Invalid(&'static str),
    /// A token that was good.
    Expired,
    /// A good token without a scope that is asked for.
    Scope,
    /// A good token without a claim that is asked for.
    Claim,
    /// The issuer's keys are not there yet, or too old.
    Keys,
}

/// What the answers of one configuration have in common.
#[derive(Debug)]
pub(crate) struct Challenge {
    /// `Bearer realm="…"`, and ` resource_metadata="…"` where configured (RFC 9728 section 5.1).
    pub(crate) bearer: String,
    /// The scopes that are asked for, separated by spaces; empty if none.
    pub(crate) scope: String,
}

impl Refusal {
    pub(crate) fn response(self, challenge: &Challenge) -> LocalResponse {
        let (status, reason, title, error) = match self {
            Self::Missing => (401, "token_missing", "A bearer token is required", None),
            Self::Request => (
                400,
                "request_invalid",
                "One bearer token is required",
                Some(("invalid_request", "not one bearer token")),
            ),
            Self::Malformed(reason) => invalid(reason, "the access token is malformed"),
            Self::Invalid(reason) => invalid(reason, "the access token is not valid here"),
            Self::Expired => invalid("token_expired", "the access token expired"),
            Self::Scope => (
                403,
                "scope_insufficient",
                "More scope is required",
                Some(("insufficient_scope", "more scope is required")),
            ),
            Self::Claim => (
                403,
                "claim_insufficient",
                "Not allowed",
                Some(("insufficient_scope", "a claim is not sufficient")),
            ),
            Self::Keys => {
                return LocalResponse::refuse(
                    503,
                    "keys_missing",
                    "Tokens cannot be checked at the moment",
                )
                .header("retry-after", limits::RETRY_SECONDS.to_string());
            }
        };
        let mut value = challenge.bearer.clone();
        if let Some((code, description)) = error {
            value.extend([
                ", error=\"",
                code,
                "\", error_description=\"",
                description,
                "\"",
            ]);
        }
        if status == 403 && !challenge.scope.is_empty() {
            value.extend([", scope=\"", &challenge.scope, "\""]);
        }
        LocalResponse::refuse(status, reason, title).header("www-authenticate", value)
    }
}

type Answer = (
    u16,
    &'static str,
    &'static str,
    Option<(&'static str, &'static str)>,
);

fn invalid(reason: &'static str, description: &'static str) -> Answer {
    (
        401,
        reason,
        "The bearer token is not valid",
        Some(("invalid_token", description)),
    )
}
