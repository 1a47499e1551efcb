//! Refuses every request whose connection is older than a TLS version, plaintext above all.
//!
//! The listener's own minimum should be the same. This control holds where a listener, one of many, does not: it judges what
//! was really negotiated, for each request, and says so to the client, the metrics and the log.
//!
//! # Configuration
//!
//! | key | default | meaning |
//! |---|---|---|
//! | `minimum_version` | `"1.3"` | the oldest version let through: `"1.2"` or `"1.3"`; RFC 8996 forbids what is older |
//! | `redirect_plaintext` | `false` | send plaintext `GET` and `HEAD` to https instead of refusing them |
//! | `redirect_port` | 443 | the port of the https listener, as clients reach it; needs `redirect_plaintext` |
//!
//! # A request is let through if
//!
//! 1. its downstream connection is TLS: the host has `connection.tls_version`. No header and no scheme makes it so
//!    (`x-forwarded-proto: https` does not);
//! 2. that version is one that this control knows: an unknown one cannot be held to a floor;
//! 3. that version is `minimum_version` or newer.
//!
//! # What a refusal looks like
//!
//! 403 with an RFC 9457 problem, the same for every method and path:
//!
//! | not met | reason in log and metric | title |
//! |---|---|---|
//! | 1 | `plaintext` | `TLS is required` |
//! | 2 | `tls_version_unknown` | `TLS version not accepted` |
//! | 3 | `tls_version_too_old` | `TLS version not accepted` |
//!
//! With `redirect_plaintext`, a plaintext `GET` or `HEAD` gets 308 to `https://`, the host that it asked, `redirect_port`, and
//! the path and query that it asked. The host has to be a plain name or address: user information, escapes, bytes beyond
//! ASCII, an empty label or a port that is none make it a refusal, and so does a path that does not begin with `/`. Every other
//! method is refused: its body has crossed the network in the clear, and a redirect would hide that.
//!
//! # Deployment caveats
//!
//! * Where TLS ends before this proxy, all of its connections are plaintext and all requests are refused. That is meant: only
//!   what ends TLS can know the version.
//! * A redirect answers what the client had already sent in the clear. APIs should refuse (OWASP ASVS 5.0, V4.1.2); that is
//!   why it is off.
//! * The redirect repeats the host that the client named. Routes decide which hosts are served; a catch-all host lets a client
//!   redirect itself, and nobody else, to any name.
//! * No path is exempt here. A certificate authority that checks `/.well-known/acme-challenge/` over plaintext follows
//!   redirects; where that will not do, switch the filter off on that one route.
//! * `failure_policy: open` is refused for it: it authorises.
//!
//! # Example
//!
//! ```yaml
//! minimum_version: "1.2"
//! redirect_plaintext: true
//! ```
//!
//! `curl --tls-max 1.2 https://example.test/` passes; without `minimum_version` it gets 403. `curl http://example.test/a?b`
//! gets 308 to `https://example.test/a?b`; `curl -d x http://example.test/` gets 403.

mod limits;
mod location;
mod settings;

use portcullis_sdk::{
    Callbacks, ConfigError, Connection, Control, Decision, Error, LocalResponse, Metadata,
    PluginContext, Request, TlsVersion,
};

pub use crate::settings::{MinimumVersion, Settings};

/// The control.
#[derive(Debug)]
pub struct TlsPolicy {
    minimum: TlsVersion,
    /// The https port, where plaintext is redirected.
    redirect: Option<u16>,
}

impl Control for TlsPolicy {
    const METADATA: Metadata = Metadata::new(
        "tls-policy",
        env!("CARGO_PKG_VERSION"),
        Callbacks::REQUEST_HEADERS,
    )
    .authenticates();

    type Config = Settings;
    type State = ();

    fn configure(settings: Settings, _: &mut PluginContext) -> Result<Self, ConfigError> {
        if settings.redirect_port == 0 {
            return Err(ConfigError::new("redirect_port", "must be above 0"));
        }
        if settings.redirect_port != 443 && !settings.redirect_plaintext {
            return Err(ConfigError::new(
                "redirect_port",
                "has no effect without `redirect_plaintext`",
            ));
        }
        Ok(Self {
            minimum: settings.minimum_version.0,
            redirect: settings
                .redirect_plaintext
                .then_some(settings.redirect_port),
        })
    }

    fn on_request_headers(
        &mut self,
        (): &mut (),
        request: &mut Request<'_>,
    ) -> Result<Decision, Error> {
        const NOT_ACCEPTED: &str = "TLS version not accepted";
        Ok(match transport(&request.connection())? {
            Transport::Tls(version) if version >= self.minimum => Decision::Continue,
            Transport::Tls(_) => refuse("tls_version_too_old", NOT_ACCEPTED),
            Transport::Unknown => refuse("tls_version_unknown", NOT_ACCEPTED),
            Transport::Plaintext => match self.location(request)? {
                Some(location) => Decision::Respond(LocalResponse::redirect(308, location)),
                None => refuse("plaintext", "TLS is required"),
            },
        })
    }
}

impl TlsPolicy {
    /// Where a plaintext request is sent, if anywhere.
    fn location(&self, request: &Request<'_>) -> Result<Option<Vec<u8>>, Error> {
        let Some(port) = self.redirect else {
            return Ok(None);
        };
        let headers = request.all_headers()?;
        if !matches!(headers.first(":method"), Some(b"GET" | b"HEAD")) {
            return Ok(None);
        }
        let (Some(authority), Some(path)) = (headers.first(":authority"), headers.first(":path"))
        else {
            return Ok(None);
        };
        Ok(location::https(authority, path, port))
    }
}

/// What a request came over.
enum Transport {
    Plaintext,
    Tls(TlsVersion),
    /// TLS, but of a version that has no place in the order.
    Unknown,
}

fn transport(connection: &Connection<'_>) -> Result<Transport, Error> {
    match connection.tls_version() {
        Ok(Some(version)) => Ok(Transport::Tls(version)),
        Ok(None) => Ok(Transport::Plaintext),
        Err(Error::Malformed(_)) => Ok(Transport::Unknown),
        Err(error) => Err(error),
    }
}

fn refuse(reason: &'static str, title: &'static str) -> Decision {
    Decision::Respond(LocalResponse::refuse(403, reason, title))
}

#[cfg(all(target_arch = "wasm32", feature = "module"))]
portcullis_sdk::export!(TlsPolicy);
