;; Hands over header maps whose counts and lengths are lies.
(import "env" "proxy_set_header_map_pairs" (func $set_pairs (param i32 i32 i32) (result i32)))
(data (i32.const 128) "\ff\ff\ff\ff\01\00\00\00\01\00\00\00a\00b\00")
(data (i32.const 160) "\01\00\00\00\ff\ff\ff\ff\02\00\00\00a\00b\00")
(data (i32.const 192) "\00\00\00\80\00\00\00\00\00\00\00\00")
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then
    (drop (call $set_pairs (i32.const 0) (i32.const 128) (i32.const 16)))
    (drop (call $set_pairs (i32.const 0) (i32.const 160) (i32.const 16)))
    (drop (call $set_pairs (i32.const 0) (i32.const 192) (i32.const 12)))
    (drop (call $set_pairs (i32.const 0) (i32.const 128) (i32.const 3)))
    (drop (call $set_pairs (i32.const 0) (i32.const 0) (i32.const 131072)))))
  (i32.const 0))
