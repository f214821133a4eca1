//! Values that may be copied to and from a device as bytes.

use half::{bf16, f16};

use super::CudaError;

/// A type that is its bytes.
///
/// # Safety
/// Every pattern of bytes must be a value of it, and it must have no padding.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($number:ty),*) => { $(
        // SAFETY: a number, of which every pattern is a value, without padding.
        unsafe impl Plain for $number {}
    )* };
}
plain!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, f16, bf16);

/// The values as bytes.
#[must_use]
pub fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` has no padding, so each byte is initialised; bytes need no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The values as bytes that may be written.
pub fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as `bytes_of`, and every pattern that is written is a value.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

/// The bytes as values.
///
/// # Errors
/// If the bytes do not begin at a multiple of the type's alignment, or are no whole number of values.
pub fn view<T: Plain>(bytes: &[u8]) -> Result<&[T], CudaError> {
    is_whole::<T>(bytes)?;
    // SAFETY: aligned and whole, as was checked; every pattern is a value.
    Ok(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) })
}

/// The bytes as values that may be written.
///
/// # Errors
/// As [`view`].
pub fn view_mut<T: Plain>(bytes: &mut [u8]) -> Result<&mut [T], CudaError> {
    is_whole::<T>(bytes)?;
    // SAFETY: aligned and whole, as was checked; every pattern is a value, and `Plain` has no padding.
    Ok(unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / size_of::<T>()) })
}

fn is_whole<T: Plain>(bytes: &[u8]) -> Result<(), CudaError> {
    let size = size_of::<T>();
    if size == 0 || !bytes.len().is_multiple_of(size) || !bytes.as_ptr().addr().is_multiple_of(align_of::<T>()) {
        return Err(CudaError::Alignment { what: "bytes viewed as values", multiple: size });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_whole_and_aligned_or_refused() {
        let mut words = [1_u32, 2, 3];
        let bytes = bytes_of_mut(&mut words);
        assert_eq!(view::<u32>(bytes), Ok(&[1, 2, 3][..]));
        assert!(view::<u32>(&bytes[1..]).is_err() && view::<u64>(bytes).is_err() && view::<u32>(&bytes[..7]).is_err());
        view_mut::<u32>(&mut bytes[4..8]).expect("aligned")[0] = 9;
        assert_eq!(words, [1, 9, 3]);
    }
}
