;; Makes queues and fills one, for ever.
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then
    (drop (call $register_queue (i32.const 16) (i32.const 7) (i32.const 8)))
    (loop $more
      (call $fresh_name)
      (drop (call $enqueue (i32.load (i32.const 8)) (i32.const 65536) (i32.const 32768)))
      (drop (call $register_queue (i32.const 32) (i32.const 8) (i32.const 0)))
      (br $more))))
  (i32.const 0))
