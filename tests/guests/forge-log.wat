;; Writes lines into the log that look like the host's own.
(data (i32.const 128) "x\0a2026-01-01T00:00:00Z  INFO thread 'main' pan\1b[2Jicked\00\ff\0d\0a")
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then
    (drop (call $log (i32.const 4) (i32.const 128) (i32.const 64)))
    (drop (call $log (i32.const 4) (i32.const 0) (i32.const 131072)))))
  (i32.const 0))
