;; Puts everything that the host passes at one place, over itself: what it answers is its own affair.
(data (i32.const 1024) "mine")
(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
  (i32.const 65536))
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (call $answer (i32.const 1024) (i32.const 4)))
