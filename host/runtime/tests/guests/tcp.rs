//! TCP connections through a chain: what a filter sees, holds, writes and ends.

use std::rc::Rc;

use bytes::Bytes;
use portcullis_runtime::{
    Chain, Direction, Limits, Peer, Plugin, PluginSpec, Progress, Protocol, StreamInfo,
    StreamToken, TcpProgress, TcpStream,
};

use crate::bed::{Memory, exchange, guest, import, spec, start, start_with, stream};

/// Tells each callback as a line: a letter, its context, and its numbers. What it does is in the first byte of the bytes it is shown: `h` holds
/// them, `c` closes, `x` puts `X` in front, `a` puts `X` behind, `t` traps; at the beginning it is in the plugin's configuration. A tick goes on
/// with the last connection.
fn guest_of_tcp() -> String {
    let imports = [
        import("proxy_get_buffer_bytes", 5),
        import("proxy_set_buffer_bytes", 5),
        import("proxy_continue_stream", 1),
        import("proxy_close_stream", 1),
        import("proxy_set_effective_context", 1),
        import("proxy_get_property", 4),
    ]
    .concat();
    let body = r#"
    (data (i32.const 200) "X")
    (data (i32.const 210) "request\00protocol")
    (data (i32.const 230) "source\00port")
    (global $last (mut i32) (i32.const 0))
    (global $first (mut i32) (i32.const 0))
    (func $tell (param $what i32) (param $a i32) (param $b i32) (param $c i32)
        (i32.store8 (i32.const 0) (local.get $what))
        (i32.store8 (i32.const 1) (i32.add (i32.const 48) (local.get $a)))
        (i32.store8 (i32.const 2) (i32.add (i32.const 48) (local.get $b)))
        (i32.store8 (i32.const 3) (i32.add (i32.const 48) (local.get $c)))
        (call $say (i32.const 0) (i32.const 4)))
    (func $do (param $what i32) (param $buffer i32) (result i32)
        (if (i32.eq (local.get $what) (i32.const 116)) (then unreachable))
        (if (i32.eq (local.get $what) (i32.const 99)) (then (drop (call $proxy_close_stream (local.get $buffer)))))
        (if (i32.eq (local.get $what) (i32.const 120)) (then
            (drop (call $proxy_set_buffer_bytes (local.get $buffer) (i32.const 0) (i32.const 0) (i32.const 200) (i32.const 1)))))
        (if (i32.eq (local.get $what) (i32.const 97)) (then
            (drop (call $proxy_set_buffer_bytes (local.get $buffer) (i32.const 999) (i32.const 0) (i32.const 200) (i32.const 1)))))
        (i32.eq (local.get $what) (i32.const 104)))
    (func (export "proxy_on_configure") (param i32 i32) (result i32)
        (drop (call $proxy_get_buffer_bytes (i32.const 7) (i32.const 0) (i32.const 1) (i32.const 8) (i32.const 12)))
        (global.set $first (i32.load8_u (i32.load (i32.const 8))))
        (i32.const 1))
    (func (export "proxy_on_context_create") (param i32 i32) (call $tell (i32.const 43) (local.get 0) (local.get 1) (i32.const 0)))
    (func (export "proxy_on_new_connection") (param i32) (result i32)
        (global.set $last (local.get 0))
        (call $tell (i32.const 78) (local.get 0)
            (call $proxy_get_property (i32.const 210) (i32.const 16) (i32.const 8) (i32.const 12))
            (call $proxy_get_property (i32.const 230) (i32.const 11) (i32.const 8) (i32.const 12)))
        (call $do (global.get $first) (i32.const 2)))
    (func $data (param $letter i32) (param $buffer i32) (param $context i32) (param $size i32) (param $end i32) (result i32)
        (call $tell (local.get $letter) (local.get $context) (local.get $size) (local.get $end))
        (drop (call $proxy_get_buffer_bytes (local.get $buffer) (i32.const 0) (i32.const 1) (i32.const 8) (i32.const 12)))
        (if (i32.eqz (i32.load (i32.const 12))) (then (return (i32.const 0))))
        (call $do (i32.load8_u (i32.load (i32.const 8))) (local.get $buffer)))
    (func (export "proxy_on_downstream_data") (param i32 i32 i32) (result i32)
        (call $data (i32.const 68) (i32.const 2) (local.get 0) (local.get 1) (local.get 2)))
    (func (export "proxy_on_upstream_data") (param i32 i32 i32) (result i32)
        (call $data (i32.const 85) (i32.const 3) (local.get 0) (local.get 1) (local.get 2)))
    (func (export "proxy_on_downstream_connection_close") (param i32 i32) (call $tell (i32.const 100) (local.get 0) (local.get 1) (i32.const 0)))
    (func (export "proxy_on_upstream_connection_close") (param i32 i32) (call $tell (i32.const 117) (local.get 0) (local.get 1) (i32.const 0)))
    (func (export "proxy_on_log") (param i32) (call $tell (i32.const 76) (local.get 0) (i32.const 0) (i32.const 0)))
    (func (export "proxy_on_done") (param i32) (result i32) (call $tell (i32.const 79) (local.get 0) (i32.const 0) (i32.const 0)) (i32.const 1))
    (func (export "proxy_on_delete") (param i32) (call $tell (i32.const 45) (local.get 0) (i32.const 0) (i32.const 0)))
    (func (export "proxy_on_tick") (param i32)
        (drop (call $proxy_set_effective_context (global.get $last)))
        (call $tell (i32.const 84)
            (call $proxy_continue_stream (i32.const 3))
            (call $proxy_set_buffer_bytes (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 200) (i32.const 1))
            (call $proxy_continue_stream (i32.const 2))))
    "#;
    guest(&imports, body)
}

fn start_tcp(name: &str, first: &'static str, embedder: &Rc<Memory>) -> Rc<Plugin> {
    let spec = PluginSpec {
        configuration: Bytes::from_static(first.as_bytes()),
        limits: Limits {
            body_bytes: 8,
            ..Limits::default()
        },
        ..spec(name)
    };
    let plugin = start_with(spec, &guest_of_tcp(), embedder).unwrap();
    embedder.log.take();
    plugin
}

fn connect(plugins: &[&Rc<Plugin>]) -> TcpStream {
    let chain = Chain::new(plugins.iter().map(|plugin| Rc::clone(plugin)).collect());
    let info = exchange(&[]).info;
    let info = StreamInfo {
        protocol: Protocol::Tcp,
        ..info
    };
    TcpStream::new(&chain, info, StreamToken(9))
}

fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

use TcpProgress::{Close, Continue, Pause};

#[test]
fn a_connection_lives_as_in_envoy() {
    let embedder = Rc::new(Memory::default());
    let plugin = start_tcp("p", "-", &embedder);
    let mut stream = connect(&[&plugin]);
    assert!(!stream.is_open());
    assert_eq!(stream.new_connection(), Continue);
    assert!(stream.is_open());
    assert_eq!(
        embedder.log.take(),
        ["+210", "N210"],
        "no protocol, but a port"
    );
    assert_eq!(stream.downstream_data(text("mb"), false), Continue);
    assert_eq!(stream.take_downstream(), (text("mb"), false));
    assert_eq!(stream.upstream_data(text("xyz"), false), Continue);
    assert_eq!(stream.take_upstream(), (text("Xxyz"), false));
    assert_eq!(stream.downstream_data(text("a"), false), Continue);
    assert_eq!(stream.take_downstream(), (text("aX"), false));
    assert_eq!(stream.upstream_data(Bytes::new(), true), Continue);
    assert_eq!(stream.take_upstream(), (Bytes::new(), true));
    assert_eq!(stream.downstream_data(text("-"), true), Continue);
    assert_eq!(stream.take_downstream(), (text("-"), true));
    assert_eq!(
        embedder.log.take(),
        ["D220", "U230", "D210", "U201", "u200", "D211"]
    );
    stream.close(Peer::Remote);
    assert_eq!(embedder.log.take(), ["d220", "O200", "L200", "-200"]);
    drop(connect(&[&plugin]));
    assert_eq!(embedder.log.take(), [""; 0], "one that no filter has seen");
}

#[test]
fn what_is_held_is_shown_again_with_what_follows() {
    let embedder = Rc::new(Memory::default());
    let [one, two] = ["one", "two"].map(|name| start_tcp(name, "-", &embedder));
    let mut stream = connect(&[&one, &two]);
    assert_eq!(stream.new_connection(), Continue);
    assert_eq!(embedder.log.take(), ["+210", "N210", "+210", "N210"]);
    assert_eq!(stream.downstream_data(text("h1"), false), Pause);
    assert_eq!(stream.downstream_data(text("23"), false), Pause);
    assert_eq!(stream.take_downstream(), (Bytes::new(), false));
    assert_eq!(embedder.log.take(), ["D220", "D240"]);
    // It writes to what it holds, and lets it go; the second filter sees what has become of it.
    one.on_tick();
    assert_eq!(embedder.woken.take(), [StreamToken(9)]);
    assert_eq!(stream.resume(), Continue);
    assert_eq!(stream.take_downstream(), (text("X123"), false));
    assert_eq!(embedder.log.take(), ["T<00", "D240"]);
    // Upstream bytes pass in reverse, and nothing lets go of them but more of them.
    assert_eq!(stream.upstream_data(text("h"), false), Pause);
    two.on_tick();
    assert_eq!(stream.resume(), Continue);
    assert_eq!(stream.take_upstream(), (Bytes::new(), false));
    assert_eq!(stream.upstream_data(text("2"), true), Pause);
    let log = embedder.log.take();
    assert_eq!(log.first().unwrap(), "U210");
    assert_eq!(log.last().unwrap(), "u200", "told of the end all the same");
}

#[test]
fn a_pause_at_the_door_keeps_the_later_filters_and_the_upstream_waiting() {
    let embedder = Rc::new(Memory::default());
    let holder = start_tcp("holder", "h", &embedder);
    let later = start_tcp("later", "-", &embedder);
    let mut stream = connect(&[&holder, &later]);
    assert_eq!(stream.new_connection(), Pause);
    assert!(!stream.is_open());
    assert_eq!(embedder.log.take(), ["+210", "N210"]);
    // The later filter has no say yet.
    later.on_tick();
    assert_eq!(stream.resume(), Continue);
    assert!(!stream.is_open());
    embedder.log.take();
    holder.on_tick();
    assert_eq!(stream.resume(), Continue);
    assert!(stream.is_open());
    assert_eq!(embedder.log.take(), ["T<20", "+210", "N210"]);
    // A filter that was never entered is told of nothing.
    let mut stream = connect(&[&holder, &later]);
    assert_eq!(stream.new_connection(), Pause);
    embedder.log.take();
    stream.close(Peer::Remote);
    assert_eq!(embedder.log.take(), ["d320", "O300", "L300", "-300"]);
}

#[test]
fn what_is_held_is_bounded() {
    let embedder = Rc::new(Memory::default());
    let plugin = start_tcp("p", "-", &embedder);
    let mut stream = connect(&[&plugin]);
    stream.new_connection();
    assert_eq!(stream.downstream_data(text("h234567"), false), Pause);
    assert!(stream.has_room(Direction::Request), "seven of eight");
    assert_eq!(stream.downstream_data(text("8"), false), Pause);
    assert!(!stream.has_room(Direction::Request));
    assert!(stream.has_room(Direction::Response));
    // Nor may the guest make it grow.
    embedder.log.take();
    plugin.on_tick();
    assert_eq!(stream.resume(), Continue);
    assert_eq!(stream.take_downstream().0.len(), 8, "one out, one in");
    assert!(stream.has_room(Direction::Request));
}

#[test]
fn a_connection_is_closed_by_a_filter_or_with_its_vm() {
    let embedder = Rc::new(Memory::default());
    let plugin = start_tcp("p", "-", &embedder);
    for what in ["c", "t"] {
        for direction in [Direction::Request, Direction::Response] {
            let mut stream = connect(&[&plugin]);
            assert_eq!(stream.new_connection(), Continue);
            let bystander = (what == "t").then(|| {
                let mut bystander = connect(&[&plugin]);
                bystander.new_connection();
                bystander
            });
            let progress = match direction {
                Direction::Request => stream.downstream_data(text(what), false),
                Direction::Response => stream.upstream_data(text(what), false),
            };
            assert_eq!(progress, Close, "{what}");
            embedder.log.take();
            stream.close(Peer::Local);
            let log = embedder.log.take();
            assert_eq!(log.len(), if what == "c" { 4 } else { 0 }, "{log:?}");
            // Whose VM another connection broke is closed too, when it is woken or has news.
            if let Some(mut bystander) = bystander {
                assert_eq!(bystander.resume(), Close);
            }
        }
    }
    let closes = start_tcp("closes", "c", &embedder);
    assert_eq!(connect(&[&closes]).new_connection(), Close);
    let traps = start_tcp("traps", "t", &embedder);
    assert_eq!(connect(&[&traps]).new_connection(), Close);
    assert_eq!(traps.stats().refused(), 1);
    assert_eq!(
        connect(&[&traps]).new_connection(),
        Close,
        "a fresh VM, and again"
    );
    assert_eq!(traps.stats().starts(), 2);
}

#[test]
fn an_http_stream_has_no_tcp_side_and_the_other_way_round() {
    let body = r#"
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (drop (call $proxy_close_stream (i32.const 2)))
        (drop (call $proxy_continue_stream (i32.const 2)))
        (i32.const 1))
    (func (export "proxy_on_new_connection") (param i32) (result i32)
        (drop (call $proxy_close_stream (i32.const 0)))
        (drop (call $proxy_close_stream (i32.const 1)))
        (drop (call $proxy_continue_stream (i32.const 0)))
        (drop (call $proxy_send_local_response (i32.const 403) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
        (i32.const 1))"#;
    let imports = [
        import("proxy_close_stream", 1),
        import("proxy_continue_stream", 1),
        import("proxy_send_local_response", 8),
    ]
    .concat();
    let embedder = Rc::new(Memory::default());
    let plugin = start(&guest(&imports, body), &embedder);
    let mut http = stream(&[&plugin], &[]);
    assert_eq!(http.request_headers(true), Progress::Pause);
    assert_eq!(http.resume(Direction::Request), Progress::Pause);
    let mut tcp = connect(&[&plugin]);
    assert_eq!(tcp.new_connection(), Pause);
    assert_eq!(tcp.resume(), Continue);
    assert!(!tcp.is_open());
}
