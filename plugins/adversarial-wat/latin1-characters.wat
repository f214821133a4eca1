;; Answers with a text that is twice as long in UTF-8 as in Latin-1: 3,200,000 bytes become 6,400,000.
(memory (export "memory") 64)
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (memory.fill (i32.const 524288) (i32.const 0xe9) (i32.const 3200000))
  (call $answer (i32.const 524288) (i32.const 3200000)))
