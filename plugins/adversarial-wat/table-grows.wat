;; Lets a table grow until it is refused, and is content.
(data (i32.const 1024) "refused")
(table $t 0 funcref)
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (loop $again
    (br_if $again (i32.ne (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1))))
  (call $answer (i32.const 1024) (i32.const 7)))
