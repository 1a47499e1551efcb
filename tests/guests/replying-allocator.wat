;; Its allocator answers the request.
(func (export "proxy_on_memory_allocate") (param i32) (result i32)
  (if (global.get $guilt) (then
    (drop (call $reply (i32.const 403) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))))
  (i32.const 65536))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (call $judge)
  (i32.const 0))
