;; Takes from a segment of data that it has given up.
(data $segment "0123456789")
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (data.drop $segment)
  (memory.init $segment (i32.const 65536) (i32.const 0) (i32.const 10))
  (unreachable))
