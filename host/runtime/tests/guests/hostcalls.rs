//! What a guest may ask, and what it is told.

use std::rc::Rc;

use portcullis_runtime::{Progress, StartFailure, TrapKind};

use crate::bed::{Memory, guest, import, spec, start, start_with, stream};

/// What a guest sees when it makes one hostcall in a request's headers. Arguments: `W` is a wild pointer or length, `L` the same in 64 bits.
fn status_of(module: &str, name: &str, arguments: &str) -> String {
    let types: String = arguments
        .split_whitespace()
        .map(|a| if a == "L" { "i64 " } else { "i32 " })
        .collect();
    let values: String = arguments
        .split_whitespace()
        .map(|argument| match argument {
            "W" => "(i32.const -1)".to_owned(),
            "L" => "(i64.const -1)".to_owned(),
            number => format!("(i32.const {number})"),
        })
        .collect();
    let (import, target) = match name {
        "proxy_log" => (String::new(), "$log"),
        _ => (
            format!(r#"(import "{module}" "{name}" (func $f (param {types}) (result i32)))"#),
            "$f",
        ),
    };
    let body = format!(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $status i32)
            (local.set $status (call {target} {values}))
            (i32.store8 (i32.const 0) (i32.add (i32.const 48) (i32.div_u (local.get $status) (i32.const 10))))
            (i32.store8 (i32.const 1) (i32.add (i32.const 48) (i32.rem_u (local.get $status) (i32.const 10))))
            (call $say (i32.const 0) (i32.const 2))
            (i32.const 0))"#
    );
    let embedder = Rc::new(Memory::default());
    let plugin = start(&guest(&import, &body), &embedder);
    assert_eq!(
        stream(&[&plugin], &[]).request_headers(true),
        Progress::Continue,
        "{name}"
    );
    assert_eq!(plugin.stats().restarts(), 0);
    let mut log = embedder.log.take();
    // Zero bytes are the name of a cluster that nobody may call.
    log.retain(|line| !line.starts_with("cluster . is denied"));
    assert_eq!(log.len(), 1, "{name}: {log:?}");
    log.remove(0)
}

#[test]
fn wild_pointers_are_refused() {
    for (name, arguments, expected) in [
        ("proxy_log", "2 W W", 6),
        ("proxy_log", "W 0 0", 2),
        ("proxy_get_log_level", "W", 6),
        ("proxy_get_current_time_nanoseconds", "W", 6),
        ("proxy_set_tick_period_milliseconds", "W", 0),
        ("proxy_done", "", 1),
        ("proxy_set_effective_context", "W", 2),
        ("proxy_get_status", "W W W", 6),
        ("proxy_call_foreign_function", "W W W W W W", 6),
        ("proxy_call_foreign_function", "0 1 0 1 0 0", 1),
        ("proxy_get_buffer_bytes", "0 W W W W", 6),
        ("proxy_get_buffer_bytes", "6 0 W W W", 6),
        ("proxy_get_buffer_bytes", "W W W W W", 2),
        ("proxy_get_buffer_bytes", "4 0 9 8 12", 1),
        ("proxy_get_buffer_bytes", "7 0 9 8 12", 1),
        ("proxy_get_buffer_bytes", "0 0 9 8 12", 0),
        ("proxy_get_buffer_status", "0 W W", 6),
        ("proxy_set_buffer_bytes", "0 W W W W", 6),
        ("proxy_set_buffer_bytes", "0 0 0 0 1", 2),
        ("proxy_set_buffer_bytes", "6 0 0 0 1", 2),
        ("proxy_get_header_map_size", "0 W", 6),
        ("proxy_get_header_map_size", "2 8", 2),
        ("proxy_get_header_map_pairs", "0 W W", 6),
        ("proxy_get_header_map_pairs", "2 8 12", 0),
        ("proxy_get_header_map_pairs", "W 8 12", 2),
        ("proxy_set_header_map_pairs", "0 W W", 6),
        ("proxy_set_header_map_pairs", "0 0 3", 2),
        ("proxy_get_header_map_value", "0 W W W W", 6),
        ("proxy_get_header_map_value", "0 0 1 W W", 1),
        ("proxy_get_header_map_value", "2 0 1 8 12", 2),
        ("proxy_get_header_map_value", "0 0 9999 8 12", 1),
        ("proxy_add_header_map_value", "0 W W W W", 6),
        ("proxy_add_header_map_value", "0 0 1 0 1", 2),
        ("proxy_add_header_map_value", "2 100 1 0 0", 2),
        ("proxy_replace_header_map_value", "0 W W W W", 6),
        ("proxy_replace_header_map_value", "0 0 0 0 0", 2),
        ("proxy_remove_header_map_value", "0 W W", 6),
        ("proxy_send_local_response", "200 W W W W W W W", 6),
        ("proxy_send_local_response", "W 0 0 0 0 0 0 0", 2),
        ("proxy_continue_stream", "W", 2),
        ("proxy_continue_stream", "3", 12),
        ("proxy_close_stream", "W", 2),
        ("proxy_get_property", "W W W W", 6),
        ("proxy_get_property", "0 0 8 12", 3),
        ("proxy_set_property", "W W W W", 6),
        ("proxy_http_call", "W W W W W W W W W W", 6),
        ("proxy_http_call", "0 1 0 0 0 0 0 0 9 8", 2),
        ("proxy_grpc_call", "W W W W W W W W W W W W", 6),
        ("proxy_grpc_stream", "W W W W W W W W W", 6),
        ("proxy_grpc_send", "W W W W", 6),
        ("proxy_grpc_send", "6 0 0 0", 1),
        ("proxy_grpc_cancel", "W", 2),
        ("proxy_grpc_cancel", "5", 1),
        ("proxy_grpc_close", "W", 2),
        ("proxy_grpc_close", "6", 1),
        ("proxy_set_shared_data", "W W W W W", 6),
        ("proxy_get_shared_data", "W W W W W", 6),
        ("proxy_get_shared_data", "0 1 8 12 16", 1),
        ("proxy_register_shared_queue", "W W W", 6),
        ("proxy_resolve_shared_queue", "W W W W W", 6),
        ("proxy_enqueue_shared_queue", "W W W", 6),
        ("proxy_enqueue_shared_queue", "W 0 1", 1),
        ("proxy_dequeue_shared_queue", "W W W", 6),
        ("proxy_dequeue_shared_queue", "W 8 12", 1),
        ("proxy_define_metric", "0 W W W", 6),
        ("proxy_define_metric", "W 0 1 8", 2),
        ("proxy_increment_metric", "W L", 2),
        ("proxy_increment_metric", "8 L", 1),
        ("proxy_record_metric", "0 L", 1),
        ("proxy_get_metric", "W W", 2),
        ("proxy_get_metric", "8 W", 1),
        ("pthread_equal", "W W", 1),
    ] {
        assert_eq!(
            status_of("env", name, arguments),
            format!("{expected:02}"),
            "{name}({arguments})"
        );
    }
}

#[test]
fn wasi_answers_as_envoy_does() {
    for (name, arguments, expected) in [
        ("args_get", "W W", 0),
        ("args_sizes_get", "W W", 21),
        ("environ_get", "W W", 0),
        ("environ_sizes_get", "8 W", 21),
        ("clock_time_get", "0 L W", 21),
        ("clock_time_get", "1 L 8", 0),
        ("clock_time_get", "2 L 8", 58),
        ("clock_res_get", "0 W", 21),
        ("random_get", "W 8", 21),
        ("random_get", "0 W", 28),
        ("random_get", "0 65536", 0),
        ("sched_yield", "", 0),
        ("poll_oneoff", "W W W W", 21),
        ("poll_oneoff", "0 0 1 8", 0),
        ("fd_write", "1 W 1 W", 21),
        ("fd_write", "1 W W 8", 28),
        ("fd_write", "3 W W W", 8),
        ("fd_pwrite", "0 W W L W", 8),
        ("fd_read", "W W W W", 52),
        ("fd_pread", "W W W L W", 52),
        ("fd_seek", "W L W W", 0),
        ("fd_tell", "1 W", 21),
        ("fd_tell", "9 W", 8),
        ("fd_close", "W", 0),
        ("fd_sync", "1", 0),
        ("fd_datasync", "0", 8),
        ("fd_advise", "W L L W", 0),
        ("fd_allocate", "W L L", 8),
        ("fd_fdstat_get", "1 W", 21),
        ("fd_fdstat_get", "0 8", 8),
        ("fd_fdstat_set_flags", "W W", 52),
        ("fd_fdstat_set_rights", "2 L L", 0),
        ("fd_filestat_get", "W W", 8),
        ("fd_filestat_set_size", "1 L", 0),
        ("fd_filestat_set_times", "W L L W", 8),
        ("fd_prestat_get", "3 W", 8),
        ("fd_prestat_dir_name", "W W W", 52),
        ("fd_readdir", "W W W L W", 21),
        ("fd_readdir", "W W W L 8", 20),
        ("fd_renumber", "1 2", 58),
        ("path_open", "W W W W W L L W W", 44),
        ("path_create_directory", "W W W", 58),
        ("path_filestat_get", "W W W W W", 58),
        ("path_filestat_set_times", "W W W W L L W", 58),
        ("path_link", "W W W W W W W", 58),
        ("path_readlink", "W W W W W W", 21),
        ("path_remove_directory", "W W W", 58),
        ("path_rename", "W W W W W W", 58),
        ("path_symlink", "W W W W W", 58),
        ("path_unlink_file", "W W W", 58),
        ("sock_accept", "W W W", 21),
        ("sock_recv", "W W W W W W", 21),
        ("sock_send", "W W W W 8", 58),
        ("sock_shutdown", "W W", 58),
    ] {
        for module in ["wasi_snapshot_preview1", "wasi_unstable"] {
            assert_eq!(
                status_of(module, name, arguments),
                format!("{expected:02}"),
                "{module}.{name}({arguments})"
            );
        }
    }
}

/// An allocator that makes the hostcall `name` with zeros: what becomes of the VM when the host wants memory.
#[test]
fn the_allocator_may_log_and_look_at_the_clock_but_nothing_else() {
    for (module, name, params, allowed) in [
        ("wasi_snapshot_preview1", "poll_oneoff", 4, true),
        ("wasi_unstable", "fd_write", 4, true),
        ("env", "proxy_get_current_time_nanoseconds", 1, false),
        ("env", "proxy_get_log_level", 1, false),
        ("env", "pthread_equal", 2, false),
        ("wasi_snapshot_preview1", "sched_yield", 0, false),
        ("wasi_snapshot_preview1", "clock_res_get", 2, false),
        ("env", "proxy_get_header_map_value", 5, false),
        ("env", "proxy_get_property", 4, false),
        ("env", "proxy_set_effective_context", 1, false),
        ("env", "proxy_send_local_response", 8, false),
        ("env", "proxy_remove_header_map_value", 3, false),
        ("wasi_snapshot_preview1", "random_get", 2, false),
    ] {
        let types = "i32 ".repeat(params);
        let zeros = "(i32.const 8) ".repeat(params);
        let wat = format!(
            r#"(module
            (import "{module}" "{name}" (func $f (param {types}) (result i32)))
            (import "env" "proxy_get_header_map_pairs" (func $pairs (param i32 i32 i32) (result i32)))
            (memory (export "memory") 2)
            (func (export "proxy_abi_version_0_2_1"))
            (func (export "malloc") (param i32) (result i32) (drop (call $f {zeros})) (i32.const 1024))
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                (drop (call $pairs (i32.const 0) (i32.const 0) (i32.const 4))) (i32.const 0)))"#
        );
        let plugin = start(&wat, &Rc::default());
        let expected = if allowed {
            Progress::Continue
        } else {
            Progress::Respond
        };
        assert_eq!(
            stream(&[&plugin], &[]).request_headers(true),
            expected,
            "{name}"
        );
        let restricted = plugin
            .stats()
            .traps()
            .find(|(kind, _)| *kind == TrapKind::Restricted);
        assert_eq!(
            restricted,
            Some((TrapKind::Restricted, u64::from(!allowed))),
            "{name}"
        );
    }
}

#[test]
fn before_the_start_a_guest_gets_what_its_language_needs() {
    const WASI: &str = "wasi_snapshot_preview1";
    for (module, name, params, allowed) in [
        ("env", "proxy_log", 3, true),
        (WASI, "clock_time_get", 3, true),
        (WASI, "random_get", 2, true),
        (WASI, "fd_prestat_get", 2, true),
        (WASI, "sock_shutdown", 2, true),
        ("wasi_unstable", "environ_get", 2, true),
        ("env", "proxy_get_current_time_nanoseconds", 1, false),
        ("env", "proxy_set_tick_period_milliseconds", 1, false),
        ("env", "proxy_get_log_level", 1, false),
        ("env", "proxy_define_metric", 4, false),
        ("env", "pthread_equal", 2, false),
        (WASI, "sched_yield", 0, false),
        (WASI, "fd_close", 1, false),
        (WASI, "fd_read", 4, false),
        (WASI, "proc_exit", 1, false),
        ("wasi_unstable", "path_open", 9, false),
    ] {
        for start_export in ["_initialize", "_start"] {
            let types: String = match name {
                "clock_time_get" => "i32 i64 i32 ".into(),
                "path_open" => "i32 i32 i32 i32 i32 i64 i64 i32 i32".into(),
                _ => "i32 ".repeat(params),
            };
            let values: String = types
                .split_whitespace()
                .map(|ty| format!("({ty}.const 1) "))
                .collect();
            let (result, dropped) = match name {
                "proc_exit" => ("", ""),
                _ => ("(result i32)", "drop"),
            };
            let wat = format!(
                r#"(module (import "{module}" "{name}" (func $f (param {types}) {result}))
                (memory (export "memory") 1)
                (func (export "proxy_abi_version_0_2_1"))
                (func (export "malloc") (param i32) (result i32) (i32.const 1024))
                (func (export "{start_export}") (call $f {values}) {dropped}))"#
            );
            let result = start_with(spec("p"), &wat, &Rc::default());
            let failure = result.err().map(|error| error.failure);
            let expected = (!allowed).then_some(StartFailure::Trap {
                callback: start_export,
                kind: TrapKind::Restricted,
            });
            assert_eq!(failure, expected, "{name} in {start_export}");
        }
    }
}

/// As in Envoy, where the guest goes on; what a language puts behind the call ends most.
#[test]
fn proc_exit_returns_once_requests_are_served() {
    let body = r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (call $exit (i32.const 3)) (i32.const 0))"#;
    let import = r#"(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"#;
    let embedder = Rc::new(Memory::default());
    let plugin = start(&guest(import, body), &embedder);
    assert_eq!(
        stream(&[&plugin], &[]).request_headers(true),
        Progress::Continue
    );
    assert_eq!(embedder.log.take(), ["proc_exit(3)"]);
}

/// Reads all pairs and writes them back, then adds, replaces and removes.
#[test]
fn header_maps_are_changed_in_place() {
    let body = r#"
        (data (i32.const 100) "X-Addadd") (data (i32.const 120) "x-old") (data (i32.const 130) "x-gone") (data (i32.const 140) "x-bad\n")
        (func $told (param i32) (i32.store8 (i32.const 0) (i32.add (i32.const 48) (local.get 0))) (call $say (i32.const 0) (i32.const 1)))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $told (call $proxy_get_header_map_pairs (i32.const 0) (i32.const 8) (i32.const 12)))
            (call $told (call $proxy_set_header_map_pairs (i32.const 0) (i32.load (i32.const 8)) (i32.load (i32.const 12))))
            (call $told (call $proxy_add_header_map_value (i32.const 0) (i32.const 100) (i32.const 5) (i32.const 105) (i32.const 3)))
            (call $told (call $proxy_replace_header_map_value (i32.const 0) (i32.const 120) (i32.const 5) (i32.const 105) (i32.const 3)))
            (call $told (call $proxy_remove_header_map_value (i32.const 0) (i32.const 130) (i32.const 6)))
            (call $told (call $proxy_add_header_map_value (i32.const 0) (i32.const 140) (i32.const 6) (i32.const 105) (i32.const 3)))
            (call $told (call $proxy_add_header_map_value (i32.const 0) (i32.const 100) (i32.const 5) (i32.const 140) (i32.const 6)))
            (i32.const 0))"#;
    let imports = [
        ("proxy_get_header_map_pairs", 3),
        ("proxy_set_header_map_pairs", 3),
        ("proxy_add_header_map_value", 5),
        ("proxy_replace_header_map_value", 5),
        ("proxy_remove_header_map_value", 3),
    ];
    let embedder = Rc::new(Memory::default());
    let plugin = start(
        &guest(
            &imports.map(|(name, params)| import(name, params)).concat(),
            body,
        ),
        &embedder,
    );
    let mut stream = stream(
        &[&plugin],
        &[("x-old", "1"), ("x-gone", "2"), ("x-old", "3")],
    );
    assert_eq!(stream.request_headers(true), Progress::Continue);
    assert_eq!(embedder.log.take().concat(), "0000022");
    let mut fields = Vec::new();
    stream
        .exchange()
        .request_headers
        .for_each(&mut |name, value| {
            fields.push(format!("{}={}", name.escape_ascii(), value.escape_ascii()))
        });
    assert_eq!(fields[4..], ["x-old=add", "x-add=add"]);
}

#[test]
fn properties_pass_from_filter_to_filter() {
    let set = r#"(data (i32.const 100) "jwt.sub") (data (i32.const 110) "alice")
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $proxy_set_property (i32.const 100) (i32.const 7) (i32.const 110) (i32.const 5)))"#;
    let get = r#"(data (i32.const 100) "jwt.sub")
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (i32.eqz (call $proxy_get_property (i32.const 100) (i32.const 7) (i32.const 8) (i32.const 12)))
                (then (call $say (i32.load (i32.const 8)) (i32.load (i32.const 12)))))
            (i32.const 0))"#;
    let embedder = Rc::new(Memory::default());
    let (set, get) = (
        start(&guest(&import("proxy_set_property", 4), set), &embedder),
        start(&guest(&import("proxy_get_property", 4), get), &embedder),
    );
    assert_eq!(
        stream(&[&set, &get], &[]).request_headers(true),
        Progress::Continue
    );
    assert_eq!(
        stream(&[&get], &[]).request_headers(true),
        Progress::Continue
    );
    assert_eq!(
        embedder.log.take(),
        ["alice"],
        "and no further than the exchange"
    );
}

#[test]
fn a_plugin_names_the_headers_it_owns() {
    let body = r#"(data (i32.const 100) "portcullis.owned_request_headers") (data (i32.const 140) "X-User\00bad name\00x-roles")
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (i32.eqz (call $proxy_set_property (i32.const 100) (i32.const 32) (i32.const 140) (i32.const 23))))"#;
    let plugin = start(
        &guest(&import("proxy_set_property", 4), body),
        &Rc::default(),
    );
    assert_eq!(plugin.owned_request_headers(), ["x-user", "x-roles"]);
}
