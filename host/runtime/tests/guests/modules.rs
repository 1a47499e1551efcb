//! What can be loaded, and what engine it runs on.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use portcullis_runtime::limits::UNKNOWN_IMPORTS_MAX;
use portcullis_runtime::{
    Embedder, LoadError, ModuleCache, NoCache, Plugin, PluginId, Progress, Runtime, RuntimeOptions,
    TrapKind, UnknownImports,
};

use crate::bed::{LIFECYCLE, Memory, guest, load, runtime, spec, start, stream};

#[test]
fn modules_that_cannot_be_served_are_refused_by_name() {
    let refused = |wat: &str| {
        load(wat)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    let module = |body: &str| {
        format!(
            r#"(module {body} (memory (export "memory") 1) (func (export "malloc") (param i32) (result i32) (i32.const 8)))"#
        )
    };
    assert!(refused(&module("")).starts_with("no known proxy-wasm abi version"));
    let marker = r#"(func (export "proxy_abi_version_0_2_0"))"#;
    let unknown = r#"(import "env" "proxy_get_secret" (func (param i32) (result i32)))"#;
    let unknown2 = r#"(import "env" "proxy_dictionary_get" (func (param i32) (result i32)))"#;
    assert_eq!(
        refused(&module(&format!("{unknown} {unknown2} {marker}"))),
        "unknown import env.proxy_get_secret, env.proxy_dictionary_get (abi 0.2.0): no hostcall of this host; a module that never calls it loads with `unknown_imports: trap`"
    );
    let memory = r#"(import "env" "__linear" (global i32))"#;
    assert!(
        refused(&module(&format!("{memory} {unknown} {marker}")))
            .starts_with("unknown import env.__linear (abi 0.2.0): ")
    );
    let newer = r#"(import "env" "proxy_get_log_level" (func (param i32) (result i32)))"#;
    assert_eq!(
        refused(&module(&format!("{newer} {marker}")))
            .split(':')
            .next(),
        Some("unknown import env.proxy_get_log_level (abi 0.2.0)")
    );
    let mistyped = r#"(import "env" "proxy_log" (func (param i64) (result i32)))"#;
    assert!(refused(&module(&format!("{mistyped} {marker}"))).contains("proxy_log"));
    let callback = r#"(func (export "proxy_on_tick") (param i32) (result i32) (i32.const 0))"#;
    assert_eq!(
        refused(&module(&format!("{marker} {callback}"))),
        "export proxy_on_tick has signature (i32) -> (i32), not (i32) -> ()"
    );
    assert_eq!(
        refused(&format!(
            r#"(module {marker} (memory (export "memory") 1))"#
        )),
        "missing export: proxy_on_memory_allocate or malloc"
    );
    assert_eq!(
        refused(&format!("(module {marker})")),
        "missing export: memory"
    );
    assert!(runtime().load(b"<html>", &NoCache).is_err());
    assert_eq!(refused(&module(marker)), "");
}

#[test]
fn abi_0_1_0_has_its_own_shape() {
    let wat = r#"(module
        (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
        (import "env" "proxy_get_configuration" (func $configuration (param i32 i32) (result i32)))
        (import "env" "proxy_continue_request" (func $continue (result i32)))
        (import "env" "proxy_get_header_map_value" (func $value (param i32 i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "proxy_abi_version_0_1_0"))
        (func (export "_start"))
        (func (export "malloc") (param i32) (result i32) (i32.const 1024))
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (drop (call $configuration (i32.const 0) (i32.const 4)))
            (i32.eqz (call $log (i32.const 2) (i32.load (i32.const 0)) (i32.load (i32.const 4)))))
        (func (export "proxy_on_request_headers") (param i32 i32) (result i32)
            (if (call $value (i32.const 0) (i32.const 100) (i32.const 4) (i32.const 0) (i32.const 4)) (then unreachable))
            (drop (call $continue))
            (i32.const 1)))"#;
    let embedder = Rc::new(Memory::default());
    let plugin = start(wat, &embedder);
    assert_eq!(embedder.log.take(), ["plugin configuration"]);
    assert_eq!(
        stream(&[&plugin], &[]).request_headers(true),
        Progress::Continue
    );
}

/// What every version has, with its parameters; then what some have.
const HOSTCALLS: &[(&str, &str)] = &[
    ("proxy_log", "iii"),
    ("proxy_get_current_time_nanoseconds", "i"),
    ("proxy_set_tick_period_milliseconds", "i"),
    ("proxy_done", ""),
    ("proxy_set_effective_context", "i"),
    ("proxy_get_buffer_bytes", "iiiii"),
    ("proxy_get_buffer_status", "iii"),
    ("proxy_set_buffer_bytes", "iiiii"),
    ("proxy_get_header_map_size", "ii"),
    ("proxy_get_header_map_pairs", "iii"),
    ("proxy_set_header_map_pairs", "iii"),
    ("proxy_get_header_map_value", "iiiii"),
    ("proxy_add_header_map_value", "iiiii"),
    ("proxy_replace_header_map_value", "iiiii"),
    ("proxy_remove_header_map_value", "iii"),
    ("proxy_get_status", "iii"),
    ("proxy_send_local_response", "iiiiiiii"),
    ("proxy_http_call", "iiiiiiiiii"),
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
    ("proxy_record_metric", "iI"),
    ("proxy_increment_metric", "iI"),
    ("proxy_get_metric", "ii"),
    ("proxy_get_property", "iiii"),
    ("proxy_set_property", "iiii"),
    ("proxy_call_foreign_function", "iiiiii"),
];
const HOSTCALLS_0_1_0: &[(&str, &str)] = &[
    ("proxy_get_configuration", "ii"),
    ("proxy_continue_request", ""),
    ("proxy_continue_response", ""),
    ("proxy_clear_route_cache", ""),
];
const HOSTCALLS_0_2_0: &[(&str, &str)] =
    &[("proxy_continue_stream", "i"), ("proxy_close_stream", "i")];
const HOSTCALLS_0_2_1: &[(&str, &str)] = &[("proxy_get_log_level", "i")];
/// Higress' own, whatever the version.
const HOSTCALLS_REDIS: &[(&str, &str)] = &[
    ("proxy_redis_init", "iiiiiii"),
    ("proxy_redis_call", "iiiii"),
];
/// Known by name, whatever the version, and not served.
const HOSTCALLS_UNSERVED: &[(&str, &str)] = &[
    ("envoy_resolve_dns", "iii"),
    ("proxy_inject_encoded_data_to_filter_chain", "iii"),
    ("proxy_get_upstream_hosts", "ii"),
    ("proxy_set_upstream_override_host", "ii"),
];

/// A module that imports all of `hostcalls`, and makes them one by one in a request's headers, each argument -1, and logs their answers as letters, `a` for 0.
fn every_hostcall(marker: &str, hostcalls: &[(&str, &str)]) -> String {
    let (mut imports, mut calls) = (String::new(), String::new());
    for (index, (name, letters)) in hostcalls.iter().enumerate() {
        let types: String = letters
            .chars()
            .map(|letter| if letter == 'i' { "i32 " } else { "i64 " })
            .collect();
        let values: String = types
            .split_whitespace()
            .map(|ty| format!("({ty}.const -1) "))
            .collect();
        imports +=
            &format!(r#"(import "env" "{name}" (func ${name} (param {types}) (result i32)))"#);
        calls += &format!(
            "(i32.store8 (i32.const {index}) (i32.add (i32.const 97) (call ${name} {values})))\n"
        );
    }
    let count = hostcalls.len();
    let end_of_stream = if marker == "0_1_0" { "" } else { "i32" };
    format!(
        r#"(module {imports}
        (memory (export "memory") 2)
        (func (export "proxy_abi_version_{marker}"))
        (func (export "malloc") (param i32) (result i32) (i32.const 1024))
        (func (export "proxy_on_request_headers") (param i32 i32 {end_of_stream}) (result i32)
            {calls} (drop (call $proxy_log (i32.const 2) (i32.const 0) (i32.const {count}))) (i32.const 0)))"#
    )
}

#[test]
fn each_version_has_its_hostcalls_and_all_take_bad_arguments() {
    for (marker, own, count) in [
        ("0_1_0", &[HOSTCALLS_0_1_0][..], 42),
        ("0_2_0", &[HOSTCALLS_0_2_0], 40),
        ("0_2_1", &[HOSTCALLS_0_2_0, HOSTCALLS_0_2_1], 41),
        (
            "0_2_100",
            &[HOSTCALLS_0_2_0, HOSTCALLS_0_2_1, HOSTCALLS_UNSERVED],
            45,
        ),
    ] {
        let all = [&[HOSTCALLS, HOSTCALLS_REDIS], own].concat().concat();
        assert_eq!(all.len(), count, "{marker}");
        let embedder = Rc::new(Memory::default());
        let plugin = start(&every_hostcall(marker, &all), &embedder);
        assert_eq!(
            plugin.module().unserved_imports().count(),
            if marker == "0_2_100" { 4 } else { 0 },
            "{marker}"
        );
        let progress = stream(&[&plugin], &[]).request_headers(true);
        assert_eq!(progress, Progress::Continue, "{marker}");
        assert_eq!(
            plugin.stats().traps().map(|(_, count)| count).sum::<u64>(),
            0
        );
        let answers = embedder.log.take().concat();
        assert_eq!(answers.len(), count, "{marker}: {answers}");
        for (answer, (name, _)) in answers.bytes().zip(&all) {
            let status = answer - b'a';
            assert!(
                status == 12 || status <= 10,
                "{marker} {name} answers {status}"
            );
            // What takes pointers or numbers takes none such; what takes nothing, or a plain period, is content.
            let content = matches!(
                *name,
                "proxy_set_tick_period_milliseconds"
                    | "proxy_continue_request"
                    | "proxy_continue_response"
                    | "proxy_clear_route_cache"
            );
            assert_eq!(status == 0, content, "{marker} {name} answers {status}");
        }
    }
    // What another version has is unknown.
    for (marker, foreign) in [
        ("0_1_0", HOSTCALLS_0_2_0),
        ("0_1_0", HOSTCALLS_0_2_1),
        ("0_2_0", HOSTCALLS_0_1_0),
        ("0_2_0", HOSTCALLS_0_2_1),
        ("0_2_1", HOSTCALLS_0_1_0),
    ] {
        for hostcall in foreign {
            let loaded = load(&every_hostcall(marker, &[HOSTCALLS[0], *hostcall]));
            assert!(
                matches!(loaded, Err(LoadError::UnknownImport { .. })),
                "{marker} {}",
                hostcall.0
            );
        }
    }
}

#[test]
fn unknown_imports_trap_if_the_operator_says_so_and_they_are_called() {
    let secret = r#"(import "env" "proxy_get_secret" (func $secret (param i32 i64) (result f64)))
        (import "gcore" "proxy_kv_store_open" (func $open (param i32)))"#;
    let body = r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (if (i32.eqz (local.get 2)) (then (drop (call $secret (i32.const 0) (i64.const 0)))))
        (i32.const 0))"#;
    let wasm = wat::parse_str(guest(secret, body)).unwrap();
    let load = |unknown| runtime().load_with(&wasm, &NoCache, unknown);
    assert!(load(UnknownImports::Refuse).is_err());
    let module = load(UnknownImports::Trap).unwrap();
    assert_eq!(
        module.unknown_imports(),
        ["env.proxy_get_secret", "gcore.proxy_kv_store_open"]
    );
    let embedder: Rc<dyn Embedder> = Rc::new(Memory::default());
    let plugin = Plugin::start(
        PluginId(1),
        module,
        Arc::new(spec("p")),
        Arc::default(),
        embedder,
    )
    .unwrap();
    for (end_of_stream, expected) in [
        (true, Progress::Continue),
        (false, Progress::Respond),
        (true, Progress::Continue),
    ] {
        let mut stream = stream(&[&plugin], &[]);
        assert_eq!(stream.request_headers(end_of_stream), expected);
    }
    let traps: Vec<_> = plugin.stats().traps().filter(|(_, n)| *n > 0).collect();
    assert_eq!(traps, [(TrapKind::UnknownImport, 1)]);
}

#[test]
fn unknown_imports_are_bounded() {
    let module = |count: usize| {
        let imports: String = (0..count)
            .map(|index| format!(r#"(import "x" "f{index}" (func))"#))
            .collect();
        let wasm = wat::parse_str(guest(&imports, "")).unwrap();
        runtime().load_with(&wasm, &NoCache, UnknownImports::Trap)
    };
    assert!(module(UNKNOWN_IMPORTS_MAX - 1).is_ok());
    assert!(matches!(
        module(UNKNOWN_IMPORTS_MAX),
        Err(LoadError::UnknownImport { imports, .. }) if imports.len() == UNKNOWN_IMPORTS_MAX
    ));
}

#[derive(Default)]
struct Shelf(RefCell<HashMap<String, Vec<u8>>>);

impl ModuleCache for Shelf {
    fn read(&self, key: &str) -> Option<Vec<u8>> {
        self.0.borrow().get(key).cloned()
    }
    fn write(&self, key: &str, compiled: &[u8]) {
        self.0.borrow_mut().insert(key.into(), compiled.into());
    }
}

#[test]
fn a_damaged_cache_entry_is_compiled_again() {
    let shelf = Shelf::default();
    let wasm = wat::parse_str(guest("", LIFECYCLE)).unwrap();
    let first = runtime().load(&wasm, &shelf).unwrap();
    let (key, whole) = shelf
        .0
        .borrow()
        .iter()
        .next()
        .map(|(key, bytes)| (key.clone(), bytes.clone()))
        .unwrap();
    assert!(key.starts_with(first.digest()), "{key}");
    for damaged in [
        Vec::new(),
        whole[..40].to_vec(),
        whole[..whole.len() - 1].to_vec(),
        [&whole[..whole.len() - 1], b"\0"].concat(),
    ] {
        shelf.0.borrow_mut().insert(key.clone(), damaged);
        let module = runtime().load(&wasm, &shelf).unwrap();
        assert_eq!(module.callbacks(), first.callbacks());
        assert_eq!(
            shelf.0.borrow().get(&key),
            Some(&whole),
            "and written again"
        );
    }
    assert!(runtime().load(&wasm, &shelf).is_ok());
}

#[test]
fn without_pools_vms_are_made_on_demand() {
    let options = |vms_max, on_demand| {
        let mut options = RuntimeOptions::default();
        (options.vms_max, options.on_demand) = (vms_max, on_demand);
        options
    };
    for (what, options) in [
        (
            // More address space than there is.
            "pools that cannot be had",
            options(1 << 20, false),
        ),
        ("no pools asked for", options(1, true)),
    ] {
        let runtime = Runtime::new(options).unwrap();
        assert!(!runtime.is_pooling(), "{what}");
        let wasm = wat::parse_str(guest("", LIFECYCLE)).unwrap();
        let module = runtime.load(&wasm, &NoCache).unwrap();
        let embedder = Rc::new(Memory::default());
        let plugins = [1, 2].map(|id| {
            Plugin::start(
                PluginId(id),
                Arc::clone(&module),
                Arc::new(spec("p")),
                Arc::default(),
                Rc::<Memory>::clone(&embedder),
            )
            .unwrap()
        });
        embedder.log.take();
        let mut stream = stream(&[&plugins[0], &plugins[1]], &[]);
        assert_eq!(stream.request_headers(true), Progress::Continue, "{what}");
        assert_eq!(
            embedder.log.take(),
            ["2create", "2request", "2create", "2request"],
            "{what}"
        );
    }
    assert!(
        runtime().is_pooling(),
        "where there is room there are pools"
    );
}
