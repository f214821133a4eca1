;; Asks WASI's clock often at every chunk, but never too often for one call.
(import "wasi:clocks/monotonic-clock@0.2.12" "now" (func $now (result i64)))
(global $post i32 (i32.const 1))
(func (export "tenon:plugin/hooks@0.1.0#[method]post-processor.chunk") (param i32 i32 i32 i32 i32) (result i32)
  (local $left i32)
  (local.set $left (i32.const 60))
  (loop $again
    (drop (call $now))
    (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
  (i32.const 512))
