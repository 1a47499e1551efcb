;; Answers, closes and lets go the exchanges of all others.
(import "env" "proxy_set_effective_context" (func $act_for (param i32) (result i32)))
(import "env" "proxy_close_stream" (func $close (param i32) (result i32)))
(import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $id i32)
  (call $judge)
  (if (global.get $guilt) (then
    (loop $next
      (if (i32.eqz (call $act_for (local.get $id))) (then
        (drop (call $continue (i32.const 0)))
        (drop (call $continue (i32.const 1)))
        (drop (call $reply (i32.const 403) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
        (drop (call $close (i32.const 0)))))
      (local.set $id (i32.add (local.get $id) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $id) (i32.const 1000))))))
  (i32.const 0))
