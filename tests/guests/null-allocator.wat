;; Its allocator has nothing to give.
(func (export "proxy_on_memory_allocate") (param i32) (result i32)
  (if (result i32) (global.get $guilt) (then (i32.const 0)) (else (i32.const 65536))))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (call $judge)
  (i32.const 0))
