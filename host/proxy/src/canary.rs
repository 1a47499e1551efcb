//! A policy's plugins started and configured offline, to learn what only they know: whether they take their configuration, which request
//! headers they own, and what they put on an answer.
//!
//! No port is bound and nothing is called: callouts are taken and never answered.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use bytes::Bytes;
use portcullis_runtime::{
    Callback, CalloutError, CalloutId, Chain, ConnectionInfo, Embedder, Exchange, FailurePolicy,
    FieldList, Fields, GrpcCall, HttpCall, HttpStream, Isolation, Limits, LogLevel, Module,
    ModuleCache, Plugin, PluginId, PluginSpec, Progress, Protocol, QueueTarget, RedisCall,
    RedisOptions, RouteInfo, Runtime, Shared, StartError, StartFailure, Status, StreamInfo,
    StreamToken, TlsInfo, TlsVersion,
};

use crate::export::Findings;
use crate::foreign::ForeignFunctions;
use crate::modules::Modules;
use crate::policy::{Filter, FilterInstance, Policy, PolicyErrors, Problem};

/// Starts every plugin of the policy once.
///
/// # Errors
///
/// Every module that does not load here and every plugin that does not start, as far as possible with the line of the configuration key
/// that it complains of.
pub(crate) fn try_out(
    policy: &Policy,
    runtime: &Runtime,
    cache: &dyn ModuleCache,
) -> Result<Findings, PolicyErrors> {
    let (modules, problems) = Modules::load(policy, runtime, cache, &Modules::default());
    try_out_with(policy, &modules, problems)
}

/// The same with modules that are there already; `problems` are those of loading them.
pub(crate) fn try_out_with(
    policy: &Policy,
    modules: &Modules,
    mut problems: Vec<Problem>,
) -> Result<Findings, PolicyErrors> {
    let mut plugins = Vec::new();
    let shared = Arc::new(Shared::default());
    let embedder: Rc<dyn Embedder> = Rc::new(Offline::new());
    for instance in &policy.instances {
        let Some(module) = modules.of(&instance.filter).cloned() else {
            continue;
        };
        let spec = Arc::new(instance.spec());
        let started = Plugin::start(
            PluginId(instance.index),
            module,
            spec,
            Arc::clone(&shared),
            Rc::clone(&embedder),
        );
        match started {
            Ok(plugin) => plugins.push((instance, plugin)),
            Err(error) => problems.extend(start_problems(instance, &error)),
        }
    }
    if !problems.is_empty() {
        problems.sort_by_key(|problem| problem.place.line);
        return Err(PolicyErrors(problems));
    }
    let mut findings = Findings::default();
    for (instance, plugin) in &plugins {
        let owned = findings
            .owned_request_headers
            .entry(instance.filter.name.clone())
            .or_default();
        owned.extend(plugin.owned_request_headers());
    }
    // The chain of the routes that say nothing; what it adds to an answer that no upstream gave.
    let base = plugins
        .iter()
        .filter(|(instance, _)| instance.name == instance.filter.name);
    let headers = base.filter(|(instance, _)| {
        instance.filter.module.control.as_deref() == Some("security-headers")
    });
    let chain = Chain::new(headers.map(|(_, plugin)| Rc::clone(plugin)).collect());
    findings.reply_headers_tls = reply_headers(&chain, true);
    findings.reply_headers_plaintext = reply_headers(&chain, false);
    for (_, plugin) in &plugins {
        plugin.shut_down();
    }
    Ok(findings)
}

/// A module that would see nothing of a TCP listener's connections, and so let all by.
pub(crate) fn unfit(filter: &Filter, module: &Module) -> Option<Problem> {
    let callbacks = [
        Callback::NewConnection,
        Callback::DownstreamData,
        Callback::UpstreamData,
        Callback::DownstreamConnectionClose,
        Callback::UpstreamConnectionClose,
    ];
    let sees = |callback: &Callback| module.callbacks().contains(*callback);
    (filter.is_tcp && !callbacks.iter().any(sees)).then(|| {
        filter
            .place
            .problem("the module has no callback of TCP connections")
    })
}

/// Why a plugin did not start, at the configuration keys that its log lines name (`configuration: KEY.PATH: reason`), else at its
/// configuration as a whole.
pub(crate) fn start_problems(instance: &FilterInstance, error: &StartError) -> Vec<Problem> {
    let configuration = &instance.configuration;
    let named = error.log.iter().filter_map(|line| {
        let rest = line.trim_end().strip_prefix("configuration: ")?;
        let (path, reason) = match rest.split_once(": ") {
            Some((path, reason)) if !path.contains(' ') => (path, reason),
            _ => ("", rest),
        };
        Some(configuration.place_of(path).problem(reason))
    });
    let named: Vec<_> = named.collect();
    if !named.is_empty() {
        return named;
    }
    let said = error
        .log
        .iter()
        .map(|line| format!(": {}", line.trim_end()));
    vec![
        configuration
            .place()
            .problem(format!("{}{}", error.failure, said.collect::<String>())),
    ]
}

/// What a chain puts on an empty answer.
fn reply_headers(chain: &Chain, tls: bool) -> Vec<(String, String)> {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let tls = tls.then_some(TlsInfo {
        version: TlsVersion::V1_3,
        requested_server_name: None,
        mtls: false,
        subject_local_certificate: None,
        subject_peer_certificate: None,
        dns_san_peer_certificate: None,
        uri_san_peer_certificate: None,
        sha256_peer_certificate_digest: None,
        peer_certificate_pem: None,
    });
    let info = StreamInfo {
        connection: Rc::new(ConnectionInfo {
            id: 0,
            source: address,
            destination: address,
            tls,
            state: Default::default(),
        }),
        route: Rc::new(RouteInfo::default()),
        protocol: Protocol::Http11,
        start_unix_ns: unix_time_ns(),
        request_size: 0,
        response_size: 0,
        duration_ns: None,
        response_code: None,
        response_flags: 0,
        upstream_address: None,
    };
    let fields = |pairs: &[(&'static str, &'static str)]| {
        let mut list = FieldList::new();
        for (name, value) in pairs {
            list.push(*name, *value);
        }
        Box::new(list) as Box<dyn Fields>
    };
    let request = fields(&[
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", "/"),
    ]);
    let mut stream = HttpStream::new(chain, Exchange::new(request, info), StreamToken(0));
    let mut headers = Vec::new();
    if matches!(stream.request_headers(true), Progress::Continue) {
        stream.exchange_mut().response_headers = Some(fields(&[(":status", "503")]));
        if matches!(stream.response_headers(true), Progress::Continue)
            && let Some(answer) = &stream.exchange().response_headers
        {
            answer.for_each(&mut |name, value| {
                if !name.starts_with(b":") {
                    headers.push((
                        String::from_utf8_lossy(name).into_owned(),
                        String::from_utf8_lossy(value).into_owned(),
                    ));
                }
            });
        }
    }
    stream.finish();
    headers
}

fn unix_time_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether a VM of this module comes to stand. A plugin that refuses to work without a configuration does.
///
/// # Errors
///
/// Why not.
pub(crate) fn instantiate(module: Arc<Module>, name: &str) -> Result<(), String> {
    let spec = PluginSpec {
        name: name.to_owned(),
        root_id: String::new(),
        vm_id: String::new(),
        vm_configuration: bytes::Bytes::new(),
        configuration: bytes::Bytes::new(),
        failure_policy: FailurePolicy::Closed,
        isolation: Isolation::Plugin,
        limits: Limits::default(),
        clusters: Vec::new(),
        allow_on_headers_stop_iteration: None,
    };
    let started = Plugin::start(
        PluginId(0),
        module,
        Arc::new(spec),
        Arc::default(),
        Rc::new(Offline::new()),
    );
    match started {
        Ok(plugin) => {
            plugin.shut_down();
            Ok(())
        }
        Err(error) => match error.failure {
            StartFailure::ConfigurationRefused | StartFailure::VmStartRefused => Ok(()),
            _ => Err(error.to_string()),
        },
    }
}

/// What the runtime is given where nothing may leave the process.
pub(crate) struct Offline {
    begun: Instant,
    random: SystemRandom,
    foreign: ForeignFunctions,
}

impl Offline {
    pub(crate) fn new() -> Self {
        Self {
            begun: Instant::now(),
            random: SystemRandom::new(),
            foreign: ForeignFunctions::default(),
        }
    }
}

impl Embedder for Offline {
    fn worker(&self) -> u32 {
        0
    }
    fn unix_time_ns(&self) -> u64 {
        unix_time_ns()
    }

    fn monotonic_ns(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn thread_cpu_ns(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
    }

    fn random(&self, out: &mut [u8]) {
        // aws-lc-rs's own source does not fail once the process has started.
        if self.random.fill(out).is_err() {
            std::process::abort();
        }
    }

    fn log(&self, plugin: &PluginSpec, level: LogLevel, message: &[u8]) {
        tracing::debug!(
            plugin = plugin.name,
            ?level,
            "{}",
            String::from_utf8_lossy(message).escape_debug()
        );
    }

    fn set_tick_period(&self, _: PluginId, _: Option<Duration>) {}

    fn start_http_call(&self, _: PluginId, _: CalloutId, _: HttpCall) -> Result<(), CalloutError> {
        Ok(())
    }

    fn start_grpc(&self, _: PluginId, _: CalloutId, _: GrpcCall) -> Result<(), CalloutError> {
        Ok(())
    }

    fn send_grpc(
        &self,
        _: PluginId,
        _: CalloutId,
        _: Option<Bytes>,
        _: bool,
    ) -> Result<(), CalloutError> {
        Ok(())
    }

    fn set_redis(&self, _: PluginId, _: String, _: RedisOptions) -> Result<(), CalloutError> {
        Ok(())
    }

    fn start_redis(&self, _: PluginId, _: CalloutId, _: RedisCall) -> Result<(), CalloutError> {
        Ok(())
    }

    fn cancel_calls(&self, _: PluginId) {}

    fn wake(&self, _: StreamToken) {}

    fn notify_queue(&self, _: QueueTarget) {}

    fn foreign_function(&self, name: &str, arguments: &[u8]) -> Result<Vec<u8>, Status> {
        self.foreign.call(name, arguments)
    }
}
