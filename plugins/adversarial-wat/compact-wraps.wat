;; Answers with a text whose length has the mark of UTF-16 and nothing behind it.
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (call $answer (i32.const 1024) (i32.const -1)))
