//! Lints: what is allowed but risky, each with a name by which an operator allows or denies it.

use std::fmt;
use std::str::FromStr;

use super::place::Problem;

macro_rules! lints {
    ($($(#[doc = $about:literal])+ $variant:ident $name:literal,)+) => {
        /// What is risky.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Lint { $($(#[doc = $about])+ $variant,)+ }

        impl Lint {
            /// All, in the order of their documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// As it is written on the command line and behind a warning.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it looks for.
            #[must_use]
            pub fn about(self) -> &'static str {
                match self { $(Self::$variant => concat!($($about,)+).trim_ascii(),)+ }
            }
        }
    };
}

lints! {
    /// A filter lets requests by unchecked while it is down.
    FailOpen "fail-open",
    /// A route that everybody may use: no filter on it authenticates.
    OpenRoute "open-route",
    /// TLS below 1.3 is accepted.
    TlsFloor "tls-floor",
    /// A plaintext listener that others than this machine can reach.
    PlaintextListener "plaintext-listener",
    /// A certificate that has expired, or is not valid yet.
    CertificateValidity "certificate-validity",
    /// security-headers is not first: answers of the filters before it go out without its headers.
    HeadersNotFirst "headers-not-first",
    /// An HMAC secret that can be guessed.
    WeakSecret "weak-secret",
    /// An admin interface that others than this machine can reach.
    AdminExposed "admin-exposed",
    /// A module with imports that trap when they are called.
    UnknownImports "unknown-imports",
    /// A module from elsewhere that neither a digest nor a signature pins.
    UnpinnedModule "unpinned-module",
    /// A filter that no route runs.
    UnusedFilter "unused-filter",
    /// A filter in shadow mode: it decides, and nothing comes of it.
    ShadowMode "shadow-mode",
    /// In Envoy: paths that reach routes and filters in more than one form.
    PathForms "path-forms",
    /// In Envoy: clients that can claim any address.
    ClientAddress "client-address",
}

impl fmt::Display for Lint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Lint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|lint| lint.name() == text);
        found.copied().ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|lint| lint.name()).collect();
            format!("`{text}` is not a lint; there are: {}", names.join(", "))
        })
    }
}

/// Something risky at a place: `file:line: key: reason [lint]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// What kind.
    pub lint: Lint,
    /// Where, and why.
    pub problem: Problem,
}

impl Warning {
    pub(crate) fn new(lint: Lint, problem: Problem) -> Self {
        Self { lint, problem }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.problem, self.lint)
    }
}
