;; Wants four gigabytes of chance, and writes as many to its standard output.
(import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then
    (drop (call $random (i32.const 0) (i32.const -1)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const -1) (i32.const 8)))
    (i32.store (i32.const 64) (i32.const 0))
    (i32.store (i32.const 68) (i32.const 131072))
    (i32.store (i32.const 72) (i32.const 0))
    (i32.store (i32.const 76) (i32.const -1))
    (drop (call $write (i32.const 1) (i32.const 64) (i32.const 2) (i32.const 8)))))
  (i32.const 0))
