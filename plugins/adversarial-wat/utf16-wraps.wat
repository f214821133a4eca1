;; Answers with UTF-16 so long that its bytes do not fit 32 bits.
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (call $answer (i32.const 1024) (i32.const 0x7fffffff)))
