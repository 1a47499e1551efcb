;; What every guest of the gallery begins with: the imports, 2 pages of memory, and how it learns that it is to
;; commit its crime now: by the request header `x-crime`. hostile.rs puts this before a guest's own text, and the
;; innocent callbacks of innocent.wat after it where the guest has none of its own.
(import "env" "proxy_get_header_map_value" (func $get_header (param i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_add_header_map_value" (func $add_header (param i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_send_local_response" (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
(import "env" "proxy_set_tick_period_milliseconds" (func $set_tick_period (param i32) (result i32)))
(import "env" "proxy_set_buffer_bytes" (func $set_buffer (param i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_define_metric" (func $define_metric (param i32 i32 i32 i32) (result i32)))
(import "env" "proxy_set_shared_data" (func $set_shared_data (param i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_register_shared_queue" (func $register_queue (param i32 i32 i32) (result i32)))
(import "env" "proxy_enqueue_shared_queue" (func $enqueue (param i32 i32 i32) (result i32)))
(import "env" "proxy_set_property" (func $set_property (param i32 i32 i32 i32) (result i32)))
(import "env" "proxy_http_call" (func $http_call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))

(memory (export "memory") 2)
(data (i32.const 16) "x-crime")
(global $guilt (mut i32) (i32.const 0))
(global $count (mut i32) (i32.const 0))

;; Bytes 0..16 are for what the host writes; 64 KiB and up is what it may have allocated.
(func $judge
  (global.set $guilt
    (i32.eqz (call $get_header (i32.const 0) (i32.const 16) (i32.const 7) (i32.const 0) (i32.const 4)))))

;; A name that was never used before, in the 8 bytes at 32.
(func $fresh_name
  (global.set $count (i32.add (global.get $count) (i32.const 1)))
  (i32.store (i32.const 32) (i32.const 0x65646f63)) ;; "code"
  (i32.store8 (i32.const 36) (i32.add (i32.const 97) (i32.and (global.get $count) (i32.const 15))))
  (i32.store8 (i32.const 37) (i32.add (i32.const 97) (i32.and (i32.shr_u (global.get $count) (i32.const 4)) (i32.const 15))))
  (i32.store8 (i32.const 38) (i32.add (i32.const 97) (i32.and (i32.shr_u (global.get $count) (i32.const 8)) (i32.const 15))))
  (i32.store8 (i32.const 39) (i32.add (i32.const 97) (i32.and (i32.shr_u (global.get $count) (i32.const 12)) (i32.const 15)))))
