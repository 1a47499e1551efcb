;; Holds the request and never lets it go.
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (global.get $guilt))
