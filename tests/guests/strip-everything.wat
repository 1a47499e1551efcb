;; Takes all headers from the request and from the answer.
(import "env" "proxy_set_header_map_pairs" (func $set_pairs (param i32 i32 i32) (result i32)))
(data (i32.const 128) "\00\00\00\00")
(func $strip (param $map i32)
  (if (global.get $guilt) (then
    (drop (call $set_pairs (local.get $map) (i32.const 128) (i32.const 4)))
    (drop (call $set_pairs (local.get $map) (i32.const 128) (i32.const 0))))))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (call $judge) (call $strip (i32.const 0)) (i32.const 0))
(func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) (call $strip (i32.const 2)) (i32.const 0))
