;; Answers a chunk with 300,000 actions that are nothing but zeros.
(memory (export "memory") 64)
(global $post i32 (i32.const 1))
(func (export "tenon:plugin/hooks@0.1.0#[method]post-processor.chunk") (param i32 i32 i32 i32 i32) (result i32)
  (i32.store (i32.const 516) (i32.const 524288))
  (i32.store (i32.const 520) (i32.const 300000))
  (i32.const 512))
