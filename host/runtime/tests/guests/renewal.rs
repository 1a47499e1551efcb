//! VMs of single exchanges that are made new for the next one: nothing that an exchange wrote is left, however it wrote it.

use std::{rc::Rc, sync::Arc};

use portcullis_runtime::{
    Isolation, LoadError, NoCache, Plugin, PluginId, PluginSpec, Progress, Shared, TrapKind,
    UnknownImports, limits::IDLE_VMS_MAX,
};

use crate::bed::{Memory, answer, guest, import, load, runtime, spec, stream};
use crate::isolation::snapshot;

/// Tells the sum of all of its memory and of its globals, as 16 characters that stand below 512, before and after `what` a request does. Its
/// memory has 131,072 bytes; what it allocates begins at 70,000.
fn summing(imports: &str, what: &str, more: &str) -> String {
    let body = format!(
        r#"
    (data (i32.const 3000) "x-request-id")
    (global $a (mut i32) (i32.const 1)) (global $b (mut i64) (i64.const 2)) (global $c (mut f32) (f32.const 3))
    (global $d (mut f64) (f64.const 4)) (global $e (mut v128) (v128.const i64x2 5 6))
    {more}
    (func $add (param $sum i64) (param $value i64) (result i64)
        (i64.mul (i64.rotl (i64.xor (local.get $sum) (local.get $value)) (i64.const 23)) (i64.const 0x9e3779b97f4a7c15)))
    (func $sum (result i64) (local $at i32) (local $sum i64)
        (local.set $at (i32.const 512))
        (loop $next
            (local.set $sum (call $add (local.get $sum) (i64.load (local.get $at))))
            (local.set $at (i32.add (local.get $at) (i32.const 8)))
            (br_if $next (i32.lt_u (local.get $at) (i32.shl (memory.size) (i32.const 16)))))
        (local.set $sum (call $add (local.get $sum) (i64.extend_i32_u (global.get $heap))))
        (local.set $sum (call $add (local.get $sum) (i64.extend_i32_u (global.get $a))))
        (local.set $sum (call $add (local.get $sum) (global.get $b)))
        (local.set $sum (call $add (local.get $sum) (i64.extend_i32_u (i32.reinterpret_f32 (global.get $c)))))
        (local.set $sum (call $add (local.get $sum) (i64.reinterpret_f64 (global.get $d))))
        (local.set $sum (call $add (local.get $sum) (i64x2.extract_lane 0 (global.get $e))))
        (call $add (local.get $sum) (i64x2.extract_lane 1 (global.get $e))))
    (func $tell (local $sum i64) (local $at i32)
        (local.set $sum (call $sum))
        (local.set $at (i32.const 16))
        (loop $next
            (i32.store8 (local.get $at) (i32.add (i32.const 97) (i32.wrap_i64 (i64.and (local.get $sum) (i64.const 15)))))
            (local.set $sum (i64.shr_u (local.get $sum) (i64.const 4)))
            (local.set $at (i32.add (local.get $at) (i32.const 1)))
            (br_if $next (i32.lt_u (local.get $at) (i32.const 32))))
        (call $say (i32.const 16) (i32.const 16)))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $number i32)
        (call $tell)
        {what}
        (call $tell)
        (i32.const 0))"#
    );
    guest(imports, &body)
}

/// A plugin whose snapshot is ready.
fn frozen(wat: &str, embedder: &Rc<Memory>) -> Rc<Plugin> {
    let wasm = wat::parse_str(wat).unwrap();
    let module = runtime()
        .load_for_snapshots(&wasm, &NoCache, UnknownImports::Refuse)
        .unwrap();
    let spec = PluginSpec {
        isolation: Isolation::Request,
        ..spec("p")
    };
    let own = Rc::<Memory>::clone(embedder);
    let shared = Arc::<Shared>::default();
    let plugin = Plugin::start(PluginId(1), module, Arc::new(spec), shared, own).unwrap();
    assert!(snapshot(&plugin, embedder));
    embedder.log.take();
    plugin
}

fn exchange(plugin: &Rc<Plugin>, embedder: &Memory) -> (Progress, Vec<String>) {
    let mut stream = stream(&[plugin], &[]);
    let progress = stream.request_headers(true);
    answer(&mut stream, &[(":status", "200")]);
    if progress == Progress::Continue {
        assert_eq!(stream.response_headers(true), Progress::Continue);
    }
    stream.finish();
    (progress, embedder.log.take())
}

/// Has 32 pages from the start on.
const WIDE: &str = r#"(func (export "_initialize") (drop (memory.grow (i32.const 30))))"#;

const WASI: &str = r#"(import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))"#;

/// Each way to write. Cards have 1,024 bytes: values stand across the end of one, and in one alone.
#[rustfmt::skip]
const WRITES: &[&str] = &[
    "(i32.store (i32.const 5117) (i32.const -1))",
    "(i32.store (i32.const 5120) (i32.const -1))",
    "(i32.store8 (i32.const 5119) (i32.const -1))",
    "(i32.store16 (i32.const 5119) (i32.const -1))",
    "(i64.store (i32.const 5119) (i64.const -1))",
    "(i64.store8 (i32.const 5119) (i64.const -1))",
    "(i64.store16 (i32.const 5119) (i64.const -1))",
    "(i64.store32 (i32.const 5119) (i64.const -1))",
    "(f32.store (i32.const 5119) (f32.const 1))",
    "(f64.store (i32.const 5119) (f64.const 1))",
    "(v128.store (i32.const 5119) (v128.const i64x2 -1 -1))",
    "(v128.store8_lane 3 (i32.const 5119) (v128.const i64x2 -1 -1))",
    "(v128.store16_lane 3 (i32.const 5119) (v128.const i64x2 -1 -1))",
    "(v128.store32_lane 3 (i32.const 5119) (v128.const i64x2 -1 -1))",
    "(v128.store64_lane 1 (i32.const 5119) (v128.const i64x2 -1 -1))",
    // The offset leads into another card than the address; the last bytes of the memory.
    "(i32.store offset=3000 (i32.const 2117) (i32.const -1))",
    "(i64.store offset=131060 (i32.const 4) (i64.const -1))",
    "(i32.store8 (i32.const 131071) (i32.const -1))",
    // What stands on the stack below goes on as it was.
    "(i32.store (i32.const 5000) (i32.add (i32.const 1) (block (result i32) (i32.store8 (i32.const 9000) (i32.const 1)) (i32.const 7))))",
    "(memory.fill (i32.const 5000) (i32.const 9) (i32.const 1))",
    "(memory.fill (i32.const 5000) (i32.const 9) (i32.const 9000))",
    "(memory.fill (i32.const 131071) (i32.const 9) (i32.const 1))",
    "(memory.copy (i32.const 9000) (i32.const 3000) (i32.const 12))",
    "(memory.copy (i32.const 3004) (i32.const 2900) (i32.const 3000))",
    "(memory.init $passive (i32.const 5118) (i32.const 1) (i32.const 5))",
    "(global.set $a (i32.const 7))",
    "(global.set $b (i64.const 7))",
    "(global.set $c (f32.const 7))",
    "(global.set $d (f64.const 7))",
    "(global.set $e (v128.const i64x2 7 7))",
    // The host's writes: numbers, memory that the guest hands out, a range over several cards, and WASI's.
    "(drop (call $proxy_get_current_time_nanoseconds (i32.const 5116)))",
    "(drop (call $proxy_get_header_map_value (i32.const 0) (i32.const 3000) (i32.const 12) (i32.const 5118) (i32.const 9214)))",
    "(drop (call $random (i32.const 20000) (i32.const 5000)))",
    "(i32.store8 (i32.const 5000) (i32.const 1)) (i32.store8 (i32.const 9000) (i32.const 1)) (drop (call $sizes (i32.const 5000) (i32.const 9000))) (i32.store8 (i32.const 11000) (i32.const 1))",
];

#[test]
fn whatever_an_exchange_wrote_the_next_finds_as_it_was() {
    let imports = [
        ("proxy_get_current_time_nanoseconds", 1),
        ("proxy_get_header_map_value", 5),
    ];
    let imports = imports.map(|(name, params)| import(name, params)).concat() + WASI;
    for write in WRITES {
        let embedder = Rc::new(Memory::default());
        let more = r#"(data $passive "passive bytes")"#;
        let plugin = frozen(&summing(&imports, write, more), &embedder);
        let (_, first) = exchange(&plugin, &embedder);
        let [before, after] = first.as_slice() else {
            panic!("{write}: {first:?}");
        };
        assert_ne!(before, after, "{write}: nothing was written");
        assert_eq!(plugin.stats().vms(), 2, "{write}: its vm waits");
        for _ in 0..2 {
            let (_, next) = exchange(&plugin, &embedder);
            assert_eq!(next, first, "{write}");
            assert_eq!(plugin.stats().vms(), 2, "{write}: it is the same one");
        }
    }
}

#[test]
fn instructions_trap_as_they_would_without_marks() {
    let embedder = Rc::new(Memory::default());
    let traps = [
        "(i32.store (i32.const 131069) (i32.const -1))",
        "(i32.store offset=4294967295 (i32.const 5) (i32.const -1))",
        "(i64.store (i32.const -1) (i64.const -1))",
        "(memory.fill (i32.const 16) (i32.const 9) (i32.const -1))",
        "(memory.fill (i32.const 131072) (i32.const 9) (i32.const 1))",
        "(memory.copy (i32.const 131070) (i32.const 0) (i32.const 3))",
        "(memory.copy (i32.const 0) (i32.const 131070) (i32.const 3))",
        "(memory.fill (i32.const 131073) (i32.const 9) (i32.const 0))",
    ];
    for what in traps {
        let plugin = frozen(&summing("", what, ""), &embedder);
        for round in 1..=2 {
            let (progress, log) = exchange(&plugin, &embedder);
            assert_eq!(progress, Progress::Respond, "{what}");
            assert!(log[1].contains("out_of_bounds"), "{what}: {log:?}");
            let stats = plugin.stats();
            let of = stats
                .traps()
                .find(|(kind, _)| *kind == TrapKind::OutOfBounds);
            assert_eq!(of, Some((TrapKind::OutOfBounds, round)), "{what}");
            assert_eq!(plugin.stats().vms(), 1, "{what}: it is never entered again");
        }
    }
    let nothing = [
        "(memory.fill (i32.const 131072) (i32.const 9) (i32.const 0))",
        "(memory.copy (i32.const 131072) (i32.const 0) (i32.const 0))",
        // Never run, and valid only since what would be below it on the stack may be anything.
        "(block (br 0) (i32.store))",
        "(block (br 0) (v128.const i64x2 1 1) (v128.store))",
        "(block (br 0) (memory.copy))",
    ];
    for what in nothing {
        let plugin = frozen(&summing("", what, ""), &embedder);
        let (progress, log) = exchange(&plugin, &embedder);
        assert_eq!((progress, log.len()), (Progress::Continue, 2), "{what}");
        assert_eq!(log[0], log[1], "{what}");
        assert_eq!(plugin.stats().vms(), 2, "{what}");
    }
}

#[test]
fn what_cannot_be_made_new_serves_but_one_exchange() {
    let call = import("proxy_http_call", 10);
    let headers = r"\03\00\00\00\07\00\00\00\01\00\00\00\05\00\00\00\01\00\00\00\0a\00\00\00\01\00\00\00:method\00G\00:path\00/\00:authority\00c\00";
    let headers = format!(r#"(data (i32.const 3100) "c") (data (i32.const 3110) "{headers}")"#);
    let rows = [
        ("", "(drop (memory.grow (i32.const 1)))", ""),
        (
            call.as_str(),
            "(drop (call $proxy_http_call (i32.const 3100) (i32.const 1) (i32.const 3110) (i32.const 59) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1000) (i32.const 3200)))",
            headers.as_str(),
        ),
    ];
    let many = format!("(func (local {}))", "i32 ".repeat(49_995));
    let rows = rows.into_iter().chain([
        // More than a mebibyte; more locals than a function may have once those are added that the marking takes.
        (
            "",
            "(memory.fill (i32.const 0x20000) (i32.const 1) (i32.const 0x120000))",
            WIDE,
        ),
        (
            "",
            "(i32.store (i32.const 5000) (i32.const 1))",
            many.as_str(),
        ),
    ]);
    for (imports, what, more) in rows {
        let embedder = Rc::new(Memory::default());
        let plugin = frozen(&summing(imports, what, more), &embedder);
        let (_, first) = exchange(&plugin, &embedder);
        assert_eq!(first.len(), 2, "{what}: {first:?}");
        for _ in 0..2 {
            assert_eq!(plugin.stats().vms(), 1, "{what}: the root vm");
            let (_, next) = exchange(&plugin, &embedder);
            assert_eq!(next.first(), first.first(), "{what}");
        }
        let has_called = !imports.is_empty();
        assert_eq!(
            embedder.cancelled.get(),
            3 * u32::from(has_called),
            "{what}"
        );
    }
}

#[test]
fn as_many_wait_as_the_bound_says_and_none_of_an_old_snapshot() {
    let embedder = Rc::new(Memory::default());
    let plugin = frozen(&summing("", "", ""), &embedder);
    let begun = |number: usize| -> Vec<_> {
        let streams = (0..number).map(|_| {
            let mut stream = stream(&[&plugin], &[]);
            assert_eq!(stream.request_headers(true), Progress::Continue);
            stream
        });
        streams.collect()
    };
    let vms = || usize::try_from(plugin.stats().vms()).unwrap();
    // The runtime of the tests holds 64 VMs, an eighth of which may wait.
    let room = 64 / 8;
    assert!(room < IDLE_VMS_MAX);
    let many = begun(room + 4);
    assert_eq!(vms(), 1 + room + 4);
    drop(many);
    assert_eq!(vms(), 1 + room);
    plugin.tend();
    assert_eq!(vms(), 1 + room, "they came a moment ago");
    let few = begun(3);
    assert_eq!(vms(), 1 + room, "those that waited");
    plugin.tend();
    assert_eq!(vms(), 1 + 3 + 1, "nobody needed the rest");
    plugin.on_tick();
    embedder.now_ns.set(60_000_000_000);
    assert!(snapshot(&plugin, &embedder));
    assert_eq!(
        vms(),
        1 + 3,
        "with the snapshot go those that waited for its sake"
    );
    drop(few);
    assert_eq!(vms(), 1);
    drop(begun(2));
    assert_eq!(vms(), 1 + 2);
    let late = begun(1);
    plugin.retire();
    assert_eq!(vms(), 1 + 1, "none waits for a plugin that is retired");
    drop(late);
    assert_eq!(vms(), 1);
    drop(begun(1));
    assert_eq!(vms(), 1, "it serves on");
    plugin.shut_down();
    assert_eq!(vms(), 0);
}

#[test]
fn guests_have_one_memory() {
    let wat = guest("", "").replace("(global $heap", "(memory 1) (global $heap");
    assert!(
        matches!(load(&wat), Err(LoadError::Invalid(reason)) if reason == "more than one memory")
    );
}

#[test]
fn what_wizer_has_not_heard_of_is_refused_and_breaks_nothing() {
    let wasm = wat::parse_str(r#"(module (import "m" "m" (tag)))"#).unwrap();
    let loaded = runtime().load_for_snapshots(&wasm, &NoCache, UnknownImports::Refuse);
    assert!(matches!(loaded, Err(LoadError::Invalid(_))), "{loaded:?}");
}
