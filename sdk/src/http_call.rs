//! HTTP calls of a plugin's own, to the host's clusters.

use crate::error::Error;
use crate::fields::FieldPairs;
use crate::host::{ActiveHost, Buffer, Host, Map};
use crate::response::parse_status;

/// Which call an answer belongs to.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// A control that asks at ticks remembers which call it waits for.
/// #[derive(Default)]
/// struct Waiting(Option<CallId>);
///
/// impl Waiting {
///     fn is_answered_by(&mut self, call: CallId) -> bool {
///         self.0.take_if(|asked| *asked == call).is_some()
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallId(pub(crate) u32);

/// The answer to an HTTP call, readable while it is delivered.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// A list that was fetched: 200, and of a bounded size.
/// fn fetched(response: &HttpCallResponse) -> Result<Vec<u8>, Error> {
///     match response.status()? {
///         Some(200) => response.body(64 * 1024),
///         Some(_) => Err(Error::new("the list's server did not answer with 200")),
///         None => Err(Error::new("the call was reset")),
///     }
/// }
/// ```
#[derive(Debug)]
pub struct HttpCallResponse<'a> {
    host: &'a ActiveHost,
    header_count: usize,
    body_size: usize,
}

impl<'a> HttpCallResponse<'a> {
    pub(crate) fn new(host: &'a ActiveHost, header_count: usize, body_size: usize) -> Self {
        Self {
            host,
            header_count,
            body_size,
        }
    }

    /// The status; `None` if the call was reset. Envoy answers a timed-out call with a 504 of its own. One hostcall.
    pub fn status(&self) -> Result<Option<u16>, Error> {
        if self.header_count == 0 {
            return Ok(None);
        }
        let digits = self
            .header(":status")?
            .ok_or(Error::Missing(":status of the HTTP call"))?;
        parse_status(&digits)
            .map(Some)
            .ok_or(Error::Malformed(":status of the HTTP call"))
    }

    /// All headers at once, read in place. One hostcall.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// Whether the list may be kept.
    /// fn may_keep(response: &HttpCallResponse) -> Result<bool, Error> {
    ///     Ok(response.all_headers()?.first("cache-control") != Some(&b"no-store"[..]))
    /// }
    /// ```
    pub fn all_headers(&self) -> Result<FieldPairs, Error> {
        let bytes = self.host.field_pairs(Map::HttpCall);
        FieldPairs::parse(bytes.map_err(Error::host("proxy_get_header_map_pairs"))?)
    }

    /// The first value of a header. One hostcall.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// The list's version.
    /// fn version(response: &HttpCallResponse) -> Result<Option<Vec<u8>>, Error> {
    ///     response.header("etag")
    /// }
    /// ```
    pub fn header(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        self.host
            .field(Map::HttpCall, name)
            .map_err(Error::host("proxy_get_header_map_value"))
    }

    /// Bytes of the body.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// Known before the body is taken.
    /// fn fits(response: &HttpCallResponse) -> bool {
    ///     response.body_size() <= 64 * 1024
    /// }
    /// ```
    pub fn body_size(&self) -> usize {
        self.body_size
    }

    /// The whole body; longer than `max` is an error. One hostcall.
    pub fn body(&self, max: usize) -> Result<Vec<u8>, Error> {
        if self.body_size > max {
            return Err(Error::new("the body of the HTTP call is too long"));
        }
        if self.body_size == 0 {
            return Ok(Vec::new());
        }
        self.host
            .buffer(Buffer::HttpCallBody, 0, max)
            .map_err(Error::host("proxy_get_buffer_bytes"))
    }
}
