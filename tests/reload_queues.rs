//! Shared queues across reloads: entries come to the plugin that runs, whatever has been refused since.

use std::fs;

use anyhow::{Result, ensure};
use portcullis_tests::child::until;
use serde_json::json;

use crate::reloaded::{BOUND, Reloaded, metric, set_edition};

/// Puts an entry into a queue for each request, and counts those it takes out. Edition 0 starts on one worker only.
const QUEUE: &str = r#"(module
  (import "env" "proxy_get_buffer_bytes" (func $buffer (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_register_shared_queue" (func $register (param i32 i32 i32) (result i32)))
  (import "env" "proxy_enqueue_shared_queue" (func $enqueue (param i32 i32 i32) (result i32)))
  (import "env" "proxy_dequeue_shared_queue" (func $dequeue (param i32 i32 i32) (result i32)))
  (import "env" "proxy_set_shared_data" (func $set (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 16) "q")
  (data (i32.const 32) "taken")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 65536))
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (drop (call $define (i32.const 0) (i32.const 32) (i32.const 5) (i32.const 68)))
    (drop (call $register (i32.const 16) (i32.const 1) (i32.const 64)))
    ;; {"edition":N}
    (drop (call $buffer (i32.const 7) (i32.const 0) (local.get 1) (i32.const 0) (i32.const 4)))
    (if (i32.ne (i32.load8_u (i32.const 65547)) (i32.const 48)) (then (return (i32.const 1))))
    ;; Compares with what was never written: only the first to write succeeds.
    (i32.eqz (call $set (i32.const 16) (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 0x7fffffff))))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (drop (call $enqueue (i32.load (i32.const 64)) (i32.const 16) (i32.const 1)))
    (i32.const 0))
  (func (export "proxy_on_queue_ready") (param i32 i32)
    (if (i32.eqz (call $dequeue (local.get 1) (i32.const 72) (i32.const 76)))
      (then (drop (call $increment (i32.load (i32.const 68)) (i64.const 1)))))))
"#;

#[test]
fn a_refused_policy_takes_no_queue_along() -> Result<()> {
    let mut proxy = Reloaded::start(|policy, folder| {
        fs::write(folder.join("queue.wasm"), wat::parse_str(QUEUE).unwrap()).unwrap();
        policy["filters"] = json!([
            {"name": "queue", "module": "queue.wasm", "configuration": {"edition": 1}},
        ]);
    })?;
    let comes_through = |proxy: &Reloaded, count: f64| -> Result<()> {
        ensure!(proxy.ask("/")?.status == 200);
        until(BOUND, "the entry to be taken", || {
            Ok(metric(proxy, &["portcullis_custom_taken"])? == count)
        })
    };
    comes_through(&proxy, 1.0)?;
    // Tried out it starts, on the first worker it does, on the second it does not; the next time on neither.
    for count in [2.0, 3.0] {
        let error = proxy
            .reload(|policy| set_edition(policy, 0))
            .expect_err("a worker refuses it")
            .to_string();
        ensure!(error.contains("refused the configuration"), "{error}");
        comes_through(&proxy, count)?;
    }
    proxy.reload(|policy| set_edition(policy, 2))?;
    comes_through(&proxy, 4.0)
}
