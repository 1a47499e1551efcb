;; Breaks in every callback that it has, again and again.
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then unreachable))
  (i32.const 0))
(func (export "proxy_on_log") (param i32) (if (global.get $guilt) (then unreachable)))
(func (export "proxy_on_done") (param i32) (result i32) (if (global.get $guilt) (then unreachable)) (i32.const 1))
(func (export "proxy_on_delete") (param i32) (if (global.get $guilt) (then unreachable)))
