;; Takes all memory that it is given, page by page and at once, and is content when it is refused.
(data (i32.const 1024) "refused")
(func (export "tenon:plugin/hooks@0.1.0#route") (;request;)
  (drop (memory.grow (i32.const 65535)))
  (loop $again
    (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
  (call $answer (i32.const 1024) (i32.const 7)))
