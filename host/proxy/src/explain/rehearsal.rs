//! The runtime's embedder where nothing may leave the process: clocks and crypto are real, logs are kept, callouts are written down and answered
//! only with what was given beforehand.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header;
use portcullis_runtime::{
    CalloutError, CalloutId, Embedder, FieldList, Fields as _, GrpcCall, HttpCall,
    HttpCallResponse, LogLevel, Plugin, PluginId, PluginSpec, QueueTarget, RedisCall, RedisOptions,
    Status, StreamToken,
};

use super::UpstreamAnswer;
use super::explanation::Said;
use crate::canary::Offline;
use crate::embedder::{log_level, one_line};

/// An embedder that writes down what plugins ask of it.
pub(super) struct Rehearsal {
    offline: Offline,
    log_level: LogLevel,
    /// Names of plugins, by their ids.
    names: Vec<String>,
    plugins: RefCell<HashMap<PluginId, Weak<Plugin>>>,
    answers: Vec<(String, UpstreamAnswer)>,
    said: RefCell<HashMap<String, Said>>,
    /// HTTP calls that can be answered, and whether any was asked for that cannot.
    answerable: RefCell<Vec<(PluginId, CalloutId, String)>>,
    unanswered: RefCell<HashMap<String, String>>,
    ticking: RefCell<Vec<PluginId>>,
    woken: Cell<bool>,
}

impl Rehearsal {
    pub(super) fn new(names: Vec<String>, answers: Vec<(String, UpstreamAnswer)>) -> Rc<Self> {
        Rc::new(Self {
            offline: Offline::new(),
            log_level: log_level(),
            names,
            plugins: RefCell::default(),
            answers,
            said: RefCell::default(),
            answerable: RefCell::default(),
            unanswered: RefCell::default(),
            ticking: RefCell::default(),
            woken: Cell::new(false),
        })
    }

    pub(super) fn register(&self, plugin: &Rc<Plugin>) {
        let weak = Rc::downgrade(plugin);
        self.plugins.borrow_mut().insert(plugin.id(), weak);
    }

    /// What a plugin has said since this was last asked.
    pub(super) fn take_said(&self, plugin: &str) -> Said {
        self.said.borrow_mut().remove(plugin).unwrap_or_default()
    }

    /// The callout that a plugin asked for last and that was not made.
    pub(super) fn waits_for(&self, plugin: &str) -> Option<String> {
        self.unanswered.borrow().get(plugin).cloned()
    }

    /// Runs the timer of every plugin that has one, once.
    pub(super) fn tick(&self) {
        let ticking: Vec<_> = self.ticking.borrow().clone();
        for id in ticking {
            if let Some(plugin) = self.plugin(id) {
                plugin.on_tick();
            }
        }
    }

    /// Answers the callouts that can be; whether there was any.
    pub(super) fn deliver(&self) -> bool {
        let calls = self.answerable.take();
        for (id, call, cluster) in &calls {
            let answer = self.answers.iter().find(|(name, _)| name == cluster);
            if let (Some(plugin), Some((_, answer))) = (self.plugin(*id), answer) {
                plugin.on_http_call_response(*call, response(answer));
            }
        }
        !calls.is_empty()
    }

    /// Whether a plugin wants its stream looked at again.
    pub(super) fn take_woken(&self) -> bool {
        self.woken.replace(false)
    }

    fn plugin(&self, id: PluginId) -> Option<Rc<Plugin>> {
        self.plugins.borrow().get(&id).and_then(Weak::upgrade)
    }

    fn name(&self, id: PluginId) -> String {
        let index = usize::try_from(id.0).ok();
        let name = index.and_then(|index| self.names.get(index));
        name.cloned().unwrap_or_default()
    }

    fn note_callout(&self, id: PluginId, what: String, answered: bool) {
        let name = self.name(id);
        let shown = if answered {
            format!("{what} (answered as --callout says)")
        } else {
            format!("{what} (not made: explain calls nobody)")
        };
        let mut said = self.said.borrow_mut();
        said.entry(name.clone()).or_default().callouts.push(shown);
        if !answered {
            self.unanswered.borrow_mut().insert(name, what);
        }
    }
}

fn response(answer: &UpstreamAnswer) -> HttpCallResponse {
    let mut headers = FieldList::new();
    headers.push(":status", answer.status.as_u16().to_string());
    for (name, value) in &answer.headers {
        let value = Bytes::copy_from_slice(value.as_bytes());
        headers.push(name.as_str().to_owned(), value);
    }
    if !answer.headers.contains_key(header::CONTENT_LENGTH) {
        headers.push("content-length", answer.body.len().to_string());
    }
    HttpCallResponse::Answer {
        headers,
        body: answer.body.clone(),
        trailers: FieldList::new(),
    }
}

impl Embedder for Rehearsal {
    fn worker(&self) -> u32 {
        0
    }

    fn unix_time_ns(&self) -> u64 {
        self.offline.unix_time_ns()
    }

    fn monotonic_ns(&self) -> u64 {
        self.offline.monotonic_ns()
    }

    fn thread_cpu_ns(&self) -> u64 {
        self.offline.thread_cpu_ns()
    }

    fn random(&self, out: &mut [u8]) {
        self.offline.random(out);
    }

    fn log(&self, plugin: &PluginSpec, level: LogLevel, message: &[u8]) {
        let level = format!("{level:?}").to_lowercase();
        let line = format!("{level}: {}", one_line(message));
        let mut said = self.said.borrow_mut();
        said.entry(plugin.name.clone()).or_default().log.push(line);
    }

    fn log_level(&self) -> LogLevel {
        self.log_level
    }

    fn set_tick_period(&self, plugin: PluginId, period: Option<Duration>) {
        let mut ticking = self.ticking.borrow_mut();
        ticking.retain(|id| *id != plugin);
        if period.is_some() {
            ticking.push(plugin);
        }
    }

    fn start_http_call(
        &self,
        plugin: PluginId,
        id: CalloutId,
        call: HttpCall,
    ) -> Result<(), CalloutError> {
        let text = |name: &[u8]| {
            let value = call.headers.get(name).unwrap_or_default();
            one_line(value)
        };
        let what = format!(
            "HTTP callout to cluster `{}`: {} {}{}",
            call.cluster,
            text(b":method"),
            text(b":authority"),
            text(b":path")
        );
        let answered = self.answers.iter().any(|(name, _)| *name == call.cluster);
        self.note_callout(plugin, what, answered);
        if answered {
            let mut answerable = self.answerable.borrow_mut();
            answerable.push((plugin, id, call.cluster));
        }
        Ok(())
    }

    fn start_grpc(
        &self,
        plugin: PluginId,
        _: CalloutId,
        call: GrpcCall,
    ) -> Result<(), CalloutError> {
        let what = format!("gRPC callout to cluster `{}`: {}", call.cluster, call.path);
        self.note_callout(plugin, what, false);
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

    fn start_redis(
        &self,
        plugin: PluginId,
        _: CalloutId,
        call: RedisCall,
    ) -> Result<(), CalloutError> {
        let what = format!("Redis callout to cluster `{}`", call.cluster);
        self.note_callout(plugin, what, false);
        Ok(())
    }

    fn cancel_call(&self, plugin: PluginId, id: CalloutId) {
        let mut answerable = self.answerable.borrow_mut();
        answerable.retain(|(owner, call, _)| (*owner, *call) != (plugin, id));
    }

    fn cancel_calls(&self, plugin: PluginId) {
        let mut answerable = self.answerable.borrow_mut();
        answerable.retain(|(owner, _, _)| *owner != plugin);
    }

    fn wake(&self, _: StreamToken) {
        self.woken.set(true);
    }

    fn notify_queue(&self, target: QueueTarget) {
        let name = self.name(target.plugin);
        let mut said = self.said.borrow_mut();
        let line = "info: (host) an entry in its shared queue is not delivered here".to_owned();
        said.entry(name).or_default().log.push(line);
    }

    fn foreign_function(&self, name: &str, arguments: &[u8]) -> Result<Vec<u8>, Status> {
        self.offline.foreign_function(name, arguments)
    }
}
