;; Answers with bytes that are no UTF-8.
(data (i32.const 1024) "ab\ff\fe\c0\80")
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (call $answer (i32.const 1024) (i32.const 6)))
