;; Wants a tick every millisecond, and spends each.
(func (export "proxy_on_configure") (param i32 i32) (result i32)
  (drop (call $set_tick_period (i32.const 1)))
  (i32.const 1))
(func (export "proxy_on_tick") (param i32)
  (loop $ever (br $ever)))
