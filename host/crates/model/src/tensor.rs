//! One tensor of a base as its file has it: bytes, format and shape, and those bytes as f32. Not here: where a file keeps
//! it, or the form that a runner wants.

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use half::{bf16, f16};

use crate::ModelError;

/// Values that are turned into f32 at a time: what candle allocates on the way stays small.
const CHUNK_VALUES: usize = 1 << 20;

/// How a tensor's values are stored, row after row. The block formats are GGML's (`ggml-common.h`); every block belongs to
/// one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorFormat {
    /// IEEE 754 single precision, little-endian.
    F32,
    /// IEEE 754 half precision, little-endian.
    F16,
    /// The upper half of an f32, little-endian.
    Bf16,
    /// 32 values of 4 bits with a scale.
    Q4_0,
    /// 32 values of 4 bits with a scale and a least value.
    Q4_1,
    /// 32 values of 5 bits with a scale.
    Q5_0,
    /// 32 values of 5 bits with a scale and a least value.
    Q5_1,
    /// 32 values of 8 bits with a scale.
    Q8_0,
    /// 256 values of 2 bits in groups of 16.
    Q2K,
    /// 256 values of 3 bits in groups of 16.
    Q3K,
    /// 256 values of 4 bits in groups of 32.
    Q4K,
    /// 256 values of 5 bits in groups of 32.
    Q5K,
    /// 256 values of 6 bits in groups of 16.
    Q6K,
}

impl TensorFormat {
    /// Values in one block; 1 for plain numbers.
    #[must_use]
    pub const fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of a tensor of this shape; `None` if a row is not made of whole blocks or the product overflows.
    #[must_use]
    pub fn tensor_bytes(self, shape: &[usize]) -> Option<usize> {
        let row = *shape.last()?;
        let values = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size))?;
        let fits = row.is_multiple_of(self.block_values());
        if fits { (values / self.block_values()).checked_mul(self.block_bytes()) } else { None }
    }

    pub(crate) fn from_ggml(dtype: GgmlDType) -> Option<Self> {
        Some(match dtype {
            GgmlDType::F32 => Self::F32,
            GgmlDType::F16 => Self::F16,
            GgmlDType::BF16 => Self::Bf16,
            GgmlDType::Q4_0 => Self::Q4_0,
            GgmlDType::Q4_1 => Self::Q4_1,
            GgmlDType::Q5_0 => Self::Q5_0,
            GgmlDType::Q5_1 => Self::Q5_1,
            GgmlDType::Q8_0 => Self::Q8_0,
            GgmlDType::Q2K => Self::Q2K,
            GgmlDType::Q3K => Self::Q3K,
            GgmlDType::Q4K => Self::Q4K,
            GgmlDType::Q5K => Self::Q5K,
            GgmlDType::Q6K => Self::Q6K,
            // Intermediate results of GGML's products; no file holds weights in them.
            GgmlDType::Q8_1 | GgmlDType::Q8K => return None,
        })
    }

    /// `None` for plain numbers, which need no dequantising.
    const fn to_ggml(self) -> Option<GgmlDType> {
        Some(match self {
            Self::F32 | Self::F16 | Self::Bf16 => return None,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q2K => GgmlDType::Q2K,
            Self::Q3K => GgmlDType::Q3K,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q6K => GgmlDType::Q6K,
        })
    }
}

/// A tensor read from a base, in host memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseTensor {
    format: TensorFormat,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl BaseTensor {
    /// `None` if the bytes are not as many as the shape needs.
    pub(crate) fn new(format: TensorFormat, shape: &[usize], bytes: Vec<u8>) -> Option<Self> {
        let fits = format.tensor_bytes(shape) == Some(bytes.len());
        fits.then(|| Self { format, shape: shape.to_vec(), bytes })
    }

    /// How its values are stored.
    #[must_use]
    pub fn format(&self) -> TensorFormat {
        self.format
    }

    /// Its sizes, the slowest first: `[outputs, inputs]` for a linear module.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its bytes exactly as in the file, row after row.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same without a copy.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Its values, row after row. GGML's blocks are turned by candle: the oracle of the kernels' own unpacking.
    ///
    /// # Errors
    /// If candle refuses the blocks.
    pub fn to_f32(&self) -> Result<Vec<f32>, ModelError> {
        let Some(dtype) = self.format.to_ggml() else { return Ok(plain(self.format, &self.bytes)) };
        let inputs = self.shape.last().copied().unwrap_or_default().max(1);
        let row_bytes = inputs / self.format.block_values() * self.format.block_bytes();
        let chunk_rows = (CHUNK_VALUES / inputs).max(1);
        let mut values = Vec::with_capacity(self.shape.iter().product());
        for chunk in self.bytes.chunks((chunk_rows * row_bytes).max(1)) {
            let shape = vec![chunk.len() / row_bytes.max(1), inputs];
            let tensor = qtensor_from_ggml(dtype, chunk, shape, &Device::Cpu);
            let flat =
                tensor.and_then(|tensor| tensor.dequantize(&Device::Cpu)).and_then(|tensor| tensor.flatten_all());
            values.extend(flat.and_then(|tensor| tensor.to_vec1::<f32>()).map_err(crate::gguf::malformed)?);
        }
        Ok(values)
    }
}

fn plain(format: TensorFormat, bytes: &[u8]) -> Vec<f32> {
    let (fours, twos) = (bytes.as_chunks::<4>().0, bytes.as_chunks::<2>().0);
    match format {
        TensorFormat::F16 => twos.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
        TensorFormat::Bf16 => twos.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
        _ => fours.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;
    use candle_core::quantized::QTensor;

    use super::*;

    const BLOCKS: [TensorFormat; 10] = [
        TensorFormat::Q4_0,
        TensorFormat::Q4_1,
        TensorFormat::Q5_0,
        TensorFormat::Q5_1,
        TensorFormat::Q8_0,
        TensorFormat::Q2K,
        TensorFormat::Q3K,
        TensorFormat::Q4K,
        TensorFormat::Q5K,
        TensorFormat::Q6K,
    ];

    #[test]
    fn blocks_are_as_large_as_candle_says_and_come_back_in_order() {
        // More than one chunk, the last one not full.
        let (rows, inputs) = (CHUNK_VALUES / 512 + 3, 512);
        let values: Vec<f32> = (0..rows * inputs).map(|at| ((at * 7919 % 1013) as f32 / 506.5 - 1.0) * 0.1).collect();
        let tensor = Tensor::from_vec(values.clone(), (rows, inputs), &Device::Cpu).unwrap();
        for format in BLOCKS {
            let dtype = format.to_ggml().unwrap();
            assert_eq!(TensorFormat::from_ggml(dtype), Some(format));
            assert_eq!((dtype.block_size(), dtype.type_size()), (format.block_values(), format.block_bytes()));
            let whole = QTensor::quantize(&tensor, dtype).unwrap();
            let bytes = whole.data().unwrap().into_owned();
            let ours = BaseTensor::new(format, &[rows, inputs], bytes).unwrap().to_f32().unwrap();
            let expected: Vec<f32> = whole.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert!(ours == expected, "{format:?}");
        }
    }

    #[test]
    fn plain_numbers_are_exact_and_wrong_sizes_are_refused() {
        let values = [1.0f32, -0.5, 65504.0, 3.0e-5];
        let f16s = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
        let read = BaseTensor::new(TensorFormat::F16, &[2, 2], f16s).unwrap();
        let expected: Vec<f32> = values.iter().map(|value| f16::from_f32(*value).to_f32()).collect();
        assert_eq!(read.to_f32().unwrap(), expected);
        let bf16s = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
        let expected: Vec<f32> = values.iter().map(|value| bf16::from_f32(*value).to_f32()).collect();
        assert_eq!(BaseTensor::new(TensorFormat::Bf16, &[4], bf16s).unwrap().to_f32().unwrap(), expected);
        let f32s: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(BaseTensor::new(TensorFormat::F32, &[4], f32s.clone()).unwrap().to_f32().unwrap(), values);
        assert!(BaseTensor::new(TensorFormat::F32, &[5], f32s.clone()).is_none());
        assert!(BaseTensor::new(TensorFormat::F32, &[], f32s).is_none());
        assert_eq!(TensorFormat::Q4_0.tensor_bytes(&[2, 48]), None);
        assert_eq!(TensorFormat::Q8_0.tensor_bytes(&[usize::MAX, 32]), None);
        assert_eq!(TensorFormat::Q6K.tensor_bytes(&[3, 512]), Some(3 * 2 * 210));
    }
}
