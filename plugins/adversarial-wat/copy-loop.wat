;; Copies half of a large memory onto its other half without end: each copy is one instruction.
(memory (export "memory") 512)
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (loop $again
    (memory.copy (i32.const 16777216) (i32.const 65536) (i32.const 16000000))
    (br $again))
  (unreachable))
