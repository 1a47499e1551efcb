//! Hostcalls one by one: a guest makes the same call a thousand times in one request; what is shown is one call, answer and
//! all that it writes into the guest included.

use anyhow::{Context, Result};
use criterion::Criterion;
use portcullis_benches::bed::{Bed, Traffic, pass};
use portcullis_runtime::{Chain, NoCache};
use std::time::Instant;

/// Calls a request.
const CALLS: u32 = 1000;

/// A call: what it is, the import with its signature, and the arguments. Text stands in the guest's memory at 1024, 1088 and 1152
/// (see `guest`); answers go to 0 and 4.
struct Row {
    name: &'static str,
    import: &'static str,
    parameters: usize,
    texts: [&'static str; 3],
    arguments: &'static str,
}

const ROWS: &[Row] = &[
    Row {
        name: "clock",
        import: "proxy_get_current_time_nanoseconds",
        parameters: 1,
        texts: ["", "", ""],
        arguments: "(i32.const 8)",
    },
    Row {
        name: "read a header",
        import: "proxy_get_header_map_value",
        parameters: 5,
        texts: ["user-agent", "", ""],
        arguments: "(i32.const 0) (i32.const 1024) (i32.const 10) (i32.const 0) (i32.const 4)",
    },
    Row {
        name: "look for a header that is not there",
        import: "proxy_get_header_map_value",
        parameters: 5,
        texts: ["x-missing", "", ""],
        arguments: "(i32.const 0) (i32.const 1024) (i32.const 9) (i32.const 0) (i32.const 4)",
    },
    Row {
        name: "read all headers",
        import: "proxy_get_header_map_pairs",
        parameters: 3,
        texts: ["", "", ""],
        arguments: "(i32.const 0) (i32.const 0) (i32.const 4)",
    },
    Row {
        name: "replace a header",
        import: "proxy_replace_header_map_value",
        parameters: 5,
        texts: ["x-user", "alice", ""],
        arguments: "(i32.const 0) (i32.const 1024) (i32.const 6) (i32.const 1088) (i32.const 5)",
    },
    Row {
        name: "property connection.tls_version",
        import: "proxy_get_property",
        parameters: 4,
        texts: ["connection\\00tls_version", "", ""],
        arguments: "(i32.const 1024) (i32.const 22) (i32.const 0) (i32.const 4)",
    },
    Row {
        name: "property request.path",
        import: "proxy_get_property",
        parameters: 4,
        texts: ["request\\00path", "", ""],
        arguments: "(i32.const 1024) (i32.const 12) (i32.const 0) (i32.const 4)",
    },
    Row {
        name: "property source.address",
        import: "proxy_get_property",
        parameters: 4,
        texts: ["source\\00address", "", ""],
        arguments: "(i32.const 1024) (i32.const 14) (i32.const 0) (i32.const 4)",
    },
    Row {
        name: "property of a header, request.headers.user-agent",
        import: "proxy_get_property",
        parameters: 4,
        texts: ["request\\00headers\\00user-agent", "", ""],
        arguments: "(i32.const 1024) (i32.const 26) (i32.const 0) (i32.const 4)",
    },
    Row {
        name: "look for a property that is not there",
        import: "proxy_get_property",
        parameters: 4,
        texts: ["no\\00such", "", ""],
        arguments: "(i32.const 1024) (i32.const 7) (i32.const 0) (i32.const 4)",
    },
    Row {
        name: "set a property",
        import: "proxy_set_property",
        parameters: 4,
        texts: ["jwt.sub", "alice", ""],
        arguments: "(i32.const 1024) (i32.const 7) (i32.const 1088) (i32.const 5)",
    },
    Row {
        name: "set shared data",
        import: "proxy_set_shared_data",
        parameters: 5,
        texts: ["shard-7", "0123456789abcdef", ""],
        arguments: "(i32.const 1024) (i32.const 7) (i32.const 1088) (i32.const 16) (i32.const 0)",
    },
    Row {
        name: "read the plugin's configuration",
        import: "proxy_get_buffer_bytes",
        parameters: 5,
        texts: ["", "", ""],
        arguments: "(i32.const 7) (i32.const 0) (i32.const 100) (i32.const 0) (i32.const 4)",
    },
    Row {
        name: "log below the level",
        import: "proxy_log",
        parameters: 3,
        texts: ["a line that nobody reads", "", ""],
        arguments: "(i32.const 0) (i32.const 1024) (i32.const 24)",
    },
];

/// A guest that makes the row's call in a loop; its allocator gives the same block each time, as the ABI allows.
fn guest(row: &Row) -> String {
    let parameters = "i32 ".repeat(row.parameters);
    let [first, second, third] = row.texts;
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
    (local $left i32) (local.set $left (i32.const {CALLS}))
    (loop $again
      (drop (call $call {}))
      (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
    (i32.const 0)))"#,
        row.import, row.arguments
    )
}

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let bed = Bed::new()?;
    let traffic = Traffic::new(&[]);
    let mut group = criterion.benchmark_group("hostcall");
    for row in ROWS {
        let wasm = wat::parse_str(guest(row)).with_context(|| row.name)?;
        let plugin = bed.start(
            row.name,
            &bed.load(&wasm, &NoCache)?,
            "{\"some\": \"configuration\"}",
        )?;
        let chain = Chain::new(vec![plugin]);
        assert_eq!(
            pass(&chain, traffic.exchange()),
            200,
            "{} breaks its VM",
            row.name
        );
        group.bench_function(row.name, |bencher| {
            bencher.iter_custom(|calls| {
                let requests = calls.div_ceil(u64::from(CALLS));
                let exchanges: Vec<_> = (0..requests).map(|_| traffic.exchange()).collect();
                let start = Instant::now();
                for exchange in exchanges {
                    pass(&chain, exchange);
                }
                start
                    .elapsed()
                    .mul_f64(calls as f64 / (requests * u64::from(CALLS)) as f64)
            });
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
