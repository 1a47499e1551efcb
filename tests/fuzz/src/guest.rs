//! The guest: an interpreter of scripts, in WAT. And the scripts' form.

use std::fmt::Write as _;

use arbitrary::Arbitrary;

/// Callbacks, by the number that stands for each.
pub(crate) const CALLBACKS: [(&str, &str); 12] = [
    ("proxy_on_context_create", "2"),
    ("proxy_on_request_headers", "3i"),
    ("proxy_on_request_body", "3i"),
    ("proxy_on_request_trailers", "2i"),
    ("proxy_on_response_headers", "3i"),
    ("proxy_on_response_body", "3i"),
    ("proxy_on_response_trailers", "2i"),
    ("proxy_on_log", "1"),
    ("proxy_on_done", "1i"),
    ("proxy_on_delete", "1"),
    ("proxy_on_tick", "1"),
    ("proxy_on_http_call_response", "5"),
];

/// Hostcalls and their parameters: `i` has 32 bits, `l` 64.
const HOSTCALLS: [(&str, &str); 52] = [
    ("proxy_add_header_map_value", "iiiii"),
    ("proxy_replace_header_map_value", "iiiii"),
    ("proxy_remove_header_map_value", "iii"),
    ("proxy_get_header_map_value", "iiiii"),
    ("proxy_send_local_response", "iiiiiiii"),
    ("proxy_continue_stream", "i"),
    ("proxy_close_stream", "i"),
    ("proxy_http_call", "iiiiiiiiii"),
    ("proxy_get_buffer_bytes", "iiiii"),
    ("proxy_set_buffer_bytes", "iiiii"),
    ("proxy_get_buffer_status", "iii"),
    ("proxy_get_header_map_size", "ii"),
    ("proxy_get_header_map_pairs", "iii"),
    ("proxy_set_header_map_pairs", "iii"),
    ("proxy_get_property", "iiii"),
    ("proxy_set_property", "iiii"),
    ("proxy_log", "iii"),
    ("proxy_get_log_level", "i"),
    ("proxy_get_current_time_nanoseconds", "i"),
    ("proxy_set_tick_period_milliseconds", "i"),
    ("proxy_done", ""),
    ("proxy_set_effective_context", "i"),
    ("proxy_get_status", "iii"),
    ("proxy_call_foreign_function", "iiiiii"),
    ("proxy_grpc_call", "iiiiiiiiiiii"),
    ("proxy_grpc_stream", "iiiiiiiii"),
    ("proxy_grpc_send", "iiii"),
    ("proxy_grpc_cancel", "i"),
    ("proxy_grpc_close", "i"),
    ("proxy_set_shared_data", "iiiii"),
    ("proxy_get_shared_data", "iiiii"),
    ("proxy_register_shared_queue", "iii"),
    ("proxy_resolve_shared_queue", "iiiii"),
    ("proxy_enqueue_shared_queue", "iii"),
    ("proxy_dequeue_shared_queue", "iii"),
    ("proxy_define_metric", "iiii"),
    ("proxy_increment_metric", "il"),
    ("proxy_record_metric", "il"),
    ("proxy_get_metric", "ii"),
    ("pthread_equal", "ii"),
    ("wasi_snapshot_preview1.args_sizes_get", "ii"),
    ("wasi_snapshot_preview1.environ_get", "ii"),
    ("wasi_snapshot_preview1.clock_time_get", "ili"),
    ("wasi_snapshot_preview1.clock_res_get", "ii"),
    ("wasi_snapshot_preview1.random_get", "ii"),
    ("wasi_snapshot_preview1.poll_oneoff", "iiii"),
    ("wasi_snapshot_preview1.fd_write", "iiii"),
    ("wasi_snapshot_preview1.fd_read", "iiii"),
    ("wasi_snapshot_preview1.fd_seek", "ilii"),
    ("wasi_snapshot_preview1.fd_fdstat_get", "ii"),
    ("wasi_snapshot_preview1.path_open", "iiiiillii"),
    ("wasi_snapshot_preview1.sched_yield", ""),
];

/// Most parameters of a hostcall.
const PARAMETERS_MAX: usize = 12;

/// Bytes of one call in a script: its hostcall, its place in [`Call`]'s own numbering of what the model follows, two bytes of the model's,
/// and the arguments.
const RECORD_BYTES: usize = 4 + 4 * PARAMETERS_MAX;

/// Names that calls are made with, and whether each is one for an ordinary field.
pub(crate) const NAMES: [(&str, bool); 8] = [
    ("x-a", true),
    ("x-b", true),
    ("X-A", true),
    ("x bad", false),
    ("", false),
    (":path", true),
    ("host", true),
    (":made-up", false),
];

/// Values that calls are made with, and whether each may stand in any ordinary field.
pub(crate) const VALUES: [(&str, bool); 6] = [
    ("v", true),
    ("", true),
    ("/p?q", true),
    ("a\r\nx-b: 1", false),
    ("a\u{0}", false),
    ("h.example", true),
];

const NAMES_AT: usize = 1024;
const VALUES_AT: usize = 2048;
const SLOT_BYTES: usize = 32;

/// One hostcall of a script.
#[derive(Arbitrary, Clone, Debug)]
pub enum Call {
    /// Adds a field to the request's headers.
    Add(u8, u8),
    /// Replaces one there.
    Replace(u8, u8),
    /// Removes one.
    Remove(u8),
    /// Looks for one.
    Get(u8),
    /// Answers.
    Respond(u16),
    /// Lets a direction go on.
    Continue(u8),
    /// Ends the stream.
    Close(u8),
    /// Calls the one cluster there is.
    HttpCall,
    /// Any hostcall with any arguments.
    Raw(u8, [Argument; PARAMETERS_MAX]),
}

/// An argument of a raw call.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Argument {
    /// A name or a value that is there.
    Text(u8),
    /// A place that may be written to.
    Out(u8),
    Small(u8),
    Any(u32),
}

impl Argument {
    fn number(self) -> u32 {
        match self {
            Self::Text(slot) => (NAMES_AT + SLOT_BYTES * usize::from(slot % 64)) as u32,
            Self::Out(slot) => 512 + 4 * u32::from(slot % 64),
            Self::Small(number) => u32::from(number % 40),
            Self::Any(number) => number,
        }
    }
}

fn name(index: u8) -> [u32; 2] {
    let index = usize::from(index) % NAMES.len();
    [
        (NAMES_AT + SLOT_BYTES * index) as u32,
        NAMES[index].0.len() as u32,
    ]
}

fn value(index: u8) -> [u32; 2] {
    let index = usize::from(index) % VALUES.len();
    [
        (VALUES_AT + SLOT_BYTES * index) as u32,
        VALUES[index].0.len() as u32,
    ]
}

/// Every second number is a status that a final response may have; the others are anything.
fn answer_status(number: u16) -> u32 {
    if number.is_multiple_of(2) {
        u32::from(number)
    } else {
        200 + u32::from(number / 2 % 400)
    }
}

impl Call {
    /// The hostcall's place in the table, and the arguments.
    fn encoded(&self) -> (u8, Vec<u32>) {
        match self {
            Self::Add(n, v) => (0, [&[0][..], &name(*n), &value(*v)].concat()),
            Self::Replace(n, v) => (1, [&[0][..], &name(*n), &value(*v)].concat()),
            Self::Remove(n) => (2, [&[0][..], &name(*n)].concat()),
            Self::Get(n) => (3, [&[0][..], &name(*n), &[512, 516]].concat()),
            Self::Respond(status) => (
                4,
                vec![
                    answer_status(*status),
                    0,
                    0,
                    VALUES_AT as u32,
                    1,
                    0,
                    0,
                    u32::MAX,
                ],
            ),
            Self::Continue(direction) => (5, vec![u32::from(direction % 2)]),
            Self::Close(direction) => (6, vec![u32::from(direction % 2)]),
            Self::HttpCall => (
                7,
                vec![
                    800,
                    1,
                    808,
                    callout_headers().len() as u32,
                    0,
                    0,
                    0,
                    0,
                    1000,
                    512,
                ],
            ),
            Self::Raw(hostcall, arguments) => (
                hostcall % HOSTCALLS.len() as u8,
                arguments.iter().map(|argument| argument.number()).collect(),
            ),
        }
    }
}

/// The bytes of a script: what its callback answers, then its calls.
pub(crate) fn script<'a>(action: u8, calls: impl Iterator<Item = &'a Call>) -> Vec<u8> {
    let mut bytes = vec![action % 5];
    for (index, call) in calls.take(24).enumerate() {
        let (hostcall, arguments) = call.encoded();
        let mut record = vec![hostcall, index as u8, 0, 0];
        for argument in &arguments {
            record.extend(argument.to_le_bytes());
        }
        record.resize(RECORD_BYTES, 0);
        bytes.extend(record);
    }
    bytes
}

/// Pairs of a callout's headers: `:method`, `:path` and `:authority`.
fn callout_headers() -> Vec<u8> {
    let pairs = [(":method", "GET"), (":path", "/"), (":authority", "h")];
    let mut bytes = (pairs.len() as u32).to_le_bytes().to_vec();
    for (name, value) in pairs {
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend((value.len() as u32).to_le_bytes());
    }
    for (name, value) in pairs {
        bytes.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    bytes
}

fn data(at: usize, bytes: &[u8]) -> String {
    let escaped: String = bytes.iter().map(|byte| format!("\\{byte:02x}")).collect();
    format!("(data (i32.const {at}) \"{escaped}\")\n")
}

/// The whole guest.
pub(crate) fn wat() -> String {
    let mut out = String::from("(module\n");
    for (hostcall, types) in HOSTCALLS {
        let (module, name) = hostcall.rsplit_once('.').unwrap_or(("env", hostcall));
        let types: String = types
            .chars()
            .map(|letter| if letter == 'l' { "i64 " } else { "i32 " })
            .collect();
        let _ = writeln!(
            out,
            "(import \"{module}\" \"{name}\" (func ${name} (param {types}) (result i32)))"
        );
    }
    out += r#"(memory (export "memory") 2)
    (global $heap (mut i32) (i32.const 16384))
    (func (export "proxy_abi_version_0_2_1"))
    (func (export "proxy_on_memory_allocate") (param i32) (result i32)
        (global.get $heap)
        (global.set $heap (i32.add (global.get $heap) (local.get 0))))
    (data (i32.const 100) "script") (data (i32.const 108) "status") (data (i32.const 800) "c")
    "#;
    let headers = callout_headers();
    out += &data(808, &headers);
    for (index, (name, _)) in NAMES.iter().enumerate() {
        out += &data(NAMES_AT + SLOT_BYTES * index, name.as_bytes());
    }
    for (index, (value, _)) in VALUES.iter().enumerate() {
        out += &data(VALUES_AT + SLOT_BYTES * index, value.as_bytes());
    }
    out += r#"(func $run (param $which i32) (result i32)
        (local $at i32) (local $end i32) (local $action i32) (local $op i32) (local $status i32)
        (global.set $heap (i32.const 16384))
        (i32.store8 (i32.const 16) (local.get $which))
        (i32.store (i32.const 20) (i32.const 0)) (i32.store (i32.const 24) (i32.const 0))
        (drop (call $proxy_call_foreign_function (i32.const 100) (i32.const 6) (i32.const 16) (i32.const 1) (i32.const 20) (i32.const 24)))
        (local.set $at (i32.load (i32.const 20)))
        (local.set $end (i32.add (local.get $at) (i32.load (i32.const 24))))
        (if (i32.ge_u (local.get $at) (local.get $end)) (then (return (i32.const 0))))
        (local.set $action (i32.load8_u (local.get $at)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (block $out (loop $next
            (br_if $out (i32.ge_u (local.get $at) (local.get $end)))
            (local.set $op (i32.load8_u (local.get $at)))
    "#;
    for (index, (hostcall, types)) in HOSTCALLS.iter().enumerate() {
        let name = hostcall.rsplit('.').next().unwrap_or_default();
        let arguments: String = types
            .chars()
            .enumerate()
            .map(|(argument, letter)| {
                let load = format!("(i32.load offset={} (local.get $at))", 4 + 4 * argument);
                if letter == 'l' {
                    format!("(i64.extend_i32_s {load})")
                } else {
                    load
                }
            })
            .collect();
        let _ = writeln!(
            out,
            "(if (i32.eq (local.get $op) (i32.const {index})) (then (local.set $status (call ${name} {arguments}))))"
        );
    }
    let _ = write!(
        out,
        r#"
            (i32.store8 (i32.const 32) (local.get $which))
            (i32.store8 (i32.const 33) (i32.load8_u offset=1 (local.get $at)))
            (i32.store8 (i32.const 34) (local.get $status))
            (drop (call $proxy_call_foreign_function (i32.const 108) (i32.const 6) (i32.const 32) (i32.const 3) (i32.const 40) (i32.const 44)))
            (local.set $at (i32.add (local.get $at) (i32.const {RECORD_BYTES})))
            (br $next)))
        (local.get $action))
    "#
    );
    for (index, (name, shape)) in CALLBACKS.iter().enumerate() {
        let (params, result) = shape.split_at(1);
        let params = "i32 ".repeat(params.parse().unwrap_or(0));
        // What ends an exchange ends it at once, whatever it answers.
        let (result, body) = match result {
            "i" => ("(result i32)", format!("(call $run (i32.const {index}))")),
            _ => ("", format!("(drop (call $run (i32.const {index})))")),
        };
        let _ = writeln!(
            out,
            "(func (export \"{name}\") (param {params}) {result} {body})"
        );
    }
    out + ")"
}
