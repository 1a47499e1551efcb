//! Guests that trap, loop, grow or do not start.

use std::rc::Rc;
use std::sync::Arc;

use portcullis_runtime::{
    Direction, FailurePolicy, Limits, Plugin, PluginId, PluginSpec, Progress, Shared, StartFailure,
    StreamToken, TrapKind,
};

use crate::bed::{
    Memory, guest, header, import, load, spec, start, start_with, stream, with_ticks,
};

/// Traps, recurses, loops or grows without end if the request has the header `x-do` with this letter.
fn hostile() -> String {
    let body = r#"
    (data (i32.const 100) "x-do")
    (func $recurse (result i32) (i32.add (call $recurse) (i32.const 1)))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (local $what i32)
        (if (call $proxy_get_header_map_value (i32.const 0) (i32.const 100) (i32.const 4) (i32.const 8) (i32.const 12))
            (then (return (i32.const 0))))
        (local.set $what (i32.load8_u (i32.load (i32.const 8))))
        (if (i32.eq (local.get $what) (i32.const 116)) (then unreachable))
        (if (i32.eq (local.get $what) (i32.const 114)) (then (drop (call $recurse))))
        (if (i32.eq (local.get $what) (i32.const 108)) (then (loop $l (br $l))))
        (if (i32.eq (local.get $what) (i32.const 119)) (then (drop (i32.load (i32.const -8)))))
        (if (i32.eq (local.get $what) (i32.const 100)) (then (drop (i32.div_u (i32.const 1) (i32.const 0)))))
        (if (i32.eq (local.get $what) (i32.const 103)) (then
            (loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable))
        (i32.const 0))"#;
    guest(&import("proxy_get_header_map_value", 5), body)
}

#[test]
fn a_vm_that_breaks_costs_one_request() {
    for (what, kind) in [
        ("t", TrapKind::Unreachable),
        ("r", TrapKind::StackOverflow),
        ("l", TrapKind::OutOfTime),
        ("w", TrapKind::OutOfBounds),
        ("d", TrapKind::Other),
        ("g", TrapKind::Unreachable),
    ] {
        for policy in [FailurePolicy::Closed, FailurePolicy::Open] {
            let embedder = Rc::new(Memory::default());
            // Only the one that loops uses up its time, however often the clock ticks.
            embedder.cpu_step_ns.set(if kind == TrapKind::OutOfTime {
                6_000_000
            } else {
                0
            });
            let plugin = start_with(
                PluginSpec {
                    failure_policy: policy,
                    ..spec("p")
                },
                &hostile(),
                &embedder,
            )
            .unwrap();
            for round in 1..3u64 {
                let mut broken = stream(&[&plugin], &[("x-do", what)]);
                assert_eq!(
                    with_ticks(|| broken.request_headers(true)),
                    Progress::Respond,
                    "{what} {policy:?}"
                );
                assert_eq!(header(&broken, ":status").as_deref(), Some("503"));
                assert_eq!(
                    header(&broken, "content-type").as_deref(),
                    Some("application/problem+json")
                );
                assert_eq!(
                    header(&broken, "x-policy-decision-id").as_deref(),
                    Some("0123456789abcdef")
                );
                let body = broken.take_local_body();
                assert!(
                    body.ends_with(br#""status":503,"decision_id":"0123456789abcdef"}"#),
                    "{body:?}"
                );
                assert_eq!(broken.response_headers(false), Progress::Continue);
                assert_eq!(broken.response_body(body.clone(), true), Progress::Continue);
                assert_eq!(broken.take_response_body(), body);
                broken.finish();
                assert_eq!(
                    stream(&[&plugin], &[]).request_headers(true),
                    Progress::Continue,
                    "the next one is served"
                );
                assert_eq!(plugin.stats().restarts(), round);
                assert_eq!(
                    plugin.stats().traps().find(|(k, _)| *k == kind),
                    Some((kind, round)),
                    "{what}: {:?}",
                    embedder.log.borrow()
                );
                assert_eq!(plugin.stats().refused(), round);
            }
        }
    }
}

#[test]
fn a_throttled_guest_is_not_a_looping_one() {
    let embedder = Rc::new(Memory::default());
    let body = r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (local $n i32)
        (loop $l (br_if $l (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 50000000))))
        (i32.const 0))"#;
    let plugin = start(&guest("", body), &embedder);
    // Its CPU time stands still while many ticks pass.
    assert_eq!(
        with_ticks(|| stream(&[&plugin], &[]).request_headers(true)),
        Progress::Continue
    );
    assert_eq!(plugin.stats().restarts(), 0);
}

#[test]
fn the_memory_bound_is_obeyed_and_violated() {
    let grow = |pages| {
        let body = format!(
            r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (i32.eq (memory.grow (i32.const {pages})) (i32.const -1)) (then unreachable))
            (i32.const 0))"#
        );
        guest("", &body)
    };
    for (pages, expected) in [(14, Progress::Continue), (15, Progress::Respond)] {
        let limits = Limits {
            memory_bytes: 16 << 16,
            ..Limits::default()
        };
        let plugin = start_with(
            PluginSpec {
                limits,
                ..spec("p")
            },
            &grow(pages),
            &Rc::default(),
        )
        .unwrap();
        assert_eq!(
            stream(&[&plugin], &[]).request_headers(true),
            expected,
            "2 + {pages} pages of 16"
        );
        assert_eq!(
            plugin.stats().memory_denials(),
            u64::from(expected == Progress::Respond)
        );
    }
    let limits = Limits {
        memory_bytes: 1 << 16,
        ..Limits::default()
    };
    let error = start_with(
        PluginSpec {
            limits,
            ..spec("p")
        },
        &grow(0),
        &Rc::default(),
    )
    .err()
    .unwrap();
    assert!(
        matches!(error.failure, StartFailure::Instantiate(_)),
        "{error}"
    );
}

#[test]
fn a_start_that_fails_backs_off_and_says_why() {
    // Refuses to be configured from the second VM on: shared data keeps count.
    let body = r#"
        (data (i32.const 100) "count") (data (i32.const 110) "bad key: x")
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (if (i32.eqz (call $proxy_get_shared_data (i32.const 100) (i32.const 5) (i32.const 8) (i32.const 12) (i32.const 16)))
                (then (drop (call $log (i32.const 4) (i32.const 110) (i32.const 10))) (return (i32.const 0))))
            (drop (call $proxy_set_shared_data (i32.const 100) (i32.const 5) (i32.const 100) (i32.const 5) (i32.const 0)))
            (i32.const 1))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) unreachable)"#;
    let wat = guest(
        &(import("proxy_get_shared_data", 5) + &import("proxy_set_shared_data", 5)),
        body,
    );
    for (policy, expected) in [
        (FailurePolicy::Closed, Progress::Respond),
        (FailurePolicy::Open, Progress::Continue),
    ] {
        let embedder = Rc::new(Memory::default());
        let shared = Arc::new(Shared::default());
        let module = load(&wat).unwrap();
        let begin = || {
            let spec = Arc::new(PluginSpec {
                failure_policy: policy,
                ..spec("p")
            });
            Plugin::start(
                PluginId(1),
                Arc::clone(&module),
                spec,
                Arc::clone(&shared),
                Rc::<Memory>::clone(&embedder),
            )
        };
        let plugin = begin().unwrap();
        let error = begin().err().unwrap();
        assert_eq!(error.failure, StartFailure::ConfigurationRefused);
        assert_eq!(error.log, ["bad key: x"]);
        assert_eq!(
            error.to_string(),
            "plugin p: proxy_on_configure refused the configuration: bad key: x"
        );

        assert_eq!(
            stream(&[&plugin], &[]).request_headers(true),
            Progress::Respond,
            "the request that broke it, even when open"
        );
        assert_eq!(
            stream(&[&plugin], &[]).request_headers(true),
            expected,
            "{policy:?}"
        );
        assert_eq!(plugin.stats().start_failures(), 1);
        assert!(!plugin.is_ready());
        stream(&[&plugin], &[]).request_headers(true);
        assert_eq!(plugin.stats().start_failures(), 1, "it waits");
        embedder.now_ns.set(2_000_000_000);
        stream(&[&plugin], &[]).request_headers(true);
        assert_eq!(plugin.stats().start_failures(), 2, "it tries again");
    }
}

#[test]
fn streams_of_a_broken_vm_are_woken_and_refused() {
    let body = r#"
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 1))
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) (i32.const 0))
        (func (export "proxy_on_tick") (param i32) unreachable)"#;
    let embedder = Rc::new(Memory::default());
    let plugin = start(&guest("", body), &embedder);
    let mut paused = stream(&[&plugin], &[]);
    assert_eq!(paused.request_headers(true), Progress::Pause);
    plugin.on_tick();
    assert_eq!(embedder.woken.take(), [StreamToken(9)]);
    assert_eq!(paused.resume(Direction::Request), Progress::Respond);
    assert_eq!(header(&paused, ":status").as_deref(), Some("503"));
    plugin.on_tick();
    assert_eq!(
        plugin.stats().traps().map(|(_, count)| count).sum::<u64>(),
        1,
        "a broken vm is never entered again"
    );
}

#[test]
fn a_guest_that_only_waits_has_a_wall_cap() {
    for (step_ms, expected) in [(1, Progress::Continue), (600, Progress::Respond)] {
        let embedder = Rc::new(Memory::default());
        let body = r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (local $n i32)
            (loop $l (br_if $l (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 50000000))))
            (i32.const 0))"#;
        let limits = Limits {
            callback_wall_ms: if step_ms == 1 { u64::MAX } else { 1_000 },
            ..Limits::default()
        };
        let plugin = start_with(
            PluginSpec {
                limits,
                ..spec("p")
            },
            &guest("", body),
            &embedder,
        )
        .unwrap();
        // Its CPU time stands still; each look at the clock finds it later.
        embedder.now_step_ns.set(step_ms * 1_000_000);
        assert_eq!(
            with_ticks(|| stream(&[&plugin], &[]).request_headers(true)),
            expected,
            "{step_ms} ms a look"
        );
        let timed_out = plugin
            .stats()
            .traps()
            .find_map(|(kind, count)| (kind == TrapKind::OutOfTime).then_some(count));
        assert_eq!(
            timed_out.unwrap_or(0),
            u64::from(expected == Progress::Respond)
        );
    }
}
