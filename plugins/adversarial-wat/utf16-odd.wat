;; Answers with UTF-16 at an odd place.
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (call $answer (i32.const 1025) (i32.const 3)))
