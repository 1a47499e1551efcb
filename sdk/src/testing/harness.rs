//! A plugin on a host in memory, and its cases run on it.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::cases::{Callout, Case, Cases, Place, RequestSpec, Step, UpstreamSpec};
use super::expect::{Outcome, UpstreamSeen};
use super::value::{Make, no_make};
use crate::callbacks::Callbacks;
use crate::control::Control;
use crate::host::Level;
use crate::host::native::{ExchangeWorld, Fields, ForeignFunction, LocalAnswer, NativeHost, Phase};
use crate::plugin::{Exchange, Flow, Plugin};

/// Ticks that one `advance` may fire; a tick period of a millisecond over an hour is a mistake.
const TICKS_MAX: u32 = 10_000;

/// Runs the cases of a file that are for the native place; fails with a diff of each that does not hold.
///
/// # Panics
///
/// If the file cannot be read, names another control, or a case does not hold: it is for tests.
pub fn check<C: Control>(path: impl AsRef<Path>) {
    check_with::<C>(path, &no_make);
}

/// As [`check`], with a function that makes the values of placeholders.
///
/// # Panics
///
/// As [`check`].
#[expect(clippy::panic, reason = "it is an assertion")]
pub fn check_with<C: Control>(path: impl AsRef<Path>, make: Make<'_>) {
    let cases = Cases::read(path).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        cases.control,
        C::METADATA.name,
        "the cases are another control's"
    );
    assert!(
        cases.at(Place::Native).next().is_some(),
        "no case runs natively"
    );
    let failures: Vec<String> = cases
        .at(Place::Native)
        .filter_map(|case| check_case::<C>(case, make).err())
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} cases do not hold\n\n{}",
        failures.len(),
        cases.cases.len(),
        failures.join("\n")
    );
}

/// Runs one case; the error is a diff.
fn check_case<C: Control>(case: &Case, make: Make<'_>) -> Result<(), String> {
    let failed = |step: usize, round: u32, lines: String| {
        format!(
            "case {:?}, step {}, round {}:\n{lines}",
            case.name,
            step + 1,
            round + 1
        )
    };
    let mut harness = Harness::<C>::new(SystemTime::now());
    harness.callouts.clone_from(&case.callouts);
    harness.set_clusters();
    harness
        .configure(&case.configuration.to_string())
        .map_err(|lines| failed(0, 0, format!("configuration refused\n{lines}\n")))?;
    for (index, step) in case.steps.iter().enumerate() {
        harness
            .advance(step.advance, make)
            .map_err(|reason| failed(index, 0, reason))?;
        for round in 0..step.repeat {
            let logged = harness.log().len();
            let outcome = harness
                .exchange(step, make)
                .map_err(|reason| failed(index, round, reason))?;
            let mismatches = step.expect.check(&outcome);
            if !mismatches.is_empty() {
                let mut lines = String::new();
                for mismatch in mismatches {
                    lines.push_str(&format!("{mismatch}\n"));
                }
                for (level, line) in harness.log().iter().skip(logged) {
                    lines.push_str(&format!("  log {level:?}: {line}\n"));
                }
                return Err(failed(index, round, lines));
            }
        }
    }
    Ok(())
}

/// A control on a host in memory. The clock is handed in and moves only by [`advance`](Self::advance).
pub struct Harness<C: Control> {
    host: NativeHost,
    plugin: Plugin<C>,
    callouts: Vec<Callout>,
    next_tick_ns: Option<u64>,
    exchanges: u64,
}

impl<C: Control> Harness<C> {
    /// A fresh plugin, not yet configured, at a time.
    pub fn new(now: SystemTime) -> Self {
        let host = NativeHost::default();
        let now_ns = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        host.world()
            .now_ns
            .set(u64::try_from(now_ns).unwrap_or(u64::MAX));
        Self {
            plugin: Plugin::new(host.clone()),
            host,
            callouts: Vec::new(),
            next_tick_ns: None,
            exchanges: 0,
        }
    }

    /// Configures the plugin with JSON; the error is what it logged.
    pub fn configure(&mut self, json: &str) -> Result<(), String> {
        *self.host.world().configuration.borrow_mut() = json.as_bytes().to_vec();
        let logged = self.log().len();
        if self.plugin.configure() {
            self.arm_tick();
            return Ok(());
        }
        let log = self.log();
        let lines: Vec<&str> = log
            .iter()
            .skip(logged)
            .map(|(_, line)| line.as_str())
            .collect();
        Err(lines.join("\n"))
    }

    /// What clusters answer to the plugin's calls, in order; the last of a cluster repeats. A cluster without an
    /// answer is unknown.
    pub fn set_callouts(&mut self, callouts: Vec<Callout>) {
        self.callouts = callouts;
        self.set_clusters();
    }

    /// Gives the host a foreign function.
    pub fn set_foreign_function(&mut self, name: &str, function: ForeignFunction) {
        self.host
            .world()
            .foreign
            .borrow_mut()
            .insert(name.into(), function);
    }

    /// Lets time pass: every tick that falls due, and the answers to the calls it starts.
    pub fn advance(&mut self, by: Duration, make: Make<'_>) -> Result<(), String> {
        let world_now = self.host.world().now_ns.get();
        let end = world_now.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX));
        let mut ticks = 0;
        self.answer_calls(make)?;
        while let Some(due) = self.next_tick_ns.filter(|due| *due <= end) {
            ticks += 1;
            if ticks > TICKS_MAX {
                return Err(format!("more than {TICKS_MAX} ticks in one advance"));
            }
            self.host.world().now_ns.set(due);
            if C::METADATA.callbacks.contains(Callbacks::TICK) {
                self.plugin.on_tick();
            }
            self.arm_tick();
            self.answer_calls(make)?;
        }
        self.host.world().now_ns.set(end);
        Ok(())
    }

    /// Runs one exchange to its end. An error is a value that cannot be made.
    pub fn exchange(&mut self, step: &Step, make: Make<'_>) -> Result<Outcome, String> {
        self.answer_calls(make)?;
        let now = UNIX_EPOCH + Duration::from_nanos(self.host.world().now_ns.get());
        self.exchanges += 1;
        let request = request_fields(&step.request, self.exchanges, now, make)?;
        let answer = upstream_fields(&step.upstream, now, make)?;
        let mut properties = connection_properties(&step.request);
        properties.extend(
            step.properties
                .iter()
                .map(|(name, value)| (name.clone().into(), value.clone().into())),
        );
        self.host.set_exchange(Some(ExchangeWorld {
            request,
            properties,
            ..ExchangeWorld::default()
        }));
        let outcome = Life {
            harness: self,
            exchange: Exchange::default(),
        }
        .run(step, answer);
        self.host.set_exchange(None);
        Ok(outcome)
    }

    /// All that was logged.
    pub fn log(&self) -> Vec<(Level, String)> {
        self.host.world().log.borrow().clone()
    }

    /// The value of a metric by its whole name; `None` if it was never defined.
    pub fn metric(&self, name: &str) -> Option<u64> {
        self.host.metric_value(name)
    }

    /// The request headers that the control declared as its own.
    pub fn owned_request_headers(&self) -> Vec<String> {
        let properties = self.host.world().plugin_properties.borrow();
        let declared = properties.get(b"portcullis.owned_request_headers".as_slice());
        let text = declared
            .map(|names| String::from_utf8_lossy(names).into_owned())
            .unwrap_or_default();
        text.split('\0')
            .filter(|name| !name.is_empty())
            .map(String::from)
            .collect()
    }

    fn set_clusters(&self) {
        let names = self.callouts.iter().map(|callout| callout.cluster.clone());
        *self.host.world().clusters.borrow_mut() = names.collect();
    }

    fn arm_tick(&mut self) {
        let world = self.host.world();
        let period_ns = u64::from(world.tick_period_ms.get()).saturating_mul(1_000_000);
        self.next_tick_ns = (period_ns > 0).then(|| world.now_ns.get().saturating_add(period_ns));
    }

    /// Answers the calls that are under way, and those that their answers start.
    fn answer_calls(&mut self, make: Make<'_>) -> Result<(), String> {
        loop {
            let calls = std::mem::take(&mut *self.host.world().calls.borrow_mut());
            if calls.is_empty() {
                return Ok(());
            }
            let now = UNIX_EPOCH + Duration::from_nanos(self.host.world().now_ns.get());
            for call in calls {
                let fits = |callout: &Callout| {
                    callout.cluster == call.cluster
                        && callout.path.as_ref().is_none_or(|path| *path == call.path)
                };
                let mut fitting = self
                    .callouts
                    .iter()
                    .enumerate()
                    .filter(|(_, callout)| fits(callout));
                let first = fitting
                    .next()
                    .map(|(index, callout)| (index, callout.clone()));
                let (headers, body) = match first {
                    Some((index, callout)) => {
                        if fitting.next().is_some() {
                            self.callouts.remove(index);
                        }
                        let mut headers =
                            vec![(b":status".to_vec(), callout.status.to_string().into_bytes())];
                        for (name, value) in &callout.headers {
                            headers.push((
                                name.to_ascii_lowercase().into_bytes(),
                                value.bytes(now, make)?,
                            ));
                        }
                        let body = callout.body.map(|body| body.bytes(now, make)).transpose()?;
                        (headers, body.unwrap_or_default())
                    }
                    // What Envoy answers to a call that times out.
                    None => (
                        vec![(b":status".to_vec(), b"504".to_vec())],
                        b"upstream request timeout".to_vec(),
                    ),
                };
                let (count, size) = (headers.len(), body.len());
                *self.host.world().call_answer.borrow_mut() = Some((headers, body));
                if C::METADATA
                    .callbacks
                    .contains(Callbacks::HTTP_CALL_RESPONSE)
                {
                    self.plugin.on_http_call_response(call.id, count, size);
                }
                *self.host.world().call_answer.borrow_mut() = None;
            }
        }
    }
}

/// One exchange on its way through the plugin and back.
struct Life<'a, C: Control> {
    harness: &'a mut Harness<C>,
    exchange: Exchange<C>,
}

impl<C: Control> Life<'_, C> {
    fn run(mut self, step: &Step, answer: Fields) -> Outcome {
        let mut outcome = Outcome::default();
        match self.request(step.request.body.as_bytes()) {
            Ok(seen) => {
                outcome.upstream = Some(seen);
                self.response(
                    &mut outcome,
                    answer,
                    step.upstream.body.clone().into_bytes(),
                );
            }
            Err(local) => self.local_response(&mut outcome, local),
        }
        if step.request.method == "HEAD" {
            outcome.body.clear();
        }
        if self.has(Callbacks::LOG) {
            self.enter(Phase::Log, Vec::new());
            self.harness.plugin.on_log(&self.exchange);
        }
        outcome
    }

    /// The request phases: what the upstream sees, or the plugin's answer.
    fn request(&mut self, body: &[u8]) -> Result<UpstreamSeen, LocalAnswer> {
        if self.has(Callbacks::REQUEST_HEADERS) {
            self.enter(Phase::RequestHeaders, Vec::new());
            self.harness
                .plugin
                .on_request_headers(&mut self.exchange, body.is_empty());
            self.answered()?;
        }
        let mut body = body.to_vec();
        if self.has(Callbacks::REQUEST_BODY) && !body.is_empty() {
            body = self.body(Phase::RequestBody, &body);
            self.answered()?;
        }
        let headers = self.harness.host.world().exchange.borrow().request.clone();
        Ok(UpstreamSeen { headers, body })
    }

    /// The response phases of what the upstream answered.
    fn response(&mut self, outcome: &mut Outcome, headers: Fields, body: Vec<u8>) {
        self.harness.host.world().exchange.borrow_mut().response = headers;
        if self.has(Callbacks::RESPONSE_HEADERS) {
            self.enter(Phase::ResponseHeaders, Vec::new());
            self.harness.plugin.on_response_headers(&mut self.exchange);
            if let Err(local) = self.answered() {
                return self.local_response(outcome, local);
            }
        }
        self.finish(outcome, body);
    }

    /// The response phases of the plugin's own answer, with the headers that Envoy adds to it.
    fn local_response(&mut self, outcome: &mut Outcome, local: LocalAnswer) {
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
        self.harness.host.world().exchange.borrow_mut().response = headers;
        if self.has(Callbacks::RESPONSE_HEADERS) {
            self.enter(Phase::ResponseHeaders, Vec::new());
            self.harness.plugin.on_response_headers(&mut self.exchange);
            // A local response is final.
            self.harness.host.world().exchange.borrow_mut().answer = None;
        }
        self.finish(outcome, local.body);
    }

    fn finish(&mut self, outcome: &mut Outcome, mut body: Vec<u8>) {
        if self.has(Callbacks::RESPONSE_BODY) && !body.is_empty() {
            body = self.body(Phase::ResponseBody, &body);
            if self.answered().is_err() {
                return; // headers are out: Envoy resets the stream
            }
        }
        for (name, value) in self.harness.host.world().exchange.borrow().response.clone() {
            match name.as_slice() {
                b":status" => outcome.status = crate::response::parse_status(&value).unwrap_or(0),
                [b':', ..] => {}
                _ => outcome.headers.push((name, value)),
            }
        }
        outcome.body = body;
    }

    /// Hands a body over in two pieces, as the network would; what is held comes again with the second.
    fn body(&mut self, phase: Phase, body: &[u8]) -> Vec<u8> {
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
                Phase::RequestBody => {
                    self.harness
                        .plugin
                        .on_request_body(&mut self.exchange, size, end)
                }
                _ => self
                    .harness
                    .plugin
                    .on_response_body(&mut self.exchange, size, end),
            };
            let mut world = self.harness.host.world().exchange.borrow_mut();
            let buffered = std::mem::take(&mut world.body);
            if world.answer.is_some() {
                return passed;
            }
            match flow {
                Flow::Pause => held = buffered,
                Flow::Continue => passed.extend(buffered),
            }
        }
        passed
    }

    fn enter(&self, phase: Phase, body: Vec<u8>) {
        let mut exchange = self.harness.host.world().exchange.borrow_mut();
        exchange.phase = phase;
        exchange.body = body;
    }

    /// The plugin's answer, if it gave one.
    fn answered(&self) -> Result<(), LocalAnswer> {
        self.harness
            .host
            .world()
            .exchange
            .borrow_mut()
            .answer
            .take()
            .map_or(Ok(()), Err)
    }

    fn has(&self, callback: Callbacks) -> bool {
        C::METADATA.callbacks.contains(callback)
    }
}

/// The request as a proxy at the edge hands it to its first filter: `x-forwarded-*` and `x-request-id` are the
/// proxy's, `x-envoy-*` and hop-by-hop headers of the client are gone (Envoy with `use_remote_address`).
fn request_fields(
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

fn upstream_fields(spec: &UpstreamSpec, now: SystemTime, make: Make<'_>) -> Result<Fields, String> {
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
fn connection_properties(spec: &RequestSpec) -> std::collections::BTreeMap<Vec<u8>, Vec<u8>> {
    let path = spec
        .path
        .split_once('?')
        .map_or(spec.path.as_str(), |(path, _)| path);
    let source = std::net::SocketAddr::new(spec.source, 49_152).to_string();
    let mut properties: std::collections::BTreeMap<Vec<u8>, Vec<u8>> = [
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
