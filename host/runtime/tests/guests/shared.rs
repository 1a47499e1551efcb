//! What plugins share: queues, and metrics.

use std::rc::Rc;
use std::sync::Arc;

use portcullis_runtime::{MetricValue, Plugin, PluginId, PluginSpec, Progress, Shared};

use crate::bed::{Memory, guest, import, load, spec, stream};

/// One plugin registers a queue and says what it finds there, another, with another `vm_id`, puts a request's path in.
#[test]
fn entries_pass_through_a_shared_queue() {
    let reader = r#"
        (data (i32.const 100) "q") (data (i32.const 110) "empty")
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (i32.eqz (call $proxy_register_shared_queue (i32.const 100) (i32.const 1) (i32.const 8))))
        (func (export "proxy_on_queue_ready") (param $root i32) (param $queue i32)
            (local $status i32)
            (if (i32.ne (local.get $queue) (i32.load (i32.const 8))) (then unreachable))
            (loop $more
                (local.set $status (call $proxy_dequeue_shared_queue (local.get $queue) (i32.const 16) (i32.const 20)))
                (if (i32.eqz (local.get $status)) (then
                    (call $say (i32.load (i32.const 16)) (i32.load (i32.const 20)))
                    (br $more))))
            (if (i32.ne (local.get $status) (i32.const 7)) (then unreachable))
            (call $say (i32.const 110) (i32.const 5)))"#;
    let writer = r#"
        (data (i32.const 100) "q") (data (i32.const 110) "reader") (data (i32.const 120) ":path") (data (i32.const 130) "second")
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (call $proxy_resolve_shared_queue (i32.const 110) (i32.const 6) (i32.const 100) (i32.const 1) (i32.const 8))
                (then unreachable))
            (if (call $proxy_get_header_map_value (i32.const 0) (i32.const 120) (i32.const 5) (i32.const 16) (i32.const 20))
                (then unreachable))
            (if (call $proxy_enqueue_shared_queue (i32.load (i32.const 8)) (i32.load (i32.const 16)) (i32.load (i32.const 20)))
                (then unreachable))
            (if (call $proxy_enqueue_shared_queue (i32.load (i32.const 8)) (i32.const 130) (i32.const 6))
                (then unreachable))
            (i32.const 0))"#;
    let reader = guest(
        &(import("proxy_register_shared_queue", 3) + &import("proxy_dequeue_shared_queue", 3)),
        reader,
    );
    let writer = guest(
        &(import("proxy_resolve_shared_queue", 5)
            + &import("proxy_enqueue_shared_queue", 3)
            + &import("proxy_get_header_map_value", 5)),
        writer,
    );
    let embedder = Rc::new(Memory::default());
    let shared = Arc::new(Shared::default());
    let begin = |id, vm_id: &str, wat: &str| {
        let spec = PluginSpec {
            vm_id: vm_id.into(),
            ..spec(vm_id)
        };
        Plugin::start(
            PluginId(id),
            load(wat).unwrap(),
            Arc::new(spec),
            Arc::clone(&shared),
            Rc::<Memory>::clone(&embedder),
        )
        .unwrap()
    };
    let reader = begin(5, "reader", &reader);
    let writer = begin(6, "writer", &writer);
    assert_eq!(
        stream(&[&writer], &[]).request_headers(true),
        Progress::Continue
    );
    let told = embedder.queues.take();
    assert_eq!(told.len(), 2, "one for each entry");
    for target in &told {
        assert_eq!((target.worker, target.plugin), (0, PluginId(5)));
    }
    reader.on_queue_ready(told[0].queue);
    assert_eq!(embedder.log.take(), ["/p", "second", "empty"]);
}

#[test]
fn a_histogram_takes_values_and_gives_none_away() {
    let imports = r#"
        (import "env" "proxy_record_metric" (func $record (param i32 i64) (result i32)))
        (import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))"#;
    let body = r#"
        (data (i32.const 100) "latency")
        (func $expect (param i32 i32) (if (i32.ne (local.get 0) (local.get 1)) (then unreachable)))
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (i32.eqz (call $proxy_define_metric (i32.const 2) (i32.const 100) (i32.const 7) (i32.const 8))))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $expect (call $record (i32.load (i32.const 8)) (i64.const 5)) (i32.const 0))
            (call $expect (call $record (i32.load (i32.const 8)) (i64.const 16)) (i32.const 0))
            (call $expect (call $record (i32.load (i32.const 8)) (i64.const 5000000)) (i32.const 0))
            (call $expect (call $increment (i32.load (i32.const 8)) (i64.const 1)) (i32.const 2))
            (call $expect (call $proxy_get_metric (i32.load (i32.const 8)) (i32.const 16)) (i32.const 2))
            (i32.const 0))"#;
    let imports = [
        imports,
        &import("proxy_define_metric", 4),
        &import("proxy_get_metric", 2),
    ]
    .concat();
    let shared = Arc::new(Shared::default());
    let plugin = Plugin::start(
        PluginId(1),
        load(&guest(&imports, body)).unwrap(),
        Arc::new(spec("p")),
        Arc::clone(&shared),
        Rc::new(Memory::default()),
    )
    .unwrap();
    assert_eq!(
        stream(&[&plugin], &[]).request_headers(true),
        Progress::Continue
    );
    let mut expected = [0; 13];
    // Up to 16, and above 2^22.
    (expected[2], expected[12]) = (2, 1);
    let metrics = shared.metrics.snapshot();
    assert_eq!(metrics.len(), 1);
    assert_eq!(metrics[0].name, "latency");
    let MetricValue::Histogram { buckets, sum, .. } = &metrics[0].value else {
        panic!("{metrics:?}");
    };
    assert_eq!((buckets.as_slice(), *sum), (expected.as_slice(), 5_000_021));
}
