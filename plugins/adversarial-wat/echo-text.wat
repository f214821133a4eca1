;; Answers with the request's text as the host put it into the memory.
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (call $answer (local.get $text) (local.get $text_len)))
