;; Makes headers and drops them without end.
(import "wasi:http/types@0.2.12" "[constructor]fields" (func $fields (result i32)))
(import "wasi:http/types@0.2.12" "[resource-drop]fields" (func $drop (param i32)))
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (loop $again (call $drop (call $fields)) (br $again))
  (unreachable))
