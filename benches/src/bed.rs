//! What the micro-benchmarks run on: a started plugin, and a browser-like request over TLS 1.3 with its answer.

use crate::embedder::BenchEmbedder;
use anyhow::{Context, Result};
use bytes::Bytes;
use criterion::BatchSize;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use portcullis::DiskCache;
use portcullis::fields::{HttpFields, Pseudo, Scheme};
use portcullis_runtime::{
    Chain, ConnectionInfo, Exchange, FailurePolicy, HttpStream, Isolation, Limits, Module,
    ModuleCache, Plugin, PluginId, PluginSpec, Progress, Protocol, RouteInfo, Runtime,
    RuntimeOptions, Shared, StreamInfo, StreamToken, TlsInfo, TlsVersion, UnknownImports,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// One runtime with its epoch ticking, as in the proxy.
pub struct Bed {
    runtime: Runtime,
    shared: Arc<Shared>,
    /// Loaded once, as by the proxy: filters of the same module run the same code.
    builtins: RefCell<BTreeMap<String, Arc<Module>>>,
}

/// How many exchanges a measurement makes before it passes them, and criterion times: few enough to stay in a core's second
/// level cache, as the head of a request does that its proxy has just parsed. With `SmallInput` thousands are made first, and
/// each pass then waits for memory.
pub const WARM: BatchSize = BatchSize::NumIterations(32);

/// As in the proxy.
const TICK: Duration = Duration::from_millis(5);

impl Bed {
    /// Starts the runtime and its ticker.
    ///
    /// # Errors
    /// When wasmtime refuses its settings.
    pub fn new() -> Result<Self> {
        let runtime = Runtime::new(RuntimeOptions::default())?;
        let ticker = runtime.ticker();
        std::thread::spawn(move || {
            while ticker() {
                std::thread::sleep(TICK);
            }
        });
        Ok(Self {
            runtime,
            shared: Arc::default(),
            builtins: RefCell::default(),
        })
    }

    /// Loads a module through a cache.
    ///
    /// # Errors
    /// When the runtime refuses it.
    pub fn load(&self, wasm: &[u8], cache: &dyn ModuleCache) -> Result<Arc<Module>> {
        Ok(self.runtime.load(wasm, cache)?)
    }

    /// Loads a module for VMs of single requests.
    ///
    /// # Errors
    /// When the runtime refuses it.
    pub fn load_for_snapshots(&self, wasm: &[u8], cache: &dyn ModuleCache) -> Result<Arc<Module>> {
        Ok(self
            .runtime
            .load_for_snapshots(wasm, cache, UnknownImports::Refuse)?)
    }

    /// Starts and configures a plugin of `module`.
    ///
    /// # Errors
    /// When the module does not start or refuses its configuration.
    pub fn start(
        &self,
        name: &str,
        module: &Arc<Module>,
        configuration: &str,
    ) -> Result<Rc<Plugin>> {
        let embedder = Rc::new(BenchEmbedder::default());
        self.start_as(Isolation::Plugin, name, module, configuration, &embedder)
    }

    /// The same with an isolation, on an embedder of one's own.
    ///
    /// # Errors
    /// As [`Bed::start`].
    pub fn start_as(
        &self,
        isolation: Isolation,
        name: &str,
        module: &Arc<Module>,
        configuration: &str,
        embedder: &Rc<BenchEmbedder>,
    ) -> Result<Rc<Plugin>> {
        let spec = PluginSpec {
            name: name.to_owned(),
            root_id: String::new(),
            vm_id: name.to_owned(),
            vm_configuration: Bytes::new(),
            configuration: Bytes::copy_from_slice(configuration.as_bytes()),
            failure_policy: FailurePolicy::Closed,
            isolation,
            limits: Limits::default(),
            clusters: Vec::new(),
            allow_on_headers_stop_iteration: None,
        };
        let embedder: Rc<dyn portcullis_runtime::Embedder> = Rc::<BenchEmbedder>::clone(embedder);
        Plugin::start(
            PluginId(0),
            Arc::clone(module),
            Arc::new(spec),
            Arc::clone(&self.shared),
            embedder,
        )
        .with_context(|| format!("{name} does not start"))
    }

    /// A built-in control, started and configured.
    ///
    /// # Errors
    /// When there is no such control, or it does not start.
    pub fn plugin(&self, control: &str, configuration: &str) -> Result<Rc<Plugin>> {
        self.start(control, &self.builtin(control)?, configuration)
    }

    /// The module of a built-in control.
    ///
    /// # Errors
    /// When there is no such control.
    pub fn builtin(&self, control: &str) -> Result<Arc<Module>> {
        if let Some(module) = self.builtins.borrow().get(control) {
            return Ok(Arc::clone(module));
        }
        let wasm = portcullis_plugins::builtin(control);
        let wasm = wasm
            .with_context(|| format!("no builtin {control}"))?
            .module;
        let module = self.load(wasm, &DiskCache::of_user())?;
        let mut builtins = self.builtins.borrow_mut();
        builtins.insert(control.to_owned(), Arc::clone(&module));
        Ok(module)
    }

    /// The same in a chain of its own.
    ///
    /// # Errors
    /// As [`Bed::plugin`].
    pub fn chain(&self, control: &str, configuration: &str) -> Result<Chain> {
        Ok(Chain::new(vec![self.plugin(control, configuration)?]))
    }
}

/// A request over TLS 1.3 with what a browser sends, and the answer of an upstream.
#[derive(Clone)]
pub struct Traffic {
    request: HttpFields,
    response: HttpFields,
    info: StreamInfo,
}

impl Traffic {
    /// `headers` are added to the request.
    pub fn new(headers: &[(&'static str, String)]) -> Self {
        let mut request = HeaderMap::new();
        for (name, value) in [
            (
                "user-agent",
                "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
            ),
            (
                "accept",
                "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            ),
            ("accept-language", "en-US,en;q=0.5"),
            ("accept-encoding", "gzip, deflate, br, zstd"),
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-proto", "https"),
            ("x-request-id", "3f0f3a57-5f4e-4d0a-9d8e-3f8a1d6b2c11"),
        ] {
            request.insert(name, HeaderValue::from_static(value));
        }
        for (name, value) in headers {
            // A value that is no header value is left out, and the benchmark's own check of the answer fails.
            if let Ok(value) = HeaderValue::from_str(value) {
                request.insert(*name, value);
            }
        }
        let mut response = HeaderMap::new();
        for (name, value) in [
            ("content-type", "text/html; charset=utf-8"),
            ("content-length", "102"),
            ("date", "Sat, 21 Nov 2026 10:00:00 GMT"),
            ("server", "upstream/1.0"),
            ("cache-control", "private"),
            ("etag", "\"5f4e\""),
        ] {
            response.insert(name, HeaderValue::from_static(value));
        }
        let tls = TlsInfo {
            version: TlsVersion::V1_3,
            requested_server_name: Some("example.test".to_owned()),
            mtls: false,
            subject_local_certificate: None,
            subject_peer_certificate: None,
            dns_san_peer_certificate: None,
            uri_san_peer_certificate: None,
            sha256_peer_certificate_digest: None,
            peer_certificate_pem: None,
        };
        let connection = ConnectionInfo {
            id: 1,
            source: ([192, 0, 2, 7], 40_000).into(),
            destination: ([127, 0, 0, 1], 8443).into(),
            tls: Some(tls),
            state: Default::default(),
        };
        Self {
            request: HttpFields {
                pseudo: Pseudo::Request {
                    method: Method::GET,
                    scheme: Scheme::Https,
                    authority: HeaderValue::from_static("example.test"),
                    path: http::uri::PathAndQuery::from_static("/items?page=2"),
                },
                headers: request,
            },
            response: HttpFields {
                pseudo: Pseudo::Response {
                    status: StatusCode::OK,
                },
                headers: response,
            },
            info: StreamInfo {
                connection: Rc::new(connection),
                route: Rc::new(RouteInfo::default()),
                protocol: Protocol::Http11,
                start_unix_ns: 0,
                request_size: 0,
                response_size: 0,
                duration_ns: None,
                response_code: None,
                response_flags: 0,
                upstream_address: None,
            },
        }
    }

    /// The same with one header more in the upstream's answer.
    #[must_use]
    pub fn answered_with(mut self, name: &'static str, value: &'static str) -> Self {
        self.response
            .headers
            .insert(name, HeaderValue::from_static(value));
        self
    }

    /// The same with so many headers in the request and in the response: what is there, cut or filled up.
    #[must_use]
    pub fn of_headers(mut self, count: usize) -> Self {
        for headers in [&mut self.request.headers, &mut self.response.headers] {
            let mut changed: HeaderMap = headers
                .iter()
                .take(count)
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            for number in changed.len()..count {
                // Every such name is one; else the count would be too small.
                if let Ok(name) = http::HeaderName::try_from(format!("x-header-{number}")) {
                    changed.insert(name, HeaderValue::from_static("a value of some length"));
                }
            }
            *headers = changed;
        }
        self
    }

    /// The same exchange of another client.
    pub fn exchange_from(&self, source: IpAddr) -> (Exchange, HttpFields) {
        let known = &self.info.connection;
        let source = (source, known.source.port()).into();
        let mut connection = ConnectionInfo::new(known.id, source, known.destination);
        connection.tls.clone_from(&known.tls);
        let info = StreamInfo {
            connection: Rc::new(connection),
            ..self.info.clone()
        };
        (
            Exchange::new(Box::new(self.request.clone()), info),
            self.response.clone(),
        )
    }

    /// What a proxy holds for one exchange, before any filter ran.
    pub fn exchange(&self) -> (Exchange, HttpFields) {
        (
            Exchange::new(Box::new(self.request.clone()), self.info.clone()),
            self.response.clone(),
        )
    }
}

/// A request's whole way through a chain: stream created, request headers, response headers, log, done, delete. Gives the status.
pub fn pass(chain: &Chain, (exchange, response): (Exchange, HttpFields)) -> u16 {
    let mut stream = HttpStream::new(chain, exchange, StreamToken(1));
    if matches!(stream.request_headers(true), Progress::Continue) {
        stream.exchange_mut().response_headers = Some(Box::new(response));
    }
    stream.response_headers(true);
    let status = stream
        .exchange()
        .response_headers
        .as_ref()
        .and_then(|headers| {
            std::str::from_utf8(headers.get(b":status")?)
                .ok()?
                .parse()
                .ok()
        })
        .unwrap_or_default();
    stream.finish();
    status
}
