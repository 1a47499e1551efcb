//! What plugins share a VM with: `shared`, `plugin`, `request`; and the snapshots that VMs of single exchanges begin from.

use std::{rc::Rc, sync::Arc};

use bytes::Bytes;
use portcullis_runtime::{
    CalloutId, FailurePolicy, HttpCallResponse, Isolation, Limits, MetricValue, Module, NoCache,
    Plugin, PluginId, PluginSpec, Progress, Shared, StreamToken, TrapKind, UnknownImports,
};

use crate::bed::{
    LIFECYCLE, Memory, answer, guest, header, import, load, runtime, spec, start_with, stream,
};

fn of(isolation: Isolation) -> PluginSpec {
    PluginSpec {
        isolation,
        ..spec("p")
    }
}

/// Plugins of one name would count together.
fn neighbour() -> PluginSpec {
    PluginSpec {
        name: "q".into(),
        ..of(Isolation::Shared)
    }
}

fn load_for_snapshots(wat: &str) -> Arc<Module> {
    let wasm = wat::parse_str(wat).unwrap();
    runtime()
        .load_for_snapshots(&wasm, &NoCache, UnknownImports::Refuse)
        .unwrap()
}

fn start_on(
    module: &Arc<Module>,
    spec: PluginSpec,
    shared: &Arc<Shared>,
    embedder: &Rc<Memory>,
) -> Rc<Plugin> {
    let (module, shared) = (Arc::clone(module), Arc::clone(shared));
    let embedder = Rc::<Memory>::clone(embedder);
    Plugin::start(PluginId(1), module, Arc::new(spec), shared, embedder).unwrap()
}

fn start_for_requests(wat: &str, embedder: &Rc<Memory>) -> Rc<Plugin> {
    let module = load_for_snapshots(wat);
    start_on(&module, of(Isolation::Request), &Arc::default(), embedder)
}

/// Has the snapshot made that is due; whether one was.
pub(crate) fn snapshot(plugin: &Plugin, embedder: &Memory) -> bool {
    plugin.tend();
    let Some(work) = embedder.works.borrow_mut().pop() else {
        return false;
    };
    std::thread::scope(|scope| scope.spawn(|| work.run()).join()).unwrap();
    let before = plugin.stats().snapshots();
    plugin.tend();
    plugin.stats().snapshots() == before + 1
}

/// One whole exchange; what was logged.
fn exchange(plugin: &Rc<Plugin>, embedder: &Memory) -> Vec<String> {
    let mut stream = stream(&[plugin], &[]);
    assert_eq!(stream.request_headers(true), Progress::Continue);
    answer(&mut stream, &[(":status", "200")]);
    assert_eq!(stream.response_headers(true), Progress::Continue);
    stream.finish();
    embedder.log.take()
}

/// Keeps a letter in memory and a number in a global from its configuration on. A request adds one to the number, and tells both; a tick makes
/// it the next letter. Pauses a request that has `x-do: p`, traps at `x-do: t`.
fn remembering() -> String {
    let imports = [
        ("proxy_set_tick_period_milliseconds", 1),
        ("proxy_get_header_map_value", 5),
    ];
    let body = r#"
    (data (i32.const 100) "configured") (data (i32.const 120) "x-do")
    (global $number (mut i32) (i32.const 0))
    (func (export "proxy_on_configure") (param i32 i32) (result i32)
        (call $say (i32.const 100) (i32.const 10))
        (i32.store8 (i32.const 201) (i32.const 65))
        (global.set $number (i32.const 53))
        (drop (call $proxy_set_tick_period_milliseconds (i32.const 500)))
        (i32.const 1))
    (func (export "proxy_on_tick") (param i32)
        (i32.store8 (i32.const 201) (i32.add (i32.const 1) (i32.load8_u (i32.const 201)))))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (local $what i32)
        (drop (call $proxy_set_tick_period_milliseconds (i32.const 20)))
        (global.set $number (i32.add (i32.const 1) (global.get $number)))
        (i32.store8 (i32.const 200) (global.get $number))
        (call $say (i32.const 200) (i32.const 2))
        (if (i32.eqz (call $proxy_get_header_map_value (i32.const 0) (i32.const 120) (i32.const 4) (i32.const 8) (i32.const 12)))
            (then (local.set $what (i32.load8_u (i32.load (i32.const 8))))))
        (if (i32.eq (local.get $what) (i32.const 116)) (then unreachable))
        (i32.eq (local.get $what) (i32.const 112)))"#;
    guest(
        &imports.map(|(name, params)| import(name, params)).concat(),
        body,
    )
}

#[test]
fn requests_see_each_other_s_memory_unless_each_has_a_vm() {
    for (isolation, expected) in [
        (Isolation::Shared, ["6A", "7A"]),
        (Isolation::Plugin, ["6A", "7A"]),
        (Isolation::Request, ["6A", "6A"]),
    ] {
        let embedder = Rc::new(Memory::default());
        let plugin = start_on(
            &load_for_snapshots(&remembering()),
            of(isolation),
            &Arc::default(),
            &embedder,
        );
        assert_eq!(embedder.log.take(), ["configured"]);
        for line in expected {
            let log = exchange(&plugin, &embedder);
            assert_eq!(log.last().map(String::as_str), Some(line), "{isolation:?}");
            let configures = isolation == Isolation::Request;
            assert_eq!(log.len(), 1 + usize::from(configures), "{log:?}");
        }
        let had = snapshot(&plugin, &embedder);
        assert_eq!(had, isolation == Isolation::Request);
        embedder.log.take();
        if had {
            for _ in 0..3 {
                assert_eq!(
                    exchange(&plugin, &embedder),
                    ["6A"],
                    "nothing is configured"
                );
            }
            assert_eq!(plugin.stats().vms(), 2, "the root vm, and one that waits");
        }
    }
}

#[test]
fn a_vm_from_a_snapshot_lives_as_any_other() {
    let embedder = Rc::new(Memory::default());
    let plugin = start_for_requests(&guest("", LIFECYCLE), &embedder);
    assert!(snapshot(&plugin, &embedder));
    embedder.log.take();
    for _ in 0..2 {
        assert_eq!(
            exchange(&plugin, &embedder),
            [
                "2create",
                "2request",
                "2response",
                "2log",
                "2done",
                "2delete"
            ],
            "on the root context of the snapshot"
        );
    }
    drop(stream(&[&plugin], &[]));
    assert_eq!(
        embedder.log.take(),
        ["2create", "2log", "2done", "2delete"],
        "a filter that was never entered logs"
    );
    plugin.shut_down();
    assert_eq!(embedder.log.take(), ["1done", "1delete"], "the root vm");
    let mut late = stream(&[&plugin], &[]);
    assert_eq!(late.request_headers(true), Progress::Respond, "ended");
}

#[test]
fn metrics_shared_data_and_declarations_outlive_the_vms() {
    let imports = [
        ("proxy_define_metric", 4),
        ("proxy_get_shared_data", 5),
        ("proxy_set_shared_data", 5),
        ("proxy_set_property", 4),
        ("proxy_call_foreign_function", 6),
    ];
    let increment =
        r#"(import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))"#;
    // Configure defines metric `a`, and declares that property `d` is read-only. A request defines `b`, counts both, and tells b's id,
    // whether `d` can be set a second time, and whether data are there.
    let body = r#"
    (data (i32.const 100) "abd") (data (i32.const 110) "declare_property") (data (i32.const 130) "\0a\01d\10\01")
    (func (export "proxy_on_configure") (param i32 i32) (result i32)
        (drop (call $proxy_define_metric (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 300)))
        (i32.eqz (call $proxy_call_foreign_function (i32.const 110) (i32.const 16) (i32.const 130) (i32.const 5) (i32.const 0) (i32.const 0))))
    (func $set (result i32) (call $proxy_set_property (i32.const 102) (i32.const 1) (i32.const 100) (i32.const 1)))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (drop (call $increment (i32.load (i32.const 300)) (i64.const 1)))
        (drop (call $proxy_define_metric (i32.const 0) (i32.const 101) (i32.const 1) (i32.const 304)))
        (drop (call $increment (i32.load (i32.const 304)) (i64.const 10)))
        (i32.store8 (i32.const 200) (i32.add (i32.const 48) (i32.load (i32.const 304))))
        (drop (call $set))
        (i32.store8 (i32.const 201) (i32.add (i32.const 48) (call $set)))
        (i32.store8 (i32.const 202) (i32.add (i32.const 48) (call $proxy_get_shared_data (i32.const 100) (i32.const 1) (i32.const 8) (i32.const 12) (i32.const 16))))
        (drop (call $proxy_set_shared_data (i32.const 100) (i32.const 1) (i32.const 100) (i32.const 1) (i32.const 0)))
        (call $say (i32.const 200) (i32.const 3))
        (i32.const 0))"#;
    let imports = imports.map(|(name, params)| import(name, params)).concat() + increment;
    let embedder = Rc::new(Memory::default());
    let shared = Arc::new(Shared::default());
    let module = load_for_snapshots(&guest(&imports, body));
    let plugin = start_on(&module, of(Isolation::Request), &shared, &embedder);
    assert_eq!(exchange(&plugin, &embedder), ["821"], "configured for it");
    assert!(snapshot(&plugin, &embedder));
    assert_eq!(exchange(&plugin, &embedder), ["820"], "from the snapshot");
    assert_eq!(
        exchange(&plugin, &embedder),
        ["820"],
        "its metric b had the same id"
    );
    let values = shared.metrics.snapshot();
    let values: Vec<_> = values
        .iter()
        .map(|metric| (metric.name.as_str(), &metric.value))
        .collect();
    assert_eq!(
        values,
        [
            ("a", &MetricValue::Counter(3)),
            ("b", &MetricValue::Counter(30))
        ]
    );
}

#[test]
fn a_trap_costs_nobody_else_anything() {
    let embedder = Rc::new(Memory::default());
    let plugin = start_for_requests(&remembering(), &embedder);
    for from_snapshot in [false, true] {
        if from_snapshot {
            assert!(snapshot(&plugin, &embedder));
        }
        let mut paused = stream(&[&plugin], &[("x-do", "p")]);
        assert_eq!(paused.request_headers(true), Progress::Pause);
        let mut broken = stream(&[&plugin], &[("x-do", "t")]);
        assert_eq!(broken.request_headers(true), Progress::Respond);
        assert_eq!(header(&broken, ":status").as_deref(), Some("503"));
        broken.finish();
        assert_eq!(embedder.woken.take(), [], "the other one is not woken");
        answer(&mut paused, &[(":status", "200")]);
        assert_eq!(paused.response_headers(true), Progress::Continue);
        embedder.log.take();
        let log = exchange(&plugin, &embedder);
        assert_eq!(log.last().map(String::as_str), Some("6A"));
    }
    let stats = plugin.stats();
    assert_eq!(
        stats
            .traps()
            .find(|(kind, _)| *kind == TrapKind::Unreachable),
        Some((TrapKind::Unreachable, 2))
    );
    assert_eq!((stats.restarts(), stats.vms()), (0, 1 + 2), "two wait");
}

#[test]
fn the_bound_on_vms_is_obeyed_and_violated() {
    for policy in [FailurePolicy::Closed, FailurePolicy::Open] {
        let embedder = Rc::new(Memory::default());
        let limits = Limits {
            vms: 3,
            ..Limits::default()
        };
        let spec = PluginSpec {
            limits,
            failure_policy: policy,
            ..of(Isolation::Request)
        };
        let module = load_for_snapshots(&remembering());
        let plugin = start_on(&module, spec, &Arc::default(), &embedder);
        for _ in 0..2 {
            let paused = || {
                let mut stream = stream(&[&plugin], &[("x-do", "p")]);
                assert_eq!(stream.request_headers(true), Progress::Pause);
                stream
            };
            let (first, _second) = (paused(), paused());
            assert_eq!(plugin.stats().vms(), 3);
            let denials = plugin.stats().vm_denials();
            let mut third = stream(&[&plugin], &[]);
            assert_eq!(third.request_headers(true), Progress::Respond, "{policy:?}");
            assert_eq!(header(&third, ":status").as_deref(), Some("503"));
            assert_eq!(plugin.stats().vm_denials(), denials + 1);
            assert_eq!(plugin.stats().start_failures(), 0, "no reason to wait");
            third.finish();
            first.finish();
            assert_eq!(
                stream(&[&plugin], &[]).request_headers(true),
                Progress::Continue,
                "there is room again"
            );
            // The second time from a snapshot.
            let _ = snapshot(&plugin, &embedder);
        }
        assert_eq!(plugin.stats().snapshots(), 1);
    }
}

#[test]
fn what_the_root_vm_learns_reaches_requests_with_the_next_snapshot() {
    let embedder = Rc::new(Memory::default());
    let plugin = start_for_requests(&remembering(), &embedder);
    let period = embedder.tick_period.get();
    assert!(period.is_some());
    assert!(snapshot(&plugin, &embedder));
    assert_eq!(exchange(&plugin, &embedder).last().unwrap(), "6A");
    assert_eq!(
        embedder.tick_period.get(),
        period,
        "a request sets no timer of the plugin"
    );
    embedder.now_ns.set(60_000_000_000);
    assert!(!snapshot(&plugin, &embedder), "nothing ran in the root vm");
    plugin.on_tick();
    assert_eq!(exchange(&plugin, &embedder), ["6A"], "not yet");
    assert!(snapshot(&plugin, &embedder));
    assert_eq!(exchange(&plugin, &embedder), ["6B"]);
    plugin.on_tick();
    embedder.now_ns.set(89_999_999_999);
    assert!(!snapshot(&plugin, &embedder), "at most every 30 s");
    assert_eq!(exchange(&plugin, &embedder), ["6B"], "the old one serves");
    embedder.now_ns.set(90_000_000_000);
    assert!(snapshot(&plugin, &embedder));
    assert_eq!(exchange(&plugin, &embedder), ["6C"]);
    assert_eq!(plugin.stats().snapshots(), 3);
}

#[test]
fn no_snapshot_holds_what_it_must_not() {
    let random = r#"(import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))"#;
    let configure = |body: &str| {
        format!(
            r#"(func (export "proxy_on_configure") (param i32 i32) (result i32) {body} (i32.const 1))
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 0))"#
        )
    };
    let table = r#"(table $t 1 funcref) (func $f (table.set $t (i32.const 0) (ref.null func)))"#;
    let rows = [
        (
            guest(
                random,
                &configure("(drop (call $random (i32.const 300) (i32.const 16)))"),
            ),
            "it was given random bytes",
        ),
        (guest("", &(table.to_owned() + &configure(""))), "table.set"),
        (
            guest("", &configure("(drop (memory.grow (i32.const 256)))")),
            "more than 16777216",
        ),
    ];
    for (wat, reason) in rows {
        let embedder = Rc::new(Memory::default());
        let plugin = start_for_requests(&wat, &embedder);
        assert!(!snapshot(&plugin, &embedder), "{reason}");
        let log = embedder.log.take().join("\n");
        assert!(log.contains("no snapshot: "), "{log}");
        assert!(log.contains(reason), "{log}");
        assert_eq!(exchange(&plugin, &embedder), [""; 0], "{reason}: served");
        let stats = plugin.stats();
        assert_eq!((stats.snapshot_failures(), stats.starts()), (1, 2));
        embedder.now_ns.set(100_000_000_000);
        plugin.on_tick();
        assert!(!snapshot(&plugin, &embedder), "it is not tried again");
        assert_eq!(embedder.log.take(), [""; 0], "nor complained of");
    }
}

#[test]
fn random_bytes_drawn_later_end_the_snapshots() {
    let random = r#"(import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))"#;
    let body = r#"
    (data (i32.const 100) "configured")
    (func (export "proxy_on_configure") (param i32 i32) (result i32) (call $say (i32.const 100) (i32.const 10)) (i32.const 1))
    (func (export "proxy_on_tick") (param i32) (drop (call $random (i32.const 300) (i32.const 16))))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (drop (call $random (i32.const 300) (i32.const 16))) (i32.const 0))"#;
    let embedder = Rc::new(Memory::default());
    let plugin = start_for_requests(&guest(random, body), &embedder);
    assert!(snapshot(&plugin, &embedder));
    embedder.log.take();
    assert_eq!(
        exchange(&plugin, &embedder),
        [""; 0],
        "a request may draw some"
    );
    embedder.now_ns.set(30_000_000_000);
    assert!(!snapshot(&plugin, &embedder), "nothing ran in the root vm");
    plugin.on_tick();
    assert!(!snapshot(&plugin, &embedder));
    assert_eq!(embedder.log.take().len(), 1);
    assert_eq!(
        exchange(&plugin, &embedder),
        ["configured"],
        "an old snapshot does not go on for ever"
    );
}

#[test]
fn without_a_lent_thread_each_request_configures() {
    let embedder = Rc::new(Memory::default());
    let plugin = start_for_requests(&remembering(), &embedder);
    plugin.tend();
    embedder.works.take();
    plugin.tend();
    assert_eq!(plugin.stats().snapshot_failures(), 1);
    assert_eq!(exchange(&plugin, &embedder).last().unwrap(), "6A");
    assert!(
        !snapshot(&plugin, &embedder),
        "asked again only after a while"
    );
    embedder.now_ns.set(30_000_000_000);
    assert!(snapshot(&plugin, &embedder));
    assert_eq!(exchange(&plugin, &embedder).last().unwrap(), "6A");
}

/// Calls out when it is configured with `c`, and on each request; tells of answers.
fn calling() -> String {
    let headers = r"\03\00\00\00\07\00\00\00\01\00\00\00\05\00\00\00\01\00\00\00\0a\00\00\00\01\00\00\00:method\00G\00:path\00/\00:authority\00c\00";
    let body = format!(
        r#"
    (data (i32.const 100) "c") (data (i32.const 110) "{headers}") (data (i32.const 400) "answer")
    (func $call_out
        (drop (call $proxy_http_call (i32.const 100) (i32.const 1) (i32.const 110) (i32.const 59)
            (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 500) (i32.const 20))))
    (func (export "proxy_on_configure") (param i32 i32) (result i32)
        (if (i32.eq (local.get 1) (i32.const 1)) (then (call $call_out)))
        (i32.const 1))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (call $call_out) (i32.const 1))
    (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
        (call $say (i32.const 400) (i32.const 6))
        (drop (call $proxy_set_effective_context (i32.const 2)))
        (drop (call $proxy_continue_stream (i32.const 0))))"#
    );
    let imports = [
        ("proxy_http_call", 10),
        ("proxy_set_effective_context", 1),
        ("proxy_continue_stream", 1),
    ];
    guest(
        &imports.map(|(name, params)| import(name, params)).concat(),
        &body,
    )
}

#[test]
fn answers_reach_the_vm_that_asked() {
    for from_snapshot in [false, true] {
        let embedder = Rc::new(Memory::default());
        let plugin = start_for_requests(&calling(), &embedder);
        assert!(!from_snapshot || snapshot(&plugin, &embedder));
        let mut streams: Vec<_> = (0..2).map(|_| stream(&[&plugin], &[])).collect();
        for stream in &mut streams {
            assert_eq!(stream.request_headers(true), Progress::Pause);
        }
        let ids: Vec<_> = embedder.calls.borrow().iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [CalloutId(4), CalloutId(8)]);
        plugin.on_http_call_response(ids[1], HttpCallResponse::Timeout);
        assert_eq!(embedder.log.take(), ["answer"]);
        assert_eq!(embedder.woken.take(), [StreamToken(9)]);
        let resumed = |stream: &mut portcullis_runtime::HttpStream| {
            stream.resume(portcullis_runtime::Direction::Request)
        };
        assert_eq!(resumed(&mut streams[0]), Progress::Pause);
        assert_eq!(resumed(&mut streams[1]), Progress::Continue);
        drop(streams);
        assert_eq!(embedder.cancelled.get(), 1, "the one not answered");
        plugin.on_http_call_response(ids[0], HttpCallResponse::Timeout);
        assert_eq!(embedder.log.take(), [""; 0], "nobody is there");
    }
}

#[test]
fn no_snapshot_waits_for_an_answer_that_never_comes() {
    let embedder = Rc::new(Memory::default());
    let module = load_for_snapshots(&calling());
    let spec = PluginSpec {
        configuration: Bytes::from("c"),
        ..of(Isolation::Request)
    };
    let plugin = start_on(&module, spec, &Arc::default(), &embedder);
    let (id, _) = embedder.calls.take().pop().unwrap();
    assert!(!snapshot(&plugin, &embedder), "a callout is under way");
    plugin.on_http_call_response(id, HttpCallResponse::Timeout);
    assert!(snapshot(&plugin, &embedder));
}

#[test]
fn neighbours_share_a_vm_where_both_want_to() {
    for isolation in [Isolation::Shared, Isolation::Plugin] {
        let embedder = Rc::new(Memory::default());
        let wat = guest("", LIFECYCLE);
        let first = start_with(of(isolation), &wat, &embedder).unwrap();
        let second = Plugin::start_beside(&first, PluginId(2), Arc::new(of(isolation))).unwrap();
        let log = embedder.log.take();
        if isolation == Isolation::Plugin {
            assert_eq!(
                log.iter().filter(|line| *line == "cre").count(),
                2,
                "two vms"
            );
            continue;
        }
        assert_eq!(
            log,
            [
                "cre",
                "1create",
                "1vm_start",
                "1configure",
                "2create",
                "2vm_start",
                "2configure"
            ]
        );
        // Streams count on from the roots, for both.
        assert_eq!(exchange(&second, &embedder)[0], "3create");
        assert_eq!(exchange(&first, &embedder)[0], "4create");
        second.shut_down();
        assert_eq!(embedder.log.take(), ["2done", "2delete"]);
        assert_eq!(exchange(&first, &embedder)[0], "5create", "it goes on");
    }
}

#[test]
fn neighbours_are_told_apart() {
    // Tells its plugin's name when it is configured, on a tick, and on a request.
    let body = r#"
    (data (i32.const 100) "plugin_name")
    (func $told (param $letter i32)
        (drop (call $proxy_get_property (i32.const 100) (i32.const 11) (i32.const 8) (i32.const 12)))
        (i32.store8 (i32.const 200) (local.get $letter))
        (i32.store8 (i32.const 201) (i32.load8_u (i32.load (i32.const 8))))
        (call $say (i32.const 200) (i32.const 2)))
    (func (export "proxy_on_configure") (param i32 i32) (result i32) (call $told (i32.const 99)) (i32.const 1))
    (func (export "proxy_on_tick") (param i32) (call $told (i32.const 116)))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (call $told (i32.const 114))
        ;; As the first plugin, then as the one that this stream belongs to.
        (drop (call $proxy_set_effective_context (i32.const 1)))
        (call $told (i32.const 49))
        (drop (call $proxy_set_effective_context (local.get 0)))
        (call $told (i32.const 115))
        (drop (call $proxy_set_effective_context (i32.const 0)))
        (call $told (i32.const 48))
        (i32.const 0))"#;
    let imports = import("proxy_get_property", 4) + &import("proxy_set_effective_context", 1);
    let embedder = Rc::new(Memory::default());
    let named = |name: &str| PluginSpec {
        name: name.into(),
        ..of(Isolation::Shared)
    };
    let first = start_with(named("1"), &guest(&imports, body), &embedder).unwrap();
    let second = Plugin::start_beside(&first, PluginId(2), Arc::new(named("2"))).unwrap();
    second.on_tick();
    first.on_tick();
    assert_eq!(embedder.log.take(), ["c1", "c2", "t2", "t1"]);
    assert_eq!(exchange(&second, &embedder), ["r2", "11", "s2", "02"]);
    assert_eq!(exchange(&first, &embedder), ["r1", "11", "s1", "01"]);
}

#[test]
fn a_trap_takes_the_vm_of_all_neighbours() {
    let embedder = Rc::new(Memory::default());
    let first = start_with(of(Isolation::Shared), &remembering(), &embedder).unwrap();
    let second = Plugin::start_beside(&first, PluginId(2), Arc::new(neighbour())).unwrap();
    let mut paused = stream(&[&second], &[("x-do", "p")]);
    assert_eq!(paused.request_headers(true), Progress::Pause);
    let mut broken = stream(&[&first], &[("x-do", "t")]);
    assert_eq!(broken.request_headers(true), Progress::Respond);
    assert_eq!(
        paused.resume(portcullis_runtime::Direction::Request),
        Progress::Respond
    );
    drop((paused, broken));
    embedder.log.take();
    assert_eq!(exchange(&first, &embedder), ["configured", "6A"]);
    assert_eq!(
        exchange(&second, &embedder),
        ["configured", "6A"],
        "in the same vm, where it is configured anew"
    );
    assert_eq!(exchange(&first, &embedder), ["7A"]);
    assert_eq!((first.stats().vms(), second.stats().vms()), (1, 1));
}

#[test]
fn neighbours_share_the_spare_too() {
    let embedder = Rc::new(Memory::default());
    let first = start_with(of(Isolation::Shared), &remembering(), &embedder).unwrap();
    let second = Plugin::start_beside(&first, PluginId(2), Arc::new(neighbour())).unwrap();
    for round in 1..3 {
        first.tend();
        second.tend();
        assert_eq!((first.stats().vms(), second.stats().vms()), (2, 2));
        let mut broken = stream(&[&first], &[("x-do", "t")]);
        assert_eq!(broken.request_headers(true), Progress::Respond);
        drop(broken);
        embedder.log.take();
        assert_eq!(exchange(&second, &embedder), ["6A"], "round {round}");
        assert_eq!(exchange(&first, &embedder), ["7A"], "the same vm");
        assert_eq!((first.stats().vms(), second.stats().vms()), (1, 1));
        assert_eq!(second.stats().restarts(), round);
    }
}

#[test]
fn a_neighbour_that_is_refused_leaves_the_vm_standing() {
    let body = r#"
    (func (export "proxy_on_configure") (param i32 i32) (result i32)
        (if (i32.eq (local.get 1) (i32.const 2)) (then unreachable))
        (i32.ne (local.get 1) (i32.const 1)))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 0))"#;
    let configured = |bytes: &'static str| PluginSpec {
        configuration: Bytes::from(bytes),
        ..of(Isolation::Shared)
    };
    for (configuration, starts) in [("1", 1), ("22", 2)] {
        let embedder = Rc::new(Memory::default());
        let first = start_with(configured(""), &guest("", body), &embedder).unwrap();
        let second = Plugin::start_beside(&first, PluginId(2), Arc::new(configured(configuration)));
        assert!(second.is_err());
        embedder.log.take();
        assert_eq!(exchange(&first, &embedder), [""; 0]);
        assert_eq!(first.stats().starts(), starts, "a trap is another matter");
    }
}

#[test]
fn a_module_loaded_without_snapshots_configures_each_time() {
    let embedder = Rc::new(Memory::default());
    let module = load(&remembering()).unwrap();
    let plugin = start_on(&module, of(Isolation::Request), &Arc::default(), &embedder);
    assert!(!snapshot(&plugin, &embedder));
    assert!(embedder.log.take().join("").contains("not loaded for it"));
    assert_eq!(exchange(&plugin, &embedder), ["configured", "6A"]);
    let with = load_for_snapshots(&remembering());
    assert_eq!(with.digest(), module.digest());
    assert_eq!(
        with.exports(),
        module.exports(),
        "nothing shows of the instruments"
    );
}
