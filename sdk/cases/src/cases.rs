//! The case format: `cases.yaml`, read into [`Cases`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::expect::Expect;
use crate::tls::{Tls, TlsVersion};
use crate::value::Value;

/// A control's cases.
///
/// ```
/// use portcullis_cases::{Cases, Outcome, Place};
///
/// let cases = Cases::parse(r#"
/// control: body-gate
/// cases:
///   - name: no body passes
///     request: {path: /orders, headers: [[accept, "*/*"]]}
///     upstream: {status: 201}
///     expect: {status: 201, upstream: {called: true}}
///   - name: a list that is fetched
///     places: [native]
///     because: time is advanced
///     callouts: [{cluster: lists, body: "a,b"}]
///     steps:
///       - {advance: 60s, repeat: 2, expect: {status: 200}}
/// "#)?;
/// assert_eq!(cases.control, "body-gate");
/// assert_eq!((cases.at(Place::Native).count(), cases.at(Place::Envoy).count()), (2, 1));
/// assert_eq!(cases.named(Some("list"))?.len(), 1);
///
/// let step = &cases.cases[0].steps[0];
/// let found = step.expect.check(&Outcome { status: 403, ..Outcome::default() });
/// assert_eq!(found[0].to_string(), "status\n  - 201\n  + 403");
/// # Ok::<(), portcullis_cases::CasesError>(())
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cases {
    /// The control's name, as in its metadata.
    pub control: String,
    /// The cases, in order; names are unique.
    pub cases: Vec<Case>,
}

/// One row: exchanges with one fresh plugin, and what is expected of them.
///
/// ```
/// # use portcullis_cases::*;
/// let cases = Cases::parse(r#"{control: x, cases: [{name: a, configuration: {limit: 3}, expect: {status: 200}}]}"#)?;
/// let case = &cases.cases[0];
/// assert_eq!((case.name.as_str(), &case.configuration["limit"]), ("a", &3.into()));
/// assert_eq!(case.places, [Place::Native, Place::Host, Place::Envoy]);
/// # Ok::<(), portcullis_cases::CasesError>(())
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Unique in the file.
    pub name: String,
    /// The control's configuration; default `{}`.
    #[serde(default = "empty_object")]
    pub configuration: serde_json::Value,
    /// Where it runs; default everywhere.
    #[serde(default = "everywhere")]
    pub places: Vec<Place>,
    /// Why it does not run everywhere.
    #[serde(default)]
    pub because: Option<String>,
    /// Whether the benchmark runs it too.
    #[serde(default)]
    pub benchmark: bool,
    /// What clusters answer to the plugin's own calls, in order; the last of a cluster repeats.
    #[serde(default)]
    pub callouts: Vec<Callout>,
    /// The exchanges, in order. One exchange may be written without `steps`, in the case itself.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// Of the case itself, where it has no steps: moved into `steps` when it is read.
    #[serde(default)]
    request: Option<RequestSpec>,
    #[serde(default)]
    properties: Option<BTreeMap<String, String>>,
    #[serde(default)]
    upstream: Option<UpstreamSpec>,
    #[serde(default)]
    expect: Option<Expect>,
}

/// One exchange, maybe repeated.
///
/// ```
/// # use portcullis_cases::*;
/// let cases = Cases::parse(r#"{control: x, cases: [{name: a, steps: [{repeat: 100, expect: {status: 200}}, {expect: {status: 429}}]}]}"#)?;
/// let steps = &cases.cases[0].steps;
/// assert_eq!((steps[0].repeat, steps[1].repeat), (100, 1));
/// assert_eq!(steps[1].expect.status, Some(429));
/// # Ok::<(), portcullis_cases::CasesError>(())
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Time that passes before it; ticks and their callouts happen meanwhile. Native only.
    #[serde(default, deserialize_with = "duration")]
    pub advance: Duration,
    /// How often it is sent; every answer must be as expected. Default 1.
    #[serde(default = "one")]
    pub repeat: u32,
    /// What is sent.
    #[serde(default)]
    pub request: RequestSpec,
    /// What an earlier filter left, each under its one segment (`jwt.sub`).
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
    /// What the upstream answers.
    #[serde(default)]
    pub upstream: UpstreamSpec,
    /// What must come of it.
    #[serde(default)]
    pub expect: Expect,
}

/// Where a case runs.
///
/// ```
/// # use portcullis_cases::*;
/// let text = "{control: x, cases: [{name: a, places: [native], expect: {status: 200}}]}";
/// let error = Cases::parse(text).unwrap_err();
/// assert_eq!(error.to_string(), "case \"a\": it leaves out a place without `because`");
/// assert!(Place::Native < Place::Envoy);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// In the SDK's harness.
    Native,
    /// As Wasm, in Portcullis.
    Host,
    /// As Wasm, in Envoy, over sockets.
    Envoy,
}

/// A request as written in a case.
///
/// ```
/// # use portcullis_cases::*;
/// let request = RequestSpec::default();
/// assert_eq!((request.method.as_str(), request.path.as_str()), ("GET", "/"));
/// assert_eq!(request.tls, Tls(Some(TlsVersion::Tls13)));
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RequestSpec {
    /// Default GET.
    pub method: String,
    /// Default `/`.
    pub path: String,
    /// Default `example.test`.
    pub authority: String,
    /// Default TLSv1.3.
    pub tls: Tls,
    /// `HTTP/1.1` (default) or `HTTP/2`.
    pub protocol: String,
    /// The client's address; default 127.0.0.1. Over sockets only 127.0.0.N.
    pub source: std::net::IpAddr,
    /// In order; names may repeat.
    pub headers: Vec<(String, Value)>,
    /// Default none.
    pub body: String,
}

impl Default for RequestSpec {
    fn default() -> Self {
        Self {
            method: "GET".into(),
            path: "/".into(),
            authority: "example.test".into(),
            tls: Tls(Some(TlsVersion::Tls13)),
            protocol: "HTTP/1.1".into(),
            source: std::net::Ipv4Addr::LOCALHOST.into(),
            headers: Vec::new(),
            body: String::new(),
        }
    }
}

/// What the upstream answers.
///
/// ```
/// # use portcullis_cases::*;
/// let upstream = UpstreamSpec::default();
/// assert_eq!((upstream.status, upstream.body.as_str()), (200, "ok"));
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamSpec {
    /// Default 200.
    pub status: u16,
    /// In order; names may repeat.
    pub headers: Vec<(String, Value)>,
    /// Default `ok`.
    pub body: String,
}

impl Default for UpstreamSpec {
    fn default() -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            body: "ok".into(),
        }
    }
}

/// What a cluster answers to one call of the plugin.
///
/// ```
/// # use portcullis_cases::*;
/// let cases = Cases::parse(r#"{control: x, cases: [{name: a, callouts: [{cluster: opa, path: /v1/data, body: "{}"}], expect: {status: 200}}]}"#)?;
/// let callout = &cases.cases[0].callouts[0];
/// assert_eq!((callout.cluster.as_str(), callout.status), ("opa", 200));
/// # Ok::<(), portcullis_cases::CasesError>(())
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Callout {
    /// The cluster it is called by.
    pub cluster: String,
    /// Only to calls of this path; default any.
    #[serde(default)]
    pub path: Option<String>,
    /// Default 200.
    #[serde(default = "ok_status")]
    pub status: u16,
    /// In order; names may repeat.
    #[serde(default)]
    pub headers: Vec<(String, Value)>,
    /// Default none.
    #[serde(default)]
    pub body: Option<Value>,
    /// It answers a gRPC call, with this status: 0 with `body` as its message, any other without. The path is
    /// `/SERVICE/METHOD`.
    #[serde(default)]
    pub grpc_status: Option<u32>,
    /// What is said of a gRPC status other than 0.
    #[serde(default)]
    pub grpc_message: String,
}

impl Default for Step {
    fn default() -> Self {
        Self {
            advance: Duration::ZERO,
            repeat: 1,
            request: RequestSpec::default(),
            properties: BTreeMap::new(),
            upstream: UpstreamSpec::default(),
            expect: Expect::default(),
        }
    }
}

impl Callout {
    /// A bare answer with a status, of any path.
    ///
    /// ```
    /// # use portcullis_cases::*;
    /// let callout = Callout::new("opa", 503);
    /// assert_eq!((callout.status, callout.path), (503, None));
    /// ```
    pub fn new(cluster: impl Into<String>, status: u16) -> Self {
        Self {
            cluster: cluster.into(),
            path: None,
            status,
            headers: Vec::new(),
            body: None,
            grpc_status: None,
            grpc_message: String::new(),
        }
    }
}

/// Why a file of cases cannot be used.
///
/// ```
/// # use portcullis_cases::*;
/// let error = Cases::parse("{control: x, cases: [{name: a}]}").unwrap_err();
/// assert_eq!(error.to_string(), "case \"a\": it expects nothing");
/// ```
#[derive(Debug)]
pub struct CasesError(String);

impl fmt::Display for CasesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CasesError {}

impl Cases {
    /// Reads a file of cases; relative to the working directory, which under `cargo test` is the crate's.
    ///
    /// ```
    /// # use portcullis_cases::*;
    /// let error = Cases::read("no-such.yaml").unwrap_err();
    /// assert!(error.to_string().starts_with("no-such.yaml: "));
    /// ```
    pub fn read(path: impl AsRef<Path>) -> Result<Self, CasesError> {
        let path = path.as_ref();
        let at = |reason: &dyn fmt::Display| CasesError(format!("{}: {reason}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| at(&error))?;
        Self::parse(&text).map_err(|error| at(&error))
    }

    /// Those with `part` in their names, or all.
    ///
    /// ```
    /// # use portcullis_cases::*;
    /// let cases = Cases::parse(r#"{control: x, cases: [{name: a user passes, expect: {status: 200}}]}"#)?;
    /// assert_eq!(cases.named(Some("user"))?.len(), 1);
    /// assert!(cases.named(Some("admin")).is_err());
    /// # Ok::<(), portcullis_cases::CasesError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn named(&self, part: Option<&str>) -> Result<Vec<&Case>, CasesError> {
        let is_named = |case: &&Case| part.is_none_or(|part| case.name.contains(part));
        let named: Vec<_> = self.cases.iter().filter(is_named).collect();
        match (named.is_empty(), part) {
            (true, Some(part)) => Err(CasesError(format!("no case has {part:?} in its name"))),
            _ => Ok(named),
        }
    }

    /// Reads cases from YAML.
    ///
    /// ```
    /// # use portcullis_cases::*;
    /// let cases = Cases::parse(r#"{control: x, cases: [{name: a, expect: {status: 200}}]}"#)?;
    /// assert_eq!(cases.cases.len(), 1);
    /// # Ok::<(), portcullis_cases::CasesError>(())
    /// ```
    pub fn parse(yaml: &str) -> Result<Self, CasesError> {
        // Our own files: aliases may outnumber anchors by far, as where each case names one configuration.
        let options = serde_saphyr::options! { budget: None };
        let mut cases: Self = serde_saphyr::from_str_with_options(yaml, options)
            .map_err(|error| CasesError(error.to_string()))?;
        let mut names = std::collections::BTreeSet::new();
        for case in &mut cases.cases {
            let fault = |reason: &str| CasesError(format!("case {:?}: {reason}", case.name));
            if !names.insert(case.name.clone()) {
                return Err(fault("its name is taken"));
            }
            case.places.sort_unstable();
            case.places.dedup();
            if case.places.len() < everywhere().len() && case.because.is_none() {
                return Err(fault("it leaves out a place without `because`"));
            }
            if case.places.is_empty() {
                return Err(fault("it runs nowhere"));
            }
            if case.steps.is_empty() {
                let expect = case
                    .expect
                    .take()
                    .ok_or_else(|| fault("it expects nothing"))?;
                case.steps.push(Step {
                    advance: Duration::ZERO,
                    repeat: 1,
                    request: case.request.take().unwrap_or_default(),
                    properties: case.properties.take().unwrap_or_default(),
                    upstream: case.upstream.take().unwrap_or_default(),
                    expect,
                });
            } else if case.request.is_some()
                || case.properties.is_some()
                || case.upstream.is_some()
                || case.expect.is_some()
            {
                return Err(fault("what its steps say stands beside them"));
            }
            for step in &case.steps {
                if step.expect.is_empty() {
                    return Err(fault("a step expects nothing"));
                }
                if step.repeat == 0 {
                    return Err(fault("a step is repeated 0 times"));
                }
                if !step.advance.is_zero() && case.places != [Place::Native] {
                    return Err(fault("time is advanced in `places: [native]` only"));
                }
            }
        }
        Ok(cases)
    }

    /// The cases that run in a place.
    ///
    /// ```
    /// # use portcullis_cases::*;
    /// let cases = Cases::parse(r#"{control: x, cases: [{name: a, expect: {status: 200}}]}"#)?;
    /// assert_eq!(cases.at(Place::Envoy).count(), 1);
    /// # Ok::<(), portcullis_cases::CasesError>(())
    /// ```
    pub fn at(&self, place: Place) -> impl Iterator<Item = &Case> {
        self.cases
            .iter()
            .filter(move |case| case.places.contains(&place))
    }
}

fn empty_object() -> serde_json::Value {
    serde_json::Value::Object(serde_json::Map::new())
}

fn everywhere() -> Vec<Place> {
    vec![Place::Native, Place::Host, Place::Envoy]
}

fn one() -> u32 {
    1
}

fn ok_status() -> u16 {
    200
}

/// `500ms`, `30s`, `5m` or `1h`.
fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => {
            return Err(D::Error::custom(format!(
                "{text:?} is no duration such as 500ms, 30s, 5m or 1h"
            )));
        }
    };
    let number: u64 = number.parse().map_err(D::Error::custom)?;
    number
        .checked_mul(unit_ms)
        .map(Duration::from_millis)
        .ok_or_else(|| D::Error::custom("the duration is too long"))
}
