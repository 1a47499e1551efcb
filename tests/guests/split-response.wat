;; Adds headers whose bytes would end the head and begin a response of its own.
(data (i32.const 128) "x-split")
(data (i32.const 136) "a\0d\0aset-cookie: stolen=1\0d\0a\0d\0a<script>")
(data (i32.const 192) "x-name: y\0d\0aset-cookie")
(func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
  (if (global.get $guilt) (then
    (drop (call $add_header (i32.const 2) (i32.const 128) (i32.const 7) (i32.const 136) (i32.const 35)))
    (drop (call $add_header (i32.const 2) (i32.const 192) (i32.const 21) (i32.const 128) (i32.const 7)))
    (drop (call $add_header (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 128) (i32.const 7)))))
  (i32.const 0))
