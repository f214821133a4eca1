;; Passes a list whose many strings are all the same megabyte: little memory here, much there.
(import "tenon:plugin/catalog@0.1.0" "prefetch" (func $prefetch (param i32 i32 i32)))
(memory (export "memory") 64)
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (local $left i32)
  (memory.fill (i32.const 1048576) (i32.const 97) (i32.const 1048576))
  (local.set $left (i32.const 4000))
  (loop $again
    (i32.store offset=2097152 (i32.mul (local.get $left) (i32.const 8)) (i32.const 1048576))
    (i32.store offset=2097156 (i32.mul (local.get $left) (i32.const 8)) (i32.const 1048576))
    (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
  (call $prefetch (i32.const 2097160) (i32.const 4000) (i32.const 512))
  (unreachable))
