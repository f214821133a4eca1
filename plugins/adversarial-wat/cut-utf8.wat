;; Answers with a text that ends in the middle of a character.
(data (i32.const 1024) "ab\e2\82")
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (call $answer (i32.const 1024) (i32.const 4)))
