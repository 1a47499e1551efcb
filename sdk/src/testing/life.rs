//! One exchange through a plugin and back: the phases in a proxy's order, and what a proxy does to a request before
//! its first filter and to a local response.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use portcullis_cases::{Make, Outcome, RequestSpec, Step, UpstreamSeen, UpstreamSpec};

use super::outside::Outside;
use crate::callbacks::Callbacks;
use crate::enforcement::Flow;
use crate::filter::Filter;
use crate::host::native::{Fields, LocalAnswer, NativeHost, Phase};

/// One exchange on its way through the plugin and back.
pub(crate) struct Life<'a, F: Filter> {
    host: &'a NativeHost,
    filter: &'a mut F,
    outside: &'a mut Outside,
    make: Make<'a>,
    exchange: F::Exchange,
    /// The id of its context.
    context: u32,
}

impl<'a, F: Filter> Life<'a, F> {
    pub(crate) fn new(
        host: &'a NativeHost,
        filter: &'a mut F,
        outside: &'a mut Outside,
        make: Make<'a>,
        context: u32,
    ) -> Self {
        Self {
            host,
            filter,
            outside,
            make,
            exchange: F::Exchange::default(),
            context,
        }
    }

    /// From the request's headers to the log; `answer` are the headers of the upstream's response.
    pub(crate) fn run(self, step: &Step, answer: Fields) -> Result<Outcome, String> {
        let body = step.upstream.body.clone().into_bytes();
        let mut outcome = self.run_bytes(step.request.body.as_bytes(), answer, body)?;
        if step.request.method == "HEAD" {
            outcome.body.clear();
        }
        Ok(outcome)
    }

    /// The same of bytes: the request's body, and the upstream's headers and body.
    pub(crate) fn run_bytes(
        mut self,
        body: &[u8],
        answer: Fields,
        answer_body: Vec<u8>,
    ) -> Result<Outcome, String> {
        let mut outcome = Outcome::default();
        match self.request(body)? {
            Ok(seen) => {
                outcome.upstream = Some(seen);
                self.response(&mut outcome, answer, answer_body)?;
            }
            Err(local) => self.local_response(&mut outcome, local)?,
        }
        if self.has(Callbacks::LOG) {
            self.enter(Phase::Log, Vec::new());
            self.filter.on_log(&mut self.exchange);
        }
        self.filter.on_delete(&mut self.exchange);
        Ok(outcome)
    }

    /// The request phases: what the upstream sees, or the plugin's answer.
    fn request(&mut self, body: &[u8]) -> Result<Result<UpstreamSeen, LocalAnswer>, String> {
        if self.has(Callbacks::REQUEST_HEADERS) {
            self.enter(Phase::RequestHeaders, Vec::new());
            let flow =
                self.filter
                    .on_request_headers(&mut self.exchange, self.context, body.is_empty());
            // A body that is awaited comes while the headers are held.
            if !F::metadata().awaits_body || body.is_empty() {
                self.wait(flow)?;
            }
            if let Err(local) = self.answered() {
                return Ok(Err(local));
            }
        }
        let mut body = body.to_vec();
        if self.has(Callbacks::REQUEST_BODY) && !body.is_empty() {
            body = self.body(Phase::RequestBody, &body)?;
            if let Err(local) = self.answered() {
                return Ok(Err(local));
            }
        }
        let headers = self.host.world().exchange.borrow().request.clone();
        Ok(Ok(UpstreamSeen { headers, body }))
    }

    /// While the request is held: calls are answered, and time passes from tick to tick.
    fn wait(&mut self, mut flow: Flow) -> Result<(), String> {
        while flow == Flow::Hold {
            let released = self.outside.pass(self.host, self.filter, self.make)?;
            for release in released {
                if release.context == self.context {
                    flow = self.filter.release(&mut self.exchange, release);
                }
            }
        }
        Ok(())
    }

    /// The response phases of what the upstream answered.
    fn response(
        &mut self,
        outcome: &mut Outcome,
        headers: Fields,
        body: Vec<u8>,
    ) -> Result<(), String> {
        self.host.world().exchange.borrow_mut().response = headers;
        if self.has(Callbacks::RESPONSE_HEADERS) {
            self.enter(Phase::ResponseHeaders, Vec::new());
            self.filter.on_response_headers(&mut self.exchange);
            if let Err(local) = self.answered() {
                return self.local_response(outcome, local);
            }
        }
        self.finish(outcome, body)
    }

    /// The response phases of the plugin's own answer, with the headers that Envoy adds to it.
    fn local_response(&mut self, outcome: &mut Outcome, local: LocalAnswer) -> Result<(), String> {
        let mut headers = vec![(b":status".to_vec(), local.status.to_string().into_bytes())];
        headers.extend(local.headers);
        let has = |headers: &Fields, name: &[u8]| headers.iter().any(|(known, _)| known == name);
        if !local.body.is_empty() && !has(&headers, b"content-type") {
            headers.push((b"content-type".to_vec(), b"text/plain".to_vec()));
        }
        headers.retain(|(name, _)| name != b"content-length");
        headers.push((
            b"content-length".to_vec(),
            local.body.len().to_string().into_bytes(),
        ));
        self.host.world().exchange.borrow_mut().response = headers;
        if self.has(Callbacks::RESPONSE_HEADERS) {
            self.enter(Phase::ResponseHeaders, Vec::new());
            self.filter.on_response_headers(&mut self.exchange);
            // A local response is final.
            self.host.world().exchange.borrow_mut().answer = None;
        }
        self.finish(outcome, local.body)
    }

    fn finish(&mut self, outcome: &mut Outcome, mut body: Vec<u8>) -> Result<(), String> {
        if self.has(Callbacks::RESPONSE_BODY) && !body.is_empty() {
            body = self.body(Phase::ResponseBody, &body)?;
            if self.answered().is_err() {
                return Ok(()); // headers are out: Envoy resets the stream
            }
        }
        for (name, value) in self.host.world().exchange.borrow().response.clone() {
            match name.as_slice() {
                b":status" => outcome.status = crate::response::parse_status(&value).unwrap_or(0),
                [b':', ..] => {}
                _ => outcome.headers.push((name, value)),
            }
        }
        outcome.body = body;
        Ok(())
    }

    /// Hands a body over in two pieces, as the network would; what is held comes again with the second.
    fn body(&mut self, phase: Phase, body: &[u8]) -> Result<Vec<u8>, String> {
        let (first, second) = body.split_at(body.len() / 2);
        let mut passed = Vec::new();
        let mut held = Vec::new();
        for (piece, end) in [(first, false), (second, true)] {
            if piece.is_empty() && !end {
                continue;
            }
            held.extend_from_slice(piece);
            let size = held.len();
            self.enter(phase, std::mem::take(&mut held));
            let flow = match phase {
                Phase::RequestBody => self.filter.on_request_body(&mut self.exchange, size, end),
                _ => self.filter.on_response_body(&mut self.exchange, size, end),
            };
            let mut world = self.host.world().exchange.borrow_mut();
            let buffered = std::mem::take(&mut world.body);
            if world.answer.is_some() {
                return Ok(passed);
            }
            match flow {
                Flow::Hold | Flow::Answered => held = buffered,
                Flow::Continue => passed.extend(buffered),
            }
            if end && flow == Flow::Hold {
                drop(world);
                self.wait(flow)?;
                passed.append(&mut held);
            }
        }
        Ok(passed)
    }

    fn enter(&self, phase: Phase, body: Vec<u8>) {
        let mut exchange = self.host.world().exchange.borrow_mut();
        exchange.phase = phase;
        exchange.body = body;
    }

    /// The plugin's answer, if it gave one.
    fn answered(&self) -> Result<(), LocalAnswer> {
        self.host
            .world()
            .exchange
            .borrow_mut()
            .answer
            .take()
            .map_or(Ok(()), Err)
    }

    fn has(&self, callback: Callbacks) -> bool {
        F::metadata().callbacks.contains(callback)
    }
}

/// The request as a proxy at the edge hands it to its first filter: `x-forwarded-*` and `x-request-id` are the
/// proxy's, `x-envoy-*` and hop-by-hop headers of the client are gone (Envoy with `use_remote_address`).
pub(crate) fn request_fields(
    spec: &RequestSpec,
    number: u64,
    now: SystemTime,
    make: Make<'_>,
) -> Result<Fields, String> {
    let scheme = if spec.tls.0.is_some() {
        "https"
    } else {
        "http"
    };
    let mut fields: Fields = [
        (":authority", spec.authority.as_str()),
        (":path", &spec.path),
        (":method", &spec.method),
        (":scheme", scheme),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into();
    let replaced = [
        "x-request-id",
        "x-forwarded-proto",
        "x-forwarded-for",
        "x-forwarded-client-cert",
        "host",
    ];
    let hop_by_hop = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
        "te",
    ];
    for (name, value) in &spec.headers {
        let name = name.to_ascii_lowercase();
        let dropped = replaced.contains(&name.as_str()) || hop_by_hop.contains(&name.as_str());
        if !dropped && !name.starts_with("x-envoy-") {
            fields.push((name.into(), value.bytes(now, make)?));
        }
    }
    if !spec.body.is_empty() && !fields.iter().any(|(name, _)| name == b"content-length") {
        fields.push(("content-length".into(), spec.body.len().to_string().into()));
    }
    fields.push(("x-forwarded-for".into(), spec.source.to_string().into()));
    fields.push(("x-forwarded-proto".into(), scheme.into()));
    fields.push((
        "x-request-id".into(),
        format!("00000000-0000-4000-8000-{number:012x}").into(),
    ));
    Ok(fields)
}

pub(crate) fn upstream_fields(
    spec: &UpstreamSpec,
    now: SystemTime,
    make: Make<'_>,
) -> Result<Fields, String> {
    let mut fields = vec![(b":status".to_vec(), spec.status.to_string().into_bytes())];
    for (name, value) in &spec.headers {
        fields.push((
            name.to_ascii_lowercase().into_bytes(),
            value.bytes(now, make)?,
        ));
    }
    Ok(fields)
}

/// What Envoy knows of such a connection and request.
pub(crate) fn connection_properties(spec: &RequestSpec) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let path = spec
        .path
        .split_once('?')
        .map_or(spec.path.as_str(), |(path, _)| path);
    let source = SocketAddr::new(spec.source, 49_152).to_string();
    let mut properties: BTreeMap<Vec<u8>, Vec<u8>> = [
        ("source\0address", source.as_str()),
        ("request\0path", &spec.path),
        ("request\0url_path", path),
        ("request\0host", &spec.authority),
        ("request\0method", &spec.method),
        ("request\0protocol", &spec.protocol),
        ("connection\0mtls", "\0"),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into();
    if let Some(version) = spec.tls.0 {
        properties.insert("connection\0tls_version".into(), version.as_str().into());
    }
    properties
}
