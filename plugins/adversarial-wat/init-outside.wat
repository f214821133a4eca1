;; Takes more of a segment of data than there is.
(data $segment "0123456789")
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (memory.init $segment (i32.const 65536) (i32.const 5) (i32.const 6))
  (unreachable))
