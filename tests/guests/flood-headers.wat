;; Adds headers for ever.
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then
    (memory.fill (i32.const 65536) (i32.const 120) (i32.const 16384))
    (loop $more
      (call $fresh_name)
      (drop (call $add_header (i32.const 0) (i32.const 32) (i32.const 8) (i32.const 65536) (i32.const 16384)))
      (br $more))))
  (i32.const 0))
