;; Computes without end in branches that depend on what it computes.
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (local $at i32)
  (loop $again
    (local.set $at (i32.mul (i32.add (local.get $at) (i32.const 7)) (i32.const 1664525)))
    (block $c (block $b (block $a
      (br_table $a $b $c $again $a $c (i32.rem_u (local.get $at) (i32.const 6))))
      (local.set $at (i32.const 3)))
      (local.set $at (i32.rotl (local.get $at) (i32.const 5))))
    (br $again))
  (unreachable))
