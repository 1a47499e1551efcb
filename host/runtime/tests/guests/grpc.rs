//! gRPC callouts as a guest sees them: arguments, ids, what may be read when, bounds, and death.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use portcullis_runtime::{
    CalloutId, CalloutKind, GrpcCall, GrpcEvent, GrpcStatus, Plugin, Status, limits,
};

use crate::bed::{Memory, guest, import, list, start, stream};

/// Does with gRPC what the tick before said: `x-do` is a letter, and its answer a line in the log. Callbacks tell what they see.
fn guest_of_grpc() -> String {
    let imports = [
        import("proxy_grpc_call", 12),
        import("proxy_grpc_stream", 9),
        import("proxy_grpc_send", 4),
        import("proxy_grpc_cancel", 1),
        import("proxy_grpc_close", 1),
        import("proxy_get_buffer_bytes", 5),
        import("proxy_get_header_map_value", 5),
        import("proxy_get_status", 3),
        import("proxy_set_effective_context", 1),
    ]
    .concat();
    let body = r#"
    (data (i32.const 100) "c")
    (data (i32.const 104) "svc")
    (data (i32.const 108) "method")
    (data (i32.const 116) "\01\00\00\00\01\00\00\00\01\00\00\00k\00v\00")
    (data (i32.const 140) "hello")
    (data (i32.const 150) "x-do")
    (data (i32.const 160) "k")
    (global $id (mut i32) (i32.const 0))
    (global $stream (mut i32) (i32.const 0))
    ;; Says two digits: a letter, and a number below 75 as a character from '0' on.
    (func $tell (param $what i32) (param $number i32)
        (i32.store8 (i32.const 0) (local.get $what))
        (i32.store8 (i32.const 1) (i32.add (i32.const 48) (local.get $number)))
        (call $say (i32.const 0) (i32.const 2)))
    (func $call (param $cluster_len i32) (param $message_len i32) (param $timeout i32) (result i32)
        (call $proxy_grpc_call (i32.const 100) (local.get $cluster_len) (i32.const 104) (i32.const 3) (i32.const 108) (i32.const 6)
            (i32.const 116) (i32.const 16) (i32.const 140) (local.get $message_len) (local.get $timeout) (i32.const 16)))
    (func $open (result i32)
        (call $proxy_grpc_stream (i32.const 100) (i32.const 1) (i32.const 104) (i32.const 3) (i32.const 108) (i32.const 6)
            (i32.const 0) (i32.const 0) (i32.const 16)))
    (func (export "proxy_on_request_headers") (param $context i32) (param i32 i32) (result i32)
        (local $do i32) (local $status i32)
        (global.set $stream (local.get $context))
        (drop (call $proxy_get_header_map_value (i32.const 0) (i32.const 150) (i32.const 4) (i32.const 8) (i32.const 12)))
        (local.set $do (i32.load8_u (i32.load (i32.const 8))))
        (local.set $status (i32.const 74))
        (if (i32.eq (local.get $do) (i32.const 99)) (then ;; c
            (local.set $status (call $call (i32.const 1) (i32.const 5) (i32.const 700)))))
        (if (i32.eq (local.get $do) (i32.const 122)) (then ;; z: no timeout
            (local.set $status (call $call (i32.const 1) (i32.const 5) (i32.const 0)))))
        (if (i32.eq (local.get $do) (i32.const 117)) (then ;; u: an unknown cluster
            (local.set $status (call $call (i32.const 2) (i32.const 5) (i32.const 700)))))
        (if (i32.eq (local.get $do) (i32.const 98)) (then ;; b: bytes that are not there
            (local.set $status (call $call (i32.const 1) (i32.const -1) (i32.const 700)))))
        (if (i32.eq (local.get $do) (i32.const 104)) (then ;; h: a huge message
            (drop (memory.grow (i32.const 80)))
            (local.set $status (call $call (i32.const 1) (i32.const 4194305) (i32.const 700)))))
        (if (i32.eq (local.get $do) (i32.const 109)) (then ;; m: metadata that is none
            (local.set $status (call $proxy_grpc_stream (i32.const 100) (i32.const 1) (i32.const 104) (i32.const 3) (i32.const 108)
                (i32.const 6) (i32.const 116) (i32.const 9) (i32.const 16)))))
        (if (i32.eq (local.get $do) (i32.const 112)) (then ;; p: a path that is none
            (local.set $status (call $proxy_grpc_stream (i32.const 100) (i32.const 1) (i32.const 116) (i32.const 3) (i32.const 108)
                (i32.const 6) (i32.const 0) (i32.const 0) (i32.const 16)))))
        (if (i32.eq (local.get $do) (i32.const 115)) (then ;; s
            (local.set $status (call $open))))
        (if (i32.eq (local.get $do) (i32.const 102)) (then ;; f: streams for ever
            (block $full (loop $more
                (br_if $full (local.tee $status (call $open)))
                (br $more)))))
        (if (i32.eq (local.get $do) (i32.const 119)) (then ;; w: one message
            (local.set $status (call $proxy_grpc_send (global.get $id) (i32.const 140) (i32.const 5) (i32.const 0)))))
        (if (i32.eq (local.get $do) (i32.const 101)) (then ;; e: the last one
            (local.set $status (call $proxy_grpc_send (global.get $id) (i32.const 140) (i32.const 5) (i32.const 1)))))
        (if (i32.eq (local.get $do) (i32.const 120)) (then ;; x
            (local.set $status (call $proxy_grpc_cancel (global.get $id)))))
        (if (i32.eq (local.get $do) (i32.const 108)) (then ;; l
            (local.set $status (call $proxy_grpc_close (global.get $id)))))
        (if (i32.eq (local.get $do) (i32.const 116)) (then unreachable)) ;; t
        (if (i32.and (i32.eqz (local.get $status)) (i32.ge_u (local.get $do) (i32.const 99))) (then
            (global.set $id (i32.load (i32.const 16)))))
        (call $tell (local.get $do) (local.get $status))
        (i32.const 0))
    (func $look
        (call $tell (i32.const 98) (call $proxy_get_buffer_bytes (i32.const 5) (i32.const 0) (i32.const 9) (i32.const 8) (i32.const 12)))
        (call $say (i32.load (i32.const 8)) (i32.load (i32.const 12)))
        (call $tell (i32.const 52) (call $proxy_get_header_map_value (i32.const 4) (i32.const 160) (i32.const 1) (i32.const 8) (i32.const 12)))
        (call $tell (i32.const 53) (call $proxy_get_header_map_value (i32.const 5) (i32.const 160) (i32.const 1) (i32.const 8) (i32.const 12)))
        (drop (call $proxy_get_status (i32.const 24) (i32.const 8) (i32.const 12)))
        (call $tell (i32.const 115) (i32.load (i32.const 24)))
        (call $say (i32.load (i32.const 8)) (i32.load (i32.const 12))))
    (func $event (param $letter i32) (param $context i32) (param $number i32)
        (call $tell (local.get $letter) (local.get $context))
        (call $tell (local.get $letter) (local.get $number))
        (call $look))
    (func (export "proxy_on_grpc_receive_initial_metadata") (param i32 i32 i32) (call $event (i32.const 73) (local.get 0) (local.get 2)))
    (func (export "proxy_on_grpc_receive") (param i32 i32 i32) (call $event (i32.const 77) (local.get 0) (local.get 2)))
    (func (export "proxy_on_grpc_receive_trailing_metadata") (param i32 i32 i32) (call $event (i32.const 84) (local.get 0) (local.get 2)))
    (func (export "proxy_on_grpc_close") (param i32 i32 i32) (call $event (i32.const 67) (local.get 0) (local.get 2)))
    "#;
    guest(&imports, body)
}

/// Has the guest do this, and tells what it logged.
fn act(plugin: &Rc<Plugin>, embedder: &Memory, what: &str) -> Vec<String> {
    embedder.log.take();
    let mut stream = stream(&[plugin], &[("x-do", what)]);
    stream.request_headers(true);
    stream.finish();
    embedder.log.take()
}

/// The guest's one line: the letter, and the status as a number.
#[track_caller]
fn check(plugin: &Rc<Plugin>, embedder: &Memory, what: &str, status: Status) {
    let status = char::from(48 + u8::try_from(status as u32).unwrap());
    assert_eq!(act(plugin, embedder, what), [format!("{what}{status}")]);
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn close(code: u32, message: &'static str) -> GrpcEvent {
    GrpcEvent::Close(GrpcStatus {
        code,
        message: bytes(message),
    })
}

fn last_call(embedder: &Memory) -> (CalloutId, GrpcCall) {
    embedder.grpc_calls.borrow().last().cloned().unwrap()
}

#[test]
fn calls_and_streams_start_as_they_are_asked_for() {
    let embedder = Rc::new(Memory::default());
    let plugin = start(&guest_of_grpc(), &embedder);
    check(&plugin, &embedder, "c", Status::Ok);
    let (id, call) = last_call(&embedder);
    assert_eq!((id, id.kind()), (CalloutId(5), CalloutKind::GrpcCall));
    assert_eq!(
        (&*call.cluster, &*call.authority, &*call.path),
        ("c", "c", "/svc/method")
    );
    assert_eq!(call.metadata, list(&[("k", "v")]));
    assert_eq!(call.message, Some(bytes("hello")));
    assert_eq!(call.timeout, Some(Duration::from_millis(700)));
    check(&plugin, &embedder, "z", Status::Ok);
    let (id, call) = last_call(&embedder);
    assert_eq!((id, call.timeout), (CalloutId(9), Some(Duration::ZERO)));
    check(&plugin, &embedder, "s", Status::Ok);
    let (id, call) = last_call(&embedder);
    assert_eq!((id, id.kind()), (CalloutId(6), CalloutKind::GrpcStream));
    assert_eq!((call.message, call.timeout), (None, None));
    // One that the embedder does not know starts nothing, and has no id.
    let begun = embedder.grpc_calls.borrow().len();
    check(&plugin, &embedder, "u", Status::ParseFailure);
    check(&plugin, &embedder, "b", Status::InvalidMemoryAccess);
    check(&plugin, &embedder, "h", Status::InternalFailure);
    check(&plugin, &embedder, "m", Status::ParseFailure);
    check(&plugin, &embedder, "p", Status::ParseFailure);
    assert_eq!(embedder.grpc_calls.borrow().len(), begun);
}

#[test]
fn what_comes_is_readable_while_its_callback_runs() {
    let embedder = Rc::new(Memory::default());
    let plugin = start(&guest_of_grpc(), &embedder);
    let tell = |id: CalloutId, event: GrpcEvent| {
        plugin.on_grpc_event(id, event);
        embedder.log.take()
    };
    check(&plugin, &embedder, "s", Status::Ok);
    let id = CalloutId(6);
    let fields = || list(&[("k", "v")]);
    // The context is the root; a buffer outside of its callback reads as empty, a map is BAD_ARGUMENT.
    assert_eq!(
        tell(id, GrpcEvent::InitialMetadata(fields())),
        ["I1", "I1", "b0", "", "40", "52", "s0", ""]
    );
    assert_eq!(
        tell(id, GrpcEvent::Message(bytes("abc"))),
        ["M1", "M3", "b0", "abc", "42", "52", "s0", ""]
    );
    assert_eq!(
        tell(id, GrpcEvent::Message(Bytes::new())),
        ["M1", "M0", "b0", "", "42", "52", "s0", ""]
    );
    assert_eq!(
        tell(id, GrpcEvent::TrailingMetadata(fields())),
        ["T1", "T1", "b0", "", "42", "50", "s0", ""]
    );
    assert_eq!(
        tell(id, close(5, "gone")),
        ["C1", "C5", "b0", "", "42", "52", "s5", "gone"]
    );
    assert_eq!(tell(id, close(5, "again")), [""; 0], "it has ended");

    check(&plugin, &embedder, "c", Status::Ok);
    let id = CalloutId(5);
    assert_eq!(tell(id, GrpcEvent::InitialMetadata(fields())), [""; 0]);
    assert_eq!(tell(id, GrpcEvent::Message(bytes("x"))), [""; 0]);
    assert_eq!(tell(id, GrpcEvent::TrailingMetadata(fields())), [""; 0]);
    assert_eq!(
        tell(id, close(0, "")),
        ["M1", "M1", "b0", "x", "42", "52", "s5", ""],
        "success is the message; the number of the last failure stays"
    );
    assert_eq!(tell(CalloutId(400), close(0, "")), [""; 0], "nobody's");
}

#[test]
fn streams_are_sent_on_closed_and_cancelled() {
    let embedder = Rc::new(Memory::default());
    let plugin = start(&guest_of_grpc(), &embedder);
    check(&plugin, &embedder, "s", Status::Ok);
    check(&plugin, &embedder, "w", Status::Ok);
    check(&plugin, &embedder, "e", Status::Ok);
    check(&plugin, &embedder, "w", Status::Ok);
    assert_eq!(
        embedder.grpc_sent.take(),
        [
            (CalloutId(6), Some(bytes("hello")), false),
            (CalloutId(6), Some(bytes("hello")), true)
        ]
    );
    check(&plugin, &embedder, "x", Status::Ok);
    check(&plugin, &embedder, "x", Status::NotFound);
    assert_eq!(embedder.grpc_cancelled.take(), [CalloutId(6)]);

    check(&plugin, &embedder, "s", Status::Ok);
    check(&plugin, &embedder, "l", Status::Ok);
    assert_eq!(embedder.grpc_sent.take(), [(CalloutId(10), None, true)]);
    plugin.on_grpc_event(CalloutId(10), close(0, ""));
    check(&plugin, &embedder, "l", Status::NotFound);

    // The embedder takes no more: the message stays the plugin's, and so does the stream.
    check(&plugin, &embedder, "s", Status::Ok);
    embedder.grpc_is_full.set(true);
    check(&plugin, &embedder, "e", Status::BadArgument);
    embedder.grpc_is_full.set(false);
    check(&plugin, &embedder, "e", Status::Ok);

    check(&plugin, &embedder, "c", Status::Ok);
    check(&plugin, &embedder, "w", Status::BadArgument);
    check(&plugin, &embedder, "l", Status::Ok);
    assert_eq!(embedder.grpc_cancelled.take(), [CalloutId(5)]);
}

#[test]
fn streams_in_flight_are_bounded_and_die_with_the_vm() {
    let embedder = Rc::new(Memory::default());
    let plugin = start(&guest_of_grpc(), &embedder);
    check(&plugin, &embedder, "f", Status::InternalFailure);
    assert_eq!(embedder.grpc_calls.borrow().len(), limits::GRPC_STREAMS_MAX);
    let (last, _) = last_call(&embedder);
    plugin.on_grpc_event(last, close(0, ""));
    check(&plugin, &embedder, "s", Status::Ok);

    assert_eq!(embedder.grpc_cancelled.take(), []);
    act(&plugin, &embedder, "t");
    assert_eq!(
        embedder.grpc_cancelled.take().len(),
        limits::GRPC_STREAMS_MAX
    );
    // The next VM is not told of what the last one began, and its ids count on.
    check(&plugin, &embedder, "s", Status::Ok);
    let (next, _) = last_call(&embedder);
    assert!(next > last, "{next:?} after {last:?}");
    plugin.on_grpc_event(last, close(0, ""));
    assert_eq!(embedder.log.take(), [""; 0]);
}

/// Serialized `GrpcService` messages, as the C++ SDK passes them.
#[test]
fn a_cluster_may_come_in_envoy_s_message() {
    let guest = |service: &str, len: usize| {
        let body = format!(
            r#"
    (data (i32.const 100) "{service}")
    (data (i32.const 200) "svc")
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (i32.store8 (i32.const 0) (i32.add (i32.const 48) (call $proxy_grpc_call (i32.const 100) (i32.const {len}) (i32.const 200) (i32.const 3)
            (i32.const 200) (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 9) (i32.const 16))))
        (call $say (i32.const 0) (i32.const 1))
        (i32.const 0))"#
        );
        crate::bed::guest(&import("proxy_grpc_call", 12), &body)
    };
    for (service, len, expected) in [
        (r"\0a\06\0a\01c\12\01h\2a\06\0a\01K\12\01v", 16, "0"),
        (r"\0a\03\0a\01d", 5, ":"),
        (r"\12\00", 2, "2"),
        ("", 0, "2"),
        (r"\0a\09", 2, "4"),
    ] {
        let embedder = Rc::new(Memory::default());
        let plugin = start(&guest(service, len), &embedder);
        let mut log = act(&plugin, &embedder, "");
        assert_eq!(log.pop().as_deref(), Some(expected), "{service}");
        let denied = (expected == ":").then_some("cluster d is denied: no allow-list has it");
        assert_eq!(log, Vec::from_iter(denied), "{service}");
        if expected == "0" {
            let (_, call) = last_call(&embedder);
            assert_eq!((&*call.cluster, &*call.authority), ("c", "h"));
            assert_eq!(call.metadata, list(&[("k", "v")]));
        }
    }
}
