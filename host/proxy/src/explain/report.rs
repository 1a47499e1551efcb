//! What was seen of an exchange, and how it is told.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::header::HeaderMap;
use http::{Request, StatusCode, Version};
use portcullis_runtime::{
    Callback, Chain, Direction, Exchange, Fields, HttpStream, Observer, RouteInfo, Verdict,
};

use super::explanation::{Change, ChangeKind, Decision, Said, Step, Taken, place};
use super::rehearsal::Rehearsal;
use crate::fields::{Scheme, to_header_map};
use crate::policy::{FilterInstance, HostPattern, Policy, Route};

/// Names and values in wire order.
pub(super) type Snapshot = Vec<(Vec<u8>, Vec<u8>)>;

/// Header fields whose values are credentials.
const CREDENTIALS: &[&str] = &[
    "authorization",
    "cookie",
    "proxy-authorization",
    "set-cookie",
    "x-api-key",
];

/// How values are shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    /// Credentials, too.
    pub(super) credentials: bool,
}

impl Shown {
    fn value(self, name: &str, value: &[u8]) -> String {
        if !self.credentials && CREDENTIALS.contains(&name) {
            return format!("[{} bytes]", value.len());
        }
        match std::str::from_utf8(value) {
            Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
            _ => value.escape_ascii().to_string(),
        }
    }

    /// What went and what came.
    pub(super) fn diff(self, before: &Snapshot, after: &Snapshot) -> Vec<Change> {
        let missing = |from: &Snapshot, of: &Snapshot, change: ChangeKind| {
            let mut others = of.clone();
            let mut missing = Vec::new();
            for field in from {
                match others.iter().position(|it| it == field) {
                    Some(index) => {
                        others.swap_remove(index);
                    }
                    None => {
                        let name = String::from_utf8_lossy(&field.0).into_owned();
                        let value = self.value(&name, &field.1);
                        missing.push(Change {
                            change,
                            name,
                            value,
                        });
                    }
                }
            }
            missing
        };
        let mut changes = missing(before, after, ChangeKind::Removed);
        changes.extend(missing(after, before, ChangeKind::Added));
        changes
    }

    /// All fields of a map.
    pub(super) fn list(self, headers: &HeaderMap) -> Vec<(String, String)> {
        let shown = headers.iter().map(|(name, value)| {
            let value = self.value(name.as_str(), value.as_bytes());
            (name.as_str().to_owned(), value)
        });
        shown.collect()
    }
}

/// A filter's part as it was seen.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    index: usize,
    callback: Callback,
    /// The plugin's name.
    pub(super) filter: String,
    pub(super) decision: Decision,
    changes: Vec<Change>,
    body: Option<(usize, usize)>,
    said: Said,
    microseconds: Option<f64>,
}

impl Seen {
    /// The same filter, that goes on after news.
    pub(super) fn resumed(&self, changes: Vec<Change>, rehearsal: &Rehearsal) -> Self {
        Self {
            decision: Decision::Resume,
            changes,
            body: None,
            said: rehearsal.take_said(&self.filter),
            microseconds: None,
            ..self.clone()
        }
    }
}

/// A phase that was run, and how much had been seen before.
pub(super) struct Phase {
    pub(super) callback: Callback,
    pub(super) begun: usize,
}

/// Writes down what the chain's filters do.
pub(super) struct Watch {
    names: Vec<String>,
    seen: Rc<RefCell<Vec<Seen>>>,
    rehearsal: Rc<Rehearsal>,
    shown: Shown,
    before: Snapshot,
    size: usize,
    begun: Instant,
}

impl Watch {
    pub(super) fn new(
        names: Vec<String>,
        seen: Rc<RefCell<Vec<Seen>>>,
        rehearsal: Rc<Rehearsal>,
        shown: Shown,
    ) -> Self {
        Self {
            names,
            seen,
            rehearsal,
            shown,
            before: Snapshot::new(),
            size: 0,
            begun: Instant::now(),
        }
    }
}

impl Observer for Watch {
    fn before(&mut self, _: usize, callback: Callback, size: usize, exchange: &Exchange) {
        self.before = on_the_way(callback, exchange);
        self.size = size;
        self.begun = Instant::now();
    }

    fn after(
        &mut self,
        filter: usize,
        callback: Callback,
        size: usize,
        verdict: Verdict,
        exchange: &Exchange,
    ) {
        let microseconds = self.begun.elapsed().as_secs_f64() * 1e6;
        let decision = match verdict {
            Verdict::Continue => Decision::Continue,
            Verdict::Respond => Decision::Respond,
            Verdict::Reset => Decision::Reset,
            Verdict::Broke => Decision::Broke,
            _ => Decision::Pause,
        };
        let answers = matches!(decision, Decision::Respond | Decision::Broke);
        let changes = if answers && !is_response(callback) {
            let answer = exchange.response_headers.as_deref();
            let answer = answer.map(snapshot).unwrap_or_default();
            self.shown.diff(&Snapshot::new(), &answer)
        } else {
            self.shown
                .diff(&self.before, &on_the_way(callback, exchange))
        };
        let of_body = matches!(callback, Callback::RequestBody | Callback::ResponseBody);
        let name = self.names.get(filter).cloned().unwrap_or_default();
        self.seen.borrow_mut().push(Seen {
            index: filter,
            callback,
            decision,
            changes,
            body: of_body.then_some((self.size, size)),
            said: self.rehearsal.take_said(&name),
            filter: name,
            microseconds: Some(microseconds),
        });
    }
}

fn is_response(callback: Callback) -> bool {
    matches!(
        callback,
        Callback::ResponseHeaders | Callback::ResponseBody | Callback::ResponseTrailers
    )
}

fn on_the_way(callback: Callback, exchange: &Exchange) -> Snapshot {
    if is_response(callback) {
        let headers = exchange.response_headers.as_deref();
        headers.map(snapshot).unwrap_or_default()
    } else {
        snapshot(exchange.request_headers.as_ref())
    }
}

/// All fields of a map, pseudo-headers included.
pub(super) fn snapshot(fields: &dyn Fields) -> Snapshot {
    let mut list = Snapshot::new();
    fields.for_each(&mut |name, value| list.push((name.to_vec(), value.to_vec())));
    list
}

/// The headers on their way in this direction.
pub(super) fn snapshot_of(http: &HttpStream, direction: Direction) -> Snapshot {
    let callback = match direction {
        Direction::Request => Callback::RequestHeaders,
        Direction::Response => Callback::ResponseHeaders,
    };
    on_the_way(callback, &http.exchange())
}

/// A head as the client sends it, in the words of pseudo-headers; the scheme is the connection's.
pub(super) fn as_sent(parts: &http::request::Parts, scheme: Scheme) -> Snapshot {
    let mut list = Snapshot::new();
    let mut add = |name: &str, value: &[u8]| {
        list.push((name.as_bytes().to_vec(), value.to_vec()));
    };
    let host = parts.headers.get(http::header::HOST);
    if let Some(authority) = parts.uri.authority() {
        add(":authority", authority.as_str().as_bytes());
    } else if let Some(host) = host {
        add(":authority", host.as_bytes());
    }
    if let Some(path) = parts.uri.path_and_query() {
        add(":path", path.as_str().as_bytes());
    }
    add(":method", parts.method.as_str().as_bytes());
    add(":scheme", scheme.as_str().as_bytes());
    for (name, value) in &parts.headers {
        if name != http::header::HOST {
            add(name.as_str(), value.as_bytes());
        }
    }
    list
}

/// The response's head as the filters left it.
pub(super) fn head_of(http: &HttpStream) -> Option<(StatusCode, HeaderMap)> {
    let exchange = http.exchange();
    let fields = exchange.response_headers.as_deref()?;
    let status = StatusCode::from_bytes(fields.get(b":status")?).ok()?;
    Some((status, to_header_map(fields)))
}

pub(super) fn request_line(request: &Request<()>) -> String {
    let version = match request.version() {
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    };
    format!("{} {} {version}", request.method(), request.uri())
}

/// A body as text, escaped where it is none.
pub(super) fn text(body: &[u8]) -> String {
    let is_plain = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t');
    match std::str::from_utf8(body) {
        Ok(text) if text.chars().all(is_plain) => text.to_owned(),
        _ => body.escape_ascii().to_string(),
    }
}

/// What a route is called in properties.
pub(super) fn route_info(policy: &Policy, route: &Arc<Route>) -> RouteInfo {
    let hosts = policy.table.hosts();
    let host = hosts.iter().find(|host| host.host == route.host);
    RouteInfo {
        name: route.name.clone(),
        cluster: route.cluster.name.clone(),
        virtual_host: host.map(|host| host.host.to_string()).unwrap_or_default(),
    }
}

/// Why a request takes this route.
pub(super) fn taken(policy: &Policy, route: &Arc<Route>, host: &str, path: &str) -> Taken {
    let hosts = match &route.host {
        HostPattern::Exact(_) => format!("host `{host}` is this route's own"),
        HostPattern::Below(_) => {
            format!(
                "host `{host}` is below {}, and no route names it",
                route.host
            )
        }
        HostPattern::Any => format!("no route names host `{host}`, this one takes any"),
    };
    let group = policy.table.hosts().iter();
    let group = group.filter(|it| it.host == route.host);
    let others: Vec<_> = group
        .flat_map(|it| &it.routes)
        .filter(|it| it.prefix.matches(path) && !Arc::ptr_eq(it, route))
        .map(|it| format!("`{}` ({})", it.name, it.prefix.as_str()))
        .collect();
    let mut prefixes = format!("prefix {} matches {path}", route.prefix.as_str());
    if !others.is_empty() {
        prefixes.push_str(&format!(
            " and is longer than that of {}",
            others.join(", ")
        ));
    }
    Taken {
        name: route.name.clone(),
        place: place(&route.place),
        because: vec![hosts, prefixes],
        cluster: route.cluster.name.clone(),
        off: route.off.iter().map(|filter| filter.name.clone()).collect(),
    }
}

/// Why no route takes it.
pub(super) fn no_route(policy: &Policy, host: &str, path: &str) -> String {
    // A host has a route for `/` or it has not; asking for the root of each finds those that match the host.
    let matches = |pattern: &HostPattern| match pattern {
        HostPattern::Exact(name) => name == host,
        HostPattern::Below(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
        HostPattern::Any => true,
    };
    match policy.table.hosts().iter().find(|it| matches(&it.host)) {
        None => format!("no route takes host `{host}`"),
        Some(group) => {
            let prefixes = group.routes.iter().map(|route| route.prefix.as_str());
            format!(
                "no route of host {} takes {path}; their prefixes: {}",
                group.host,
                prefixes.collect::<Vec<_>>().join(", ")
            )
        }
    }
}

/// Every filter's part in every phase that was run, those without one included.
pub(super) fn steps(
    chain: &[Arc<FilterInstance>],
    filters: &Chain,
    phases: &[Phase],
    seen: Vec<Seen>,
) -> Vec<Step> {
    let mut steps = Vec::new();
    for (number, phase) in phases.iter().enumerate() {
        let end = phases.get(number + 1).map_or(seen.len(), |next| next.begun);
        let own = seen.get(phase.begun..end).unwrap_or_default();
        let headers = matches!(
            phase.callback,
            Callback::RequestHeaders | Callback::ResponseHeaders
        );
        let mut order: Vec<_> = filters.plugins().zip(chain).enumerate().collect();
        if is_response(phase.callback) {
            order.reverse();
        }
        for (index, (plugin, instance)) in order {
            let parts = own.iter().filter(|it| it.index == index);
            let before = steps.len();
            steps.extend(parts.map(|it| step(it, instance)));
            if steps.len() > before || !headers {
                continue;
            }
            // The headers came to it later, with the body that a filter before it wanted first.
            let is_later = |it: &&Seen| it.index == index && it.callback == phase.callback;
            if seen.iter().skip(end).any(|it| is_later(&it)) {
                continue;
            }
            let concerned = plugin.module().callbacks().contains(phase.callback);
            let decision = match concerned {
                true => Decision::NotReached,
                false => Decision::NotConcerned,
            };
            steps.push(silent(
                index,
                instance,
                phase_name(phase.callback),
                decision,
            ));
        }
    }
    steps
}

fn step(seen: &Seen, instance: &FilterInstance) -> Step {
    Step {
        decision: seen.decision,
        changes: seen.changes.clone(),
        body: seen.body,
        said: seen.said.clone(),
        microseconds: seen.microseconds,
        ..silent(
            seen.index,
            instance,
            phase_name(seen.callback),
            seen.decision,
        )
    }
}

/// What a plugin said when the exchange was over.
pub(super) fn log_step(index: usize, instance: &FilterInstance, said: Said) -> Step {
    Step {
        said,
        ..silent(index, instance, "log", Decision::Continue)
    }
}

fn silent(
    index: usize,
    instance: &FilterInstance,
    phase: &'static str,
    decision: Decision,
) -> Step {
    Step {
        phase,
        position: index + 1,
        filter: instance.name.clone(),
        place: place(&instance.filter.place),
        decision,
        changes: Vec::new(),
        body: None,
        said: Said::default(),
        microseconds: None,
    }
}

fn phase_name(callback: Callback) -> &'static str {
    match callback {
        Callback::RequestHeaders => "request headers",
        Callback::RequestBody => "request body",
        Callback::RequestTrailers => "request trailers",
        Callback::ResponseHeaders => "response headers",
        Callback::ResponseBody => "response body",
        Callback::ResponseTrailers => "response trailers",
        _ => "log",
    }
}
