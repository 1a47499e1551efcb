//! A control's cases, run natively: no Wasm, no sockets, no sleeping.
//!
//! `cases.yaml` beside the control's manifest lists exchanges and what is expected of them ([`Cases`]). The same file
//! runs natively ([`check`]), in Portcullis and in Envoy; all three fill an [`Outcome`] and compare it with
//! [`Expect::check`].
//!
//! A control needs one test: `#[test] fn cases() { portcullis_sdk::testing::check::<MyControl>("cases.yaml"); }`.
//! A second one shows that no bytes make it panic: [`Harness::any_exchange`] with a crate for property tests.

mod any;
mod cases;
mod expect;
mod harness;
mod life;
mod outside;
mod value;

pub use any::AnyExchange;
pub use cases::{Callout, Case, Cases, CasesError, Place, RequestSpec, Step, Tls, UpstreamSpec};
pub use expect::{Expect, ExpectUpstream, HeaderExpect, Mismatch, Outcome, UpstreamSeen};
pub use harness::{Harness, Tested, check, check_with};
pub use value::{Make, Value, no_make};

pub use crate::host::native::{Fields, ForeignFunction};
pub use crate::policy::Policy;
