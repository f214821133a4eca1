;; Asks WASI's clock some thousand times, quickly, and answers.
(import "wasi:clocks/monotonic-clock@0.2.12" "now" (func $now (result i64)))
(data (i32.const 1024) "answered")
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (local $left i32)
  (local.set $left (i32.const 2000))
  (loop $again
    (drop (call $now))
    (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
  (call $answer (i32.const 1024) (i32.const 8)))
