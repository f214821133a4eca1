;; Fills and copies a large table without end.
(table $t 60000 funcref)
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (loop $again
    (table.fill $t (i32.const 0) (ref.null func) (i32.const 60000))
    (table.copy $t $t (i32.const 100) (i32.const 0) (i32.const 50000))
    (br $again))
  (unreachable))
