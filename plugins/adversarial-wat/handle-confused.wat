;; Drops a handle as one of another kind.
(import "wasi:http/types@0.2.12" "[constructor]fields" (func $fields (result i32)))
(import "wasi:io/poll@0.2.12" "[resource-drop]pollable" (func $drop (param i32)))
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (call $drop (call $fields))
  (unreachable))
