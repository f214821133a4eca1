//! Draws tokens on the device: `cuda/sample.cu`, whose reference is [`reference::sample`].
//!
//! Not here: the seeded uniform number, which the host computes; what a mask means.

mod cases;
mod reference;

pub use reference::{Sampled, sample};

use crate::cuda::kernel::{argument, fatbin};
use crate::cuda::{CudaError, Device, DevicePtr, DeviceRange, Kernel, Launch, Module, Plain, Stream};

const THREADS: u32 = 512;
/// In [`SampleParams::alternatives`]: no log-probabilities are wanted.
pub const SAMPLE_NO_LOGPROBS: u32 = u32::MAX;
/// In [`SampleParams::mask_begin`]: everything may be drawn.
pub const SAMPLE_NO_MASK: u32 = u32::MAX;
/// The largest vocabulary: sums of weights have 62 bits.
const VOCABULARY_MAX: u32 = 1 << 24;

/// What is asked of one row of logits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// Divides positive logits of what was seen, multiplies others; 1 is off.
    pub repetition: f32,
    /// Taken from logits of what is in the output; 0 is off.
    pub presence: f32,
    /// Taken from them once for each time; 0 is off.
    pub frequency: f32,
    /// Alternatives to report, or [`SAMPLE_NO_LOGPROBS`].
    pub alternatives: u32,
    /// Its [`SampleSeen`], from here ...
    pub seen_begin: u32,
    /// ... to here; no token twice.
    pub seen_end: u32,
    /// Its [`SampleBias`]es, from here ...
    pub bias_begin: u32,
    /// ... to here; no token twice.
    pub bias_end: u32,
    /// The first word of its mask, or [`SAMPLE_NO_MASK`]. Token i may be drawn if bit i % 32 of word i / 32 is set.
    pub mask_begin: u32,
    /// Words of it; tokens beyond may not be drawn.
    pub mask_words: u32,
    /// In 0 .. 1.
    pub uniform: f64,
}

impl SampleParams {
    /// The likeliest token and nothing else.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition: 1.0,
        presence: 0.0,
        frequency: 0.0,
        alternatives: SAMPLE_NO_LOGPROBS,
        seen_begin: 0,
        seen_end: 0,
        bias_begin: 0,
        bias_end: 0,
        mask_begin: SAMPLE_NO_MASK,
        mask_words: 0,
        uniform: 0.0,
    };
}

/// A token that the sequence has.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleSeen {
    /// Which.
    pub id: u32,
    /// How many times it is in the output.
    pub output_count: u32,
}

/// What is added to a token's logit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SampleBias {
    /// Which token.
    pub id: u32,
    /// How much.
    pub bias: f32,
}

/// What was drawn of a row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SampledRow {
    /// The token.
    pub id: u32,
    /// Its log-probability, where one was asked for.
    pub logprob: f32,
}

// SAFETY: numbers of 4 bytes and, last and aligned, one of 8: every pattern is a value, and there is no padding.
unsafe impl Plain for SampleParams {}
// SAFETY: two numbers of 4 bytes.
unsafe impl Plain for SampleSeen {}
// SAFETY: two numbers of 4 bytes.
unsafe impl Plain for SampleBias {}
// SAFETY: two numbers of 4 bytes.
unsafe impl Plain for SampledRow {}

/// The kernel on one device.
#[derive(Debug)]
pub struct Sample {
    sample: Kernel,
}

/// One launch.
#[derive(Clone, Copy, Debug)]
pub struct SampleArgs {
    /// f32 `[samples, vocabulary]`, changed.
    pub logits: DeviceRange,
    /// [`SampleParams`] `[samples]`.
    pub params: DeviceRange,
    /// [`SampleSeen`] of all samples.
    pub seen: DeviceRange,
    /// [`SampleBias`]es of all samples.
    pub biases: DeviceRange,
    /// u32 words of all masks.
    pub masks: DeviceRange,
    /// f32, one for each entry that `seen` and `biases` have room for; written.
    pub raw: DeviceRange,
    /// [`SampledRow`] `[samples]`, written.
    pub out: DeviceRange,
    /// u32 `[samples, alternatives_max]`, written; `u32::MAX` from where a row has no more numbers.
    pub top_ids: DeviceRange,
    /// f32 `[samples, alternatives_max]`, written.
    pub top_logprobs: DeviceRange,
    /// One u32: how many samples there are, at most `samples_max`.
    pub samples: DeviceRange,
    /// Samples that there is room for.
    pub samples_max: u32,
    /// Logits of a row.
    pub vocabulary: u32,
    /// Alternatives that there is room for.
    pub alternatives_max: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    logits: DevicePtr,
    params: DevicePtr,
    seen: DevicePtr,
    biases: DevicePtr,
    masks: DevicePtr,
    raw: DevicePtr,
    out: DevicePtr,
    top_ids: DevicePtr,
    top_logprobs: DevicePtr,
    samples_count: DevicePtr,
    vocabulary: u32,
    seen_capacity: u32,
    alternatives_max: u32,
    unused: u32,
}

argument!(Arguments);

impl Sample {
    /// # Errors
    /// If the device cannot run it.
    pub fn load(device: &Device) -> Result<Self, CudaError> {
        let module = Module::load(device, fatbin!("sample"))?;
        Ok(Self { sample: module.kernel("sample", 0)? })
    }

    /// # Errors
    /// If a buffer is too short, the vocabulary too large or the driver refuses.
    pub fn launch(&self, stream: &Stream, op: &SampleArgs) -> Result<(), CudaError> {
        let (samples, alternatives) = (op.samples_max as usize, op.alternatives_max as usize);
        if op.vocabulary == 0 || op.vocabulary > VOCABULARY_MAX {
            return Err(CudaError::Shape { what: "sampling: vocabulary", value: op.vocabulary as usize });
        }
        let (seen, biases) = (op.seen.bytes() / size_of::<SampleSeen>(), op.biases.bytes() / size_of::<SampleBias>());
        let arguments = Arguments {
            logits: op.logits.for_kernel("sampling: logits", samples * op.vocabulary as usize * 4, 4)?,
            params: op.params.for_kernel("sampling: parameters", samples * size_of::<SampleParams>(), 8)?,
            seen: op.seen.for_kernel("sampling: seen tokens", 0, 8)?,
            biases: op.biases.for_kernel("sampling: biases", 0, 8)?,
            masks: op.masks.for_kernel("sampling: masks", 0, 4)?,
            raw: op.raw.for_kernel("sampling: raw logits", (seen + biases) * 4, 4)?,
            out: op.out.for_kernel("sampling: out", samples * size_of::<SampledRow>(), 8)?,
            top_ids: op.top_ids.for_kernel("sampling: alternatives", samples * alternatives * 4, 4)?,
            top_logprobs: op.top_logprobs.for_kernel("sampling: alternatives", samples * alternatives * 4, 4)?,
            samples_count: op.samples.for_kernel("sampling: samples", 4, 4)?,
            vocabulary: op.vocabulary,
            seen_capacity: u32::try_from(seen).unwrap_or(u32::MAX),
            alternatives_max: op.alternatives_max,
            unused: 0,
        };
        let launch = Launch { grid: [op.samples_max, 1, 1], block: [THREADS, 1, 1], shared_bytes: 0 };
        // SAFETY: buffers are as long as `samples_max` samples take; the ranges in the parameters lie in their lists by the
        // batch's rules, and `raw` has room for all of those.
        unsafe { stream.launch(&self.sample, launch, &[&arguments]) }
    }
}

pub(crate) fn cases() -> Vec<crate::cuda::selftest::Case> {
    cases::cases()
}
