;; Takes memory page by page and writes to each, until it gets no more; then it writes behind the end.
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then
    (loop $more
      (if (i32.ne (memory.grow (i32.const 1)) (i32.const -1)) (then
        (i32.store (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 4)) (i32.const 1))
        (br $more))))
    (i32.store (i32.mul (memory.size) (i32.const 65536)) (i32.const 1))))
  (i32.const 0))
