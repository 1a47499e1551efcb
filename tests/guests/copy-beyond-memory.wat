;; Copies and fills memory that it does not have.
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then
    (memory.fill (i32.const 65536) (i32.const 1) (i32.const 0xffff0000))))
  (i32.const 0))
