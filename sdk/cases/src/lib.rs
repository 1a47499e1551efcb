//! A control's cases: the format of `cases.yaml`, and the difference between what is expected and what came.
//!
//! [`Cases`] are exchanges and what is expected of them. Whoever runs one, natively, in Portcullis or in Envoy, fills an
//! [`Outcome`] and compares it with [`Expect::check`]. Nothing here knows how an exchange is run.

mod cases;
mod expect;
mod tls;
mod value;

pub use cases::{Callout, Case, Cases, CasesError, Place, RequestSpec, Step, UpstreamSpec};
pub use expect::{Expect, ExpectUpstream, Fields, HeaderExpect, Mismatch, Outcome, UpstreamSeen};
pub use tls::{Tls, TlsVersion};
pub use value::{Make, Value, no_make};
