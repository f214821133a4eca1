;; Decides for something that is none of the four decisions.
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (i32.store8 (i32.const 20) (i32.const 9))
  (i32.const 16))
