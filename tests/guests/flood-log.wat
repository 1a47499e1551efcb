;; Logs 64 KiB lines for ever.
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then
    (memory.fill (i32.const 65536) (i32.const 120) (i32.const 65536))
    (loop $more (drop (call $log (i32.const 4) (i32.const 65536) (i32.const 65536))) (br $more))))
  (i32.const 0))
