//! What is done to an answer, worked out at configure: for each header its value, its mode and its rule, and one table of
//! every name that matters.

use portcullis_sdk::{CheckedHeader, ConfigError};

use crate::content_security_policy;
use crate::field;
use crate::hsts::Hsts;
use crate::leaks::LEAKING;
use crate::limits::{EXTRA_HEADERS_MAX, NAME_BYTES_MAX, REMOVES_MAX, VALUE_BYTES_MAX};
use crate::name_table::NameTable;
use crate::permissions_policy::{Completed, PermissionsPolicy};
use crate::profile::KNOWN;
use crate::scale::{self, Scale};
use crate::settings::{Mode, Profile, Setting, Settings};

/// What is done to every answer.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) headers: Vec<Header>,
    pub(crate) names: NameTable<Meaning>,
    /// Whether any name is removed.
    pub(crate) removes: bool,
    /// The place of `Strict-Transport-Security` among the headers.
    pub(crate) hsts: Option<usize>,
}

/// One header that every answer carries.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) own: CheckedHeader,
    mode: Mode,
    rule: Rule,
}

/// What a name in an answer means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Meaning {
    /// The header at this place of the plan.
    Judge(usize),
    /// Nothing a client should see.
    Remove,
}

/// What becomes of an upstream's value.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// It stays.
    Keep,
    /// Ours takes its place.
    Replace,
    /// Something that is as strong as both takes its place.
    Merge(Vec<u8>),
}

/// How two values of a header compare.
#[derive(Debug)]
enum Rule {
    ContentSecurityPolicy,
    /// A header of the operator's own: no order is known, so any value of the upstream stands.
    Free,
    Hsts(Hsts),
    PermissionsPolicy(PermissionsPolicy),
    Scale(&'static Scale, u8),
}

impl Header {
    /// What becomes of an upstream's only value.
    pub(crate) fn judge(&self, upstream: &[u8]) -> Verdict {
        if upstream == self.own.value() {
            return Verdict::Keep;
        }
        if self.mode == Mode::Overwrite {
            return Verdict::Replace;
        }
        let upstream = field::trim(upstream);
        let stands = match &self.rule {
            Rule::ContentSecurityPolicy => content_security_policy::is_enforced(upstream),
            Rule::Free => true,
            Rule::Hsts(own) => {
                return match Hsts::parse(upstream) {
                    None => Verdict::Replace,
                    Some(theirs) if own.merge(theirs) == theirs => Verdict::Keep,
                    Some(theirs) if own.merge(theirs) == *own => Verdict::Replace,
                    Some(theirs) => Verdict::Merge(own.merge(theirs).to_value()),
                };
            }
            Rule::PermissionsPolicy(own) => {
                return match own.complete(upstream) {
                    None => Verdict::Replace,
                    Some(Completed::Already) => Verdict::Keep,
                    Some(Completed::With(value)) => Verdict::Merge(value),
                };
            }
            Rule::Scale(scale, own) => scale.rank(upstream).is_some_and(|theirs| theirs >= *own),
        };
        if stands {
            Verdict::Keep
        } else {
            Verdict::Replace
        }
    }

    /// What becomes of an upstream's values where it sent several lines, `enforced` of which a browser would obey.
    ///
    /// Browsers disagree on what several lines mean, except where the lines add up by definition.
    pub(crate) fn judge_several(&self, enforced: bool) -> Verdict {
        match self.rule {
            Rule::ContentSecurityPolicy | Rule::Free if enforced && self.mode == Mode::Add => {
                Verdict::Keep
            }
            _ => Verdict::Replace,
        }
    }
}

impl Plan {
    /// Checks everything that can be wrong with a configuration.
    pub(crate) fn new(settings: &Settings) -> Result<Self, ConfigError> {
        let mut headers = Vec::new();
        for known in &KNOWN {
            let default = known.value(settings.profile);
            let (value, mode) = match ((known.setting)(settings), default) {
                (Setting::Off, _) | (Setting::Unset, None) => continue,
                (Setting::Unset, Some(default)) => (default, Mode::Add),
                (
                    Setting::On {
                        value: Some(value),
                        mode,
                    },
                    _,
                ) => (value.as_str(), *mode),
                (Setting::On { value: None, mode }, Some(default)) => (default, *mode),
                (Setting::On { value: None, .. }, None) => {
                    return Err(ConfigError::new(
                        known.key,
                        "has no value in this profile: give one",
                    ));
                }
            };
            let header = Header::new(known.name, value, mode);
            headers.push(header.map_err(|reason| ConfigError::new(known.key, reason))?);
        }
        headers.extend(extra_headers(settings)?);
        let removed = removed(settings, &headers)?;
        let removes = !removed.is_empty();
        let hsts = headers
            .iter()
            .position(|header| matches!(header.rule, Rule::Hsts(_)));
        let judged = headers
            .iter()
            .zip(0..)
            .map(|(header, at)| (header.own.name().to_owned(), Meaning::Judge(at)));
        let names = judged
            .chain(removed.into_iter().map(|name| (name, Meaning::Remove)))
            .collect();
        Ok(Self {
            names: NameTable::new(names),
            headers,
            removes,
            hsts,
        })
    }
}

impl Header {
    fn new(name: &str, value: &str, mode: Mode) -> Result<Self, String> {
        check_value(value)?;
        Ok(Self {
            own: CheckedHeader::new(name, value).map_err(|error| error.to_string())?,
            mode,
            rule: Rule::of(name, value, mode)?,
        })
    }
}

impl Rule {
    /// The rule of a header, once its value passed.
    fn of(name: &str, value: &str, mode: Mode) -> Result<Self, String> {
        let scale = match name {
            "strict-transport-security" => {
                let hsts = Hsts::parse_own(value)?;
                if hsts.forgets() && mode == Mode::Add {
                    return Err(
                        "max-age=0 tells browsers to forget the site: it needs `mode: overwrite`"
                            .to_owned(),
                    );
                }
                return Ok(Self::Hsts(hsts));
            }
            "content-security-policy" => {
                content_security_policy::check(value)?;
                return Ok(Self::ContentSecurityPolicy);
            }
            "permissions-policy" => {
                let policy = PermissionsPolicy::parse(value.as_bytes());
                return policy
                    .map(Self::PermissionsPolicy)
                    .ok_or_else(|| "is malformed: write `feature=(), other=(self)`".to_owned());
            }
            "x-content-type-options" => &scale::CONTENT_TYPE_OPTIONS,
            "x-frame-options" => &scale::FRAME_OPTIONS,
            "referrer-policy" => &scale::REFERRER_POLICY,
            "x-permitted-cross-domain-policies" => &scale::CROSS_DOMAIN_POLICIES,
            "cross-origin-opener-policy" => &scale::OPENER_POLICY,
            "cross-origin-embedder-policy" => &scale::EMBEDDER_POLICY,
            "cross-origin-resource-policy" => &scale::RESOURCE_POLICY,
            _ => return Ok(Self::Free),
        };
        let rank = scale.rank(value.as_bytes());
        rank.map(|rank| Self::Scale(scale, rank)).ok_or_else(|| {
            format!(
                "`{value}` means nothing to browsers: take one of {}",
                scale.words()
            )
        })
    }
}

/// The headers of the operator's own.
fn extra_headers(settings: &Settings) -> Result<Vec<Header>, ConfigError> {
    if settings.headers.len() > EXTRA_HEADERS_MAX {
        return Err(ConfigError::new(
            "headers",
            format!("has more than {EXTRA_HEADERS_MAX} headers"),
        ));
    }
    let mut headers: Vec<Header> = Vec::new();
    for (name, setting) in &settings.headers {
        let error = |reason: String| ConfigError::new(format!("headers.{name}"), reason);
        let lower = check_name(name).map_err(error)?;
        if let Some(known) = KNOWN.iter().find(|known| known.name == lower) {
            return Err(error(format!(
                "has a key of its own: write `{}`",
                known.key
            )));
        }
        if headers.iter().any(|header| header.own.name() == lower) {
            return Err(error("comes twice".to_owned()));
        }
        let (value, mode) = match setting {
            Setting::On {
                value: Some(value),
                mode,
            } => (value, mode),
            Setting::Off => return Err(error("to send the word, write `{value: off}`".to_owned())),
            Setting::On { value: None, .. } | Setting::Unset => {
                return Err(error("has no value".to_owned()));
            }
        };
        let header = Header::new(&lower, value, *mode).map_err(error)?;
        let kept = settings
            .keep
            .iter()
            .any(|kept| kept.eq_ignore_ascii_case(&lower));
        if *mode == Mode::Add && LEAKING.contains(&lower.as_str()) && !kept {
            return Err(error(
                "an upstream's value would leak: write `mode: overwrite`, or `keep` it".to_owned(),
            ));
        }
        headers.push(header);
    }
    Ok(headers)
}

/// The names to remove.
fn removed(settings: &Settings, headers: &[Header]) -> Result<Vec<String>, ConfigError> {
    let mut names: Vec<String> = match settings.profile {
        Profile::Hsts => Vec::new(),
        Profile::Api | Profile::Website => LEAKING.iter().map(|name| (*name).to_owned()).collect(),
    };
    for (name, at) in settings.keep.iter().zip(0..) {
        let error = |reason: &'static str| ConfigError::new(format!("keep[{at}]"), reason);
        let lower = name.to_ascii_lowercase();
        if settings
            .remove
            .iter()
            .any(|removed| removed.eq_ignore_ascii_case(name))
        {
            return Err(error("is in `remove` too"));
        }
        let place = names.iter().position(|leaking| *leaking == lower);
        names.remove(
            place.ok_or_else(|| error("is not among the headers that this profile removes"))?,
        );
    }
    if settings.remove.len() > REMOVES_MAX {
        return Err(ConfigError::new(
            "remove",
            format!("has more than {REMOVES_MAX} names"),
        ));
    }
    for (name, at) in settings.remove.iter().zip(0..) {
        let error = |reason: String| ConfigError::new(format!("remove[{at}]"), reason);
        let lower = check_name(name).map_err(error)?;
        if KNOWN.iter().any(|known| known.name == lower) {
            return Err(error(format!(
                "`{lower}` protects: write its own key, with `mode: overwrite`, or `off`"
            )));
        }
        if headers.iter().any(|header| header.own.name() == lower) {
            return Err(error(format!("`{lower}` is in `headers` too")));
        }
        names.push(lower);
    }
    Ok(names)
}

/// A name in lower case, if a control may set or remove it.
fn check_name(name: &str) -> Result<String, String> {
    if name.len() > NAME_BYTES_MAX {
        return Err(format!("is longer than {NAME_BYTES_MAX} bytes"));
    }
    let lower = name.to_ascii_lowercase();
    field::check_name(&lower)?;
    Ok(lower)
}

fn check_value(value: &str) -> Result<(), String> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(format!("is longer than {VALUE_BYTES_MAX} bytes"));
    }
    field::check_value(value)
}
