//! A control's cases, run natively: no Wasm, no sockets, no sleeping.
//!
//! `cases.yaml` beside the control's manifest lists exchanges and what is expected of them ([`Cases`]). The same file
//! runs natively ([`check`]), in Portcullis and in Envoy; all three fill an [`Outcome`] and compare it with
//! [`Expect::check`].
//!
//! A control needs one test: `#[test] fn cases() { portcullis_sdk::testing::check::<MyControl>("cases.yaml"); }`.
//! A second one shows that no bytes make it panic: [`Harness::any_exchange`] with a crate for property tests.

mod any;
mod harness;
mod life;
mod outside;

pub use any::AnyExchange;
pub use harness::{Harness, Tested, check, check_with};
pub use portcullis_cases::{
    Callout, Case, Cases, CasesError, Expect, ExpectUpstream, Fields, HeaderExpect, Make, Mismatch,
    Outcome, Place, RequestSpec, Step, Tls, TlsVersion, UpstreamSeen, UpstreamSpec, Value, no_make,
};

pub use crate::host::native::ForeignFunction;
pub use crate::policy::Policy;
