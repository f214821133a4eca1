;; Calls a function as what it is not.
(type $turn (func (param i64 i64) (result f64)))
(table funcref (elem $other))
(func $other (param i32))
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (drop (call_indirect (type $turn) (i64.const 1) (i64.const 2) (i32.const 0)))
  (unreachable))
