//! Actions and local responses, phase by phase.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use portcullis_runtime::{
    CalloutId, Direction, FieldList, Fields as _, HttpCallResponse, Limits, PluginSpec, Progress,
    StreamToken, limits::LOCAL_DETAILS_BYTES_MAX,
};

use crate::bed::{Memory, answer, guest, header, import, list, spec, start, start_with, stream};

/// Logs its letter with each phase, and answers `code` from `callback`.
fn answering(letter: char, callback: &str, code: u16) -> String {
    let phase = |name: &str, mark: char, params: &str| {
        let act = if name == callback {
            format!(
                "(drop (call $proxy_send_local_response (i32.const {code}) (i32.const 0) (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const -1)))"
            )
        } else {
            String::new()
        };
        let result = if name.ends_with("log") || name.ends_with("tick") {
            ""
        } else {
            "(result i32)"
        };
        let value = if result.is_empty() {
            ""
        } else {
            "(i32.const 0)"
        };
        format!(
            r#"(func (export "{name}") (param {params}) {result}
            (i32.store8 (i32.const 101) (i32.const {})) (call $say (i32.const 100) (i32.const 2)) {act} {value})"#,
            u32::from(mark)
        )
    };
    let phases = [
        phase("proxy_on_request_headers", 'q', "i32 i32 i32"),
        phase("proxy_on_request_body", 'b', "i32 i32 i32"),
        phase("proxy_on_response_headers", 's', "i32 i32 i32"),
        phase("proxy_on_response_body", 'd', "i32 i32 i32"),
        phase("proxy_on_log", 'l', "i32"),
        phase("proxy_on_tick", 't', "i32"),
    ];
    guest(
        &import("proxy_send_local_response", 8),
        &format!(r#"(data (i32.const 100) "{letter}") {}"#, phases.concat()),
    )
}

/// Three filters, of which B answers from a phase: who is called, and what comes of it.
#[test]
fn a_local_response_goes_back_the_way_the_request_came() {
    #[track_caller]
    fn check(callback: &str, expected: &[Progress], called: &str) {
        let embedder = Rc::new(Memory::default());
        let plugins = [('A', ""), ('B', callback), ('C', "")]
            .map(|(letter, callback)| start(&answering(letter, callback, 418), &embedder));
        let mut stream = stream(&plugins.each_ref(), &[]);
        let mut progress = vec![stream.request_headers(false)];
        if progress == [Progress::Continue] {
            progress.push(stream.request_body(Bytes::from("body"), true));
        }
        if *progress.last().unwrap() == Progress::Continue {
            answer(&mut stream, &[(":status", "200")]);
            progress.push(stream.response_headers(false));
            if *progress.last().unwrap() == Progress::Continue {
                progress.push(stream.response_body(Bytes::from("answer"), true));
            }
        }
        if *progress.last().unwrap() == Progress::Respond {
            assert_eq!(header(&stream, ":status").as_deref(), Some("418"));
            let body = stream.take_local_body();
            assert_eq!(body, "B");
            progress.push(stream.response_headers(false));
            progress.push(stream.response_body(body, true));
        }
        stream.finish();
        assert_eq!(progress, expected, "{callback}");
        assert_eq!(embedder.log.take().join(" "), called, "{callback}");
    }
    use Progress::{Continue, Reset, Respond};
    check(
        "",
        &[Continue; 4],
        "Aq Bq Cq Ab Bb Cb Cs Bs As Cd Bd Ad Al Bl Cl",
    );
    check(
        "proxy_on_request_headers",
        &[Respond, Continue, Continue],
        "Aq Bq Bs As Bd Ad Al Bl Cl",
    );
    check(
        "proxy_on_request_body",
        &[Continue, Respond, Continue, Continue],
        "Aq Bq Cq Ab Bb Cs Bs As Cd Bd Ad Al Bl Cl",
    );
    check(
        "proxy_on_response_headers",
        &[Continue, Continue, Respond, Continue, Continue],
        "Aq Bq Cq Ab Bb Cb Cs Bs As Ad Al Bl Cl",
    );
    check(
        "proxy_on_response_body",
        &[Continue, Continue, Continue, Reset],
        "Aq Bq Cq Ab Bb Cb Cs Bs As Cd Bd Al Bl Cl",
    );
    check(
        "proxy_on_log",
        &[Continue; 4],
        "Aq Bq Cq Ab Bb Cb Cs Bs As Cd Bd Ad Al Bl Cl",
    );
}

#[test]
fn an_answer_where_there_is_no_stream_does_nothing() {
    let embedder = Rc::new(Memory::default());
    let plugin = start(&answering('A', "proxy_on_tick", 418), &embedder);
    plugin.on_tick();
    assert_eq!(embedder.log.take(), ["At"]);
    assert_eq!(
        stream(&[&plugin], &[]).request_headers(true),
        Progress::Continue
    );
}

#[test]
fn the_first_answer_wins_and_codes_are_checked() {
    let send = |code: u32| {
        format!(
            "(call $told (call $proxy_send_local_response (i32.const {code}) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))"
        )
    };
    let body = format!(
        r#"(func $told (param i32) (i32.store8 (i32.const 0) (i32.add (i32.const 48) (local.get 0))) (call $say (i32.const 0) (i32.const 1)))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) {} (i32.const 0))"#,
        [199, 600, 65_736, 403, 500].map(send).concat()
    );
    let embedder = Rc::new(Memory::default());
    let plugin = start(
        &guest(&import("proxy_send_local_response", 8), &body),
        &embedder,
    );
    let mut stream = stream(&[&plugin], &[]);
    assert_eq!(stream.request_headers(true), Progress::Respond);
    assert_eq!(embedder.log.take(), ["2", "2", "2", "0", "0"]);
    assert_eq!(header(&stream, ":status").as_deref(), Some("403"));
    assert_eq!(header(&stream, "content-length").as_deref(), Some("0"));
    assert_eq!(
        stream.request_body(Bytes::new(), true),
        Progress::Respond,
        "it is final"
    );
}

#[test]
fn grpc_requests_get_trailers_only() {
    let plugin = start(
        &answering('A', "proxy_on_request_headers", 403),
        &Rc::default(),
    );
    let mut stream = stream(&[&plugin], &[("content-type", "application/grpc+proto")]);
    assert_eq!(stream.request_headers(false), Progress::Respond);
    let expected = [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-status", "7"),
        ("grpc-message", "A"),
    ];
    for (name, value) in expected {
        assert_eq!(header(&stream, name).as_deref(), Some(value), "{name}");
    }
    assert!(stream.take_local_body().is_empty());
}

/// Pauses each phase; a tick lets the request of context 2 go on, its callout's answer as well.
const PAUSING: &str = r#"
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 1))
    (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
        (i32.store8 (i32.const 0) (i32.add (i32.const 48) (local.get 1)))
        (i32.store8 (i32.const 1) (i32.add (i32.const 48) (local.get 2)))
        (call $say (i32.const 0) (i32.const 2))
        (i32.eqz (local.get 2)))
    (func (export "proxy_on_request_trailers") (param i32 i32) (result i32) (i32.const 1))
    (func (export "proxy_on_tick") (param i32)
        (drop (call $proxy_set_effective_context (i32.const 2)))
        (drop (call $proxy_continue_stream (i32.const 0))))"#;

#[test]
fn pauses_hold_and_let_go() {
    let embedder = Rc::new(Memory::default());
    let imports = import("proxy_set_effective_context", 1) + &import("proxy_continue_stream", 1);
    let (pausing, plain) = (
        start(&guest(&imports, PAUSING), &embedder),
        start(&answering('A', "", 0), &embedder),
    );
    let mut stream = stream(&[&pausing, &plain], &[]);
    assert_eq!(stream.request_headers(false), Progress::Pause);
    assert_eq!(
        stream.resume(Direction::Request),
        Progress::Pause,
        "nobody asked"
    );
    assert_eq!(embedder.log.take(), [""; 0]);
    pausing.on_tick();
    assert_eq!(embedder.woken.take(), [StreamToken(9)]);
    assert_eq!(stream.resume(Direction::Request), Progress::Continue);
    assert_eq!(embedder.log.take(), ["Aq"]);

    assert_eq!(
        stream.request_body(Bytes::from("ab"), false),
        Progress::Pause
    );
    assert_eq!(
        stream.request_body(Bytes::from("cd"), false),
        Progress::Pause
    );
    assert_eq!(embedder.log.take(), ["20", "40"], "the total is told");
    assert_eq!(stream.take_request_body(), "");
    pausing.on_tick();
    assert_eq!(stream.resume(Direction::Request), Progress::Continue);
    assert_eq!(stream.take_request_body(), "abcd");
    assert_eq!(embedder.log.take(), ["Ab"]);
    assert_eq!(
        stream.request_body(Bytes::from("e"), false),
        Progress::Pause
    );
    stream.exchange_mut().request_trailers = Some(Box::new(list(&[("t", "1")])));
    assert_eq!(stream.request_trailers(), Progress::Pause);
    pausing.on_tick();
    assert_eq!(stream.resume(Direction::Request), Progress::Continue);
    assert_eq!(
        stream.take_request_body(),
        "e",
        "trailers take the body along"
    );
}

#[test]
fn a_pausing_filter_holds_no_more_than_its_bound() {
    let imports = import("proxy_set_effective_context", 1) + &import("proxy_continue_stream", 1);
    let limits = Limits {
        body_bytes: 8,
        ..Limits::default()
    };
    let body = PAUSING.replace(
        "(result i32) (i32.const 1))\n    (func (export \"proxy_on_request_body",
        "(result i32) (i32.const 0))\n    (func (export \"proxy_on_request_body",
    );
    let plugin = start_with(
        PluginSpec {
            limits,
            ..spec("p")
        },
        &guest(&imports, &body),
        &Rc::default(),
    )
    .unwrap();
    let mut stream = stream(&[&plugin], &[]);
    assert_eq!(stream.request_headers(false), Progress::Continue);
    assert_eq!(
        stream.request_body(Bytes::from("12345678"), false),
        Progress::Pause
    );
    assert_eq!(
        stream.request_body(Bytes::from("9"), false),
        Progress::Respond
    );
    assert_eq!(header(&stream, ":status").as_deref(), Some("413"));
    assert_eq!(stream.take_request_body(), "");
}

#[test]
fn a_callout_s_answer_lets_a_request_go_on() {
    let pairs = |fields: &[(&str, &str)]| {
        let mut bytes = u32::try_from(fields.len()).unwrap().to_le_bytes().to_vec();
        for (name, value) in fields {
            for part in [name, value] {
                bytes.extend(u32::try_from(part.len()).unwrap().to_le_bytes());
            }
        }
        for (name, value) in fields {
            for part in [name, value] {
                bytes.extend(part.bytes().chain([0]));
            }
        }
        bytes
    };
    let headers = pairs(&[(":method", "GET"), (":path", "/k"), (":authority", "c")]);
    let escaped: String = headers.iter().map(|byte| format!("\\{byte:02x}")).collect();
    let body = format!(
        r#"
        (data (i32.const 100) "c") (data (i32.const 110) "{escaped}") (data (i32.const 400) ":status")
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (i32.store8 (i32.const 0) (i32.add (i32.const 48) (call $proxy_http_call (i32.const 100) (i32.const 1) (i32.const 110) (i32.const {len})
                (i32.const 100) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 500) (i32.const 20))))
            (call $say (i32.const 0) (i32.const 1))
            (i32.const 1))
        (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
            (if (local.get 2) (then
                (drop (call $proxy_get_header_map_value (i32.const 6) (i32.const 400) (i32.const 7) (i32.const 8) (i32.const 12)))
                (call $say (i32.load (i32.const 8)) (i32.load (i32.const 12)))
                (drop (call $proxy_get_buffer_bytes (i32.const 4) (i32.const 0) (i32.const 99) (i32.const 8) (i32.const 12)))
                (call $say (i32.load (i32.const 8)) (i32.load (i32.const 12)))))
            (drop (call $proxy_get_status (i32.const 24) (i32.const 8) (i32.const 12)))
            (call $say (i32.load (i32.const 8)) (i32.load (i32.const 12)))
            (drop (call $proxy_set_effective_context (i32.const 2)))
            (drop (call $proxy_continue_stream (i32.const 0))))"#,
        len = headers.len()
    );
    let imports = [
        ("proxy_http_call", 10),
        ("proxy_get_header_map_value", 5),
        ("proxy_get_buffer_bytes", 5),
        ("proxy_get_status", 3),
        ("proxy_set_effective_context", 1),
        ("proxy_continue_stream", 1),
    ];
    let wat = guest(
        &imports.map(|(name, params)| import(name, params)).concat(),
        &body,
    );
    let ok = HttpCallResponse::Answer {
        headers: list(&[(":status", "200")]),
        body: Bytes::from("keys"),
        trailers: FieldList::new(),
    };
    for (response, expected) in [
        (ok, &["200", "keys", ""][..]),
        (
            HttpCallResponse::Timeout,
            &["504", "upstream request timeout", ""],
        ),
        (HttpCallResponse::Reset, &["reset"]),
    ] {
        let embedder = Rc::new(Memory::default());
        let plugin = start(&wat, &embedder);
        let mut stream = stream(&[&plugin], &[]);
        assert_eq!(stream.request_headers(true), Progress::Pause);
        let (id, call) = embedder.calls.take().pop().unwrap();
        assert_eq!(
            (id, call.cluster.as_str(), call.timeout),
            (CalloutId(4), "c", Duration::from_millis(500))
        );
        assert_eq!(call.headers.get(b":path"), Some(&b"/k"[..]));
        assert_eq!(embedder.log.take(), ["0"]);
        plugin.on_http_call_response(CalloutId(8), HttpCallResponse::Reset);
        plugin.on_http_call_response(id, response);
        plugin.on_http_call_response(id, HttpCallResponse::Reset);
        assert_eq!(embedder.log.take(), expected);
        assert_eq!(embedder.woken.take(), [StreamToken(9)]);
        assert_eq!(stream.resume(Direction::Request), Progress::Continue);
    }
    // A cluster that the operator did not allow.
    let embedder = Rc::new(Memory::default());
    let plugin = start_with(
        PluginSpec {
            clusters: vec![],
            ..spec("p")
        },
        &wat,
        &embedder,
    )
    .unwrap();
    stream(&[&plugin], &[]).request_headers(true);
    let warning = "cluster c is denied: no allow-list has it";
    assert_eq!(embedder.log.take(), [warning, "2"]);
}

#[test]
fn why_a_local_response_was_sent_is_told_in_so_many_bytes() {
    for (len, told) in [
        (LOCAL_DETAILS_BYTES_MAX, LOCAL_DETAILS_BYTES_MAX),
        (LOCAL_DETAILS_BYTES_MAX + 1, LOCAL_DETAILS_BYTES_MAX),
    ] {
        let body = format!(
            r#"(data (i32.const 100) "response\00code_details") (data (i32.const 1024) "{}")
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                (call $proxy_send_local_response (i32.const 403) (i32.const 1024) (i32.const {len})
                    (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
            (func (export "proxy_on_log") (param i32)
                (if (i32.eqz (call $proxy_get_property (i32.const 100) (i32.const 21) (i32.const 8) (i32.const 12)))
                    (then (call $say (i32.load (i32.const 8)) (i32.load (i32.const 12))))))"#,
            "x".repeat(len)
        );
        let imports = [
            import("proxy_send_local_response", 8),
            import("proxy_get_property", 4),
        ];
        let embedder = Rc::new(Memory::default());
        let plugin = start(&guest(&imports.concat(), &body), &embedder);
        let mut stream = stream(&[&plugin], &[]);
        assert_eq!(stream.request_headers(true), Progress::Respond);
        stream.finish();
        assert_eq!(embedder.log.take(), ["x".repeat(told)]);
    }
}
