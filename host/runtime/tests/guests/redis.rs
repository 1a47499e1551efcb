//! Redis callouts as a guest sees them: arguments, ids, what may be read when, bounds, and death; in every isolation.

use std::{rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use portcullis_runtime::{
    CalloutId, CalloutKind, Isolation, Limits, NoCache, Plugin, PluginId, PluginSpec, RedisOptions,
    RedisReply, Status, UnknownImports, limits,
};

use crate::bed::{Memory, guest, import, runtime, spec, start, start_with, stream};

/// Says at its start who it is, where the configuration is longer than a byte. Then does what `x-do` says, and logs the status; replies tell what
/// they see.
fn guest_of_redis() -> String {
    let imports = [
        import("proxy_redis_init", 7),
        import("proxy_redis_call", 5),
        import("proxy_get_buffer_bytes", 5),
        import("proxy_get_header_map_value", 5),
        import("proxy_get_status", 3),
    ]
    .concat();
    let body = r#"
    (data (i32.const 100) "c?db=7&buffer_flush_timeout=3")
    (data (i32.const 140) "alice")
    (data (i32.const 150) "secret")
    (data (i32.const 160) "x-do")
    (data (i32.const 170) "*1\0d\0a$4\0d\0aPING\0d\0a*1\0d\0a")
    (data (i32.const 200) "c?db=x")
    ;; Says a letter, and a number below 75 as a character from '0' on.
    (func $tell (param $what i32) (param $number i32)
        (i32.store8 (i32.const 0) (local.get $what))
        (i32.store8 (i32.const 1) (i32.add (i32.const 48) (local.get $number)))
        (call $say (i32.const 0) (i32.const 2)))
    (func $init (param $at i32) (param $len i32) (param $password_len i32) (param $timeout i32) (result i32)
        (call $proxy_redis_init (local.get $at) (local.get $len) (i32.const 140) (i32.const 5)
            (i32.const 150) (local.get $password_len) (local.get $timeout)))
    (func $ask (param $cluster_len i32) (param $query_len i32) (result i32)
        (call $proxy_redis_call (i32.const 100) (local.get $cluster_len) (i32.const 170) (local.get $query_len) (i32.const 16)))
    (func (export "proxy_on_configure") (param i32 i32) (result i32)
        (if (i32.gt_u (local.get 1) (i32.const 1)) (then
            (drop (call $init (i32.const 100) (i32.const 6) (i32.const 6) (i32.const 900)))))
        (i32.const 1))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (local $do i32) (local $status i32)
        (drop (call $proxy_get_header_map_value (i32.const 0) (i32.const 160) (i32.const 4) (i32.const 8) (i32.const 12)))
        (local.set $do (i32.load8_u (i32.load (i32.const 8))))
        (local.set $status (i32.const 74))
        (if (i32.eq (local.get $do) (i32.const 105)) (then ;; i
            (local.set $status (call $init (i32.const 100) (i32.const 29) (i32.const 6) (i32.const 0)))))
        (if (i32.eq (local.get $do) (i32.const 100)) (then ;; d: no database
            (local.set $status (call $init (i32.const 200) (i32.const 6) (i32.const 6) (i32.const 900)))))
        (if (i32.eq (local.get $do) (i32.const 110)) (then ;; n: a time-out below nothing
            (local.set $status (call $init (i32.const 100) (i32.const 1) (i32.const 6) (i32.const -1)))))
        (if (i32.eq (local.get $do) (i32.const 108)) (then ;; l: a long password
            (local.set $status (call $init (i32.const 100) (i32.const 1) (i32.const 16385) (i32.const 900)))))
        (if (i32.eq (local.get $do) (i32.const 119)) (then ;; w: a password that is not there
            (local.set $status (call $init (i32.const 100) (i32.const 1) (i32.const -1) (i32.const 900)))))
        (if (i32.eq (local.get $do) (i32.const 99)) (then ;; c
            (local.set $status (call $ask (i32.const 1) (i32.const 14)))))
        (if (i32.eq (local.get $do) (i32.const 113)) (then ;; q: with the database
            (local.set $status (call $ask (i32.const 6) (i32.const 14)))))
        (if (i32.eq (local.get $do) (i32.const 117)) (then ;; u: an unknown cluster
            (local.set $status (call $ask (i32.const 0) (i32.const 14)))))
        (if (i32.eq (local.get $do) (i32.const 104)) (then ;; h: half a command
            (local.set $status (call $ask (i32.const 1) (i32.const 13)))))
        (if (i32.eq (local.get $do) (i32.const 50)) (then ;; 2: more than one
            (local.set $status (call $ask (i32.const 1) (i32.const 18)))))
        (if (i32.eq (local.get $do) (i32.const 98)) (then ;; b: bytes that are not there
            (local.set $status (call $ask (i32.const 1) (i32.const -1)))))
        (if (i32.eq (local.get $do) (i32.const 102)) (then ;; f: for ever
            (block $full (loop $more
                (br_if $full (local.tee $status (call $ask (i32.const 1) (i32.const 14))))
                (br $more)))))
        (if (i32.eq (local.get $do) (i32.const 103)) (then (call $look) (local.set $status (i32.const 0)))) ;; g
        (if (i32.eq (local.get $do) (i32.const 116)) (then unreachable)) ;; t
        (call $tell (local.get $do) (local.get $status))
        (i32.const 0))
    (func $look
        (i64.store (i32.const 8) (i64.const 0))
        (call $tell (i32.const 98) (call $proxy_get_buffer_bytes (i32.const 9) (i32.const 0) (i32.const 99) (i32.const 8) (i32.const 12)))
        (call $say (i32.load (i32.const 8)) (i32.load (i32.const 12)))
        (drop (call $proxy_get_status (i32.const 24) (i32.const 8) (i32.const 12)))
        (call $tell (i32.const 115) (i32.load (i32.const 24)))
        (call $say (i32.load (i32.const 8)) (i32.load (i32.const 12))))
    (func (export "proxy_on_redis_call_response") (param $context i32) (param $token i32) (param $status i32) (param $size i32)
        (call $tell (i32.const 67) (local.get $context))
        (call $tell (i32.const 84) (local.get $token))
        (call $tell (i32.const 83) (local.get $status))
        (call $tell (i32.const 76) (local.get $size))
        (call $look))
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
    let log = act(plugin, embedder, what);
    assert_eq!(log.last(), Some(&format!("{what}{status}")), "{log:?}");
}

fn bare() -> PluginSpec {
    PluginSpec {
        configuration: Bytes::new(),
        ..spec("p")
    }
}

fn reply(text: &'static str) -> RedisReply {
    RedisReply::Reply(Bytes::from_static(text.as_bytes()))
}

fn options(database: Option<u32>, timeout_ms: u64) -> RedisOptions {
    let mut options = RedisOptions::default();
    options.user = Bytes::from_static(b"alice");
    options.password = Bytes::from_static(b"secret");
    options.database = database;
    options.timeout = Duration::from_millis(timeout_ms);
    options
}

fn calls(embedder: &Memory) -> Vec<u32> {
    let calls = embedder.redis_calls.borrow();
    calls.iter().map(|(id, _)| id.0).collect()
}

#[test]
fn calls_start_as_they_are_asked_for() {
    let embedder = Rc::new(Memory::default());
    let plugin = start_with(bare(), &guest_of_redis(), &embedder).unwrap();
    check(&plugin, &embedder, "i", Status::Ok);
    let longest = u64::from(limits::CALLOUT_TIMEOUT_MS_MAX);
    assert_eq!(
        embedder.redis_options.take(),
        [("c".to_owned(), options(Some(7), longest))]
    );
    for what in ["d", "n", "l"] {
        check(&plugin, &embedder, what, Status::BadArgument);
    }
    check(&plugin, &embedder, "w", Status::InvalidMemoryAccess);
    assert_eq!(embedder.redis_options.take(), []);

    check(&plugin, &embedder, "c", Status::Ok);
    check(&plugin, &embedder, "q", Status::Ok);
    for (id, call) in embedder.redis_calls.take() {
        assert_eq!(id.kind(), CalloutKind::Redis);
        assert!([7, 11].contains(&id.0), "{id:?}");
        assert_eq!(call.cluster, "c", "without the database");
        assert_eq!(call.query, "*1\r\n$4\r\nPING\r\n");
    }
    for what in ["u", "h", "2"] {
        check(&plugin, &embedder, what, Status::BadArgument);
    }
    check(&plugin, &embedder, "b", Status::InvalidMemoryAccess);
    assert_eq!(calls(&embedder), [0; 0]);
    let denials: u64 = plugin.stats().denials().map(|(_, count)| count).sum();
    assert_eq!(denials, 1, "the unknown cluster");
}

#[test]
fn a_reply_is_readable_while_its_callback_runs() {
    let embedder = Rc::new(Memory::default());
    let plugin = start(&guest_of_redis(), &embedder);
    let tell = |id: u32, reply: RedisReply| {
        plugin.on_redis_reply(CalloutId(id), reply);
        embedder.log.take()
    };
    check(&plugin, &embedder, "c", Status::Ok);
    assert_eq!(
        tell(7, reply("$1\r\nv\r\n")),
        ["C1", "T7", "S0", "L7", "b0", "$1\r\nv\r\n", "s0", ""]
    );
    assert_eq!(tell(7, reply("+OK\r\n")), [""; 0], "it has ended");
    assert_eq!(tell(400, reply("+OK\r\n")), [""; 0], "nobody's");
    check(&plugin, &embedder, "c", Status::Ok);
    assert_eq!(
        tell(11, RedisReply::Failed),
        ["C1", "T;", "S1", "L0", "b0", "", "s;", "reset"]
    );
    // Outside there is no such buffer, as in Envoy; the number of the last failure stays.
    assert_eq!(
        act(&plugin, &embedder, "g"),
        ["b2", "", "s;", "", "g0"],
        "{:?}",
        Status::BadArgument
    );
}

#[test]
fn calls_in_flight_are_bounded_and_die_with_the_vm() {
    let embedder = Rc::new(Memory::default());
    let few = PluginSpec {
        limits: Limits {
            callouts_in_flight: 2,
            ..Limits::default()
        },
        ..bare()
    };
    let plugin = start_with(few, &guest_of_redis(), &embedder).unwrap();
    check(&plugin, &embedder, "f", Status::InternalFailure);
    assert_eq!(calls(&embedder), [7, 11]);
    plugin.on_redis_reply(CalloutId(11), reply("+PONG\r\n"));
    check(&plugin, &embedder, "c", Status::Ok);
    check(&plugin, &embedder, "c", Status::InternalFailure);

    assert_eq!(embedder.redis_cancelled.take(), []);
    act(&plugin, &embedder, "t");
    assert_eq!(embedder.redis_cancelled.take().len(), 2);
    // The next VM is not told of what the last one began, and its ids count on.
    check(&plugin, &embedder, "c", Status::Ok);
    let ids = calls(&embedder);
    assert!(ids.is_sorted() && ids.len() == 4, "{ids:?}");
    plugin.on_redis_reply(CalloutId(7), reply("+PONG\r\n"));
    assert_eq!(embedder.log.take(), [""; 0]);

    plugin.shut_down();
    assert_eq!(embedder.cancelled.get(), 1, "all that it has");
}

#[test]
fn each_isolation_gets_its_replies() {
    let wasm = wat::parse_str(guest_of_redis()).unwrap();
    for isolation in [Isolation::Shared, Isolation::Plugin, Isolation::Request] {
        let embedder = Rc::new(Memory::default());
        let module = runtime().load_for_snapshots(&wasm, &NoCache, UnknownImports::Refuse);
        let of = |name: &str| PluginSpec {
            isolation,
            ..spec(name)
        };
        let first = Plugin::start(
            PluginId(1),
            module.unwrap(),
            Arc::new(of("p")),
            Arc::default(),
            Rc::<Memory>::clone(&embedder),
        )
        .unwrap();
        let second = Plugin::start_beside(&first, PluginId(2), Arc::new(of("q"))).unwrap();
        let said = embedder.redis_options.take();
        let expected = ("c".to_owned(), options(Some(7), 900));
        assert_eq!(said, [expected.clone(), expected], "{isolation:?}");
        for (plugin, root) in [(&first, "C1"), (&second, "C2")] {
            let mut stream = stream(&[plugin], &[("x-do", "c")]);
            stream.request_headers(true);
            let (id, _) = embedder.redis_calls.borrow_mut().pop().unwrap();
            embedder.log.take();
            plugin.on_redis_reply(id, reply("+PONG\r\n"));
            let log = embedder.log.take();
            let root = if isolation == Isolation::Shared {
                root
            } else {
                "C1"
            };
            assert_eq!(log.first().map(String::as_str), Some(root), "{isolation:?}");
            assert_eq!(log.get(5).map(String::as_str), Some("+PONG\r\n"));
            stream.finish();
        }
        // What the VM of an exchange has asked ends with it.
        let mut stream = stream(&[&first], &[("x-do", "c")]);
        stream.request_headers(true);
        stream.finish();
        let cancelled = usize::from(isolation == Isolation::Request);
        assert_eq!(embedder.redis_cancelled.take().len(), cancelled);
    }
}
