;; Waits for a clock that rings in an hour.
(import "wasi:clocks/monotonic-clock@0.2.12" "subscribe-duration" (func $subscribe (param i64) (result i32)))
(import "wasi:io/poll@0.2.12" "[method]pollable.block" (func $block (param i32)))
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (call $block (call $subscribe (i64.const 3600000000000)))
  (unreachable))
