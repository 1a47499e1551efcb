;; Gives the answer a status that is none, and then none at all.
(import "env" "proxy_replace_header_map_value" (func $replace (param i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_remove_header_map_value" (func $remove (param i32 i32 i32) (result i32)))
(data (i32.const 128) ":status")
(data (i32.const 136) "99999abc")
(func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
  (if (global.get $guilt) (then
    (drop (call $replace (i32.const 2) (i32.const 128) (i32.const 7) (i32.const 136) (i32.const 8)))
    (drop (call $replace (i32.const 2) (i32.const 128) (i32.const 7) (i32.const 136) (i32.const 5)))
    (drop (call $replace (i32.const 2) (i32.const 128) (i32.const 7) (i32.const 136) (i32.const 0)))
    (drop (call $remove (i32.const 2) (i32.const 128) (i32.const 7)))))
  (i32.const 0))
