;; Writes at the last address that there can be.
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then
    (i64.store offset=0xffffffff (i32.const -1) (i64.const 1))))
  (i32.const 0))
