//! Guests written by hand: one that traps when it is told to, and those that make one hostcall again and again.

use std::collections::BTreeSet;

/// Traps where a request has `x-crime`.
pub const TRAPPING: &str = r#"(module
  (import "env" "proxy_get_header_map_value" (func $header (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 1024) "x-crime")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 65536))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (if (i32.eqz (call $header (i32.const 0) (i32.const 1024) (i32.const 7) (i32.const 0) (i32.const 4))) (then unreachable))
    (i32.const 0)))"#;

/// Calls a request.
pub const CALLS_A_REQUEST: u32 = 1000;

/// What is measured as one call: a hostcall, or several that undo each other. Text stands in the guest's memory at 1024 and 1088 (see
/// [`Call::guest`]); answers go to 0, 4 and 8.
pub struct Call {
    /// What it is.
    pub name: &'static str,
    texts: [&'static str; 2],
    /// What each request does once before.
    before: &'static [Step],
    steps: &'static [Step],
}

/// A hostcall with its arguments.
struct Step {
    module: &'static str,
    name: &'static str,
    /// Each `7`, the number; `7L`, the number with 64 bits; or `[7]`, what stands in the memory at 7.
    arguments: &'static str,
    /// What it must answer, lest the cost of an error be taken for that of the call.
    status: u32,
}

const fn step(name: &'static str, arguments: &'static str) -> Step {
    Step {
        module: "env",
        name,
        arguments,
        status: 0,
    }
}

const fn wasi(name: &'static str, arguments: &'static str) -> Step {
    Step {
        module: "wasi_snapshot_preview1",
        ..step(name, arguments)
    }
}

/// `NOT_FOUND` of the ABI.
const fn not_found(mut step: Step) -> Step {
    step.status = 1;
    step
}

const fn call(name: &'static str, texts: [&'static str; 2], steps: &'static [Step]) -> Call {
    Call {
        name,
        texts,
        before: &[],
        steps,
    }
}

impl Call {
    const fn after(mut self, before: &'static [Step]) -> Self {
        self.before = before;
        self
    }
}

/// The hostcalls that are measured one by one: most of those that a plugin may make while it decides on a request, and that need no network.
pub const CALLS: &[Call] = &[
    call(
        "clock",
        ["", ""],
        &[step("proxy_get_current_time_nanoseconds", "8")],
    ),
    call(
        "clock, by WASI",
        ["", ""],
        &[wasi("clock_time_get", "0 1L 8")],
    ),
    call("16 random bytes", ["", ""], &[wasi("random_get", "8 16")]),
    call(
        "read a header",
        ["user-agent", ""],
        &[step("proxy_get_header_map_value", "0 1024 10 0 4")],
    ),
    call(
        "look for a header that is not there",
        ["x-missing", ""],
        &[not_found(step(
            "proxy_get_header_map_value",
            "0 1024 9 0 4",
        ))],
    ),
    call(
        "read all headers",
        ["", ""],
        &[step("proxy_get_header_map_pairs", "0 0 4")],
    ),
    call(
        "ask for the size of all headers",
        ["", ""],
        &[step("proxy_get_header_map_size", "0 0")],
    ),
    call(
        "replace a header",
        ["x-user", "alice"],
        &[step("proxy_replace_header_map_value", "0 1024 6 1088 5")],
    ),
    call(
        "add a header, and remove it",
        ["x-user", "alice"],
        &[
            step("proxy_add_header_map_value", "0 1024 6 1088 5"),
            step("proxy_remove_header_map_value", "0 1024 6"),
        ],
    ),
    call(
        "read all headers, and write them",
        ["", ""],
        &[
            step("proxy_get_header_map_pairs", "0 0 4"),
            step("proxy_set_header_map_pairs", "0 [0] [4]"),
        ],
    ),
    call(
        "property connection.tls_version",
        ["connection\\00tls_version", ""],
        &[step("proxy_get_property", "1024 22 0 4")],
    ),
    call(
        "property request.path",
        ["request\\00path", ""],
        &[step("proxy_get_property", "1024 12 0 4")],
    ),
    call(
        "property source.address",
        ["source\\00address", ""],
        &[step("proxy_get_property", "1024 14 0 4")],
    ),
    call(
        "property of a header, request.headers.user-agent",
        ["request\\00headers\\00user-agent", ""],
        &[step("proxy_get_property", "1024 26 0 4")],
    ),
    call(
        "look for a property that is not there",
        ["no\\00such", ""],
        &[not_found(step("proxy_get_property", "1024 7 0 4"))],
    ),
    call(
        "set a property",
        ["jwt.sub", "alice"],
        &[step("proxy_set_property", "1024 7 1088 5")],
    ),
    call(
        "read shared data",
        ["shard-7", "0123456789abcdef"],
        &[step("proxy_get_shared_data", "1024 7 0 4 8")],
    )
    .after(&[step("proxy_set_shared_data", "1024 7 1088 16 0")]),
    call(
        "set shared data",
        ["shard-7", "0123456789abcdef"],
        &[step("proxy_set_shared_data", "1024 7 1088 16 0")],
    ),
    call(
        "read shared data, and set it if nobody did meanwhile",
        ["shard-7", "0123456789abcdef"],
        &[
            step("proxy_get_shared_data", "1024 7 0 4 8"),
            step("proxy_set_shared_data", "1024 7 1088 16 [8]"),
        ],
    )
    .after(&[step("proxy_set_shared_data", "1024 7 1088 16 0")]),
    call(
        "put into a shared queue, and take out of it",
        ["work", "0123456789abcdef"],
        &[
            step("proxy_enqueue_shared_queue", "[8] 1088 16"),
            step("proxy_dequeue_shared_queue", "[8] 0 4"),
        ],
    )
    .after(&[step("proxy_register_shared_queue", "1024 4 8")]),
    call(
        "increment a counter",
        ["requests_total", ""],
        &[step("proxy_increment_metric", "[8] 1L")],
    )
    .after(&[step("proxy_define_metric", "0 1024 14 8")]),
    call(
        "record into a histogram",
        ["request_bytes", ""],
        &[step("proxy_record_metric", "[8] 77L")],
    )
    .after(&[step("proxy_define_metric", "2 1024 13 8")]),
    call(
        "read a counter",
        ["requests_total", ""],
        &[step("proxy_get_metric", "[8] 16")],
    )
    .after(&[step("proxy_define_metric", "0 1024 14 8")]),
    call(
        "log below the level",
        ["a line that nobody reads", ""],
        &[step("proxy_log", "0 1024 24")],
    ),
    call(
        "ask for the log level",
        ["", ""],
        &[step("proxy_get_log_level", "8")],
    ),
];

impl Step {
    fn import(&self) -> String {
        let parameters: Vec<_> = self
            .arguments
            .split(' ')
            .map(|it| if it.ends_with('L') { "i64" } else { "i32" })
            .collect();
        let Self { module, name, .. } = self;
        format!(
            r#"(import "{module}" "{name}" (func ${name} (param {}) (result i32)))"#,
            parameters.join(" ")
        )
    }

    fn code(&self) -> String {
        let arguments: String = self
            .arguments
            .split(' ')
            .map(|it| match (it.strip_suffix('L'), it.strip_prefix('[')) {
                (Some(long), _) => format!("(i64.const {long})"),
                (_, Some(place)) => {
                    format!("(i32.load (i32.const {}))", place.trim_end_matches(']'))
                }
                (None, None) => format!("(i32.const {it})"),
            })
            .collect();
        let Self { name, status, .. } = self;
        format!("(if (i32.ne (call ${name} {arguments}) (i32.const {status})) (then unreachable))")
    }
}

impl Call {
    /// A guest that makes the call in a loop; its allocator gives the same block each time, as the ABI allows. Another status than is due is a trap.
    pub fn guest(&self) -> String {
        let imports = self.before.iter().chain(self.steps).map(Step::import);
        let imports: BTreeSet<String> = imports.collect();
        let imports: String = imports.into_iter().collect();
        let code = |steps: &[Step]| steps.iter().map(Step::code).collect::<String>();
        let [first, second] = self.texts;
        format!(
            r#"(module
      {imports}
      (memory (export "memory") 2)
      (data (i32.const 1024) "{first}") (data (i32.const 1088) "{second}")
      (func (export "proxy_abi_version_0_2_1"))
      (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 65536))
      (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
      (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
      (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (local $left i32) (local.set $left (i32.const {CALLS_A_REQUEST}))
        {}
        (loop $again
          {}
          (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
        (i32.const 0)))"#,
            code(self.before),
            code(self.steps)
        )
    }
}
