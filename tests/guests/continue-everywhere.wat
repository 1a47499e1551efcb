;; Lets go in every callback what nobody holds.
(import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
(func $go_on
  (if (global.get $guilt) (then
    (drop (call $continue (i32.const 0)))
    (drop (call $continue (i32.const 1)))
    (drop (call $continue (i32.const 2)))
    (drop (call $continue (i32.const 3))))))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (call $judge) (call $go_on) (i32.const 0))
(func (export "proxy_on_request_body") (param i32 i32 i32) (result i32) (call $go_on) (i32.const 0))
(func (export "proxy_on_request_trailers") (param i32 i32) (result i32) (call $go_on) (i32.const 0))
(func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) (call $go_on) (i32.const 0))
(func (export "proxy_on_response_body") (param i32 i32 i32) (result i32) (call $go_on) (i32.const 0))
(func (export "proxy_on_response_trailers") (param i32 i32) (result i32) (call $go_on) (i32.const 0))
(func (export "proxy_on_log") (param i32) (call $go_on))
(func (export "proxy_on_done") (param i32) (result i32) (call $go_on) (i32.const 1))
(func (export "proxy_on_delete") (param i32) (call $go_on))
