//! One exchange driven through its chain, step by step as `request` and `response` do it around sockets.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Version};
use portcullis_runtime::{
    Callback, Chain, Direction, Embedder as _, Exchange, HttpStream, Protocol, RouteInfo,
    StreamInfo, StreamToken,
};

use super::Question;
use super::connection::Opened;
use super::explanation::{Decision, Explanation, Outcome, Sent};
use super::phase::Settled;
use super::rehearsal::Rehearsal;
use super::report::{self, Phase, Seen, Shown, Watch};
use super::stage::Stage;
use crate::fields::{HttpFields, Pseudo};
use crate::forward::request_in;
use crate::forwarded::{self, Client};
use crate::head::{host_of, read_head};
use crate::limits::{REQUEST_HEAD_BYTES_MAX, REQUEST_HEADERS_MAX};
use crate::local::Problem;
use crate::policy::{FilterInstance, Policy, Route};
use crate::reroute;

/// What went over the wire, as bytes: for those who compare.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// What the client got; nothing where the request was held or reset.
    pub(crate) answer: Option<Response<Bytes>>,
    /// What the upstream got.
    pub(crate) upstream: Option<Request<Bytes>>,
}

/// A question on its way through a policy.
pub(super) struct Run<'q> {
    stage: &'q Stage<'q>,
    policy: &'q Policy,
    pub(super) question: &'q Question,
    explanation: Explanation,
    pub(super) traffic: Traffic,
    connection: Opened,
    pub(super) shown: Shown,
    pub(super) rehearsal: Rc<Rehearsal>,
    pub(super) seen: Rc<RefCell<Vec<Seen>>>,
    pub(super) phases: Vec<Phase>,
    pub(super) id: HeaderValue,
}

impl<'q> Run<'q> {
    pub(super) fn new(
        stage: &'q Stage<'q>,
        question: &'q Question,
        explanation: Explanation,
        connection: Opened,
    ) -> Self {
        Self {
            stage,
            policy: stage.policy,
            question,
            explanation,
            traffic: Traffic::default(),
            connection,
            shown: Shown {
                credentials: question.credentials,
            },
            rehearsal: Rc::clone(&stage.rehearsal),
            seen: Rc::default(),
            phases: Vec::new(),
            id: stage.rehearsal.request_id(),
        }
    }

    /// Sends the request through.
    pub(super) fn ask(mut self) -> (Explanation, Traffic) {
        self.rehearsal.begin();
        while self.rehearsal.deliver() {}
        if let Some(reason) = self.refused_by_parser() {
            self.explanation.outcome = Outcome::NoRequest { reason };
            return (self.explanation, self.traffic);
        }
        let parts = self.parts();
        let (scheme, source) = (self.connection.scheme, self.question.source);
        let sent = report::as_sent(&parts, scheme);
        let websocket = self.question.version == Version::HTTP_11
            && self.question.method == Method::GET
            && self.question.body.is_empty()
            && forwarded::is_websocket(&parts.headers);
        let mut fields = match read_head(parts, scheme, source) {
            Ok(fields) => fields,
            Err(problem) => return self.refuse(&problem),
        };
        let (host, path) = match &fields.pseudo {
            Pseudo::Request {
                authority, path, ..
            } => (host_of(authority).into_owned(), path.path().to_owned()),
            _ => (String::new(), String::new()),
        };
        let policy = self.policy;
        let route = policy.table.find(&host, &path);
        let (chain, owned) = match route {
            Some(route) => (route.chain.clone(), self.stage.owned_elsewhere(route)),
            None => (policy.unrouted_chain(), Vec::new()),
        };
        let filters = self.stage.chain(&chain);
        let reads = |callbacks: &[Callback]| self.reads(&filters, callbacks);
        let upgrade = websocket
            && !reads(&[Callback::RequestBody, Callback::RequestTrailers])
            && !reads(&[Callback::ResponseBody, Callback::ResponseTrailers]);
        let client = Client::new(source.ip(), scheme);
        forwarded::make_ours(&mut fields.headers, upgrade, &client, &self.id, &owned);
        self.explanation.head = self.shown.diff(&sent, &report::snapshot(&fields));
        self.explanation.route = route.map(|route| report::taken(policy, route, &host, &path));
        if route.is_none() {
            let why = report::no_route(policy, &host, &path);
            self.explanation.notes.push(why);
        }
        self.explanation.outcome = self.pass(&chain, &filters, fields, route);
        self.finish(&chain, &filters)
    }

    /// What hyper refuses before there is a request.
    fn refused_by_parser(&self) -> Option<String> {
        let question = self.question;
        let line = question.method.as_str().len() + question.target.to_string().len() + 12;
        let fields = question.headers.iter();
        let fields = fields.map(|(name, value)| name.as_str().len() + value.len() + 4);
        let bytes = line + fields.sum::<usize>();
        if bytes > REQUEST_HEAD_BYTES_MAX {
            return Some(format!(
                "the request's head has {bytes} bytes, more than {REQUEST_HEAD_BYTES_MAX}: it is answered with 431 before anything looks at it"
            ));
        }
        let count = question.headers.len();
        (count > REQUEST_HEADERS_MAX && question.version != Version::HTTP_2).then(|| {
            format!(
                "the request has {count} header fields, more than {REQUEST_HEADERS_MAX}: it is answered with 431 before anything looks at it"
            )
        })
    }

    /// The head as hyper would read it.
    fn parts(&mut self) -> http::request::Parts {
        let question = self.question;
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = question.method.clone();
        parts.uri = question.target.clone();
        parts.version = question.version;
        for (name, value) in &question.headers {
            parts.headers.append(name.clone(), value.clone());
        }
        if !parts.headers.contains_key(header::HOST) {
            // RFC 9112 §3.2: a client names the target's host there, too.
            let named = parts.uri.authority().map(|it| it.as_str());
            if named.is_none() {
                let note = "no host was given: `host: localhost` was taken";
                self.explanation.notes.push(note.into());
            }
            if let Ok(host) = HeaderValue::from_str(named.unwrap_or("localhost")) {
                parts.headers.insert(header::HOST, host);
            }
        }
        let has_length = parts.headers.contains_key(header::CONTENT_LENGTH)
            || parts.headers.contains_key(header::TRANSFER_ENCODING);
        if !question.body.is_empty() && !has_length {
            let length = HeaderValue::from(question.body.len());
            parts.headers.insert(header::CONTENT_LENGTH, length);
        }
        parts
    }

    /// A request that cannot be routed: what puts headers on answers sees an empty GET in its place.
    fn refuse(mut self, problem: &Problem) -> (Explanation, Traffic) {
        let chain = self.policy.refused_chain();
        let filters = self.stage.chain(&chain);
        let pseudo = Pseudo::Request {
            method: Method::GET,
            scheme: self.connection.scheme,
            authority: HeaderValue::from_static("invalid"),
            path: PathAndQuery::from_static("/"),
        };
        let fields = HttpFields {
            pseudo,
            headers: HeaderMap::new(),
        };
        let note = format!(
            "the request is refused before a route is chosen: {}; filters that put headers on answers see an empty GET in its place",
            problem.title
        );
        self.explanation.notes.push(note);
        let mut http = self.stream(&chain, &filters, fields, RouteInfo::default());
        let settled = self.head(&mut http, Direction::Request, &mut None);
        self.explanation.outcome = match settled {
            Settled::Passed => self.answer(&mut http, &filters, problem),
            Settled::Respond => self.respond(&mut http, &filters),
            Settled::Reset => self.reset(),
            Settled::Held => self.held(),
        };
        http.finish();
        self.finish(&chain, &filters)
    }

    fn pass(
        &mut self,
        chain: &[Arc<FilterInstance>],
        filters: &Chain,
        fields: HttpFields,
        route: Option<&Arc<Route>>,
    ) -> Outcome {
        let info = route.map(|route| report::route_info(self.policy, route));
        let mut body = Some(self.question.body.clone());
        let mut http = self.stream(chain, filters, fields, info.unwrap_or_default());
        let settled = self.head(&mut http, Direction::Request, &mut body);
        let outcome = match settled {
            Settled::Passed => self.forward(&mut http, filters, route, body),
            Settled::Respond => self.respond(&mut http, filters),
            Settled::Reset => self.reset(),
            Settled::Held => self.held(),
        };
        if let Outcome::Answer { status, .. } = &outcome {
            http.exchange_mut().info.response_code = Some(*status);
        }
        http.finish();
        outcome
    }

    /// All filters have let the request's headers pass, and what they have not seen of the body is still here.
    fn forward(
        &mut self,
        http: &mut HttpStream,
        filters: &Chain,
        route: Option<&Arc<Route>>,
        body: Option<Bytes>,
    ) -> Outcome {
        let onward = if http.take_route_stale() {
            match self.reroute(http, filters) {
                Ok(route) => route,
                Err(problem) => return self.answer(http, filters, &problem),
            }
        } else {
            route.map(Arc::clone)
        };
        let Some(route) = onward else {
            let problem = Problem::new(StatusCode::NOT_FOUND, "no such route");
            return self.answer(http, filters, &problem);
        };
        let body = match self.body(http, filters, Direction::Request, body) {
            Ok(body) => body,
            Err(Settled::Respond) => return self.respond(http, filters),
            Err(Settled::Held) => return self.held(),
            Err(_) => return self.reset(),
        };
        let cluster = &route.cluster;
        let request = {
            let exchange = http.exchange();
            let fields = exchange.request_headers.as_any().downcast_ref();
            fields.and_then(|fields| request_in(cluster.protocol, fields, ()))
        };
        let Some(request) = request else {
            let problem = Problem::new(StatusCode::BAD_GATEWAY, "request cannot be forwarded");
            return self.answer(http, filters, &problem);
        };
        self.explanation.upstream = Some(Sent {
            cluster: cluster.name.clone(),
            endpoints: cluster.endpoints.iter().map(ToString::to_string).collect(),
            line: report::request_line(&request),
            headers: self.shown.list(request.headers()),
            body: report::text(&body),
        });
        self.traffic.upstream = Some(request.map(|()| body));
        self.relay(http, filters)
    }

    fn reroute(
        &mut self,
        http: &mut HttpStream,
        filters: &Chain,
    ) -> Result<Option<Arc<Route>>, Problem> {
        let policy = self.policy;
        let (host, path) = {
            let mut exchange = http.exchange_mut();
            let fields = exchange.request_headers.as_any_mut();
            let fields = fields.downcast_mut().ok_or(reroute::NO_PATH)?;
            let (host, path) = reroute::leads_to(fields).ok_or(reroute::NO_PATH)?;
            (host.into_owned(), path.to_owned())
        };
        let Some(route) = policy.table.find(&host, &path) else {
            let why = report::no_route(policy, &host, &path);
            self.explanation.notes.push(format!("routed anew: {why}"));
            return Ok(None);
        };
        self.explanation.notes.push(format!(
            "a filter had the route chosen anew: {path} of {host} leads to `{}`",
            route.name
        ));
        let chain = self.stage.chain(&route.chain);
        if let Some(plugin) = reroute::passed_by(filters, &chain) {
            self.explanation.notes.push(format!(
                "filter `{}` on it was not passed, so the request is refused",
                plugin.spec().name
            ));
            return Err(reroute::NO_WAY_AROUND);
        }
        http.exchange_mut().info.route = Rc::new(report::route_info(policy, route));
        Ok(Some(Arc::clone(route)))
    }

    fn stream(
        &self,
        chain: &[Arc<FilterInstance>],
        filters: &Chain,
        fields: HttpFields,
        route: RouteInfo,
    ) -> HttpStream {
        let protocol = match self.question.version {
            Version::HTTP_10 => Protocol::Http10,
            Version::HTTP_2 => Protocol::Http2,
            _ => Protocol::Http11,
        };
        let connection = Rc::clone(&self.connection.info);
        let now = self.rehearsal.unix_time_ns();
        let info = StreamInfo::new(connection, Rc::new(route), protocol, now);
        let exchange = Exchange::new(Box::new(fields), info);
        let mut http = HttpStream::new(filters, exchange, StreamToken(0));
        let names = chain.iter().map(|it| it.name.clone()).collect();
        let (seen, rehearsal) = (Rc::clone(&self.seen), Rc::clone(&self.rehearsal));
        for (name, value) in &self.question.properties {
            // One that does not fit is not there: what reads it says so.
            let _ = http.set_property(name.as_bytes(), value.as_bytes());
        }
        http.observe(Box::new(Watch::new(names, seen, rehearsal, self.shown)));
        http
    }

    pub(super) fn reads(&self, filters: &Chain, callbacks: &[Callback]) -> bool {
        let mut plugins = filters.plugins();
        plugins.any(|plugin| {
            let own = plugin.module().callbacks();
            callbacks.iter().any(|callback| own.contains(*callback))
        })
    }

    /// The filter that answered last.
    pub(super) fn last_speaker(&self) -> String {
        let seen = self.seen.borrow();
        let speaks = |it: &&Seen| !matches!(it.decision, Decision::Continue | Decision::Pause);
        let last = seen.iter().rev().find(speaks).or_else(|| seen.last());
        last.map_or("the proxy".into(), |it| format!("filter `{}`", it.filter))
    }

    pub(super) fn reset(&self) -> Outcome {
        Outcome::Reset {
            by: self.last_speaker(),
        }
    }

    pub(super) fn held(&self) -> Outcome {
        let seen = self.seen.borrow();
        let holder = seen.iter().rev().find(|it| it.decision == Decision::Pause);
        let filter = holder.map(|it| it.filter.clone()).unwrap_or_default();
        let waits_for = self.rehearsal.waits_for(&filter);
        Outcome::Held {
            waits_for: waits_for.unwrap_or_else(|| "a timer, or news from another plugin".into()),
            filter,
        }
    }

    fn finish(mut self, chain: &[Arc<FilterInstance>], filters: &Chain) -> (Explanation, Traffic) {
        let seen = self.seen.take();
        self.explanation.steps = report::steps(chain, filters, &self.phases, seen);
        for (index, instance) in chain.iter().enumerate() {
            let said = self.rehearsal.take_said(&instance.name);
            if !said.is_nothing() {
                let step = report::log_step(index, instance, said);
                self.explanation.steps.push(step);
            }
        }
        (self.explanation, self.traffic)
    }
}
