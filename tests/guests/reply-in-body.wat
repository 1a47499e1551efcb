;; Replies when its own answer is half out.
(func (export "proxy_on_response_body") (param i32 i32 i32) (result i32)
  (if (global.get $guilt) (then
    (drop (call $reply (i32.const 403) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))))
  (i32.const 0))
