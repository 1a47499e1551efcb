//! A guest that does what a request tells it to, and keeps a report of what the host answered.
//!
//! The header `x-<plugin name>` holds a script ([`script`]), `x-row` the name of the report; a request with `x-fetch-<plugin name>`
//! gets the report of that name. The plugin's configuration is a script, too, for `vm_start`, `configure` and `tick`; its report is
//! called `start`. It uses the ABI bare, without an SDK.

mod hostcalls;
mod run;
mod script;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use script::Script;

#[derive(Default)]
struct State {
    name: String,
    streams: HashMap<u32, Stream>,
    reports: HashMap<String, Report>,
    /// By callout, the stream that made it.
    calls: HashMap<u32, u32>,
    /// The stream whose script the plugin's own callbacks run, and how often a tick may yet.
    root: Option<(Stream, u32)>,
}

#[derive(Clone, Default)]
struct Stream {
    id: u32,
    report: String,
    script: Rc<Script>,
    variables: HashMap<String, i64>,
}

#[derive(Default)]
struct Report {
    text: String,
    is_over: bool,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

fn with<R>(act: impl FnOnce(&mut State) -> R) -> R {
    STATE.with_borrow_mut(act)
}

/// Runs a phase of a stream's script. No borrow is held meanwhile: a hostcall might call back.
fn phase(stream: &mut Stream, phase: &str, arguments: &[u32], default: u32) -> u32 {
    let script = Rc::clone(&stream.script);
    let Some(outcome) = run::run(&script, phase, arguments, &mut stream.variables, default) else { return default };
    with(|state| {
        for call in outcome.calls {
            state.calls.insert(call, stream.id);
        }
        // How a body is cut into calls is the network's affair.
        if outcome.lines.is_empty() && phase.contains("_body") {
            return;
        }
        let text = &mut state.reports.entry(stream.report.clone()).or_default().text;
        text.push_str(phase);
        text.push(':');
        for line in outcome.lines {
            text.push(' ');
            text.push_str(&line);
            text.push(';');
        }
        text.push('\n');
    });
    outcome.action
}

fn on_stream(id: u32, name: &str, arguments: &[u32], default: u32) -> u32 {
    let Some(mut stream) = with(|state| state.streams.get(&id).cloned()) else { return default };
    let action = phase(&mut stream, name, arguments, default);
    with(|state| {
        if let Some(kept) = state.streams.get_mut(&id) {
            kept.variables = stream.variables;
        }
    });
    action
}

/// At a body's end, `<name>_end` where the script has it.
fn on_body(id: u32, name: &str, size: u32, end: u32) -> u32 {
    let ending = format!("{name}_end");
    let has_ending = with(|state| state.streams.get(&id).is_some_and(|stream| stream.script.contains_key(&ending)));
    let name = if end != 0 && has_ending { &ending } else { name };
    on_stream(id, name, &[size, end], 0)
}

fn bytes_of(name: &str, arguments: &[i64]) -> Option<Vec<u8>> {
    let mut places = [0u32; 2];
    let mut all = arguments.to_vec();
    all.extend([&raw mut places[0] as i64, &raw mut places[1] as i64]);
    let status = hostcalls::call(name, &all)?;
    let [pointer, len] = std::hint::black_box(places);
    if status != 0 || pointer == 0 {
        return None;
    }
    Some(unsafe { Vec::from_raw_parts(pointer as *mut u8, len as usize, (len as usize).max(1)) })
}

fn header(name: &str) -> Option<Vec<u8>> {
    bytes_of("get_header_map_value", &[0, name.as_ptr() as i64, name.len() as i64])
}

#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_memory_allocate(len: usize) -> *mut u8 {
    let mut bytes = Vec::with_capacity(len.max(1));
    let pointer = bytes.as_mut_ptr();
    std::mem::forget(bytes);
    pointer
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_context_create(id: u32, parent: u32) {
    if parent == 0 {
        with(|state| state.reports.entry("start".into()).or_default().text = format!("context_create: args=[{id}, {parent}];\n"));
    }
}

/// The plugin's configuration: `{"script": "…"}`.
fn configured() -> Stream {
    let text = bytes_of("get_buffer_bytes", &[7, 0, 1 << 20]).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let text = text.split_once(':').map_or("", |(_, text)| text).trim_matches(['"', '}', ' ', '\n']);
    let text = text.replace("\\\\", "\\").replace("\\\"", "\"");
    let script = script::parse(text.as_bytes()).unwrap_or_default();
    Stream { id: 1, report: "start".into(), script: Rc::new(script), ..Stream::default() }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_vm_start(root: u32, size: u32) -> u32 {
    with(|state| {
        let text = &mut state.reports.entry("start".into()).or_default().text;
        text.push_str(&format!("vm_start: args=[{root}, {size}];\n"));
    });
    1
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_configure(root: u32, size: u32) -> u32 {
    let path = "plugin_name";
    let name = bytes_of("get_property", &[path.as_ptr() as i64, path.len() as i64]).unwrap_or_default();
    with(|state| state.name = String::from_utf8_lossy(&name).into_owned());
    let mut stream = configured();
    let action = phase(&mut stream, "configure", &[root, size], 1);
    let ticks = 1;
    with(|state| state.root = Some((stream, ticks)));
    action
}

fn on_root(name: &str, arguments: &[u32]) {
    let stream = with(|state| {
        let (stream, ticks) = state.root.as_mut()?;
        if name == "tick" {
            *ticks = ticks.checked_sub(1)?;
        }
        Some(stream.clone())
    });
    if let Some(mut stream) = stream {
        phase(&mut stream, name, arguments, 0);
        with(|state| {
            if let Some((kept, _)) = state.root.as_mut() {
                kept.variables = stream.variables;
            }
        });
    }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_tick(root: u32) {
    on_root("tick", &[root]);
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_queue_ready(root: u32, queue: u32) {
    on_root("queue_ready", &[root, queue]);
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_headers(id: u32, count: u32, end: u32) -> u32 {
    let name = with(|state| state.name.clone());
    if let Some(key) = header(&format!("x-fetch-{name}")) {
        let key = String::from_utf8_lossy(&key).into_owned();
        let (text, is_over) = with(|state| {
            let report = state.reports.get(&key);
            report.map_or_else(Default::default, |report| (report.text.clone(), report.is_over))
        });
        let over = script::encode(&[("x-over".into(), if is_over { "1" } else { "0" }.into())]);
        let parts = [&[][..], text.as_bytes(), &over];
        let mut arguments = vec![200];
        arguments.extend(parts.iter().flat_map(|part| [part.as_ptr() as i64, part.len() as i64]));
        arguments.push(-1);
        hostcalls::call("send_local_response", &arguments);
        return 1;
    }
    let Some(text) = header(&format!("x-{name}")) else { return 0 };
    let report = header("x-row").unwrap_or_default();
    let report = String::from_utf8_lossy(&report).into_owned();
    let script = match script::parse(&text) {
        Ok(script) => Rc::new(script),
        Err(reason) => {
            with(|state| state.reports.insert(report, Report { text: format!("bad script: {reason}\n"), is_over: true }));
            return 0;
        }
    };
    let variables = HashMap::from([("self".to_owned(), i64::from(id)), ("root".to_owned(), 1)]);
    let stream = Stream { id, report: report.clone(), script, variables };
    with(|state| {
        if ["tick", "queue_ready"].iter().any(|phase| stream.script.contains_key(*phase)) {
            state.root = Some((stream.clone(), 1));
        }
        state.reports.insert(report, Report::default());
        state.streams.insert(id, stream);
    });
    on_stream(id, "request_headers", &[count, end], 0)
}

macro_rules! callbacks {
    ($($name:ident $phase:literal $run:ident ($($argument:ident),*);)+) => {
        $(#[unsafe(no_mangle)]
        extern "C" fn $name(id: u32, $($argument: u32),*) -> u32 {
            $run(id, $phase, $($argument),*)
        })+
    };
}

fn on_trailers(id: u32, name: &str, count: u32) -> u32 {
    on_stream(id, name, &[count], 0)
}

fn on_headers(id: u32, name: &str, count: u32, end: u32) -> u32 {
    on_stream(id, name, &[count, end], 0)
}

fn on_done(id: u32, name: &str) -> u32 {
    on_stream(id, name, &[], 1)
}

callbacks! {
    proxy_on_request_body "request_body" on_body (size, end);
    proxy_on_request_trailers "request_trailers" on_trailers (count);
    proxy_on_response_headers "response_headers" on_headers (count, end);
    proxy_on_response_body "response_body" on_body (size, end);
    proxy_on_response_trailers "response_trailers" on_trailers (count);
    proxy_on_done "done" on_done ();
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_log(id: u32) {
    on_stream(id, "log", &[], 0);
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_delete(id: u32) {
    on_stream(id, "delete", &[], 0);
    with(|state| {
        if let Some(stream) = state.streams.get(&id)
            && let Some(report) = state.reports.get_mut(&stream.report)
        {
            report.is_over = true;
        }
        // Kept while a callout's answer may come; the probes are few.
    });
}

/// The stream that made a callout runs its phase, in the plugin's context.
fn on_callout(name: &str, call: u32, arguments: &[u32]) {
    if let Some(id) = with(|state| state.calls.get(&call).copied()) {
        if id == 1 {
            on_root(name, arguments);
        } else {
            on_stream(id, name, arguments, 0);
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_http_call_response(_: u32, call: u32, headers: u32, body: u32, trailers: u32) {
    on_callout("http_call_response", call, &[u32::from(headers > 0), body, trailers]);
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_grpc_receive_initial_metadata(_: u32, call: u32, _: u32) {
    on_callout("grpc_receive_initial_metadata", call, &[]);
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_grpc_receive(_: u32, call: u32, size: u32) {
    on_callout("grpc_receive", call, &[size]);
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_grpc_receive_trailing_metadata(_: u32, call: u32, _: u32) {
    on_callout("grpc_receive_trailing_metadata", call, &[]);
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_grpc_close(_: u32, call: u32, status: u32) {
    on_callout("grpc_close", call, &[status]);
}
