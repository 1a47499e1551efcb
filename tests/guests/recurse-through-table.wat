;; Calls itself without end, by way of a table.
(type $deeper (func (param i64) (result i64)))
(table 1 funcref)
(elem (i32.const 0) $deeper)
(func $deeper (type $deeper)
  (i64.add (call_indirect (type $deeper) (i64.add (local.get 0) (i64.const 1)) (i32.const 0)) (local.get 0)))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
  (call $judge)
  (if (global.get $guilt) (then
    (drop (call_indirect (type $deeper) (i64.const 0) (i32.const 0)))))
  (i32.const 0))
