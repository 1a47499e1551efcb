;; Closes the exchange, then answers it.
(import "env" "proxy_close_stream" (func $close (param i32) (result i32)))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then
    (drop (call $close (i32.const 0)))
    (drop (call $close (i32.const 1)))
    (drop (call $reply (i32.const 403) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))))
  (i32.const 0))
