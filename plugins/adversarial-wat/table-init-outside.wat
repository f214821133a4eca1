;; Takes more of a segment of functions than there is.
(table $t 10 funcref)
(elem $segment func $nothing)
(func $nothing)
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (table.init $t $segment (i32.const 0) (i32.const 0) (i32.const 2))
  (unreachable))
