;; Answers with half of a pair in UTF-16.
(data (i32.const 1024) "a\00\00\d8b\00")
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (call $answer (i32.const 1024) (i32.const 3)))
