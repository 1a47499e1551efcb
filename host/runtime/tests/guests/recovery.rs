//! What happens after a VM broke or did not start, and bounds that cost no VM.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use portcullis_runtime::{Limits, PluginSpec, Progress};

use crate::bed::{Memory, guest, header, import, spec, start, start_with, stream};

/// Tells of its configuration and of ticks; traps on requests, with its second answer to shared data refuses to be configured where `count` says.
fn fragile(refuses: bool) -> String {
    let refusal = if refuses {
        r#"(if (i32.eqz (call $proxy_get_shared_data (i32.const 120) (i32.const 1) (i32.const 8) (i32.const 12) (i32.const 16)))
            (then (return (i32.const 0))))
        (drop (call $proxy_set_shared_data (i32.const 120) (i32.const 1) (i32.const 120) (i32.const 1) (i32.const 0)))"#
    } else {
        ""
    };
    let body = format!(
        r#"
    (data (i32.const 100) "configured") (data (i32.const 110) "tick") (data (i32.const 120) "k") (data (i32.const 121) "x-do")
    (func (export "proxy_on_configure") (param i32 i32) (result i32)
        (call $say (i32.const 100) (i32.const 10))
        (drop (call $proxy_set_tick_period_milliseconds (i32.const 500)))
        {refusal}
        (i32.const 1))
    (func (export "proxy_on_tick") (param i32) (call $say (i32.const 110) (i32.const 4)))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (if (i32.eqz (call $proxy_get_header_map_value (i32.const 0) (i32.const 121) (i32.const 4) (i32.const 8) (i32.const 12))) (then unreachable))
        (i32.const 0))"#
    );
    let imports = [
        ("proxy_set_tick_period_milliseconds", 1),
        ("proxy_get_header_map_value", 5),
        ("proxy_get_shared_data", 5),
        ("proxy_set_shared_data", 5),
    ];
    guest(
        &imports.map(|(name, params)| import(name, params)).concat(),
        &body,
    )
}

#[test]
fn a_spare_takes_over_at_once() {
    let embedder = Rc::new(Memory::default());
    let plugin = start(&fragile(false), &embedder);
    let stats = plugin.stats();
    plugin.tend();
    plugin.tend();
    assert_eq!(
        embedder.log.take(),
        ["configured", "configured"],
        "one spare"
    );
    assert_eq!((stats.starts(), stats.vms()), (2, 2));
    plugin.on_tick();
    assert_eq!(embedder.log.take(), ["tick", "tick"], "the spare keeps up");
    let period = embedder.tick_period.take();
    assert_eq!(period, Some(Duration::from_millis(500)));

    let mut broken = stream(&[&plugin], &[("x-do", "t")]);
    assert_eq!(broken.request_headers(true), Progress::Respond);
    broken.finish();
    assert!(embedder.tended.get() > 0, "it asks to be tended");
    embedder.log.take();
    assert_eq!(
        stream(&[&plugin], &[]).request_headers(true),
        Progress::Continue
    );
    assert_eq!(
        embedder.log.take(),
        [""; 0],
        "nothing was configured for it"
    );
    assert_eq!((stats.starts(), stats.restarts(), stats.vms()), (2, 1, 1));
    assert_eq!(embedder.tick_period.get(), period, "its timer runs now");
    plugin.on_tick();
    assert_eq!(embedder.log.take(), ["tick"]);
    plugin.tend();
    assert_eq!((stats.starts(), stats.vms()), (3, 2), "the next spare");
    plugin.shut_down();
    assert_eq!(stats.vms(), 0);
}

#[test]
fn without_a_spare_a_vm_is_started_for_the_request() {
    let embedder = Rc::new(Memory::default());
    let limits = Limits {
        spare_vms: 0,
        ..Limits::default()
    };
    let spec = PluginSpec {
        limits,
        ..spec("p")
    };
    let plugin = start_with(spec, &fragile(false), &embedder).unwrap();
    plugin.tend();
    assert_eq!(plugin.stats().starts(), 1);
    assert_eq!(
        stream(&[&plugin], &[("x-do", "t")]).request_headers(true),
        Progress::Respond
    );
    plugin.tend();
    assert_eq!(
        plugin.stats().restarts(),
        1,
        "tending did it, off the request path"
    );
    assert_eq!(
        stream(&[&plugin], &[]).request_headers(true),
        Progress::Continue
    );
    assert_eq!(plugin.stats().starts(), 2);
}

#[test]
fn a_spare_that_does_not_start_is_waited_for_and_harms_nobody() {
    let embedder = Rc::new(Memory::default());
    let plugin = start(&fragile(true), &embedder);
    let stats = plugin.stats();
    plugin.tend();
    plugin.tend();
    assert_eq!(stats.start_failures(), 1, "it waits before the next");
    assert!(!stats.is_waiting(), "a vm stands");
    assert_eq!(
        embedder.tick_period.get(),
        Some(Duration::from_millis(500)),
        "whose timer runs"
    );
    assert_eq!(
        stream(&[&plugin], &[]).request_headers(true),
        Progress::Continue
    );
    embedder.now_ns.set(1_400_000_000);
    plugin.tend();
    assert_eq!(stats.start_failures(), 2);
    // Only when none stands, it shows.
    let mut broken = stream(&[&plugin], &[("x-do", "t")]);
    assert_eq!(broken.request_headers(true), Progress::Respond);
    assert!(!stats.is_waiting());
    plugin.tend();
    assert!(stats.is_waiting());
    assert!(!plugin.is_ready());
    assert_eq!(
        stream(&[&plugin], &[]).request_headers(true),
        Progress::Respond
    );
    assert_eq!(stats.start_failures(), 3, "no request tries meanwhile");
}

#[test]
fn a_plugin_that_failed_comes_back_without_a_request() {
    // Refuses its configuration the second time, and only then.
    let body = r#"
    (data (i32.const 100) "k")
    (func (export "proxy_on_configure") (param i32 i32) (result i32)
        (local $found i32)
        (local.set $found (call $proxy_get_shared_data (i32.const 100) (i32.const 1) (i32.const 8) (i32.const 12) (i32.const 16)))
        (drop (call $proxy_set_shared_data (i32.const 100) (i32.const 1) (i32.const 100)
            (i32.add (i32.const 1) (select (i32.const 0) (i32.load (i32.const 12)) (local.get $found))) (i32.const 0)))
        (i32.or (local.get $found) (i32.ne (i32.load (i32.const 12)) (i32.const 1))))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) unreachable)"#;
    let imports = import("proxy_get_shared_data", 5) + &import("proxy_set_shared_data", 5);
    let embedder = Rc::new(Memory::default());
    let plugin = start(&guest(&imports, body), &embedder);
    assert_eq!(
        stream(&[&plugin], &[]).request_headers(true),
        Progress::Respond
    );
    plugin.tend();
    assert!(plugin.stats().is_waiting());
    embedder.now_ns.set(700_000_000);
    plugin.tend();
    assert!(plugin.stats().is_waiting(), "the wait is 0.75 s at least");
    embedder.now_ns.set(1_300_000_000);
    plugin.tend();
    assert!(!plugin.stats().is_waiting());
    assert!(plugin.is_ready());
}

#[test]
fn the_cpu_bound_of_a_request_is_obeyed_and_violated() {
    cpu_bound_of_a_request("");
}

#[test]
fn the_cpu_bound_of_a_request_is_not_left_by_acting_for_another() {
    cpu_bound_of_a_request("(drop (call $proxy_set_effective_context (i32.const 1)))");
}

fn cpu_bound_of_a_request(first: &str) {
    // Each chunk of a body is an epoch tick, hence 5 ms.
    let body = r#"
    (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
        (local $n i32)
        FIRST
        (call $say (i32.const 0) (i32.const 0))
        (loop $l (br_if $l (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 9))))
        (i32.const 0))
    (func (export "proxy_on_log") (param i32) (call $say (i32.const 0) (i32.const 1)))"#
        .replace("FIRST", first);
    let wat = guest(&import("proxy_set_effective_context", 1), &body);
    for (bound_ms, chunks) in [(15, 3..=4), (1_000, 20..=20)] {
        let embedder = Rc::new(Memory::default());
        embedder.ticks_on_log.set(true);
        let limits = Limits {
            request_cpu_ms: bound_ms,
            ..Limits::default()
        };
        let spec = PluginSpec {
            limits,
            ..spec("p")
        };
        let plugin = start_with(spec, &wat, &embedder).unwrap();
        let mut spent = stream(&[&plugin], &[]);
        assert_eq!(spent.request_headers(false), Progress::Continue);
        // Other tests tick the engine too, so that the context's creation may count for one.
        let refused =
            (1..20).find(|_| spent.request_body(Bytes::from("x"), false) == Progress::Respond);
        assert!(chunks.contains(&refused.unwrap_or(20)), "{refused:?}");
        if refused.is_some() {
            assert_eq!(header(&spent, ":status").as_deref(), Some("503"));
        }
        spent.finish();
        let stats = plugin.stats();
        assert_eq!(stats.cpu_denials() > 0, bound_ms == 15);
        assert_eq!(stats.traps().map(|(_, count)| count).sum::<u64>(), 0);
        let mut next = stream(&[&plugin], &[]);
        assert_eq!(next.request_headers(false), Progress::Continue);
        assert_eq!(
            next.request_body(Bytes::from("x"), false),
            Progress::Continue
        );
        assert_eq!(stats.starts(), 1, "no vm was lost");
    }
}
