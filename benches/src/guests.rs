//! Guests written by hand: one that traps when it is told to, and those that make one hostcall again and again.

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

/// A call: what it is, the import with its signature, and the arguments. Text stands in the guest's memory at 1024, 1088 and 1152
/// (see [`Call::guest`]); answers go to 0 and 4.
pub struct Call {
    /// What it is.
    pub name: &'static str,
    import: &'static str,
    parameters: usize,
    texts: [&'static str; 3],
    arguments: &'static str,
}

/// The hostcalls that are measured one by one.
pub const CALLS: &[Call] = &[
    Call {
        name: "clock",
        import: "proxy_get_current_time_nanoseconds",
        parameters: 1,
        texts: ["", "", ""],
        arguments: "(i32.const 8)",
    },
    Call {
        name: "read a header",
        import: "proxy_get_header_map_value",
        parameters: 5,
        texts: ["user-agent", "", ""],
        arguments: "(i32.const 0) (i32.const 1024) (i32.const 10) (i32.const 0) (i32.const 4)",
    },
    Call {
        name: "look for a header that is not there",
        import: "proxy_get_header_map_value",
        parameters: 5,
        texts: ["x-missing", "", ""],
        arguments: "(i32.const 0) (i32.const 1024) (i32.const 9) (i32.const 0) (i32.const 4)",
    },
    Call {
        name: "read all headers",
        import: "proxy_get_header_map_pairs",
        parameters: 3,
        texts: ["", "", ""],
        arguments: "(i32.const 0) (i32.const 0) (i32.const 4)",
    },
    Call {
        name: "replace a header",
        import: "proxy_replace_header_map_value",
        parameters: 5,
        texts: ["x-user", "alice", ""],
        arguments: "(i32.const 0) (i32.const 1024) (i32.const 6) (i32.const 1088) (i32.const 5)",
    },
    Call {
        name: "property connection.tls_version",
        import: "proxy_get_property",
        parameters: 4,
        texts: ["connection\\00tls_version", "", ""],
        arguments: "(i32.const 1024) (i32.const 22) (i32.const 0) (i32.const 4)",
    },
    Call {
        name: "property request.path",
        import: "proxy_get_property",
        parameters: 4,
        texts: ["request\\00path", "", ""],
        arguments: "(i32.const 1024) (i32.const 12) (i32.const 0) (i32.const 4)",
    },
    Call {
        name: "property source.address",
        import: "proxy_get_property",
        parameters: 4,
        texts: ["source\\00address", "", ""],
        arguments: "(i32.const 1024) (i32.const 14) (i32.const 0) (i32.const 4)",
    },
    Call {
        name: "property of a header, request.headers.user-agent",
        import: "proxy_get_property",
        parameters: 4,
        texts: ["request\\00headers\\00user-agent", "", ""],
        arguments: "(i32.const 1024) (i32.const 26) (i32.const 0) (i32.const 4)",
    },
    Call {
        name: "look for a property that is not there",
        import: "proxy_get_property",
        parameters: 4,
        texts: ["no\\00such", "", ""],
        arguments: "(i32.const 1024) (i32.const 7) (i32.const 0) (i32.const 4)",
    },
    Call {
        name: "set a property",
        import: "proxy_set_property",
        parameters: 4,
        texts: ["jwt.sub", "alice", ""],
        arguments: "(i32.const 1024) (i32.const 7) (i32.const 1088) (i32.const 5)",
    },
    Call {
        name: "set shared data",
        import: "proxy_set_shared_data",
        parameters: 5,
        texts: ["shard-7", "0123456789abcdef", ""],
        arguments: "(i32.const 1024) (i32.const 7) (i32.const 1088) (i32.const 16) (i32.const 0)",
    },
    Call {
        name: "read the plugin's configuration",
        import: "proxy_get_buffer_bytes",
        parameters: 5,
        texts: ["", "", ""],
        arguments: "(i32.const 7) (i32.const 0) (i32.const 100) (i32.const 0) (i32.const 4)",
    },
    Call {
        name: "log below the level",
        import: "proxy_log",
        parameters: 3,
        texts: ["a line that nobody reads", "", ""],
        arguments: "(i32.const 0) (i32.const 1024) (i32.const 24)",
    },
];

impl Call {
    /// A guest that makes the call in a loop; its allocator gives the same block each time, as the ABI allows.
    pub fn guest(&self) -> String {
        let parameters = "i32 ".repeat(self.parameters);
        let [first, second, third] = self.texts;
        format!(
            r#"(module
      (import "env" "{}" (func $call (param {parameters}) (result i32)))
      (memory (export "memory") 2)
      (data (i32.const 1024) "{first}") (data (i32.const 1088) "{second}") (data (i32.const 1152) "{third}")
      (func (export "proxy_abi_version_0_2_1"))
      (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 65536))
      (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
      (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
      (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (local $left i32) (local.set $left (i32.const {CALLS_A_REQUEST}))
        (loop $again
          (drop (call $call {}))
          (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
        (i32.const 0)))"#,
            self.import, self.arguments
        )
    }
}
