//! Headers that a filter holds alone (`allow_on_headers_stop_iteration`): what is shown meanwhile, to whom, and what lets them go.

use std::rc::Rc;

use bytes::Bytes;
use portcullis_runtime::{Direction, HttpStream, Plugin, PluginSpec, Progress};

use crate::bed::{Memory, answer, guest, import, list, spec, start_with, stream};

/// Returns these numbers from headers, from a body, from its end, and from trailers, in either direction; logs each of these with the letter. A
/// tick lets both directions of the last stream go on.
fn guest_of(marker: &str, letter: char, [headers, body, end, trailers]: [u32; 4]) -> String {
    let imports = [
        import("proxy_continue_stream", 1),
        import("proxy_set_effective_context", 1),
    ]
    .concat();
    let letter = u32::from(letter);
    let of = |direction: &str| {
        format!(
            r#"
    (func (export "proxy_on_{direction}_headers") (param $context i32) (param i32 i32) (result i32)
        (global.set $stream (local.get $context)) (call $tell (i32.const 72) (i32.const 0)) (i32.const {headers}))
    (func (export "proxy_on_{direction}_body") (param i32 i32) (param $end i32) (result i32)
        (call $tell (select (i32.const 69) (i32.const 66) (local.get $end)) (local.get 1))
        (select (i32.const {end}) (i32.const {body}) (local.get $end)))
    (func (export "proxy_on_{direction}_trailers") (param i32 i32) (result i32)
        (call $tell (i32.const 84) (i32.const 0)) (i32.const {trailers}))"#
        )
    };
    let body = format!(
        r#"
    (global $stream (mut i32) (i32.const 0))
    (func $tell (param $what i32) (param $size i32)
        (i32.store8 (i32.const 0) (i32.const {letter}))
        (i32.store8 (i32.const 1) (local.get $what))
        (i32.store8 (i32.const 2) (i32.add (i32.const 48) (local.get $size)))
        (call $say (i32.const 0) (i32.const 3)))
    (func (export "proxy_on_tick") (param i32)
        (drop (call $proxy_set_effective_context (global.get $stream)))
        (drop (call $proxy_continue_stream (i32.const 0)))
        (drop (call $proxy_continue_stream (i32.const 1))))
    {}{}"#,
        of("request"),
        of("response")
    );
    guest(&imports, &body).replace("proxy_abi_version_0_2_1", marker)
}

const V0_2_1: &str = "proxy_abi_version_0_2_1";

fn plugin_with(
    allowed: Option<bool>,
    marker: &str,
    letter: char,
    numbers: [u32; 4],
    embedder: &Rc<Memory>,
) -> Rc<Plugin> {
    let mut spec: PluginSpec = spec("p");
    spec.limits.body_bytes = 8;
    spec.allow_on_headers_stop_iteration = allowed;
    start_with(spec, &guest_of(marker, letter, numbers), embedder).unwrap()
}

fn plugin(letter: char, numbers: [u32; 4], embedder: &Rc<Memory>) -> Rc<Plugin> {
    plugin_with(Some(true), V0_2_1, letter, numbers, embedder)
}

/// Whether the headers have passed, what has passed of the body, and what was logged since the last look.
fn seen(stream: &mut HttpStream, embedder: &Memory) -> String {
    let passed = if stream.has_passed_headers(Direction::Request) {
        "passed"
    } else if stream.wants_body(Direction::Request) {
        "wants"
    } else {
        "held"
    };
    let out = stream.take_request_body();
    let log = embedder.log.take().join(" ");
    format!("{passed} '{}' {log}", out.escape_ascii())
}

fn body(stream: &mut HttpStream, text: &'static str, end: bool) -> Progress {
    stream.request_body(Bytes::from_static(text.as_bytes()), end)
}

#[test]
fn the_end_of_the_body_lets_the_headers_go() {
    let embedder = Rc::new(Memory::default());
    let (first, second) = (
        plugin('a', [1, 1, 0, 0], &embedder),
        plugin('b', [0; 4], &embedder),
    );
    let mut stream = stream(&[&first, &second], &[]);
    assert_eq!(stream.request_headers(false), Progress::Pause);
    assert_eq!(seen(&mut stream, &embedder), "wants '' aH0");
    assert_eq!(body(&mut stream, "ab", false), Progress::Pause);
    assert_eq!(seen(&mut stream, &embedder), "wants '' aB2");
    assert_eq!(body(&mut stream, "c", true), Progress::Continue);
    assert_eq!(seen(&mut stream, &embedder), "passed 'abc' aE3 bH0 bE3");
}

#[test]
fn one_by_one_each_filter_may_hold_them() {
    let embedder = Rc::new(Memory::default());
    let (first, second, third) = (
        plugin('a', [1, 0, 0, 0], &embedder),
        plugin('b', [1, 1, 1, 0], &embedder),
        plugin('c', [3, 0, 0, 0], &embedder),
    );
    let mut stream = stream(&[&first, &second, &third], &[]);
    assert_eq!(stream.request_headers(false), Progress::Pause);
    assert_eq!(body(&mut stream, "ab", false), Progress::Pause);
    assert_eq!(seen(&mut stream, &embedder), "wants '' aH0 aB2 bH0 bB2");
    assert_eq!(body(&mut stream, "c", false), Progress::Pause);
    assert_eq!(seen(&mut stream, &embedder), "wants '' aB1 bB3");
    // The second lets go of headers and body, which wait before the third; what follows passes the two.
    second.on_tick();
    assert_eq!(stream.resume(Direction::Request), Progress::Pause);
    assert_eq!(seen(&mut stream, &embedder), "held '' cH0");
    assert_eq!(body(&mut stream, "d", true), Progress::Pause);
    assert_eq!(seen(&mut stream, &embedder), "held '' aE1 bE1");
    third.on_tick();
    assert_eq!(stream.resume(Direction::Request), Progress::Pause);
    assert_eq!(
        seen(&mut stream, &embedder),
        "passed 'abc' cB3",
        "the second holds the end"
    );
    second.on_tick();
    assert_eq!(stream.resume(Direction::Request), Progress::Continue);
    assert_eq!(seen(&mut stream, &embedder), "passed 'd' cE1");
}

#[test]
fn trailers_let_the_headers_go() {
    for (trailers, ticks) in [(0, false), (1, true)] {
        let embedder = Rc::new(Memory::default());
        let (first, second) = (
            plugin('a', [1, 1, 1, trailers], &embedder),
            plugin('b', [3, 0, 0, 0], &embedder),
        );
        let mut stream = stream(&[&first, &second], &[]);
        assert_eq!(stream.request_headers(false), Progress::Pause);
        assert_eq!(body(&mut stream, "ab", false), Progress::Pause);
        stream.exchange_mut().request_trailers = Some(Box::new(list(&[("t", "1")])));
        assert_eq!(stream.request_trailers(), Progress::Pause);
        if ticks {
            assert_eq!(seen(&mut stream, &embedder), "wants '' aH0 aB2 aT0");
            first.on_tick();
            assert_eq!(stream.resume(Direction::Request), Progress::Pause);
            assert_eq!(seen(&mut stream, &embedder), "held '' bH0");
        } else {
            assert_eq!(seen(&mut stream, &embedder), "held '' aH0 aB2 aT0 bH0");
        }
        second.on_tick();
        assert_eq!(stream.resume(Direction::Request), Progress::Continue);
        assert_eq!(seen(&mut stream, &embedder), "passed 'ab' bB2 bT0");
    }
}

#[test]
fn what_is_held_with_the_headers_is_bounded() {
    for (numbers, waits_before_second) in [([1, 1, 1, 0], false), ([1, 0, 0, 0], true)] {
        let embedder = Rc::new(Memory::default());
        let (first, second) = (
            plugin('a', numbers, &embedder),
            plugin('b', [3, 0, 0, 0], &embedder),
        );
        let mut stream = stream(&[&first, &second], &[]);
        assert_eq!(stream.request_headers(false), Progress::Pause);
        assert_eq!(body(&mut stream, "12345678", false), Progress::Pause);
        assert_eq!(stream.wants_body(Direction::Request), !waits_before_second);
        assert_eq!(body(&mut stream, "9", false), Progress::Respond);
        let exchange = stream.exchange();
        let status = exchange.response_headers.as_ref().unwrap().get(b":status");
        assert_eq!(status, Some(&b"413"[..]));
    }
}

#[test]
fn responses_are_held_alone_too() {
    let embedder = Rc::new(Memory::default());
    let plugin = plugin('a', [1, 1, 0, 0], &embedder);
    let mut stream = stream(&[&plugin], &[]);
    assert_eq!(
        stream.request_headers(true),
        Progress::Pause,
        "nothing follows"
    );
    assert!(!stream.wants_body(Direction::Request));
    plugin.on_tick();
    assert_eq!(stream.resume(Direction::Request), Progress::Continue);
    answer(&mut stream, &[(":status", "200")]);
    assert_eq!(stream.response_headers(false), Progress::Pause);
    assert!(stream.wants_body(Direction::Response));
    let chunk = || Bytes::from_static(b"ab");
    assert_eq!(stream.response_body(chunk(), false), Progress::Pause);
    assert_eq!(stream.response_body(chunk(), true), Progress::Continue);
    assert!(stream.has_passed_headers(Direction::Response));
    assert_eq!(stream.take_response_body(), "abab");
}

#[test]
fn the_default_is_that_of_the_abi_version() {
    let higress = "proxy_abi_version_0_2_100";
    for (allowed, marker, expected) in [
        (None, V0_2_1, false),
        (Some(true), V0_2_1, true),
        (Some(false), V0_2_1, false),
        (None, higress, true),
        (Some(false), higress, false),
    ] {
        let embedder = Rc::new(Memory::default());
        let plugin = plugin_with(allowed, marker, 'a', [1, 1, 0, 0], &embedder);
        let mut stream = stream(&[&plugin], &[]);
        assert_eq!(stream.request_headers(false), Progress::Pause);
        let wants = stream.wants_body(Direction::Request);
        assert_eq!(wants, expected, "{allowed:?} {marker}");
    }
}
