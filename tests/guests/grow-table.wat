;; Wants a table of 2^31 entries, then one entry more at a time, for ever.
(table $grown 1 funcref)
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then
    (drop (table.grow $grown (ref.null func) (i32.const 0x7fffffff)))
    (loop $more
      (drop (table.grow $grown (ref.null func) (i32.const 1)))
      (br $more))))
  (i32.const 0))
