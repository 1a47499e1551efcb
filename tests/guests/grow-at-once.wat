;; Wants four gigabytes at once, and takes the refusal for an address.
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then
    (i32.store (i32.mul (memory.grow (i32.const 65535)) (i32.const 65536)) (i32.const 1))))
  (i32.const 0))
