//! The runtime's embedder where nothing may leave the process: clocks and crypto are real, logs are kept, callouts are written down and answered
//! only with what was given beforehand.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, header};
use portcullis_runtime::{
    CalloutError, CalloutId, Embedder, FieldList, Fields as _, GrpcCall, GrpcEvent, GrpcStatus,
    HttpCall, HttpCallResponse, LogLevel, Plugin, PluginId, PluginSpec, QueueTarget, RedisCall,
    RedisOptions, Status, StreamToken,
};

use super::UpstreamAnswer;
use super::explanation::Said;
use super::prepared::{Answers, GrpcAnswer};
use crate::canary::Offline;
use crate::embedder::{log_level, one_line};
use crate::forwarded;
use crate::limits::{CALLOUTS_MAX, HELD_MAX};

/// Whether time passes while a request is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Time {
    /// Timers run when they are told to.
    Stands,
    /// As long as an exchange may be held, real time is waited for.
    Passes,
}

/// Where random bytes come from: those that plugins ask for, and those of a request's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Random {
    /// The system.
    Drawn,
    /// A sequence that begins anew with each stage: what a guest does with them (a hash's order, the digits of an id) takes more or fewer operators
    /// from run to run otherwise.
    Repeated,
}

/// A timer of a plugin.
struct Timer {
    plugin: PluginId,
    period: Duration,
    due: Instant,
}

/// A callout that can be answered.
struct Call {
    plugin: PluginId,
    id: CalloutId,
    cluster: String,
    path: Bytes,
    is_grpc: bool,
}

/// An embedder that writes down what plugins ask of it.
pub(super) struct Rehearsal {
    offline: Offline,
    log_level: LogLevel,
    /// Names of plugins, by their ids.
    names: Vec<String>,
    plugins: RefCell<HashMap<PluginId, Weak<Plugin>>>,
    answers: RefCell<Answers>,
    said: RefCell<HashMap<String, Said>>,
    /// Calls that can be answered, and whether any was asked for that cannot.
    answerable: RefCell<Vec<Call>>,
    unanswered: RefCell<HashMap<String, String>>,
    /// Calls answered since an exchange began: a plugin that calls again at each answer must come to an end.
    delivered: Cell<usize>,
    timers: RefCell<Vec<Timer>>,
    time: Time,
    /// Of [`Random::Repeated`]; nothing where bytes are drawn.
    repeated: Option<RefCell<fastrand::Rng>>,
    /// Until when an exchange may be held.
    held_until: Cell<Instant>,
    woken: Cell<bool>,
}

impl Rehearsal {
    pub(super) fn new(
        names: Vec<String>,
        answers: Answers,
        time: Time,
        random: Random,
    ) -> Rc<Self> {
        Rc::new(Self {
            offline: Offline::new(),
            log_level: log_level(),
            names,
            plugins: RefCell::default(),
            answers: RefCell::new(answers),
            said: RefCell::default(),
            answerable: RefCell::default(),
            unanswered: RefCell::default(),
            delivered: Cell::new(0),
            timers: RefCell::default(),
            time,
            repeated: match random {
                Random::Drawn => None,
                Random::Repeated => Some(RefCell::new(fastrand::Rng::with_seed(0))),
            },
            held_until: Cell::new(Instant::now()),
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

    /// A request's id.
    pub(super) fn request_id(&self) -> HeaderValue {
        match &self.repeated {
            None => forwarded::request_id(),
            Some(repeated) => forwarded::request_id_of(repeated.borrow_mut().u128(..)),
        }
    }

    /// Runs the timer of every plugin that has one, once.
    pub(super) fn tick(&self) {
        let ticking: Vec<_> = self.timers.borrow().iter().map(|it| it.plugin).collect();
        self.tick_all(&ticking);
    }

    /// An exchange begins: timers that have fallen due run before it.
    pub(super) fn begin(&self) {
        let now = Instant::now();
        self.held_until.set(now + HELD_MAX);
        self.delivered.set(0);
        if self.time == Time::Passes {
            self.tick_due(now);
        }
    }

    /// Waits for the next timer, if time passes and it falls due soon enough; whether one was run.
    pub(super) fn pass(&self) -> bool {
        if self.time == Time::Stands {
            return false;
        }
        let next = self.timers.borrow().iter().map(|it| it.due).min();
        let Some(due) = next.filter(|due| *due <= self.held_until.get()) else {
            return false;
        };
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        self.tick_due(Instant::now().max(due));
        true
    }

    fn tick_due(&self, now: Instant) {
        let mut due = Vec::new();
        for timer in self.timers.borrow_mut().iter_mut() {
            if timer.due <= now {
                timer.due = now + timer.period;
                due.push(timer.plugin);
            }
        }
        self.tick_all(&due);
    }

    fn tick_all(&self, plugins: &[PluginId]) {
        for id in plugins {
            if let Some(plugin) = self.plugin(*id) {
                plugin.on_tick();
            }
        }
    }

    /// Answers the callouts that can be; whether there was any.
    pub(super) fn deliver(&self) -> bool {
        if self.delivered.get() > CALLOUTS_MAX {
            return false;
        }
        let calls = self.answerable.take();
        self.delivered.set(self.delivered.get() + calls.len());
        for call in &calls {
            let Some(plugin) = self.plugin(call.plugin) else {
                continue;
            };
            if call.is_grpc {
                let mut answers = self.answers.borrow_mut();
                let answer = answers.take_grpc(&call.cluster, &call.path);
                drop(answers);
                for event in grpc_events(answer) {
                    plugin.on_grpc_event(call.id, event);
                }
            } else {
                let mut answers = self.answers.borrow_mut();
                let answer = answers.take_http(&call.cluster, &call.path);
                drop(answers);
                plugin.on_http_call_response(call.id, response(&answer));
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
            format!("{what} (answered as was said beforehand)")
        } else {
            format!("{what} (not made: nobody is called here)")
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

/// A call's whole answer, event by event.
fn grpc_events(answer: GrpcAnswer) -> Vec<GrpcEvent> {
    let mut head = FieldList::new();
    head.push(":status", "200");
    head.push("content-type", "application/grpc");
    let mut events = vec![GrpcEvent::InitialMetadata(head)];
    if answer.status == 0 {
        events.push(GrpcEvent::Message(answer.body));
    }
    let mut trailers = FieldList::new();
    trailers.push("grpc-status", answer.status.to_string());
    events.push(GrpcEvent::TrailingMetadata(trailers));
    events.push(GrpcEvent::Close(GrpcStatus {
        code: answer.status,
        message: answer.message.into(),
    }));
    events
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
        match &self.repeated {
            None => self.offline.random(out),
            Some(repeated) => repeated.borrow_mut().fill(out),
        }
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
        let mut timers = self.timers.borrow_mut();
        timers.retain(|timer| timer.plugin != plugin);
        if let Some(period) = period {
            timers.push(Timer {
                plugin,
                period,
                due: Instant::now() + period,
            });
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
        let answered = self.answers.borrow().has_http(&call.cluster);
        self.note_callout(plugin, what, answered);
        if answered {
            let path = call.headers.get(b":path").unwrap_or_default();
            let path = Bytes::copy_from_slice(path);
            self.answerable.borrow_mut().push(Call {
                plugin,
                id,
                cluster: call.cluster,
                path,
                is_grpc: false,
            });
        }
        Ok(())
    }

    fn start_grpc(
        &self,
        plugin: PluginId,
        id: CalloutId,
        call: GrpcCall,
    ) -> Result<(), CalloutError> {
        let what = format!("gRPC callout to cluster `{}`: {}", call.cluster, call.path);
        // A stream, which sends its messages later, is answered by nobody.
        let answered = call.message.is_some() && self.answers.borrow().has_grpc(&call.cluster);
        self.note_callout(plugin, what, answered);
        if answered {
            self.answerable.borrow_mut().push(Call {
                plugin,
                id,
                cluster: call.cluster,
                path: call.path.into(),
                is_grpc: true,
            });
        }
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
        answerable.retain(|call| (call.plugin, call.id) != (plugin, id));
    }

    fn cancel_calls(&self, plugin: PluginId) {
        let mut answerable = self.answerable.borrow_mut();
        answerable.retain(|call| call.plugin != plugin);
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
