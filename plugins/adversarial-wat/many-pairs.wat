;; Ends with 100,000 pairs of metadata that are all empty.
(memory (export "memory") 64)
(global $post i32 (i32.const 1))
(func (export "tenon:plugin/hooks@0.1.0#[method]post-processor.finish") (param i32 i32 i32 i32) (result i32)
  (i32.store (i32.const 556) (i32.const 524288))
  (i32.store (i32.const 560) (i32.const 100000))
  (i32.const 544))
