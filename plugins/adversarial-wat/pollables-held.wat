;; Subscribes to the clock without end, and keeps each subscription.
(import "wasi:clocks/monotonic-clock@0.2.12" "subscribe-duration" (func $subscribe (param i64) (result i32)))
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (loop $again (drop (call $subscribe (i64.const 1000))) (br $again))
  (unreachable))
