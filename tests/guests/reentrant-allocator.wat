;; Its allocator asks for a header, which needs the allocator: a stack of host and guest frames without end.
(func (export "proxy_on_memory_allocate") (param i32) (result i32)
  (if (global.get $guilt) (then (call $judge)))
  (i32.const 65536))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (call $judge)
  (i32.const 0))
