;; Looks for anything that is not zero in all memory that it can get, in its globals and in its table.
(memory (export "memory") 64)
(data (i32.const 1024) "nothingfound")
(global $mark (mut i64) (i64.const 0))
(table $t 1000 funcref)
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (local $at i32) (local $end i32) (local $seen i64)
  (loop $again
    (br_if $again (i32.ne (memory.grow (i32.const 64)) (i32.const -1))))
  (local.set $end (i32.mul (memory.size) (i32.const 65536)))
  (local.set $at (i32.const 131072))
  (local.set $seen (global.get $mark))
  (loop $again
    (local.set $seen (i64.or (local.get $seen)
      (i64.or (i64.load (local.get $at)) (i64.load offset=8 (local.get $at)))))
    (br_if $again (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 16))) (local.get $end))))
  (local.set $at (i32.const 0))
  (loop $again
    (if (i32.eqz (ref.is_null (table.get $t (local.get $at))))
      (then (local.set $seen (i64.const 1))))
    (br_if $again (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 1))) (i32.const 1000))))
  (if (result i32) (i64.eqz (local.get $seen))
    (then (call $answer (i32.const 1024) (i32.const 7)))
    (else (call $answer (i32.const 1031) (i32.const 5)))))
