;; Replies when all is over; this brings Envoy 1.40 down.
(func (export "proxy_on_log") (param i32)
  (if (global.get $guilt) (then
    (drop (call $reply (i32.const 200) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1))))))
