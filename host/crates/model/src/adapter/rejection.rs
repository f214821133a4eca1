//! Why an adapter is refused, and the limits it is held to.

use types::Blame;

/// What an adapter may be.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterLimits {
    /// Bytes of `adapter_config.json`.
    pub config_bytes_max: usize,
    /// Bytes of the safetensors file.
    pub file_bytes_max: usize,
    /// Bytes of the safetensors header.
    pub header_bytes_max: usize,
    /// Its rank.
    pub rank_max: u32,
    /// Bytes of all A and B as f32.
    pub memory_bytes_max: usize,
    /// Tensors in the file.
    pub tensors_max: usize,
    /// Scale · ‖A‖ · ‖B‖ (Frobenius) of each module, a bound on how far it can move its output. Trained adapters stay
    /// below 100.
    pub delta_norm_max: u32,
    /// Tokens that invoke it, if it is activated.
    pub invocation_tokens_max: usize,
    /// Magnitude / norm of a row, for DoRA. Trained adapters stay near 1.
    pub dora_gain_max: u32,
    /// The operator's, at admission only.
    pub norms: NormLimits,
}

/// How large the change of one module may be: limits on norms of s·B·A. None by default: [`AdapterLimits::delta_norm_max`]
/// keeps out what could only break the output.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NormLimits {
    /// Of the Frobenius norm.
    pub frobenius_max: Option<f64>,
    /// Of the spectral norm, which is estimated from below.
    pub spectral_max: Option<f64>,
}

impl AdapterLimits {
    pub(super) fn check(&self, what: &'static str, value: usize, max: usize) -> Result<(), AdapterRejection> {
        if value <= max {
            return Ok(());
        }
        Err(AdapterRejection::TooLarge { what, value: value as u64, max: max as u64 })
    }
}

impl Default for AdapterLimits {
    fn default() -> Self {
        Self {
            config_bytes_max: 256 << 10,
            file_bytes_max: 512 << 20,
            header_bytes_max: 1 << 20,
            rank_max: 256,
            memory_bytes_max: 1 << 30,
            tensors_max: 8192,
            delta_norm_max: 10_000,
            invocation_tokens_max: 256,
            dora_gain_max: 1_000,
            norms: NormLimits::default(),
        }
    }
}

/// Why an adapter was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AdapterRejection {
    /// The file is an archive, a pickle, or something else that is not opened.
    #[error("the file is {0}: send adapter_config.json and adapter_model.safetensors as they are")]
    MediaType(&'static str),
    /// The files are not what they should be.
    #[error("the adapter is malformed: {0}")]
    Malformed(String),
    /// The adapter is sound, but of a kind that is not executed exactly here.
    #[error("the adapter is not supported: {0}")]
    Unsupported(String),
    /// A tensor's shape or place does not fit the base.
    #[error("the adapter does not fit the base: {0}")]
    ShapeMismatch(String),
    /// NaN or infinity in a tensor or in the scale.
    #[error("the adapter is not finite: {0}")]
    NotFinite(String),
    /// A limit was met.
    #[error("the adapter is too large: {what} is {value}, at most {max} is allowed")]
    TooLarge {
        /// Of what, with its unit.
        what: &'static str,
        /// How much there is.
        value: u64,
        /// How much may be.
        max: u64,
    },
    /// Its files name another base.
    #[error("the adapter is for another base: {0}")]
    OtherBase(String),
    /// A module's change is larger than the operator allows.
    #[error("the {norm} norm of {module} is {value:.4}, over the limit {limit} of {max}")]
    OverNorm {
        /// Which norm.
        norm: &'static str,
        /// The module and its layer.
        module: String,
        /// What it is.
        value: f64,
        /// The limit's name.
        limit: &'static str,
        /// The limit.
        max: f64,
    },
    /// The base's weights, which DoRA needs, cannot be read.
    #[error("the base cannot be read: {0}")]
    Base(String),
}

impl AdapterRejection {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::MediaType(_) => "unsupported_media_type",
            Self::Base(_) => "base_unreadable",
            Self::Malformed(_) => "adapter_malformed",
            Self::Unsupported(_) => "adapter_unsupported",
            Self::ShapeMismatch(_) => "adapter_shape_mismatch",
            Self::NotFinite(_) => "adapter_not_finite",
            Self::TooLarge { .. } => "adapter_too_large",
            Self::OtherBase(_) => "adapter_base_mismatch",
            Self::OverNorm { .. } => "adapter_norm_too_large",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Base(_) => Blame::Host,
            _ => Blame::Caller,
        }
    }
}

/// Characters of a file that a message may quote.
const QUOTED_CHARS_MAX: usize = 160;

/// Text from a file, or an error that quotes it, made safe to print and not longer than a line.
pub(super) fn short(text: &str) -> String {
    let quoted: String = text.chars().take(QUOTED_CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(QUOTED_CHARS_MAX).is_some() { quoted + "…" } else { quoted }
}
