//! What can go wrong in a control while it looks at an exchange: [`Error`]. A control returns it with `?`, and the
//! SDK refuses the exchange with 500.

use std::borrow::Cow;
use std::fmt;

/// Why a control could come to no decision. It is logged with the decision id; the client sees a bare 500.
///
/// ```
/// use portcullis_sdk::{Error, Form};
///
/// /// What is wrong is one of the kinds below, or a reason of the control's own.
/// fn tenant(query: &Form) -> Result<u32, Error> {
///     let text = query.get("tenant")?.ok_or(Error::Missing("tenant"))?;
///     text.parse().map_err(|_| Error::new("the tenant is no number"))
/// }
/// assert_eq!(tenant(&Form::parse(b"tenant=7")?), Ok(7));
/// assert_eq!(tenant(&Form::parse(b"")?).unwrap_err().to_string(), "tenant is missing");
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A reason of the control's own.
    #[error("{0}")]
    Control(Cow<'static, str>),
    /// The host refused a call.
    #[error("{call}: the host answered {status}")]
    Host {
        /// The hostcall, by the ABI's name.
        call: &'static str,
        /// What it answered.
        status: Status,
    },
    /// Something is not in the shape that its specification asks for.
    #[error("{0} is malformed")]
    Malformed(&'static str),
    /// Something that every exchange has is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// Something comes more than once, with different values: whoever reads it later may take another one.
    #[error("{0} comes twice, with different values")]
    Ambiguous(&'static str),
    /// Others wrote a shared value in between, every time that it was tried.
    #[error("{0} is written by others too often")]
    Contended(&'static str),
}

impl Error {
    /// A reason of the control's own: lower case, no full stop, it names the thing, and holds no secret.
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Control(reason.into())
    }

    /// A refusal of `call` by the host.
    pub(crate) fn host(call: &'static str) -> impl Fn(Status) -> Self {
        move |status| Self::Host { call, status }
    }
}

/// The status of a hostcall. Any number may come back; those the ABI names have constants.
///
/// ```
/// use portcullis_sdk::{Error, Status};
///
/// /// Whether the host has no such call, so that the control can do without.
/// fn is_unserved(error: &Error) -> bool {
///     matches!(error, Error::Host { status: Status::UNIMPLEMENTED | Status::NOT_FOUND, .. })
/// }
/// assert_eq!(Status(12).to_string(), "unimplemented");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u32);

impl Status {
    /// Done.
    pub const OK: Self = Self(0);
    /// There is no such thing.
    pub const NOT_FOUND: Self = Self(1);
    /// An argument is wrong, or the thing is out of reach in this phase.
    pub const BAD_ARGUMENT: Self = Self(2);
    /// The host could not write the answer down.
    pub const SERIALIZATION_FAILURE: Self = Self(3);
    /// The host could not read an argument.
    pub const PARSE_FAILURE: Self = Self(4);
    /// A pointer left the module's memory.
    pub const INVALID_MEMORY_ACCESS: Self = Self(6);
    /// The queue is empty.
    pub const EMPTY: Self = Self(7);
    /// Another one wrote in between.
    pub const CAS_MISMATCH: Self = Self(8);
    /// The host failed, or the call is forbidden to this module.
    pub const INTERNAL_FAILURE: Self = Self(10);
    /// The host does not serve this call.
    pub const UNIMPLEMENTED: Self = Self(12);
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::OK => "ok",
            Self::NOT_FOUND => "not found",
            Self::BAD_ARGUMENT => "bad argument",
            Self::SERIALIZATION_FAILURE => "serialization failure",
            Self::PARSE_FAILURE => "parse failure",
            Self::INVALID_MEMORY_ACCESS => "invalid memory access",
            Self::EMPTY => "empty",
            Self::CAS_MISMATCH => "compare-and-swap mismatch",
            Self::INTERNAL_FAILURE => "internal failure",
            Self::UNIMPLEMENTED => "unimplemented",
            Self(number) => return write!(f, "status {number}"),
        })
    }
}
