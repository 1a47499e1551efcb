;; Answers twice, and goes on as if it had not.
(import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then
    (drop (call $reply (i32.const 403) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
    (drop (call $continue (i32.const 0)))
    (drop (call $reply (i32.const 403) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
    (drop (call $continue (i32.const 1)))))
  (i32.const 0))
