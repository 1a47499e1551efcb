;; Returns actions that are none, from everywhere.
(func $nonsense (result i32)
  (if (result i32) (global.get $guilt) (then (i32.const 0x80000000)) (else (i32.const 0))))
(func (export "proxy_on_request_trailers") (param i32 i32) (result i32) (call $nonsense))
(func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) (call $nonsense))
