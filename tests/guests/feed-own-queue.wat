;; Puts an entry into its own queue each time that it is told of one.
(func $feed
  (drop (call $register_queue (i32.const 16) (i32.const 7) (i32.const 8)))
  (drop (call $enqueue (i32.load (i32.const 8)) (i32.const 16) (i32.const 7))))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then
    (call $feed)))
  (i32.const 0))
(func (export "proxy_on_queue_ready") (param i32 i32) (call $feed))
