;; Fills the shared data for ever, 32 KiB an entry.
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then
    (loop $more
      (call $fresh_name)
      (drop (call $set_shared_data (i32.const 32) (i32.const 8) (i32.const 65536) (i32.const 32768) (i32.const 0)))
      (br $more))))
  (i32.const 0))
