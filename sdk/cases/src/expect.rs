//! What a case expects, what came of it, and the difference between the two.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Headers in the order of the wire; names in lower case.
pub type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// What must come of an exchange. What is not said is not looked at.
///
/// ```
/// # use portcullis_cases::*;
/// let cases = Cases::parse(r#"{control: x, cases: [{name: a, expect: {status: 200, headers: {vary: Origin}, absent: [server]}}]}"#)?;
/// let expect = &cases.cases[0].steps[0].expect;
/// assert_eq!(expect.headers["vary"], HeaderExpect::Exact("Origin".into()));
/// assert_eq!(expect.absent, ["server"]);
/// # Ok::<(), portcullis_cases::CasesError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// The status that the client sees.
    pub status: Option<u16>,
    /// Response headers that must be there. A header that repeats counts as its values joined by `, `.
    pub headers: BTreeMap<String, HeaderExpect>,
    /// Response headers that must not be there.
    pub absent: Vec<String>,
    /// A part of the response's body.
    pub body_contains: Option<String>,
    /// What the upstream must have seen.
    pub upstream: Option<ExpectUpstream>,
}

/// What the upstream must have seen.
///
/// ```
/// # use portcullis_cases::*;
/// let cases = Cases::parse(r#"{control: x, cases: [{name: a, expect: {upstream: {called: true, absent: [cookie]}}}]}"#)?;
/// let upstream = cases.cases[0].steps[0].expect.upstream.clone().unwrap_or_default();
/// assert_eq!((upstream.called, upstream.absent), (Some(true), vec!["cookie".into()]));
/// # Ok::<(), portcullis_cases::CasesError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExpectUpstream {
    /// Whether it was called at all.
    pub called: Option<bool>,
    /// Request headers that must have arrived.
    pub headers: BTreeMap<String, HeaderExpect>,
    /// Request headers that must not have arrived.
    pub absent: Vec<String>,
    /// A part of the request's body.
    pub body_contains: Option<String>,
}

/// What a header's value must be.
///
/// ```
/// # use portcullis_cases::*;
/// let cases = Cases::parse(r#"{control: x, cases: [{name: a, expect: {headers: {date: {present: true}, age: {matches: "1*"}}}}]}"#)?;
/// let headers = &cases.cases[0].steps[0].expect.headers;
/// assert_eq!(headers["date"], HeaderExpect::Present { present: true });
/// assert_eq!(headers["age"], HeaderExpect::Matches { matches: "1*".into() });
/// # Ok::<(), portcullis_cases::CasesError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum HeaderExpect {
    /// Exactly this.
    Exact(String),
    /// `{matches: "max-age=*"}`: `*` stands for any bytes.
    Matches {
        /// The pattern.
        matches: String,
    },
    /// `{present: true}`: anything; `{present: false}`: not there.
    Present {
        /// Whether it must be there.
        present: bool,
    },
}

/// What came of an exchange, wherever it ran.
///
/// ```
/// # use portcullis_cases::*;
/// // What a place that runs cases fills in.
/// let outcome = Outcome { status: 401, body: b"who?".to_vec(), ..Outcome::default() };
/// let expect = Expect { status: Some(401), body_contains: Some("who".into()), ..Expect::default() };
/// assert!(expect.check(&outcome).is_empty());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The status that the client saw; 0 if the exchange was reset.
    pub status: u16,
    /// The headers that the client saw, without pseudo-headers.
    pub headers: Fields,
    /// The body that the client saw.
    pub body: Vec<u8>,
    /// What the upstream saw; `None` if it was not called.
    pub upstream: Option<UpstreamSeen>,
}

/// What the upstream saw of a request.
///
/// ```
/// # use portcullis_cases::*;
/// let seen = UpstreamSeen { headers: vec![(b"x-user".to_vec(), b"alice".to_vec())], ..UpstreamSeen::default() };
/// let outcome = Outcome { upstream: Some(seen), ..Outcome::default() };
/// let not_called = ExpectUpstream { called: Some(false), ..ExpectUpstream::default() };
/// let expect = Expect { upstream: Some(not_called), ..Expect::default() };
/// assert_eq!(expect.check(&outcome)[0].found, "called");
/// ```
#[derive(Clone, Debug, Default)]
pub struct UpstreamSeen {
    /// The request's headers; pseudo-headers may be among them.
    pub headers: Fields,
    /// The request's body.
    pub body: Vec<u8>,
}

/// One difference between what was expected and what came.
///
/// ```
/// # use portcullis_cases::*;
/// let expect = Expect { status: Some(200), ..Expect::default() };
/// let found = expect.check(&Outcome { status: 500, ..Outcome::default() });
/// assert_eq!((found[0].what.as_str(), found[0].expected.as_str()), ("status", "200"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// Where: `status`, `response header x-frame-options`, …
    pub what: String,
    /// What was expected.
    pub expected: String,
    /// What came.
    pub found: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.what)?;
        writeln!(f, "  - {}", self.expected)?;
        write!(f, "  + {}", self.found)
    }
}

impl Expect {
    /// Whether it says nothing at all.
    ///
    /// ```
    /// # use portcullis_cases::*;
    /// assert!(Expect::default().is_empty());
    /// assert!(!Expect { status: Some(200), ..Expect::default() }.is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Every difference; none means that the case holds.
    ///
    /// ```
    /// # use portcullis_cases::*;
    /// let expect = Expect { absent: vec!["server".into()], ..Expect::default() };
    /// let mut outcome = Outcome::default();
    /// assert!(expect.check(&outcome).is_empty());
    /// outcome.headers.push((b"server".to_vec(), b"x/1.0".to_vec()));
    /// assert_eq!(expect.check(&outcome)[0].to_string(), "response header server\n  - (absent)\n  + x/1.0");
    /// ```
    pub fn check(&self, outcome: &Outcome) -> Vec<Mismatch> {
        let mut found = Mismatches(Vec::new());
        if let Some(status) = self.status.filter(|status| *status != outcome.status) {
            found.push("status", status.to_string(), outcome.status.to_string());
        }
        found.fields(
            "response header",
            &outcome.headers,
            &self.headers,
            &self.absent,
        );
        found.contains(
            "response body",
            &outcome.body,
            self.body_contains.as_deref(),
        );
        if let Some(upstream) = &self.upstream {
            upstream.check(outcome.upstream.as_ref(), &mut found);
        }
        found.0
    }
}

impl ExpectUpstream {
    fn check(&self, seen: Option<&UpstreamSeen>, found: &mut Mismatches) {
        let looks_inside =
            !self.headers.is_empty() || !self.absent.is_empty() || self.body_contains.is_some();
        let called = self.called.or(looks_inside.then_some(true));
        if let Some(called) = called.filter(|called| *called != seen.is_some()) {
            let word = |called: bool| String::from(if called { "called" } else { "not called" });
            found.push("upstream", word(called), word(!called));
        }
        if let Some(seen) = seen {
            found.fields(
                "upstream saw header",
                &seen.headers,
                &self.headers,
                &self.absent,
            );
            found.contains(
                "upstream saw body",
                &seen.body,
                self.body_contains.as_deref(),
            );
        }
    }
}

struct Mismatches(Vec<Mismatch>);

impl Mismatches {
    fn push(&mut self, what: impl Into<String>, expected: String, found: String) {
        self.0.push(Mismatch {
            what: what.into(),
            expected,
            found,
        });
    }

    fn fields(
        &mut self,
        what: &str,
        fields: &Fields,
        wanted: &BTreeMap<String, HeaderExpect>,
        absent: &[String],
    ) {
        for (name, expect) in wanted {
            let value = joined(fields, name);
            let holds = match (expect, &value) {
                (HeaderExpect::Exact(text), Some(value)) => value == text.as_bytes(),
                (HeaderExpect::Matches { matches }, Some(value)) => glob(matches.as_bytes(), value),
                (HeaderExpect::Present { present }, value) => *present == value.is_some(),
                (_, None) => false,
            };
            if !holds {
                let expected = match expect {
                    HeaderExpect::Exact(text) => text.clone(),
                    HeaderExpect::Matches { matches } => format!("(matches) {matches}"),
                    HeaderExpect::Present { present: true } => "(present)".into(),
                    HeaderExpect::Present { present: false } => "(absent)".into(),
                };
                self.push(format!("{what} {name}"), expected, shown(value.as_deref()));
            }
        }
        for name in absent {
            if let Some(value) = joined(fields, name) {
                self.push(
                    format!("{what} {name}"),
                    "(absent)".into(),
                    shown(Some(&value)),
                );
            }
        }
    }

    fn contains(&mut self, what: &str, body: &[u8], part: Option<&str>) {
        let Some(part) = part else { return };
        if !part.is_empty()
            && !body
                .windows(part.len())
                .any(|window| window == part.as_bytes())
        {
            self.push(what, format!("(contains) {part}"), shown(Some(body)));
        }
    }
}

/// All values of a header joined by `, ` (RFC 9110 §5.3); `None` if it is not there.
fn joined(fields: &Fields, name: &str) -> Option<Vec<u8>> {
    let values: Vec<&[u8]> = fields
        .iter()
        .filter(|(known, _)| known.eq_ignore_ascii_case(name.as_bytes()))
        .map(|(_, value)| value.as_slice())
        .collect();
    (!values.is_empty()).then(|| values.join(&b", "[..]))
}

fn shown(value: Option<&[u8]>) -> String {
    value.map_or_else(
        || "(absent)".into(),
        |value| value.escape_ascii().to_string().replace("\\\"", "\""),
    )
}

/// `*` stands for any bytes, everything else for itself.
fn glob(pattern: &[u8], value: &[u8]) -> bool {
    let mut pieces = pattern.split(|byte| *byte == b'*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = value.strip_prefix(first) else {
        return false;
    };
    let Some(last) = pieces.next_back() else {
        return rest.is_empty();
    };
    for piece in pieces {
        let Some(at) =
            (0..=rest.len()).find(|at| rest.get(*at..).is_some_and(|rest| rest.starts_with(piece)))
        else {
            return false;
        };
        rest = rest.get(at + piece.len()..).unwrap_or_default();
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, value, matches) in [
            ("", "", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXcYb", false),
            ("ab*ba", "aba", false),
            ("*b*", "abc", true),
        ] {
            assert_eq!(
                glob(pattern.as_bytes(), value.as_bytes()),
                matches,
                "{pattern} {value}"
            );
        }
    }

    #[test]
    fn every_difference_is_named() {
        let expect: Expect = serde_json::from_str(
            r#"{"status": 200, "headers": {"a": "1", "b": {"matches": "x*"}, "c": {"present": true}, "d": "1, 2"},
                "absent": ["e", "f"], "body_contains": "hi",
                "upstream": {"headers": {"g": "1"}}}"#,
        )
        .unwrap();
        let field = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let good = Outcome {
            status: 200,
            headers: vec![
                field("A", "1"),
                field("b", "xy"),
                field("c", ""),
                field("d", "1"),
                field("d", "2"),
            ],
            body: b"oh, hi".to_vec(),
            upstream: Some(UpstreamSeen {
                headers: vec![field("g", "1")],
                body: Vec::new(),
            }),
        };
        assert_eq!(expect.check(&good), []);
        let bad = Outcome {
            status: 403,
            headers: vec![field("a", "2"), field("e", "1")],
            ..Outcome::default()
        };
        let what: Vec<String> = expect
            .check(&bad)
            .into_iter()
            .map(|mismatch| mismatch.what)
            .collect();
        assert_eq!(
            what,
            [
                "status",
                "response header a",
                "response header b",
                "response header c",
                "response header d",
                "response header e",
                "response body",
                "upstream"
            ]
        );
        assert_eq!(
            expect.check(&bad)[1].to_string(),
            "response header a\n  - 1\n  + 2"
        );
    }
}
