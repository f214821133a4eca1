;; Drops a handle that it never had.
(import "wasi:http/types@0.2.12" "[resource-drop]fields" (func $drop (param i32)))
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (call $drop (i32.const 12345))
  (unreachable))
