//! The peers that can be compared: what each is, and what of the controls' effects it shows.

use std::fmt;

/// A proxy with a policy, or none at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The upstream itself, without a proxy
    Direct,
    /// Portcullis, no filter
    Portcullis,
    /// Portcullis, the four controls, a module each
    PortcullisFour,
    /// Portcullis, the four controls as one filter (`builtin:policy`)
    PortcullisPolicy,
    /// The build of `--baseline`, no filter
    Baseline,
    /// The build of `--baseline`, the four controls, a module each
    BaselineFour,
    /// Envoy, no filter (`export envoy`)
    Envoy,
    /// Envoy, the four controls, a module each (`export envoy --separate`)
    EnvoyFour,
    /// Envoy, the four controls as one policy module (`export envoy`)
    EnvoyPolicy,
    /// Envoy, its own filters for the same jobs: header_mutation, jwt_authn with its cache, local_ratelimit; its listener's TLS floor
    EnvoyNative,
    /// Envoy, a Lua script that sets the headers and wants a bearer token, of which it checks nothing
    EnvoyLua,
    /// nginx, proxying alone
    Nginx,
    /// nginx, add_header, limit_req, and a bearer token of which it checks nothing
    NginxRules,
}

/// Which program a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// None: the upstream of this process.
    None,
    /// This repository's proxy.
    Portcullis,
    /// Another build of it, to compare with.
    Baseline,
    /// Stock Envoy.
    Envoy,
    /// Debian's nginx.
    Nginx,
}

/// What a client can see of a control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// A client that speaks TLS 1.2 gets no 200.
    TlsFloor,
    /// All security headers are on a 200, `strict-transport-security` among them.
    SecurityHeaders,
    /// They are on a 401, too.
    HeadersOnRefusal,
    /// What tells of the upstream's software is gone from a 200.
    TelltalesGone,
    /// A request without a token gets 401.
    TokenWanted,
    /// A request whose token has a wrong signature gets 401.
    ForgeryRefused,
    /// Beyond the limit there is 429.
    RateLimited,
}

impl Effect {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::TlsFloor,
        Self::SecurityHeaders,
        Self::HeadersOnRefusal,
        Self::TelltalesGone,
        Self::TokenWanted,
        Self::ForgeryRefused,
        Self::RateLimited,
    ];

    /// As a column's head.
    pub fn title(self) -> &'static str {
        match self {
            Self::TlsFloor => "TLS 1.2 refused",
            Self::SecurityHeaders => "security headers",
            Self::HeadersOnRefusal => "on refusals too",
            Self::TelltalesGone => "telltales removed",
            Self::TokenWanted => "401 without token",
            Self::ForgeryRefused => "401 for a forged one",
            Self::RateLimited => "429 beyond the limit",
        }
    }
}

impl Kind {
    /// Which program it is.
    pub fn program(self) -> Program {
        match self {
            Self::Direct => Program::None,
            Self::Portcullis | Self::PortcullisFour | Self::PortcullisPolicy => Program::Portcullis,
            Self::Baseline | Self::BaselineFour => Program::Baseline,
            Self::Envoy
            | Self::EnvoyFour
            | Self::EnvoyPolicy
            | Self::EnvoyNative
            | Self::EnvoyLua => Program::Envoy,
            Self::Nginx | Self::NginxRules => Program::Nginx,
        }
    }

    /// What a client must be able to see of it, and nothing else.
    pub fn effects(self) -> &'static [Effect] {
        match self {
            Self::Direct => &[],
            Self::Portcullis | Self::Baseline | Self::Envoy | Self::Nginx => &[Effect::TlsFloor],
            Self::PortcullisFour
            | Self::PortcullisPolicy
            | Self::BaselineFour
            | Self::EnvoyFour
            | Self::EnvoyPolicy
            | Self::EnvoyNative => &Effect::ALL,
            Self::EnvoyLua => &[
                Effect::TlsFloor,
                Effect::SecurityHeaders,
                Effect::HeadersOnRefusal,
                Effect::TelltalesGone,
                Effect::TokenWanted,
            ],
            // No directive of it takes `server` off.
            Self::NginxRules => &[
                Effect::TlsFloor,
                Effect::SecurityHeaders,
                Effect::HeadersOnRefusal,
                Effect::TokenWanted,
                Effect::RateLimited,
            ],
        }
    }

    /// Whether it verifies tokens, so that an uncached one costs more.
    pub fn verifies(self) -> bool {
        self.effects().contains(&Effect::ForgeryRefused)
    }

    /// What it is, as in the help.
    pub fn description(self) -> String {
        clap::ValueEnum::to_possible_value(&self)
            .and_then(|value| value.get_help().map(ToString::to_string))
            .unwrap_or_default()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match clap::ValueEnum::to_possible_value(self) {
            Some(value) => f.pad(value.get_name()),
            None => fmt::Debug::fmt(self, f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;

    #[test]
    fn every_peer_has_a_name_and_says_what_it_is() {
        let mut names: Vec<String> = Kind::value_variants().iter().map(Kind::to_string).collect();
        assert!(
            Kind::value_variants()
                .iter()
                .all(|kind| !kind.description().is_empty())
        );
        assert_eq!(
            serde_json::to_value(Kind::EnvoyPolicy).expect("a name"),
            "envoy-policy"
        );
        assert!(names.contains(&"envoy-policy".to_owned()));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Kind::value_variants().len());
    }
}
