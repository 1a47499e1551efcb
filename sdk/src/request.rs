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
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// Whether a client asks for JSON; the value is bytes, whatever they are.
        /// fn wants_json(request: &Request) -> Result<bool, Error> {
        ///     Ok(request.header("accept")?.as_deref() == Some(b"application/json"))
        /// }
        /// ```
        pub fn header(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
            self.scope
                .host
                .field($map, name)
                .map_err(Error::host("proxy_get_header_map_value"))
        }

        /// Every value of a header, in order. For more than one header take [`all_headers`](Self::all_headers) once.
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// Two values of one header are two opinions.
        /// fn is_clear(request: &Request) -> Result<bool, Error> {
        ///     Ok(request.headers("x-tenant")?.len() <= 1)
        /// }
        /// ```
        pub fn headers(&self, name: &str) -> Result<Vec<Vec<u8>>, Error> {
            Ok(self.all_headers()?.all(name).map(<[u8]>::to_vec).collect())
        }

        /// All headers at once, read in place.
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// Bytes of all headers, with one hostcall.
        /// fn size(request: &Request) -> Result<usize, Error> {
        ///     let headers = request.all_headers()?;
        ///     Ok(headers.iter().map(|(name, value)| name.len() + value.len()).sum())
        /// }
        /// ```
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
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// What a client said of it is gone.
        /// fn mark(request: &mut Request) -> Result<(), Error> {
        ///     request.set_header("x-checked-by", "edge")
        /// }
        /// ```
        pub fn set_header(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
            fields::check_name(name)?;
            fields::check_value(value.as_ref())?;
            let replaced = self.scope.host.replace_field($map, name, value.as_ref());
            replaced.map_err(Error::host("proxy_replace_header_map_value"))
        }

        /// Adds a value to those that the header has; bounds as for [`set_header`](Self::set_header).
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// Those that others added stay.
        /// fn trace(request: &mut Request) -> Result<(), Error> {
        ///     request.add_header("via", "1.1 edge")
        /// }
        /// ```
        pub fn add_header(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
            fields::check_name(name)?;
            fields::check_value(value.as_ref())?;
            let added = self.scope.host.add_field($map, name, value.as_ref());
            added.map_err(Error::host("proxy_add_header_map_value"))
        }

        /// As [`set_header`](Self::set_header), for a header that was checked before.
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// `header` was checked at configure.
        /// fn harden(response: &mut Response, header: &CheckedHeader) -> Result<(), Error> {
        ///     response.set_checked_header(header)
        /// }
        /// # use portcullis_sdk::CheckedHeader;
        /// ```
        pub fn set_checked_header(&mut self, header: &CheckedHeader) -> Result<(), Error> {
            let replaced = self
                .scope
                .host
                .replace_field($map, header.name(), header.value());
            replaced.map_err(Error::host("proxy_replace_header_map_value"))
        }

        /// As [`add_header`](Self::add_header), for a header that was checked before.
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// One policy beside those that the upstream set.
        /// fn report(response: &mut Response, policy: &CheckedHeader) -> Result<(), Error> {
        ///     response.add_checked_header(policy)
        /// }
        /// # use portcullis_sdk::CheckedHeader;
        /// ```
        pub fn add_checked_header(&mut self, header: &CheckedHeader) -> Result<(), Error> {
            let added = self
                .scope
                .host
                .add_field($map, header.name(), header.value());
            added.map_err(Error::host("proxy_add_header_map_value"))
        }

        /// Removes every value of a header; it need not be there.
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// The upstream's version is nobody's business.
        /// fn hide(response: &mut Response) -> Result<(), Error> {
        ///     response.remove_header("server")
        /// }
        /// ```
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
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// Whether the connection is TLS; a scheme or a header proves nothing.
        /// fn is_encrypted(request: &Request) -> Result<bool, Error> {
        ///     request.connection().is_tls()
        /// }
        /// ```
        pub fn connection(&self) -> Connection<'_> {
            Connection::new(&self.scope)
        }

        /// A property of the host, by its path: `["request", "url_path"]`. A property that an earlier filter set has
        /// one segment: `["jwt.sub"]`. `None` where the host does not know it. One hostcall.
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// Which route the request takes, where the host says so.
        /// fn route(request: &Request) -> Result<Option<Vec<u8>>, Error> {
        ///     request.property(&["xds", "route_name"])
        /// }
        /// ```
        pub fn property(&self, path: &[&str]) -> Result<Option<Vec<u8>>, Error> {
            self.scope.property(path)
        }

        /// The claims that jwt-auth verified, where it stands before this control with `share_claims: true`; `None` where
        /// nobody did. No client can set them. In one module with jwt-auth no hostcall, else one.
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// Whether anybody's identity was verified.
        /// fn is_known(request: &Request) -> Result<bool, Error> {
        ///     Ok(request.verified_claims()?.is_some())
        /// }
        /// ```
        pub fn verified_claims(&self) -> Result<Option<VerifiedClaims>, Error> {
            let claims = self.scope.property(&[VerifiedClaims::PROPERTY])?;
            claims.map(VerifiedClaims::parse).transpose()
        }

        /// Leaves a property for this exchange's later callbacks and filters; they read it as the one segment `name`.
        /// One hostcall.
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// For later filters: `request.property(&["edge.tenant"])`.
        /// fn leave(request: &mut Request, tenant: &str) -> Result<(), Error> {
        ///     request.set_property("edge.tenant", tenant.as_bytes())
        /// }
        /// ```
        pub fn set_property(&mut self, name: &str, value: &[u8]) -> Result<(), Error> {
            self.scope.set_property(name, value)
        }

        /// The host's clock. One hostcall; in a policy module one a callback for all controls together.
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// # use std::time::SystemTime;
        /// /// Whether what lasts until `end` is over.
        /// fn is_over(request: &Request, end: SystemTime) -> bool {
        ///     request.now() >= end
        /// }
        /// ```
        pub fn now(&self) -> SystemTime {
            UNIX_EPOCH + Duration::from_nanos(self.scope.now_ns())
        }

        /// Logs `{"control": …, "event": …, fields…}`; no token, no secret. One hostcall.
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// `{"control": "…", "event": "large", "bytes": 4096}`
        /// fn tell(request: &Request, bytes: u32) {
        ///     request.log(Level::Info, "large", &[("bytes", Field::Number(bytes.into()))]);
        /// }
        /// ```
        pub fn log(&self, level: Level, event: &str, fields: &[(&str, Field<'_>)]) {
            log::event(&self.scope.host, self.scope.control, level, event, fields);
        }

        /// Fills `out` with random bytes from the host. One hostcall.
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// A nonce for a content security policy.
        /// fn nonce(response: &Response) -> [u8; 16] {
        ///     let mut nonce = [0; 16];
        ///     response.random(&mut nonce);
        ///     nonce
        /// }
        /// ```
        pub fn random(&self, out: &mut [u8]) {
            self.scope.host.random(out);
        }

        /// Values shared by all VMs of this plugin.
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// What another worker has found out.
        /// fn learned(request: &Request) -> Result<Option<Vec<u8>>, Error> {
        ///     Ok(request.shared().get("learned")?.map(|(value, _)| value))
        /// }
        /// ```
        pub fn shared(&self) -> SharedData {
            SharedData::new(&self.scope)
        }

        /// The host's foreign functions.
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// Takes the route anew after a change to the path, where the host can.
        /// fn reroute(request: &Request) -> Result<bool, Error> {
        ///     Ok(request.foreign().call("clear_route_cache", b"")?.is_some())
        /// }
        /// ```
        pub fn foreign(&self) -> Foreign {
            Foreign::new(&self.scope.host)
        }
    };
}
/// The functions that requests share, awaited or not.
macro_rules! request_functions {
    () => {
        /// The method. One hostcall.
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// Methods that change nothing.
        /// fn is_safe(request: &Request) -> Result<bool, Error> {
        ///     Ok(matches!(request.method()?.as_slice(), b"GET" | b"HEAD" | b"OPTIONS"))
        /// }
        /// ```
        pub fn method(&self) -> Result<Vec<u8>, Error> {
            self.header(":method")?.ok_or(Error::Missing(":method"))
        }

        /// The path with its query, as the host normalised it. One hostcall.
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// Whole segments: `/admin` and what is below it, not `/administer`.
        /// fn is_admin(request: &Request) -> Result<bool, Error> {
        ///     let path = request.path()?;
        ///     let rest = path.strip_prefix(b"/admin");
        ///     Ok(rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'/' | b'?'))))
        /// }
        /// ```
        pub fn path(&self) -> Result<Vec<u8>, Error> {
            self.header(":path")?.ok_or(Error::Missing(":path"))
        }

        /// The pairs of the query, as a browser's form writes them; none if there is no query. One hostcall.
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// /// The value of `page`, if it is there once.
        /// fn page(request: &Request) -> Result<Option<String>, Error> {
        ///     Ok(request.query()?.get("page")?.map(str::to_owned))
        /// }
        /// ```
        pub fn query(&self) -> Result<Form, Error> {
            Form::parse(form::query(&self.path()?))
        }

        /// The host that the client named, port included. One hostcall.
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// fn is_ours(request: &Request) -> Result<bool, Error> {
        ///     Ok(request.authority()? == b"api.example.org")
        /// }
        /// ```
        pub fn authority(&self) -> Result<Vec<u8>, Error> {
            self.header(":authority")?
                .ok_or(Error::Missing(":authority"))
        }

        /// The cookies, over all `cookie` headers. One hostcall.
        ///
        /// ```
        /// # use portcullis_sdk::prelude::*;
        /// fn has_session(request: &Request) -> Result<bool, Error> {
        ///     Ok(request.cookies()?.all("session").count() == 1)
        /// }
        /// ```
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
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// For a redirect to the same place.
    /// fn same(request: &Request) -> Result<Vec<u8>, Error> {
    ///     Ok([&request.scheme()?[..], b"://", &request.authority()?, &request.path()?].concat())
    /// }
    /// ```
    pub fn scheme(&self) -> Result<Vec<u8>, Error> {
        self.header(":scheme")?.ok_or(Error::Missing(":scheme"))
    }

    /// Whether the request has no body.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// Only requests with a body have one to look at.
    /// fn needs_a_look(request: &Request) -> bool {
    ///     !request.end_of_stream()
    /// }
    /// ```
    pub fn end_of_stream(&self) -> bool {
        self.end_of_stream
    }

    /// Holds the request once this callback has returned [`Decision::Continue`](crate::Decision::Continue), until
    /// [`PluginContext::release`](crate::PluginContext::release) says what becomes of it: from a tick, say, or when an HTTP call is answered. Its body
    /// waits, too. A control that awaits one answer a request reads better as an `AsyncControl`.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// Requests wait until the first list is there.
    /// fn wait(waiting: &mut Vec<Held>, request: &mut Request) -> Decision {
    ///     waiting.push(request.hold());
    ///     Decision::Continue
    /// }
    /// ```
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
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// # use std::time::Duration;
    /// /// Tells a service about the request; its answer comes to `on_http_call_response`.
    /// fn notify(request: &Request) -> Result<CallId, Error> {
    ///     let headers = [(":method", "POST"), (":path", "/seen"), (":authority", "audit")];
    ///     request.http_call("audit", &headers, &request.path()?, Duration::from_secs(1))
    /// }
    /// ```
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
