//! Answers from the side of a request whose body still comes, while a filter holds the headers of the upstream's answer.

use std::rc::Rc;

use bytes::Bytes;
use portcullis_runtime::{
    Direction, HttpStream, Limits, Plugin, PluginSpec, Progress, StreamToken,
};

use crate::bed::{Memory, answer, guest, header, import, spec, start_with, stream};

const ANSWER: &str = "(call $answer)";
const PAUSE: &str = "(return (i32.const 1))";
const CONTINUE_REQUEST: &str = "(drop (call $proxy_continue_stream (i32.const 0)))";
const CLOSE: &str = "(drop (call $proxy_close_stream (i32.const 0)))";
/// Adds to the response's headers, and lets them go.
const LET_GO: &str = r#"(drop (call $proxy_add_header_map_value (i32.const 2) (i32.const 110) (i32.const 6) (i32.const 100) (i32.const 1)))
    (drop (call $proxy_continue_stream (i32.const 1)))"#;

/// Logs its letter with each phase; `body` is what it does when it sees the request's body, `head` the response's headers, and `tick` with the
/// exchange in its timer. Its body may have 8 bytes.
fn filter(letter: char, body: &str, head: &str, tick: &str, embedder: &Rc<Memory>) -> Rc<Plugin> {
    let imports = [
        ("proxy_send_local_response", 8),
        ("proxy_set_effective_context", 1),
        ("proxy_continue_stream", 1),
        ("proxy_close_stream", 1),
        ("proxy_add_header_map_value", 5),
    ];
    let text = format!(
        r#"(data (i32.const 100) "{letter}") (data (i32.const 110) "x-late")
        (func $told (param $phase i32)
            (i32.store8 (i32.const 101) (local.get $phase))
            (call $say (i32.const 100) (i32.const 2)))
        (func $answer (drop (call $proxy_send_local_response (i32.const 418) (i32.const 0) (i32.const 0)
            (i32.const 100) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const -1))))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (call $told (i32.const 113)) (i32.const 0))
        (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32) (call $told (i32.const 98)) {body} (i32.const 0))
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) (call $told (i32.const 115)) {head} (i32.const 0))
        (func (export "proxy_on_response_body") (param i32 i32 i32) (result i32) (call $told (i32.const 100)) (i32.const 0))
        (func (export "proxy_on_log") (param i32) (call $told (i32.const 108)))
        (func (export "proxy_on_tick") (param i32)
            (drop (call $proxy_set_effective_context (i32.const 2))) {tick})"#
    );
    let imports = imports.map(|(name, params)| import(name, params)).concat();
    let limits = Limits {
        body_bytes: 8,
        ..Limits::default()
    };
    let spec = PluginSpec {
        limits,
        ..spec("p")
    };
    start_with(spec, &guest(&imports, &text), embedder).unwrap()
}

/// An exchange of which half of the request's body has come, and the upstream's answer, whose headers the second filter holds.
fn held(plugins: &[&Rc<Plugin>], embedder: &Memory) -> HttpStream {
    let mut stream = stream(plugins, &[]);
    assert_eq!(stream.request_headers(false), Progress::Continue);
    assert_eq!(
        stream.request_body(Bytes::from("ab"), false),
        Progress::Pause
    );
    answer(&mut stream, &[(":status", "200")]);
    assert_eq!(stream.response_headers(false), Progress::Pause);
    assert_eq!(embedder.log.take().join(" "), "Aq Bq Cq Ab Cs Bs");
    stream
}

/// The answer is there, and passes the first filter alone: the others have seen headers of a response.
fn expect_answer(mut stream: HttpStream, by: &str, embedder: &Memory) {
    assert_eq!(header(&stream, ":status").as_deref(), Some("418"));
    assert_eq!(
        stream.response_body(Bytes::from("of the upstream"), true),
        Progress::Respond,
        "it belongs to no answer"
    );
    assert_eq!(stream.take_response_body(), "");
    let body = stream.take_local_body();
    assert_eq!(body, by.to_owned());
    assert_eq!(stream.response_headers(false), Progress::Continue);
    for direction in [Direction::Request, Direction::Response] {
        assert_eq!(stream.resume(direction), Progress::Continue);
    }
    assert_eq!(stream.response_body(body.clone(), true), Progress::Continue);
    assert_eq!(stream.take_response_body(), body);
    assert_eq!(header(&stream, "x-late"), None);
    stream.finish();
    assert_eq!(embedder.log.take().join(" "), "As Ad Al Bl Cl");
}

#[test]
fn an_answer_takes_the_place_of_headers_that_are_held() {
    // Whether the filter that answers is before the one that holds, that one, or behind it; and whoever of the two that wait looks first.
    for by in ["A", "B", "C"] {
        for first in [Direction::Request, Direction::Response] {
            let embedder = Rc::new(Memory::default());
            let tick = |letter| if by == letter { ANSWER } else { "" };
            let plugins = [
                filter('A', PAUSE, "", tick("A"), &embedder),
                filter('B', "", PAUSE, tick("B"), &embedder),
                filter('C', "", "", tick("C"), &embedder),
            ];
            let mut stream = held(&plugins.each_ref(), &embedder);
            for plugin in &plugins {
                plugin.on_tick();
            }
            assert_eq!(embedder.woken.take(), [StreamToken(9)]);
            assert_eq!(stream.resume(first), Progress::Respond, "{by} {first:?}");
            assert_eq!(stream.resume(Direction::Request), Progress::Continue);
            assert_eq!(
                stream.resume(Direction::Response),
                Progress::Respond,
                "whoever waits for the upstream's headers must not take these for them"
            );
            expect_answer(stream, by, &embedder);
        }
    }
}

#[test]
fn so_does_that_of_a_filter_to_which_the_body_is_let_go() {
    let embedder = Rc::new(Memory::default());
    let plugins = [
        filter('A', PAUSE, "", CONTINUE_REQUEST, &embedder),
        filter('B', ANSWER, PAUSE, "", &embedder),
        filter('C', "", "", "", &embedder),
    ];
    let mut stream = held(&plugins.each_ref(), &embedder);
    plugins[0].on_tick();
    assert_eq!(stream.resume(Direction::Request), Progress::Respond);
    assert_eq!(embedder.log.take(), ["Bb"]);
    assert_eq!(stream.resume(Direction::Response), Progress::Respond);
    expect_answer(stream, "B", &embedder);
}

#[test]
fn so_does_that_to_a_body_that_is_too_large() {
    let embedder = Rc::new(Memory::default());
    let plugins = [
        filter('A', PAUSE, "", "", &embedder),
        filter('B', "", PAUSE, "", &embedder),
        filter('C', "", "", "", &embedder),
    ];
    let mut stream = held(&plugins.each_ref(), &embedder);
    assert_eq!(
        stream.request_body(Bytes::from("1234567"), false),
        Progress::Respond
    );
    assert_eq!(header(&stream, ":status").as_deref(), Some("413"));
    assert_eq!(stream.resume(Direction::Response), Progress::Respond);
    assert_eq!(stream.response_headers(false), Progress::Continue);
    assert_eq!(
        embedder.log.take(),
        ["As"],
        "it is not shown what is too much"
    );
}

#[test]
fn the_filter_that_held_the_headers_has_no_part_in_the_answer() {
    let embedder = Rc::new(Memory::default());
    let plugins = [
        filter('A', PAUSE, "", ANSWER, &embedder),
        filter('B', "", PAUSE, LET_GO, &embedder),
        filter('C', "", "", "", &embedder),
    ];
    let mut stream = held(&plugins.each_ref(), &embedder);
    plugins[0].on_tick();
    assert_eq!(stream.resume(Direction::Request), Progress::Respond);
    plugins[1].on_tick();
    assert_eq!(stream.resume(Direction::Response), Progress::Respond);
    expect_answer(stream, "A", &embedder);
}

#[test]
fn of_two_answers_at_the_same_time_the_first_is_final() {
    let embedder = Rc::new(Memory::default());
    let plugins = [
        filter('A', PAUSE, "", ANSWER, &embedder),
        filter('B', "", PAUSE, "", &embedder),
        filter('C', "", "", ANSWER, &embedder),
    ];
    let mut stream = held(&plugins.each_ref(), &embedder);
    plugins[2].on_tick();
    plugins[0].on_tick();
    assert_eq!(stream.resume(Direction::Request), Progress::Respond);
    expect_answer(stream, "A", &embedder);
}

#[test]
fn a_reset_is_one_for_whoever_waits_for_the_headers() {
    let embedder = Rc::new(Memory::default());
    let plugins = [
        filter('A', PAUSE, "", CLOSE, &embedder),
        filter('B', "", PAUSE, LET_GO, &embedder),
        filter('C', "", "", "", &embedder),
    ];
    let mut stream = held(&plugins.each_ref(), &embedder);
    plugins[0].on_tick();
    plugins[1].on_tick();
    assert_eq!(stream.resume(Direction::Request), Progress::Reset);
    assert_eq!(stream.resume(Direction::Response), Progress::Reset);
    assert_eq!(stream.response_headers(false), Progress::Reset);
}
