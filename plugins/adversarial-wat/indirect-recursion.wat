;; Two functions that call each other through a table without end.
(type $turn (func (param i32) (result i32)))
(table funcref (elem $one $two))
(func $one (type $turn) (i32.mul (call_indirect (type $turn) (local.get 0) (i32.const 1)) (i32.const 3)))
(func $two (type $turn) (i32.add (call_indirect (type $turn) (local.get 0) (i32.const 0)) (i32.const 1)))
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (call $one (i32.const 7)))
