;; Calls behind the end of a table.
(type $turn (func))
(table 4 funcref)
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (call_indirect (type $turn) (i32.const -1))
  (unreachable))
