;; Fills the log through WASI's interface until its host calls are used up.
(import "wasi:logging/logging@0.1.0-draft" "log" (func $log (param i32 i32 i32 i32 i32)))
(data (i32.const 1024) "a line that is said again and again")
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (loop $again
    (call $log (i32.const 2) (i32.const 1024) (i32.const 6) (i32.const 1024) (i32.const 35))
    (br $again))
  (unreachable))
