;; Holds a request's body, and never lets go.
(func (export "proxy_on_request_body") (param i32 i32 i32) (result i32) (global.get $guilt))
