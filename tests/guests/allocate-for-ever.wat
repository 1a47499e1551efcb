;; Asks for memory for ever, refused or not.
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then (loop $more (drop (memory.grow (i32.const 1))) (br $more))))
  (i32.const 0))
