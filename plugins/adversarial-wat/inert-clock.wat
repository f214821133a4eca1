;; Asks WASI's clock without end.
(import "wasi:clocks/monotonic-clock@0.2.12" "now" (func $now (result i64)))
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (loop $again (drop (call $now)) (br $again))
  (unreachable))
