;; Calls a function as if it were of another type.
(table 1 funcref)
(func $two (param i64 i64))
(elem (i32.const 0) $two)
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then
    (drop (call_indirect (param i32) (result i32) (i32.const 1) (i32.const 0)))))
  (i32.const 0))
