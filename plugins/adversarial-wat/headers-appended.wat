;; Lets one set of headers grow without end.
(import "wasi:http/types@0.2.12" "[constructor]fields" (func $fields (result i32)))
(import "wasi:http/types@0.2.12" "[method]fields.append" (func $append (param i32 i32 i32 i32 i32 i32)))
(data (i32.const 1024) "x-name")
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (local $one i32)
  (memory.fill (i32.const 2048) (i32.const 97) (i32.const 4096))
  (local.set $one (call $fields))
  (loop $again
    (call $append (local.get $one) (i32.const 1024) (i32.const 6) (i32.const 2048) (i32.const 4096) (i32.const 512))
    (br $again))
  (unreachable))
