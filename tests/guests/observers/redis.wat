;; Makes Redis callouts for each request, as the request's headers say, and answers the request with what came of them. Headers: `x-cluster`;
;; `x-timeout` (ms), with `x-user` and `x-password`, has it told to the host first; `x-query` is the command, with `~` for each line end;
;; `x-times` how often it is sent. `x-trap` ends the VM afterwards. The answer: `init STATUS`, `call STATUS` where these are not 0, and for the
;; first reply `reply 0 BYTES`, or `reply STATUS GET_STATUS`. A configuration `{"c":"CLUSTER"}` has that initialised at the start, with a second's time-out.
(module
(import "env" "proxy_get_header_map_value" (func $map_value (param i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_get_buffer_bytes" (func $buffer (param i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_get_status" (func $get_status (param i32 i32 i32) (result i32)))
(import "env" "proxy_set_effective_context" (func $set_context (param i32) (result i32)))
(import "env" "proxy_send_local_response" (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_redis_init" (func $redis_init (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_redis_call" (func $redis_call (param i32 i32 i32 i32 i32) (result i32)))

(memory (export "memory") 64)
(data (i32.const 64) "x-cluster")
(data (i32.const 80) "x-timeout")
(data (i32.const 96) "x-user")
(data (i32.const 104) "x-password")
(data (i32.const 120) "x-query")
(data (i32.const 128) "x-times")
(data (i32.const 136) "x-trap")
(data (i32.const 144) "init ")
(data (i32.const 152) "call ")
(data (i32.const 160) "reply ")

(global $heap (mut i32) (i32.const 2097152))
(global $written (mut i32) (i32.const 0)) ;; bytes of the answer, which stands at 65536
(global $at (mut i32) (i32.const 0)) ;; the last value that the host handed over
(global $len (mut i32) (i32.const 0))

(func (export "proxy_abi_version_0_2_1"))
;; What was handed over in one callback is not looked at in another.
(func (export "proxy_on_memory_allocate") (param $size i32) (result i32)
  (global.get $heap)
  (global.set $heap (i32.and (i32.add (i32.add (global.get $heap) (local.get $size)) (i32.const 7)) (i32.const -8))))
(func $begin
  (global.set $heap (i32.const 2097152))
  (global.set $written (i32.const 0)))

(func $put (param $at i32) (param $len i32)
  (memory.copy (i32.add (i32.const 65536) (global.get $written)) (local.get $at) (local.get $len))
  (global.set $written (i32.add (global.get $written) (local.get $len))))
(func $put_number (param $number i32)
  (if (i32.ge_u (local.get $number) (i32.const 10))
    (then (call $put_number (i32.div_u (local.get $number) (i32.const 10)))))
  (i32.store8 (i32.const 8) (i32.add (i32.const 48) (i32.rem_u (local.get $number) (i32.const 10))))
  (call $put (i32.const 8) (i32.const 1)))
(func $space
  (i32.store8 (i32.const 8) (i32.const 32))
  (call $put (i32.const 8) (i32.const 1)))
;; A request header into $at and $len; both 0 without one.
(func $header (param $name i32) (param $name_len i32)
  (i64.store (i32.const 0) (i64.const 0))
  (drop (call $map_value (i32.const 0) (local.get $name) (local.get $name_len) (i32.const 0) (i32.const 4)))
  (global.set $at (i32.load (i32.const 0)))
  (global.set $len (i32.load (i32.const 4))))
(func $number (result i32) (local $value i32) (local $i i32)
  (block $done (loop $more
    (br_if $done (i32.ge_u (local.get $i) (global.get $len)))
    (local.set $value (i32.add (i32.mul (local.get $value) (i32.const 10))
      (i32.sub (i32.load8_u (i32.add (global.get $at) (local.get $i))) (i32.const 48))))
    (local.set $i (i32.add (local.get $i) (i32.const 1)))
    (br $more)))
  (local.get $value))
(func $respond
  (drop (call $reply (i32.const 200) (i32.const 0) (i32.const 0) (i32.const 65536) (global.get $written)
    (i32.const 0) (i32.const 0) (i32.const -1))))

(func (export "proxy_on_configure") (param $root i32) (param $size i32) (result i32)
  (call $begin)
  (if (i32.gt_u (local.get $size) (i32.const 8)) (then
    (drop (call $buffer (i32.const 7) (i32.const 6) (i32.sub (local.get $size) (i32.const 8)) (i32.const 0) (i32.const 4)))
    (drop (call $redis_init (i32.load (i32.const 0)) (i32.load (i32.const 4)) (i32.const 0) (i32.const 0)
      (i32.const 0) (i32.const 0) (i32.const 1000)))))
  (i32.const 1))

;; The query to 32768, with line ends.
(func $query (result i32) (local $i i32) (local $to i32) (local $byte i32)
  (local.set $to (i32.const 32768))
  (block $done (loop $more
    (br_if $done (i32.ge_u (local.get $i) (global.get $len)))
    (local.set $byte (i32.load8_u (i32.add (global.get $at) (local.get $i))))
    (if (i32.eq (local.get $byte) (i32.const 126))
      (then
        (i32.store16 (local.get $to) (i32.const 2573))
        (local.set $to (i32.add (local.get $to) (i32.const 2))))
      (else
        (i32.store8 (local.get $to) (local.get $byte))
        (local.set $to (i32.add (local.get $to) (i32.const 1)))))
    (local.set $i (i32.add (local.get $i) (i32.const 1)))
    (br $more)))
  (i32.sub (local.get $to) (i32.const 32768)))

(func (export "proxy_on_request_headers") (param $context i32) (param i32 i32) (result i32)
  (local $cluster i32) (local $cluster_len i32) (local $user i32) (local $user_len i32) (local $password i32) (local $password_len i32)
  (local $query_len i32) (local $times i32) (local $status i32)
  (call $begin)
  (call $header (i32.const 64) (i32.const 9))
  (local.set $cluster (global.get $at)) (local.set $cluster_len (global.get $len))
  (call $header (i32.const 96) (i32.const 6))
  (local.set $user (global.get $at)) (local.set $user_len (global.get $len))
  (call $header (i32.const 104) (i32.const 10))
  (local.set $password (global.get $at)) (local.set $password_len (global.get $len))
  (call $header (i32.const 80) (i32.const 9))
  (if (global.get $len) (then
    (local.set $status (call $redis_init (local.get $cluster) (local.get $cluster_len) (local.get $user) (local.get $user_len)
      (local.get $password) (local.get $password_len) (call $number)))
    (if (local.get $status) (then
      (call $put (i32.const 144) (i32.const 5))
      (call $put_number (local.get $status))
      (call $space)))))
  (call $header (i32.const 128) (i32.const 7))
  (local.set $times (select (call $number) (i32.const 1) (global.get $len)))
  (call $header (i32.const 120) (i32.const 7))
  (local.set $query_len (call $query))
  (block $done (loop $more
    (br_if $done (i32.eqz (local.get $times)))
    (local.set $status (call $redis_call (local.get $cluster) (local.get $cluster_len) (i32.const 32768) (local.get $query_len) (i32.const 16)))
    (if (local.get $status) (then
      (call $put (i32.const 152) (i32.const 5))
      (call $put_number (local.get $status))
      (call $respond)
      (return (i32.const 0))))
    ;; Whose it is stands at 1024, by its token.
    (i32.store (i32.add (i32.const 1024) (i32.and (i32.load (i32.const 16)) (i32.const 0x3ffc))) (local.get $context))
    (local.set $times (i32.sub (local.get $times) (i32.const 1)))
    (br $more)))
  (call $header (i32.const 136) (i32.const 6))
  (if (global.get $len) (then unreachable))
  (i32.const 1))

(func (export "proxy_on_redis_call_response") (param $root i32) (param $token i32) (param $status i32) (param $size i32)
  (call $begin)
  (call $put (i32.const 160) (i32.const 6))
  (call $put_number (local.get $status))
  (call $space)
  (if (local.get $status) (then
    (drop (call $get_status (i32.const 12) (i32.const 0) (i32.const 4)))
    (call $put_number (i32.load (i32.const 12)))
    (call $space)))
  (i64.store (i32.const 0) (i64.const 0))
  (drop (call $buffer (i32.const 9) (i32.const 0) (local.get $size) (i32.const 0) (i32.const 4)))
  (call $put (i32.load (i32.const 0)) (i32.load (i32.const 4)))
  (drop (call $set_context (i32.load (i32.add (i32.const 1024) (i32.and (local.get $token) (i32.const 0x3ffc))))))
  (call $respond)))
