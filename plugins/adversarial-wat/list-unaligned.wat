;; Answers a chunk with a list that lies where none may.
(global $post i32 (i32.const 1))
(func (export "tenon:plugin/hooks@0.1.0#[method]post-processor.chunk") (param i32 i32 i32 i32 i32) (result i32)
  (i32.store (i32.const 516) (i32.const 65537))
  (i32.store (i32.const 520) (i32.const 1))
  (i32.const 512))
