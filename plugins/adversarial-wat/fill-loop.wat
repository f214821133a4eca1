;; Fills most of a large memory without end: each time is one instruction.
(memory (export "memory") 512)
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (loop $again
    (memory.fill (i32.const 65536) (i32.const 90) (i32.const 33000000))
    (br $again))
  (unreachable))
