//! The exchange when it is over.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::connection::Connection;
use crate::error::Error;
use crate::foreign::Foreign;
use crate::host::{Host, Level, Map};
use crate::log::{self, Field};
use crate::request::exchange_functions;
use crate::scope::Scope;
use crate::shared_data::SharedData;
use crate::verified_claims::VerifiedClaims;

/// A finished exchange: its headers are readable, nothing can be changed or decided.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// One line for each exchange that failed.
/// fn on_log(log: &Log) -> Result<(), Error> {
///     let status = log.response_header(":status")?.unwrap_or_default();
///     if status.starts_with(b"5") {
///         log.log(Level::Warn, "failed", &[]);
///     }
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Log<'a> {
    scope: &'a Scope,
}

impl<'a> Log<'a> {
    pub(crate) fn new(scope: &'a Scope) -> Self {
        Self { scope }
    }

    /// The first value of a header of the request. One hostcall.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// Who asked for it, as they say themselves.
    /// fn agent(log: &Log) -> Result<Vec<u8>, Error> {
    ///     Ok(log.request_header("user-agent")?.unwrap_or_default())
    /// }
    /// ```
    pub fn request_header(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        self.scope
            .host
            .field(Map::Request, name)
            .map_err(Error::host("proxy_get_header_map_value"))
    }

    /// The first value of a header of the response; an error where there was none. One hostcall.
    pub fn response_header(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        self.scope
            .host
            .field(Map::Response, name)
            .map_err(Error::host("proxy_get_header_map_value"))
    }

    exchange_functions!();
}
