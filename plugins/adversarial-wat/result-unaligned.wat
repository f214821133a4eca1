;; Says that its answer lies where none may.
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (i32.const 17))
