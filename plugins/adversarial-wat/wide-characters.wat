;; Answers with a text that is half as long again in UTF-8 as in UTF-16: 3,200,000 bytes become 4,800,000.
(memory (export "memory") 64)
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (local $at i32)
  (loop $again
    (i32.store offset=524288 (local.get $at) (i32.const 0x20ac20ac))
    (br_if $again (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 4))) (i32.const 3200000))))
  (call $answer (i32.const 524288) (i32.const 1600000)))
