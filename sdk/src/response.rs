//! The response as a control sees it in the response phase: the upstream's, or a local one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::connection::Connection;
use crate::error::Error;
use crate::fields::{self, CheckedHeader, FieldPairs};
use crate::foreign::Foreign;
use crate::host::{Host, Level, Map};
use crate::log::{self, Field};
use crate::request::{exchange_functions, field_functions};
use crate::scope::Scope;
use crate::shared_data::SharedData;
use crate::verified_claims::VerifiedClaims;

/// The response, while its headers are looked at. Whatever is set here is what the client sees.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// No cache keeps an answer that sets a cookie.
/// fn keep_private(response: &mut Response) -> Result<Decision, Error> {
///     if response.status()? < 400 && response.header("set-cookie")?.is_some() {
///         response.set_header("cache-control", "no-store")?;
///     }
///     Ok(Decision::Continue)
/// }
/// ```
#[derive(Debug)]
pub struct Response<'a> {
    scope: &'a Scope,
    own: bool,
}

impl<'a> Response<'a> {
    pub(crate) fn new(scope: &'a Scope, own: bool) -> Self {
        Self { scope, own }
    }

    /// The status. One hostcall.
    pub fn status(&self) -> Result<u16, Error> {
        let digits = self.header(":status")?.ok_or(Error::Missing(":status"))?;
        parse_status(&digits).ok_or(Error::Malformed(":status"))
    }

    /// Whether it is this control's own local response. It is final: a decision on it is not carried out again.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// What this control answers says all that it has to.
    /// fn needs_headers(response: &Response) -> bool {
    ///     !response.is_own()
    /// }
    /// ```
    pub fn is_own(&self) -> bool {
        self.own
    }

    /// The first value of a header of the request. One hostcall.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// An answer to a cross-origin request.
    /// fn is_cross_origin(response: &Response) -> Result<bool, Error> {
    ///     Ok(response.request_header("origin")?.is_some())
    /// }
    /// ```
    pub fn request_header(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        self.scope
            .host
            .field(Map::Request, name)
            .map_err(Error::host("proxy_get_header_map_value"))
    }

    field_functions!(Map::Response);
    exchange_functions!();
}

/// Three digits.
pub(crate) fn parse_status(digits: &[u8]) -> Option<u16> {
    let [a, b, c] = digits else { return None };
    let value = |digit: &u8| digit.is_ascii_digit().then(|| u16::from(digit - b'0'));
    Some(value(a)? * 100 + value(b)? * 10 + value(c)?)
}
