;; Drops a handle twice.
(import "wasi:http/types@0.2.12" "[constructor]fields" (func $fields (result i32)))
(import "wasi:http/types@0.2.12" "[resource-drop]fields" (func $drop (param i32)))
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (local $one i32)
  (local.set $one (call $fields))
  (call $drop (local.get $one))
  (call $drop (local.get $one))
  (unreachable))
