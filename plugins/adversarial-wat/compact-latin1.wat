;; Answers with bytes that are text in Latin-1 and none in UTF-8.
(data (i32.const 1024) "caf\e9")
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (call $answer (i32.const 1024) (i32.const 4)))
