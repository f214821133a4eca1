//! Memory of a step that is written anew each time: activations. Not here: memory that only grows by items (`Vec`), and what
//! is read only (`memory.rs`).

use std::ops::{Deref, DerefMut};

use crate::memory::Memory;

/// Plain numbers: any bits are a value.
pub trait Number: Copy + private::Sealed {}

impl Number for f32 {}
impl Number for u32 {}
impl Number for u64 {}

mod private {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

/// Numbers whose count changes from operation to operation, in memory that only grows, in huge pages where it fills them.
/// What [`Buffer::resize`] adds is whatever was there before: unlike a `Vec`, it is not filled, which for a prefill of 512 rows
/// took as long as the norms.
pub struct Buffer<T> {
    memory: Memory,
    len: usize,
    _numbers: std::marker::PhantomData<T>,
}

impl<T: Number> Buffer<T> {
    /// Empty, with room for so many numbers.
    #[must_use]
    pub fn with_capacity(numbers: usize) -> Self {
        Self { memory: Memory::new(numbers * size_of::<T>()), len: 0, _numbers: std::marker::PhantomData }
    }

    /// Makes it so long. The numbers are some numbers, for the caller to write.
    pub fn resize(&mut self, len: usize) {
        if len * size_of::<T>() > self.memory.bytes().len() {
            // Grown by half, so that steps that grow little by little do not allocate each time.
            self.memory = Memory::new((len + len / 2) * size_of::<T>());
        }
        self.len = len;
    }
}

impl<T: Number> Default for Buffer<T> {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl<T: Number> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `resize` keeps `len` numbers within the memory, which is aligned to a cache line, was zeroed when it was
        // made, and holds numbers: any bits are a value of `T` (the trait is sealed).
        unsafe { std::slice::from_raw_parts(self.memory.bytes().as_ptr().cast(), self.len) }
    }
}

impl<T: Number> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.memory.bytes_mut().as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_and_shrinks_without_losing_its_memory() {
        let mut buffer = Buffer::<f32>::default();
        assert!(buffer.is_empty());
        buffer.resize(3);
        buffer.copy_from_slice(&[1.0, 2.0, 3.0]);
        buffer.resize(1);
        assert_eq!(*buffer, [1.0]);
        buffer.resize(3);
        assert_eq!(*buffer, [1.0, 2.0, 3.0], "what was there before");
        buffer.resize(1 << 20);
        assert_eq!(buffer.len(), 1 << 20);
        assert!(buffer.iter().all(|number| *number == 0.0), "new memory begins as zeros");
        let first = buffer.as_ptr();
        buffer.resize(1 << 19);
        buffer.resize(1 << 20);
        assert_eq!(buffer.as_ptr(), first);
    }
}
