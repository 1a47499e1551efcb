//! Bounds and allow-lists are a plugin's: they hold over all its VMs, and what one policy leaves behind when another takes its place.

use std::{collections::BTreeSet, rc::Rc, sync::Arc};

use portcullis_runtime::{
    Allow, DenialKind, Direction, HttpCallResponse, Isolation, Limits, Module, NoCache, Plugin,
    PluginId, PluginSpec, Progress, Shared, StreamToken, UnknownImports,
};

use crate::bed::{Memory, answer, guest, import, load, runtime, spec, start_with, stream};

const ALL: [Isolation; 3] = [Isolation::Shared, Isolation::Plugin, Isolation::Request];

fn named(name: &str, isolation: Isolation, limits: &Limits) -> PluginSpec {
    PluginSpec {
        isolation,
        limits: limits.clone(),
        ..spec(name)
    }
}

fn loaded(wat: &str, isolation: Isolation) -> Arc<Module> {
    if isolation != Isolation::Request {
        return load(wat).unwrap();
    }
    let wasm = wat::parse_str(wat).unwrap();
    runtime()
        .load_for_snapshots(&wasm, &NoCache, UnknownImports::Refuse)
        .unwrap()
}

fn start(module: &Arc<Module>, spec: PluginSpec, embedder: &Rc<Memory>) -> Rc<Plugin> {
    let (module, shared) = (Arc::clone(module), Arc::default());
    let lent = Rc::<Memory>::clone(embedder);
    Plugin::start(PluginId(1), module, Arc::new(spec), shared, lent).unwrap()
}

/// Has the snapshot made, where the plugin begins from one.
fn settle(plugin: &Plugin, embedder: &Memory) {
    plugin.tend();
    for work in embedder.works.take() {
        work.run();
    }
    plugin.tend();
    let snapshots = u64::from(plugin.spec().isolation == Isolation::Request);
    assert_eq!(plugin.stats().snapshots(), snapshots);
    embedder.log.take();
}

fn take(plugin: &Rc<Plugin>, embedder: &Memory) -> Vec<String> {
    let mut stream = stream(&[plugin], &[]);
    assert_eq!(stream.request_headers(true), Progress::Continue);
    answer(&mut stream, &[(":status", "200")]);
    stream.finish();
    embedder.log.take()
}

/// On a request, and on a tick, calls the cluster at 100 and says the status in two digits; the request pauses.
fn calling(cluster: &str) -> String {
    let headers = r"\03\00\00\00\07\00\00\00\01\00\00\00\05\00\00\00\01\00\00\00\0a\00\00\00\01\00\00\00:method\00G\00:path\00/\00:authority\00c\00";
    let body = format!(
        r#"
    (data (i32.const 100) "{cluster}") (data (i32.const 110) "{headers}") (data (i32.const 300) "svcm")
    (func $tell (param $status i32)
        (i32.store8 (i32.const 0) (i32.add (i32.const 48) (i32.div_u (local.get $status) (i32.const 10))))
        (i32.store8 (i32.const 1) (i32.add (i32.const 48) (i32.rem_u (local.get $status) (i32.const 10))))
        (call $say (i32.const 0) (i32.const 2)))
    (func $call_out
        (call $tell (call $proxy_http_call (i32.const 100) (i32.const 1) (i32.const 110) (i32.const 59)
            (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 500) (i32.const 20))))
    (func $open
        (call $tell (call $proxy_grpc_stream (i32.const 100) (i32.const 1) (i32.const 300) (i32.const 3) (i32.const 303) (i32.const 1)
            (i32.const 0) (i32.const 0) (i32.const 20))))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (call $call_out) (i32.const 1))
    (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) (call $open) (i32.const 0))
    (func (export "proxy_on_tick") (param i32) (call $call_out))
    (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32))"#
    );
    let imports = import("proxy_http_call", 10) + &import("proxy_grpc_stream", 9);
    guest(&imports, &body)
}

#[test]
fn callouts_in_flight_are_a_plugin_s_whatever_vm_makes_them() {
    let limits = Limits {
        callouts_in_flight: 2,
        ..Limits::default()
    };
    for isolation in ALL {
        let embedder = Rc::new(Memory::default());
        let module = loaded(&calling("c"), isolation);
        let plugin = start(&module, named("p", isolation, &limits), &embedder);
        settle(&plugin, &embedder);
        let paused = |expected: &str| {
            let mut stream = stream(&[&plugin], &[]);
            assert_eq!(stream.request_headers(true), Progress::Pause);
            assert_eq!(embedder.log.take(), [expected], "{isolation:?}");
            stream
        };
        let (mut first, second) = (paused("00"), paused("00"));
        let third = paused("10");
        // The same for gRPC, and for the plugin's own VM.
        answer(&mut first, &[(":status", "200")]);
        assert_eq!(first.response_headers(true), Progress::Continue);
        plugin.on_tick();
        let told = embedder.log.take();
        let ticks = if isolation == Isolation::Request {
            1
        } else {
            2
        };
        assert_eq!(told, vec!["10"; 1 + ticks], "{isolation:?}: the spare too");
        // An answer makes room for one.
        let id = embedder.calls.borrow()[0].0;
        plugin.on_http_call_response(id, HttpCallResponse::Timeout);
        let fourth = paused("00");
        let fifth = paused("10");
        // So does the end of a VM that waits for one.
        for stream in [first, second, third, fourth, fifth] {
            stream.finish();
        }
        if isolation == Isolation::Request {
            drop((paused("00"), paused("00")));
        }
    }
}

#[test]
fn neighbours_in_one_vm_have_a_bound_each() {
    let limits = Limits {
        callouts_in_flight: 1,
        log_lines_per_second: 2,
        ..Limits::default()
    };
    let embedder = Rc::new(Memory::default());
    let spec = |name| named(name, Isolation::Shared, &limits);
    let first = start_with(spec("p"), &calling("c"), &embedder).unwrap();
    let second = Plugin::start_beside(&first, PluginId(2), Arc::new(spec("q"))).unwrap();
    for plugin in [&first, &second] {
        for _ in 0..3 {
            plugin.on_tick();
        }
        assert_eq!(embedder.log.take(), ["00", "10"]);
        assert_eq!(plugin.stats().log_drops(), 1);
    }
    assert_eq!(embedder.calls.borrow().len(), 2);
}

#[test]
fn log_lines_are_a_plugin_s_whatever_vm_writes_them() {
    let body = r#"(data (i32.const 100) "line")
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $say (i32.const 100) (i32.const 4)) (i32.const 0))"#;
    let limits = Limits {
        log_lines_per_second: 3,
        ..Limits::default()
    };
    for isolation in ALL {
        let embedder = Rc::new(Memory::default());
        let module = loaded(&guest("", body), isolation);
        let plugin = start(&module, named("p", isolation, &limits), &embedder);
        settle(&plugin, &embedder);
        for _ in 0..3 {
            assert_eq!(take(&plugin, &embedder), ["line"], "{isolation:?}: obeyed");
        }
        for _ in 0..4 {
            assert_eq!(take(&plugin, &embedder), [""; 0], "{isolation:?}: violated");
        }
        assert_eq!(plugin.stats().log_drops(), 4);
        embedder.now_ns.set(embedder.now_ns.get() + 400_000_000);
        let told = "4 log lines dropped: more than its bound a second";
        assert_eq!(take(&plugin, &embedder), [told, "line"], "{isolation:?}");
    }
}

#[test]
fn what_is_denied_is_denied_in_every_vm_and_said_once() {
    // Says the status of a hostcall that no list has.
    let body = r#"
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (i32.store8 (i32.const 0) (i32.add (i32.const 48) (call $proxy_get_current_time_nanoseconds (i32.const 8))))
        (call $say (i32.const 0) (i32.const 1))
        (i32.const 0))
    (func (export "proxy_on_log") (param i32) unreachable)"#;
    let wat = guest(&import("proxy_get_current_time_nanoseconds", 1), body);
    let names = ["proxy_log", "proxy_on_request_headers"];
    let allow = Allow {
        capabilities: Some(
            names
                .map(str::to_owned)
                .into_iter()
                .collect::<BTreeSet<_>>(),
        ),
        ..Allow::default()
    };
    for isolation in ALL {
        let embedder = Rc::new(Memory::default());
        let module = runtime()
            .restrict(&loaded(&wat, isolation), &allow)
            .unwrap();
        let plugin = start(
            &module,
            named("p", isolation, &Limits::default()),
            &embedder,
        );
        // Before the snapshot and from it: `:` is 10.
        let warning =
            "capability proxy_get_current_time_nanoseconds is denied: no allow-list has it";
        assert_eq!(take(&plugin, &embedder), [warning, ":"], "{isolation:?}");
        settle(&plugin, &embedder);
        assert_eq!(take(&plugin, &embedder), [":"], "{isolation:?}");
        assert_eq!(take(&plugin, &embedder), [":"], "{isolation:?}");
        let stats = plugin.stats();
        let denials = stats.denials().find(|(_, count)| *count > 0);
        assert_eq!(denials, Some((DenialKind::Capability, 3)), "{isolation:?}");
        assert_eq!(stats.traps().map(|(_, count)| count).sum::<u64>(), 0);
    }
}

#[test]
fn plugins_with_other_lists_share_no_vm() {
    let module = load(&guest("", "")).unwrap();
    let allow = Allow {
        foreign_functions: Some(BTreeSet::new()),
        ..Allow::default()
    };
    let restricted = runtime().restrict(&module, &allow).unwrap();
    let embedder = Rc::new(Memory::default());
    let spec = |name| named(name, Isolation::Shared, &Limits::default());
    let plugin = start(&module, spec("p"), &embedder);
    assert_eq!(module.digest(), restricted.digest());
    assert!(plugin.may_share(&module, &spec("q")));
    assert!(!plugin.may_share(&restricted, &spec("q")));
    let limits = Limits {
        memory_bytes: 1 << 20,
        ..Limits::default()
    };
    assert!(!plugin.may_share(&module, &named("q", Isolation::Shared, &limits)));
    assert!(!plugin.may_share(&module, &named("q", Isolation::Plugin, &Limits::default())));
}

#[test]
fn clusters_are_called_or_denied() {
    for (cluster, http, grpc, denied) in [("c", "00", "00", 0), ("d", "02", "04", 4)] {
        let embedder = Rc::new(Memory::default());
        let plugin = start_with(spec("p"), &calling(cluster), &embedder).unwrap();
        let mut log = Vec::new();
        for _ in 0..2 {
            let mut stream = stream(&[&plugin], &[]);
            assert_eq!(stream.request_headers(true), Progress::Pause);
            answer(&mut stream, &[(":status", "200")]);
            assert_eq!(stream.response_headers(true), Progress::Continue);
            stream.finish();
            log.append(&mut embedder.log.take());
        }
        let mut expected = vec![http, grpc, http, grpc];
        if denied > 0 {
            expected.insert(0, "cluster d is denied: no allow-list has it");
        }
        assert_eq!(log, expected, "warned of once");
        assert_eq!(
            embedder.calls.borrow().len(),
            if denied > 0 { 0 } else { 2 }
        );
        let stats = plugin.stats();
        let counted = stats.denials().map(|(_, count)| count).sum::<u64>();
        assert_eq!(counted, denied);
        assert!(
            stats
                .denials()
                .any(|it| it == (DenialKind::Cluster, denied))
        );
    }
}

/// Pauses a request that is no answer yet; traps on a tick.
const PAUSING: &str = r#"
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 1))
    (func (export "proxy_on_tick") (param i32) unreachable)"#;

#[test]
fn a_plugin_whose_place_is_taken_serves_on_and_makes_nothing_ready() {
    for isolation in ALL {
        let embedder = Rc::new(Memory::default());
        let module = loaded(&guest("", PAUSING), isolation);
        let plugin = start(
            &module,
            named("p", isolation, &Limits::default()),
            &embedder,
        );
        settle(&plugin, &embedder);
        let stats = plugin.stats();
        let spare = u64::from(isolation != Isolation::Request);
        assert_eq!(stats.vms(), 1 + spare, "{isolation:?}");
        let mut held = stream(&[&plugin], &[]);
        assert_eq!(held.request_headers(true), Progress::Pause);
        plugin.retire();
        plugin.tend();
        let of_request = u64::from(isolation == Isolation::Request);
        assert_eq!(stats.vms(), 1 + of_request, "{isolation:?}: no spare");
        // The root VM has changed, and a minute is over: a snapshot would be due.
        embedder.now_ns.set(60_000_000_000);
        plugin.on_queue_ready(1);
        plugin.tend();
        assert!(embedder.works.borrow().is_empty(), "{isolation:?}");
        answer(&mut held, &[(":status", "200")]);
        assert_eq!(held.response_headers(true), Progress::Continue);
        held.finish();
        plugin.shut_down();
        assert!(plugin.has_ended());
        assert_eq!(stats.vms(), 0, "{isolation:?}");
    }
}

#[test]
fn a_snapshot_that_is_being_made_is_let_go_with_its_plugin() {
    type End = fn(&Plugin);
    let ends: [End; 3] = [Plugin::retire, Plugin::shut_down, Plugin::abandon];
    for end in ends {
        let embedder = Rc::new(Memory::default());
        let module = loaded(&guest("", PAUSING), Isolation::Request);
        let spec = named("p", Isolation::Request, &Limits::default());
        let plugin = start(&module, spec, &embedder);
        plugin.tend();
        let mut works = embedder.works.take();
        let work = works.pop().expect("it is being made");
        end(&plugin);
        work.run();
        plugin.tend();
        assert_eq!(plugin.stats().snapshots(), 0);
        assert_eq!(plugin.stats().snapshot_failures(), 0, "none is missed");
    }
}

#[test]
fn abandoned_plugins_refuse_what_their_vms_hold() {
    for isolation in ALL {
        let embedder = Rc::new(Memory::default());
        let module = loaded(&guest("", PAUSING), isolation);
        let plugin = start(
            &module,
            named("p", isolation, &Limits::default()),
            &embedder,
        );
        settle(&plugin, &embedder);
        let mut held = stream(&[&plugin], &[]);
        assert_eq!(held.request_headers(true), Progress::Pause);
        plugin.retire();
        plugin.abandon();
        assert_eq!(embedder.woken.take(), [StreamToken(9)], "{isolation:?}");
        assert_eq!(held.resume(Direction::Request), Progress::Respond);
        held.finish();
        assert!(plugin.has_ended());
        assert_eq!(plugin.stats().vms(), 0, "{isolation:?}");
        let mut late = stream(&[&plugin], &[]);
        assert_eq!(late.request_headers(true), Progress::Respond);
    }
}

#[test]
fn plugins_of_one_name_count_together_and_wait_apart() {
    // Refuses its configuration from the second time on, as long as its shared data stand.
    let body = r#"
    (data (i32.const 100) "k")
    (func (export "proxy_on_configure") (param i32 i32) (result i32) (local $found i32)
        (local.set $found (call $proxy_get_shared_data (i32.const 100) (i32.const 1) (i32.const 8) (i32.const 12) (i32.const 16)))
        (drop (call $proxy_set_shared_data (i32.const 100) (i32.const 1) (i32.const 100) (i32.const 1) (i32.const 0)))
        (i32.ne (local.get $found) (i32.const 0)))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) unreachable)"#;
    let imports = import("proxy_get_shared_data", 5) + &import("proxy_set_shared_data", 5);
    let embedder = Rc::new(Memory::default());
    let shared = Arc::new(Shared::default());
    let begin = |vm_id: &str, wat: &str| {
        let spec = PluginSpec {
            vm_id: vm_id.into(),
            ..named("p", Isolation::Plugin, &Limits::default())
        };
        let lent = Rc::<Memory>::clone(&embedder);
        let module = load(wat).unwrap();
        Plugin::start(
            PluginId(1),
            module,
            Arc::new(spec),
            Arc::clone(&shared),
            lent,
        )
        .unwrap()
    };
    let old = begin("old", &guest(&imports, body));
    let mut broken = stream(&[&old], &[]);
    assert_eq!(broken.request_headers(true), Progress::Respond);
    broken.finish();
    old.tend();
    assert!(old.stats().is_waiting());
    let new = begin("new", &guest("", PAUSING));
    assert!(new.stats().is_waiting(), "the old one does");
    assert_eq!(new.stats().starts(), 2, "they count together");
    old.retire();
    assert!(!new.stats().is_waiting());
    embedder.now_ns.set(60_000_000_000);
    old.tend();
    assert!(new.stats().start_failures() > 1, "it was tried again");
    assert!(!new.stats().is_waiting(), "and is nobody's concern");
    assert_eq!(new.stats().vms(), 1);
    old.shut_down();
    new.shut_down();
    assert_eq!(new.stats().vms(), 0);
}
