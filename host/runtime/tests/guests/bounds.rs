//! What an operator may take away from a plugin: allow-lists, callouts in flight, log lines.

use std::{collections::BTreeSet, rc::Rc, sync::Arc};

use portcullis_runtime::{
    Allow, DenialKind, Embedder, HttpCallResponse, Limits, Plugin, PluginId, PluginSpec, Progress,
    PropertyPaths, StartFailure, TrapKind,
};

use crate::bed::{
    LIFECYCLE, Memory, answer, guest, import, load, runtime, spec, start, start_with, stream,
};

/// Calls `call` in a request's headers, with a name at 100 of that many bytes, and logs the status in two digits.
fn asks(imports: &str, name: &str, call: &str) -> String {
    let escaped: String = name.bytes().map(|byte| format!("\\{byte:02x}")).collect();
    guest(
        imports,
        &format!(
            r#"(data (i32.const 100) "{escaped}")
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $status i32)
                (local.set $status (call {call}))
                (i32.store8 (i32.const 0) (i32.add (i32.const 48) (i32.div_u (local.get $status) (i32.const 10))))
                (i32.store8 (i32.const 1) (i32.add (i32.const 48) (i32.rem_u (local.get $status) (i32.const 10))))
                (call $say (i32.const 0) (i32.const 2))
                (i32.const 0))
            (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
                (call $say (i32.const 100) (i32.const {len})) (i32.const 0))"#,
            len = name.len()
        ),
    )
}

fn names(names: &[&str]) -> Option<BTreeSet<String>> {
    Some(names.iter().map(|name| (*name).to_owned()).collect())
}

fn start_restricted(wat: &str, allow: &Allow, embedder: &Rc<Memory>) -> Rc<Plugin> {
    let module = runtime().restrict(&load(wat).unwrap(), allow).unwrap();
    let lent: Rc<dyn Embedder> = Rc::<Memory>::clone(embedder);
    let spec = Arc::new(spec("p"));
    Plugin::start(PluginId(1), module, spec, Arc::default(), lent).unwrap()
}

/// What is logged in two exchanges, and what was denied.
fn seen(wat: &str, allow: &Allow) -> (Vec<String>, Vec<(DenialKind, u64)>) {
    let embedder = Rc::new(Memory::default());
    let plugin = start_restricted(wat, allow, &embedder);
    for _ in 0..2 {
        let mut stream = stream(&[&plugin], &[]);
        assert_eq!(stream.request_headers(true), Progress::Continue);
        answer(&mut stream, &[(":status", "200")]);
        assert_eq!(stream.response_headers(true), Progress::Continue);
        stream.finish();
    }
    assert_eq!(plugin.stats().restarts(), 0);
    let stats = plugin.stats();
    let denied = stats.denials().filter(|(_, count)| *count > 0);
    (embedder.log.take(), denied.collect())
}

#[test]
fn a_capability_is_used_or_denied() {
    let both = ["proxy_log", "proxy_on_request_headers"];
    for (module, name, import, status) in [
        (
            "env",
            "proxy_get_current_time_nanoseconds",
            "(param i32)",
            "10",
        ),
        (
            "wasi_snapshot_preview1",
            "clock_res_get",
            "(param i32 i32)",
            "76",
        ),
        ("wasi_unstable", "clock_res_get", "(param i32 i32)", "76"),
    ] {
        let import = format!(r#"(import "{module}" "{name}" (func $f {import} (result i32)))"#);
        let arguments = "(i32.const 0) ".repeat(import.matches(" i32").count() - 1);
        let wat = asks(&import, "called", &format!("$f {arguments}"));
        let warning = format!("capability {name} is denied: no allow-list has it");
        // Denied; warned of once; the callback for the response is not called.
        let allow = Allow {
            capabilities: names(&both),
            ..Allow::default()
        };
        let (log, denied) = seen(&wat, &allow);
        assert_eq!(log, [warning.as_str(), status, status]);
        assert_eq!(denied, [(DenialKind::Capability, 2)]);
        // Allowed.
        let allow = Allow {
            capabilities: names(&[&both[..], &[name, "proxy_on_response_headers"]].concat()),
            ..Allow::default()
        };
        let (log, denied) = seen(&wat, &allow);
        assert_eq!(log, ["00", "called", "00", "called"]);
        assert_eq!(denied, []);
    }
}

#[test]
fn no_callback_at_all_where_none_is_allowed() {
    let allow = Allow {
        capabilities: names(&["proxy_log"]),
        ..Allow::default()
    };
    let embedder = Rc::new(Memory::default());
    let plugin = start_restricted(&guest("", LIFECYCLE), &allow, &embedder);
    let mut stream = stream(&[&plugin], &[]);
    assert_eq!(stream.request_headers(true), Progress::Continue);
    stream.finish();
    plugin.shut_down();
    assert_eq!(
        embedder.log.take(),
        ["cre"],
        "`_initialize` is no capability"
    );
    let allow = Allow {
        capabilities: names(&["proxy_log", "proxy_on_configure", "proxy_on_done"]),
        ..Allow::default()
    };
    let plugin = start_restricted(&guest("", LIFECYCLE), &allow, &embedder);
    plugin.shut_down();
    assert_eq!(embedder.log.take(), ["cre", "1configure", "1done"]);
}

#[test]
fn names_that_no_abi_has_are_refused() {
    let module = load(&guest("", "")).unwrap();
    let known = [
        "proxy_http_call",
        "proxy_get_log_level",
        "proxy_clear_route_cache",
        "fd_write",
        "proc_exit",
        "proxy_on_grpc_close",
        "proxy_on_foreign_function",
        "proxy_on_request_headers",
    ];
    let allow = |names| Allow {
        capabilities: names,
        ..Allow::default()
    };
    assert!(runtime().restrict(&module, &allow(names(&known))).is_ok());
    for unknown in [
        "",
        "http_call",
        "env.proxy_log",
        "malloc",
        "proxy_on_memory_allocate",
        "_start",
        "pthread_equal",
    ] {
        let refused = runtime().restrict(&module, &allow(names(&[unknown])));
        let error = refused.map(|_| ()).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("`{unknown}` is no hostcall, WASI function or callback")
        );
    }
    // Nothing to restrict: the very same module.
    let same = runtime().restrict(&module, &Allow::default()).unwrap();
    assert!(Arc::ptr_eq(&module, &same));
}

#[test]
fn properties_are_read_and_written_or_denied() {
    let get = import("proxy_get_property", 4);
    let set = import("proxy_set_property", 4);
    let wats = |name: &str| {
        let len = name.len();
        let at = format!("(i32.const 100) (i32.const {len}) (i32.const 8) (i32.const 12)");
        [
            asks(&get, name, &format!("$proxy_get_property {at}")),
            asks(&set, name, &format!("$proxy_set_property {at}")),
        ]
    };
    let allow = Allow {
        properties: Some(PropertyPaths::new(["request", "mine"])),
        ..Allow::default()
    };
    for (name, read, written, denied) in [
        ("request\0path", "00", "00", 0),
        ("mine", "01", "00", 0),
        ("source\0address", "01", "10", 2),
        ("plugin_name", "01", "10", 2),
        ("portcullis.owned_request_headers", "01", "00", 2),
    ] {
        let [get, set] = wats(name);
        for (wat, status, denied) in [
            (get, read, denied),
            (set, written, if written == "00" { 0 } else { denied }),
        ] {
            let (mut log, denials) = seen(&wat, &allow);
            let said = format!(
                "property {} is denied: no allow-list has it",
                name.replace('\0', ".")
            );
            log.retain(|line| line.len() == 2 || line.contains("denied"));
            let expected = if denied > 0 {
                vec![said.as_str(), status, status]
            } else {
                vec![status, status]
            };
            assert_eq!(log, expected, "{name}");
            let expected: &[_] = if denied > 0 {
                &[(DenialKind::Property, denied)]
            } else {
                &[]
            };
            assert_eq!(denials, expected, "{name}");
        }
    }
    // Without a list.
    let [get, _] = wats("plugin_name");
    assert_eq!(
        seen(&get, &Allow::default()).0,
        ["00", "plugin_name", "00", "plugin_name"]
    );
}

#[test]
fn foreign_functions_are_called_or_denied() {
    let wat = asks(
        &import("proxy_call_foreign_function", 6),
        "reverse",
        "$proxy_call_foreign_function (i32.const 100) (i32.const 7) (i32.const 100) (i32.const 2) (i32.const 0) (i32.const 0)",
    );
    for (list, expected) in [
        (None, &["00", "reverse", "00", "reverse"][..]),
        (
            names(&["other", "reverse"]),
            &["00", "reverse", "00", "reverse"],
        ),
        (
            names(&["other"]),
            &[
                "foreign_function reverse is denied: no allow-list has it",
                "01",
                "reverse",
                "01",
                "reverse",
            ],
        ),
    ] {
        let allow = Allow {
            foreign_functions: list,
            ..Allow::default()
        };
        assert_eq!(seen(&wat, &allow).0, expected);
    }
}

#[test]
fn a_list_of_properties_is_no_matter_of_names() {
    // `set_envoy_filter_state` writes properties under names of its own: the message of a path and a value.
    let asked = "set_envoy_filter_state";
    let message = r"\0a\01k\12\01v";
    let wat = asks(
        &(import("proxy_call_foreign_function", 6)
            + &format!(r#"(data (i32.const 300) "{message}")"#)),
        asked,
        "$proxy_call_foreign_function (i32.const 100) (i32.const 22) (i32.const 300) (i32.const 6) (i32.const 0) (i32.const 0)",
    );
    let said = "foreign_function set_envoy_filter_state is denied: no allow-list has it";
    let list = Some(PropertyPaths::new(["request.path"]));
    for (properties, foreign_functions, denied) in [
        (None, None, false),
        (list.clone(), None, true),
        (list.clone(), names(&[asked]), false),
        (list, names(&[]), true),
    ] {
        let allow = Allow {
            properties,
            foreign_functions,
            ..Allow::default()
        };
        let (log, _) = seen(&wat, &allow);
        assert_eq!(
            log.iter().any(|line| line == said),
            denied,
            "{allow:?}: {log:?}"
        );
    }
}

#[test]
fn what_a_plugin_tells_of_itself_needs_no_capability() {
    // Without it, nobody would remove the headers that clients forge where the plugin is off.
    let body = r#"(data (i32.const 100) "portcullis.owned_request_headers") (data (i32.const 140) "x-user") (data (i32.const 150) "mine")
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (drop (call $proxy_set_property (i32.const 100) (i32.const 32) (i32.const 140) (i32.const 6)))
            (i32.eq (i32.const 10) (call $proxy_set_property (i32.const 150) (i32.const 4) (i32.const 140) (i32.const 6))))"#;
    let allow = Allow {
        capabilities: names(&["proxy_on_configure", "proxy_log"]),
        ..Allow::default()
    };
    let embedder = Rc::new(Memory::default());
    let wat = guest(&import("proxy_set_property", 4), body);
    let plugin = start_restricted(&wat, &allow, &embedder);
    assert_eq!(plugin.owned_request_headers(), ["x-user"]);
    let denied = plugin
        .stats()
        .denials()
        .find(|(kind, _)| *kind == DenialKind::Capability);
    assert_eq!(
        denied,
        Some((DenialKind::Capability, 1)),
        "the other property"
    );
}

#[test]
fn a_guest_is_not_warned_of_names_without_end() {
    // Asks for another property each time: the name's first byte counts up.
    let body = r#"(data (i32.const 100) "a-name")
        (func (export "proxy_on_tick") (param i32)
            (i32.store8 (i32.const 100) (i32.add (i32.load8_u (i32.const 100)) (i32.const 1)))
            (drop (call $proxy_get_property (i32.const 100) (i32.const 6) (i32.const 8) (i32.const 12))))"#;
    let allow = Allow {
        properties: Some(PropertyPaths::default()),
        ..Allow::default()
    };
    let embedder = Rc::new(Memory::default());
    let wat = guest(&import("proxy_get_property", 4), body);
    let plugin = start_restricted(&wat, &allow, &embedder);
    for _ in 0..200 {
        plugin.on_tick();
    }
    assert_eq!(
        embedder.log.take().len(),
        portcullis_runtime::limits::DENIALS_NAMED_MAX
    );
    assert!(
        plugin
            .stats()
            .denials()
            .any(|denied| denied == (DenialKind::Property, 200))
    );
}

#[test]
fn log_lines_are_bounded_by_the_second() {
    let body = r#"(data (i32.const 100) "line")
        (func (export "proxy_on_tick") (param i32) (call $say (i32.const 100) (i32.const 4)))"#;
    let embedder = Rc::new(Memory::default());
    let limits = Limits {
        log_lines_per_second: 10,
        ..Limits::default()
    };
    let spec = PluginSpec {
        limits,
        ..spec("p")
    };
    let plugin = start_with(spec, &guest("", body), &embedder).unwrap();
    let ticks = |count| (0..count).for_each(|_| plugin.on_tick());
    ticks(10);
    assert_eq!(embedder.log.take(), ["line"; 10], "obeyed");
    assert_eq!(plugin.stats().log_drops(), 0);
    ticks(5);
    assert_eq!(embedder.log.take(), [""; 0], "violated");
    assert_eq!(plugin.stats().log_drops(), 5);
    embedder.now_ns.set(200_000_000);
    ticks(3);
    let told = "5 log lines dropped: more than its bound a second";
    assert_eq!(
        embedder.log.take(),
        [told, "line"],
        "two lines, that one too"
    );
    assert_eq!(plugin.stats().log_drops(), 7);
}

#[test]
fn the_time_of_a_start_is_bounded() {
    const MS: u64 = 1_000_000;
    // Each line that it logs takes 30 ms of one clock; `proxy_on_configure` and those before have 100 ms each.
    let works = |callback: &str, lines: u32| {
        let (params, result, value) = match callback {
            "_initialize" => ("", "", ""),
            _ => ("(param i32 i32)", "(result i32)", "(i32.const 1)"),
        };
        let body = format!(
            r#"(data (i32.const 100) "line")
            (func (export "{callback}") {params} {result} (local $left i32)
                (local.set $left (i32.const {lines}))
                (loop $more
                    (call $say (i32.const 100) (i32.const 4))
                    (br_if $more (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
                {value})"#
        );
        guest("", &body)
    };
    for callback in ["_initialize", "proxy_on_vm_start", "proxy_on_configure"] {
        // The second CPU clock leaps, as where a hypervisor stops a thread: a leap counts as a tick and a half.
        for (step, is_cpu) in [
            ((6 * MS, 0), true),
            ((60 * MS, 0), true),
            ((0, 6 * MS), false),
        ] {
            for (lines, is_obeyed) in [(3, true), (6, false)] {
                let limits = Limits {
                    callback_cpu_ms: 1,
                    callback_wall_ms: 1,
                    start_cpu_ms: if is_cpu { 20 } else { u64::MAX },
                    start_wall_ms: if is_cpu { u64::MAX } else { 20 },
                    ..Limits::default()
                };
                let spec = PluginSpec {
                    limits,
                    ..spec("p")
                };
                let embedder = Rc::new(Memory::default());
                embedder.ticks_on_log.set(true);
                embedder.step_on_log_ns.set(step);
                let failure = start_with(spec, &works(callback, lines), &embedder)
                    .err()
                    .map(|error| error.failure);
                let expected = (!is_obeyed).then_some(StartFailure::Trap {
                    callback,
                    kind: TrapKind::OutOfTime,
                });
                assert_eq!(failure, expected, "{callback}: {lines} lines, {step:?}");
            }
        }
    }
}

#[test]
fn lines_of_one_callback_are_bounded() {
    let body = r#"(data (i32.const 100) "line")
        (func (export "proxy_on_tick") (param i32) (local $left i32)
            (local.set $left (i32.const 40))
            (loop $more
                (call $say (i32.const 100) (i32.const 4))
                (br_if $more (local.tee $left (i32.sub (local.get $left) (i32.const 1))))))"#;
    let embedder = Rc::new(Memory::default());
    let plugin = start(&guest("", body), &embedder);
    plugin.on_tick();
    assert_eq!(embedder.log.take().len(), 32);
    assert_eq!(plugin.stats().log_drops(), 8);
}

#[test]
fn callouts_in_flight_are_bounded() {
    // `:method GET :path / :authority c` as pairs.
    let mut pairs = 3_u32.to_le_bytes().to_vec();
    let fields = [(":method", "GET"), (":path", "/"), (":authority", "c")];
    for part in fields.iter().flat_map(|(name, value)| [name, value]) {
        pairs.extend(u32::try_from(part.len()).unwrap().to_le_bytes());
    }
    for part in fields.iter().flat_map(|(name, value)| [name, value]) {
        pairs.extend(part.bytes().chain([0]));
    }
    let escaped: String = pairs.iter().map(|byte| format!("\\{byte:02x}")).collect();
    let body = format!(
        r#"(data (i32.const 100) "c") (data (i32.const 110) "{escaped}")
        (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32))
        (func (export "proxy_on_tick") (param i32) (local $status i32)
            (local.set $status (call $proxy_http_call (i32.const 100) (i32.const 1) (i32.const 110) (i32.const {len})
                (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 500) (i32.const 20)))
            (i32.store8 (i32.const 0) (i32.add (i32.const 48) (i32.div_u (local.get $status) (i32.const 10))))
            (i32.store8 (i32.const 1) (i32.add (i32.const 48) (i32.rem_u (local.get $status) (i32.const 10))))
            (call $say (i32.const 0) (i32.const 2)))"#,
        len = pairs.len()
    );
    let wat = guest(&import("proxy_http_call", 10), &body);
    for most in [0, 2, 64] {
        let limits = Limits {
            callouts_in_flight: most,
            ..Limits::default()
        };
        let embedder = Rc::new(Memory::default());
        let spec = PluginSpec {
            limits,
            ..spec("p")
        };
        let plugin = start_with(spec, &wat, &embedder).unwrap();
        for _ in 0..most {
            plugin.on_tick();
        }
        assert_eq!(embedder.log.take(), vec!["00"; most], "obeyed");
        plugin.on_tick();
        assert_eq!(embedder.log.take(), ["10"], "violated");
        assert_eq!(embedder.calls.borrow().len(), most);
        // One that ends makes room for one.
        if most > 0 {
            let (id, _) = embedder.calls.borrow_mut().remove(0);
            plugin.on_http_call_response(id, HttpCallResponse::Timeout);
            plugin.on_tick();
            plugin.on_tick();
            assert_eq!(embedder.log.take(), ["00", "10"]);
        }
    }
}
