;; Would compute without end when its post-processor is dropped.
(global $post i32 (i32.const 1))
(func (export "tenon:plugin/hooks@0.1.0#[dtor]post-processor") (param i32)
  (loop (br 0)))
