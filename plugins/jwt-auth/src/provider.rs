//! An issuer: whose tokens it signs, with which keys, under which rules. The one place where a token's signature is
//! found good.

use std::rc::Rc;

use crate::algorithm::Algorithm;
use crate::challenge::Refusal;
use crate::claims::Rules;
use crate::crypto::HostCrypto;
use crate::jwks::{Found, KeySet};
use crate::remote::Remote;
use crate::token::{Header, Parts};

/// An issuer.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) issuer: String,
    pub(crate) keys: Keys,
    pub(crate) algorithms: Vec<Algorithm>,
    /// As [`crate::token::media_type`] spells them.
    pub(crate) token_types: Vec<String>,
    pub(crate) token_type_required: bool,
    pub(crate) rules: Rules,
}

/// Where its keys come from.
#[derive(Debug)]
pub(crate) enum Keys {
    Inline(KeySet),
    Remote(Box<Remote>),
}

/// What a token's signature comes to.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Good, by the key of this number.
    Good(u64),
    /// No key of the token's `kid` is known.
    UnknownKid,
    Refused(Refusal),
}

impl Provider {
    /// What the header alone must be.
    pub(crate) fn check_header(&self, header: &Header) -> Result<(), Refusal> {
        if !self.algorithms.contains(&header.algorithm) {
            return Err(Refusal::Malformed("algorithm_refused"));
        }
        match &header.typ {
            Some(typ) if self.token_types.contains(typ) => Ok(()),
            None if !self.token_type_required => Ok(()),
            _ => Err(Refusal::Invalid("type_wrong")),
        }
    }

    /// The keys to check with at `now` (seconds since 1970); `None` before the first, or when they are too old.
    pub(crate) fn keys(&self, now: u64) -> Option<&KeySet> {
        match &self.keys {
            Keys::Inline(keys) => Some(keys),
            Keys::Remote(remote) => remote.keys(now),
        }
    }
}

/// Checks a token's signature with the keys of a set. Signatures are judged here and nowhere else.
pub(crate) fn verify(
    keys: &KeySet,
    host: Option<&Rc<HostCrypto>>,
    header: &Header,
    parts: &Parts<'_>,
) -> Verdict {
    match keys.find(header.kid.as_deref(), header.algorithm) {
        Found::Key(key) if key.verify(host, parts.signed, parts.signature) => {
            Verdict::Good(key.number())
        }
        Found::Key(_) => Verdict::Refused(Refusal::Invalid("signature_wrong")),
        Found::UnknownKid => Verdict::UnknownKid,
        Found::NoFit => Verdict::Refused(Refusal::Invalid("key_unfit")),
    }
}
