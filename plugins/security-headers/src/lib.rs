//! Puts security headers on every answer, and takes off what tells a client which software answers.
//!
//! It stands first in the filter chain, so that the answers of every later filter pass it too: a 401 of `jwt-auth` and a 429
//! of `rate-limit` carry the same headers as the upstream's 200.
//!
//! # Configuration
//!
//! | key | default | meaning |
//! |---|---|---|
//! | `profile` | `api` | which headers are on: `hsts`, `api` or `website`, see below |
//! | `strict_transport_security`, `x_content_type_options`, `x_frame_options`, `referrer_policy`, `permissions_policy`, `x_permitted_cross_domain_policies`, `content_security_policy`, `cross_origin_opener_policy`, `cross_origin_embedder_policy`, `cross_origin_resource_policy` | by profile | `off`; or a value; or `{value, mode}`, either alone too |
//! | `headers` | none | other headers to set, name to value or `{value, mode}`; at most 32 |
//! | `remove` | none | names to remove beside the profile's; at most 512 |
//! | `keep` | none | names that the profile would remove, to leave alone |
//!
//! `mode` is `add` (the default: ours is a floor, an upstream's stronger value stays) or `overwrite` (ours takes its place).
//! `off` leaves a header alone: an upstream's passes unjudged.
//!
//! | header | in profile | value |
//! |---|---|---|
//! | `strict-transport-security` | `hsts`, `api`, `website` | `max-age=63072000; includeSubDomains` |
//! | `x-content-type-options` | `api`, `website` | `nosniff` |
//! | `x-frame-options` | `api`, `website` | `DENY` |
//! | `referrer-policy` | `api`, `website` | `no-referrer` |
//! | `permissions-policy` | `api`, `website` | every feature of the OWASP list off, but `sync-xhr=(self)` |
//! | `x-permitted-cross-domain-policies` | `api`, `website` | `none` |
//! | `content-security-policy` | `website` | `default-src 'self'; form-action 'self'; base-uri 'self'; object-src 'none'; frame-ancestors 'none'; upgrade-insecure-requests` |
//! | `cross-origin-opener-policy` | `website` | `same-origin` |
//! | `cross-origin-embedder-policy` | `website` | `require-corp` |
//! | `cross-origin-resource-policy` | `website` | `same-origin` |
//! | 87 leaking names removed | `api`, `website` | `server`, `x-powered-by`, `x-aspnet-version`, `x-envoy-*` …: `leaks.rs` |
//!
//! Never sent unless under `headers`: `clear-site-data` and `cache-control: no-store` (they change what an application does),
//! `x-xss-protection` and `public-key-pins` (dead, and harmful).
//!
//! A configuration is refused where a value is not one that browsers obey, where `preload` comes without `includeSubDomains` or
//! with a max-age below a year, where `max-age=0` (browsers forget the site) is not meant as `mode: overwrite`, where a content
//! security policy has an unknown or repeated directive, an unquoted keyword, a comma or a fixed nonce, and where a header is
//! named that frames the answer.
//!
//! # What every answer carries
//!
//! 1. Each header that is on, once. `strict-transport-security` only where the downstream connection is TLS, which means that
//!    `connection.tls_version` is present: on plaintext it is not sent, and an upstream's is removed (RFC 6797 §7.2).
//! 2. In mode `add`, an upstream's value instead, where it is well-formed, stands on one line, and is as strong:
//!    * `strict-transport-security`: the longer max-age, `includeSubDomains` if either has it, `preload` if one has it that met
//!      the conditions of the preload list by itself. A value that is neither ours nor the upstream's is written where needed.
//!    * `x-frame-options`: `DENY`, then `SAMEORIGIN`. `ALLOW-FROM` is malformed: no browser honours it.
//!    * `referrer-policy`, by what other origins learn: `no-referrer`, `same-origin`, `strict-origin`,
//!      `strict-origin-when-cross-origin`, `origin`, `origin-when-cross-origin`, `no-referrer-when-downgrade`, `unsafe-url`. Of a
//!      list the last known word counts, as in browsers.
//!    * `x-permitted-cross-domain-policies`: `none`, `master-only`, `by-content-type` and `by-ftp-filename`, `all`.
//!    * `cross-origin-opener-policy`: `same-origin`, `noopener-allow-popups`, `same-origin-allow-popups`, `unsafe-none`.
//!    * `cross-origin-embedder-policy`: `require-corp`, `credentialless`, `unsafe-none`.
//!    * `cross-origin-resource-policy`: `same-origin`, `same-site`, `cross-origin`.
//!    * `permissions-policy`: no order; an upstream's word on a feature stands, the features it does not name are ours.
//!    * `content-security-policy`: no order; an upstream's stands, on however many lines, and ours is not put beside it (the two
//!      together would break what either allows).
//!    * the operator's own headers: no order; an upstream's value stands, on however many lines.
//! 3. A value that is malformed (bytes that are no text among it), weaker, or on several lines is replaced by ours.
//! 4. No name that is to be removed.
//!
//! It never refuses; what a host will not let it read or write is an error, and the answer becomes a 500.
//!
//! # Deployment caveats
//!
//! * Where TLS ends before this proxy, the proxy sees plaintext, sends no `strict-transport-security` and removes the
//!   upstream's. Set `strict_transport_security: off` there, and send it where TLS ends.
//! * `includeSubDomains` binds every host below the name that a client asked for, this proxy's or not.
//! * Answers that the proxy makes itself (400 for bad framing) pass no filter. The Portcullis host puts the headers on; in Envoy
//!   `local_reply_config` does, and `server_header_transformation: PASS_THROUGH` keeps Envoy from writing `server` after us.
//! * Next.js steers its client by `x-nextjs-redirect` and `x-nextjs-matched-path`; `keep` them where pages need them.
//! * `cross-origin-embedder-policy: require-corp` blocks every embedded resource that does not opt in; set it `off` or
//!   `credentialless` for pages that embed others.
//!
//! # Example
//!
//! ```yaml
//! profile: website
//! x_frame_options: SAMEORIGIN
//! strict_transport_security: max-age=63072000; includeSubDomains; preload
//! cross_origin_embedder_policy: off
//! keep: [x-nextjs-redirect]
//! ```
//!
//! An upstream over TLS answers `strict-transport-security: max-age=300` and `server: Apache/2.4.1`; the client sees
//! `strict-transport-security: max-age=63072000; includeSubDomains; preload` and no `server`. An upstream that answers
//! `x-frame-options: DENY` is stricter than asked: the client sees `DENY`. With `preload` but `max-age=300` in the
//! configuration, the plugin does not start.

mod answer;
mod content_security_policy;
mod field;
mod hsts;
mod leaks;
mod limits;
mod name_table;
mod permissions_policy;
mod plan;
mod profile;
mod scale;
mod settings;

use portcullis_sdk::{
    Callbacks, ConfigError, Control, Decision, Error, Metadata, PluginContext, Response,
};

use crate::plan::Plan;
pub use crate::settings::{Mode, Profile, Setting, Settings};

/// The control.
#[derive(Debug)]
pub struct SecurityHeaders {
    plan: Plan,
}

impl Control for SecurityHeaders {
    const METADATA: Metadata = Metadata::new(
        "security-headers",
        env!("CARGO_PKG_VERSION"),
        Callbacks::RESPONSE_HEADERS,
    );

    type Config = Settings;
    type State = ();

    fn configure(settings: Settings, _: &mut PluginContext) -> Result<Self, ConfigError> {
        Ok(Self {
            plan: Plan::new(&settings)?,
        })
    }

    fn on_response_headers(
        &mut self,
        (): &mut (),
        response: &mut Response<'_>,
    ) -> Result<Decision, Error> {
        self.plan.apply(response)?;
        Ok(Decision::Continue)
    }
}

#[cfg(all(target_arch = "wasm32", feature = "module"))]
portcullis_sdk::export!(SecurityHeaders);
