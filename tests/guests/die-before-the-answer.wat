;; Makes a callout and breaks, so that the answer comes to nobody.
(data (i32.const 128) "backend")
(data (i32.const 256) "\03\00\00\00\07\00\00\00\03\00\00\00\05\00\00\00\01\00\00\00\0a\00\00\00\01\00\00\00:method\00GET\00:path\00/\00:authority\00a\00")
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then
    (drop (call $http_call (i32.const 128) (i32.const 7) (i32.const 256) (i32.const 61) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 5000) (i32.const 8)))
    unreachable))
  (i32.const 0))
