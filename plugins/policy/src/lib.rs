//! All built-in controls in one module: it runs those that its configuration names, in that order, as a proxy runs a
//! chain of filters.
//!
//! # Configuration
//!
//! | key | default | meaning |
//! |---|---|---|
//! | `controls` | | at least one entry, in the order in which requests pass them |
//! | `controls[].control` | | `jwt-auth`, `rate-limit`, `security-headers` or `tls-policy` |
//! | `controls[].filter` | the control's name | tells this entry's shared data from that of an equal one; unique |
//! | `controls[].configuration` | `{}` | as the control alone is configured |
//! | `measure_one_in` | | of so many requests one is measured: the time of each control's callbacks in ns, as histogram `portcullis.CONTROL.callback_ns` |
//!
//! # A request passes if
//!
//! every control in turn lets it pass. What a control refuses, those behind it never see.
//!
//! # A refusal
//!
//! is the refusing control's own: the same status, body, log line and metric as from its own module. The controls
//! before it see the answer, in reverse; those behind do not.
//!
//! # Caveats
//!
//! - Bounds on time and memory are for the module as a whole, and a trap refuses what any of its controls was busy with.
//! - It counts as a control that authenticates, whatever it is configured to do: `failure_policy: open` is refused.
//! - Controls read what those before them found out (`jwt.sub`) from the module's memory; the host and later filters see
//!   it, too.
//!
//! # Example
//!
//! ```yaml
//! controls:
//!   - control: security-headers
//!   - control: tls-policy
//!     configuration: {minimum_version: "1.2"}
//! ```
//!
//! Over TLS 1.3 a request passes, and its answer carries HSTS; over TLS 1.1 it is refused with 403, and that answer carries HSTS, too.

use jwt_auth::JwtAuth;
use rate_limit::RateLimit;
use security_headers::SecurityHeaders;
use tls_policy::TlsPolicy;

/// Every built-in control, by name.
pub type Controls = (JwtAuth, RateLimit, SecurityHeaders, TlsPolicy);

#[cfg(feature = "module")]
portcullis_sdk::policy!(JwtAuth, RateLimit, SecurityHeaders, TlsPolicy);
