;; Makes the answer's body longer for ever.
(func (export "proxy_on_response_body") (param i32 i32 i32) (result i32)
  (if (global.get $guilt) (then
    (loop $more
      (drop (call $set_buffer (i32.const 1) (i32.const 0x7fffffff) (i32.const 0) (i32.const 65536) (i32.const 65536)))
      (br $more))))
  (i32.const 0))
