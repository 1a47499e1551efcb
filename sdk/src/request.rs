//! The request as a control sees it in the request phase.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::connection::Connection;
use crate::cookies::Cookies;
use crate::error::Error;
use crate::fields::{self, CheckedHeader, FieldPairs};
use crate::foreign::Foreign;
use crate::form::{self, Form};
use crate::host::{Host, Level, Map};
use crate::http_call::CallId;
use crate::log::{self, Field};
use crate::plugin_context::whole_ms;
use crate::scope::Scope;
use crate::shared_data::SharedData;
use crate::verified_claims::VerifiedClaims;

/// The functions that requests and responses share; every one is one hostcall.
macro_rules! field_functions {
    ($map:expr) => {
        /// The first value of a header; `None` if it is not there.
        pub fn header(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
            self.scope
                .host
                .field($map, name)
                .map_err(Error::host("proxy_get_header_map_value"))
        }

        /// Every value of a header, in order. For more than one header take [`all_headers`](Self::all_headers) once.
        pub fn headers(&self, name: &str) -> Result<Vec<Vec<u8>>, Error> {
            Ok(self.all_headers()?.all(name).map(<[u8]>::to_vec).collect())
        }

        /// All headers at once, read in place.
        pub fn all_headers(&self) -> Result<FieldPairs, Error> {
            let bytes = self
                .scope
                .host
                .field_pairs($map)
                .map_err(Error::host("proxy_get_header_map_pairs"))?;
            FieldPairs::parse(bytes)
        }

        /// Puts one value in the place of all that the header has. A name that is no token, or a value with CR, LF or
        /// NUL, is an error.
        pub fn set_header(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
            fields::check_name(name)?;
            fields::check_value(value.as_ref())?;
            let replaced = self.scope.host.replace_field($map, name, value.as_ref());
            replaced.map_err(Error::host("proxy_replace_header_map_value"))
        }

        /// Adds a value to those that the header has; bounds as for [`set_header`](Self::set_header).
        pub fn add_header(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
            fields::check_name(name)?;
            fields::check_value(value.as_ref())?;
            let added = self.scope.host.add_field($map, name, value.as_ref());
            added.map_err(Error::host("proxy_add_header_map_value"))
        }

        /// As [`set_header`](Self::set_header), for a header that was checked before.
        pub fn set_checked_header(&mut self, header: &CheckedHeader) -> Result<(), Error> {
            let replaced = self
                .scope
                .host
                .replace_field($map, header.name(), header.value());
            replaced.map_err(Error::host("proxy_replace_header_map_value"))
        }

        /// As [`add_header`](Self::add_header), for a header that was checked before.
        pub fn add_checked_header(&mut self, header: &CheckedHeader) -> Result<(), Error> {
            let added = self
                .scope
                .host
                .add_field($map, header.name(), header.value());
            added.map_err(Error::host("proxy_add_header_map_value"))
        }

        /// Removes every value of a header; it need not be there.
        pub fn remove_header(&mut self, name: &str) -> Result<(), Error> {
            self.scope
                .host
                .remove_field($map, name)
                .map_err(Error::host("proxy_remove_header_map_value"))
        }
    };
}
/// The functions that everything in an exchange shares.
macro_rules! exchange_functions {
    () => {
        /// The downstream connection.
        pub fn connection(&self) -> Connection<'_> {
            Connection::new(&self.scope)
        }

        /// A property of the host, by its path: `["request", "url_path"]`. A property that an earlier filter set has
        /// one segment: `["jwt.sub"]`. `None` where the host does not know it. One hostcall.
        pub fn property(&self, path: &[&str]) -> Result<Option<Vec<u8>>, Error> {
            self.scope.property(path)
        }

        /// The claims that jwt-auth verified, where it stands before this control with `share_claims: true`; `None` where
        /// nobody did. No client can set them. In one module with jwt-auth no hostcall, else one.
        pub fn verified_claims(&self) -> Result<Option<VerifiedClaims>, Error> {
            let claims = self.scope.property(&[VerifiedClaims::PROPERTY])?;
            claims.map(VerifiedClaims::parse).transpose()
        }

        /// Leaves a property for this exchange's later callbacks and filters; they read it as the one segment `name`.
        /// One hostcall.
        pub fn set_property(&mut self, name: &str, value: &[u8]) -> Result<(), Error> {
            self.scope.set_property(name, value)
        }

        /// The host's clock. One hostcall; in a policy module one a callback for all controls together.
        pub fn now(&self) -> SystemTime {
            UNIX_EPOCH + Duration::from_nanos(self.scope.now_ns())
        }

        /// Logs `{"control": …, "event": …, fields…}`; no token, no secret. One hostcall.
        pub fn log(&self, level: Level, event: &str, fields: &[(&str, Field<'_>)]) {
            log::event(&self.scope.host, self.scope.control, level, event, fields);
        }

        /// Fills `out` with random bytes from the host. One hostcall.
        pub fn random(&self, out: &mut [u8]) {
            self.scope.host.random(out);
        }

        /// Values shared by all VMs of this plugin.
        pub fn shared(&self) -> SharedData {
            SharedData::new(&self.scope)
        }

        /// The host's foreign functions.
        pub fn foreign(&self) -> Foreign {
            Foreign::new(&self.scope.host)
        }
    };
}
/// The functions that requests share, awaited or not.
macro_rules! request_functions {
    () => {
        /// The method. One hostcall.
        pub fn method(&self) -> Result<Vec<u8>, Error> {
            self.header(":method")?.ok_or(Error::Missing(":method"))
        }

        /// The path with its query, as the host normalised it. One hostcall.
        pub fn path(&self) -> Result<Vec<u8>, Error> {
            self.header(":path")?.ok_or(Error::Missing(":path"))
        }

        /// The pairs of the query, as a browser's form writes them; none if there is no query. One hostcall.
        pub fn query(&self) -> Result<Form, Error> {
            Form::parse(form::query(&self.path()?))
        }

        /// The host that the client named, port included. One hostcall.
        pub fn authority(&self) -> Result<Vec<u8>, Error> {
            self.header(":authority")?
                .ok_or(Error::Missing(":authority"))
        }

        /// The cookies, over all `cookie` headers. One hostcall.
        pub fn cookies(&self) -> Result<Cookies, Error> {
            self.all_headers().map(Cookies::new)
        }
    };
}
pub(crate) use {exchange_functions, field_functions, request_functions};

/// A request that is held: what [`PluginContext::release`](crate::PluginContext::release) wants to know.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// Requests that wait for the first keys; a tick lets them go.
/// fn go_on(waiting: &mut Vec<Held>, plugin: &mut PluginContext) {
///     for held in waiting.drain(..) {
///         plugin.release(held, Ok(Decision::Continue));
///     }
/// }
/// ```
#[derive(Debug)]
#[must_use = "a held request waits until it is released"]
pub struct Held(pub(crate) u32);

/// The request, while its headers are looked at. Whatever is set here is what later filters and the upstream see.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// Tells the upstream who asks; nobody else can.
/// fn name_user(request: &mut Request) -> Result<Decision, Error> {
///     request.remove_header("x-user")?;
///     if let Some(user) = request.property(&["jwt.sub"])? {
///         request.set_header("x-user", user)?;
///     }
///     Ok(Decision::Continue)
/// }
/// ```
#[derive(Debug)]
pub struct Request<'a> {
    scope: &'a Scope,
    context: u32,
    end_of_stream: bool,
    held: bool,
}

impl<'a> Request<'a> {
    pub(crate) fn new(scope: &'a Scope, context: u32, end_of_stream: bool) -> Self {
        Self {
            scope,
            context,
            end_of_stream,
            held: false,
        }
    }

    /// The scheme that the host derived. Not a proof of TLS: ask the [`connection`](Self::connection). One hostcall.
    pub fn scheme(&self) -> Result<Vec<u8>, Error> {
        self.header(":scheme")?.ok_or(Error::Missing(":scheme"))
    }

    /// Whether the request has no body.
    pub fn end_of_stream(&self) -> bool {
        self.end_of_stream
    }

    /// Holds the request once this callback has returned [`Decision::Continue`](crate::Decision::Continue), until
    /// [`PluginContext::release`](crate::PluginContext::release) says what becomes of it: from a tick, say, or when an HTTP call is answered. Its body
    /// waits, too. A control that awaits one answer a request reads better as an `AsyncControl`.
    pub fn hold(&mut self) -> Held {
        self.held = true;
        Held(self.context)
    }

    pub(crate) fn context(&self) -> u32 {
        self.context
    }

    pub(crate) fn scope(&self) -> &Scope {
        self.scope
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held
    }

    /// Starts an HTTP call, as [`PluginContext::http_call`](crate::PluginContext::http_call) does. One hostcall.
    pub fn http_call(
        &self,
        cluster: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        timeout: Duration,
    ) -> Result<CallId, Error> {
        self.scope
            .http_call(cluster, headers, body, whole_ms(timeout))
            .map(CallId)
    }

    request_functions!();
    field_functions!(Map::Request);
    exchange_functions!();
}
