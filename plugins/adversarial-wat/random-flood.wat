;; Asks for more random bytes at once than there are addresses.
(import "tenon:plugin/random@0.1.0" "bytes" (func $bytes (param i32 i32)))
(data (i32.const 1024) "takenrefused")
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (call $bytes (i32.const -1) (i32.const 512))
  (if (result i32) (i32.load8_u (i32.const 512))
    (then (call $answer (i32.const 1029) (i32.const 7)))
    (else (call $answer (i32.const 1024) (i32.const 5)))))
