;; Its allocator grows memory each time, so that it may lie elsewhere when the host goes on writing.
(func (export "proxy_on_memory_allocate") (param i32) (result i32)
  (if (result i32) (global.get $guilt)
    (then (i32.mul (memory.grow (i32.const 1)) (i32.const 65536)))
    (else (i32.const 65536))))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $times i32)
  (call $judge)
  (if (global.get $guilt) (then
    (loop $more
      (call $judge)
      (local.set $times (i32.add (local.get $times) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $times) (i32.const 50))))))
  (i32.const 0))
