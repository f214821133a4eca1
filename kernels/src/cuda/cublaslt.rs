//! NVIDIA's matrix products, where their library is installed: found at run time, as the driver is, and never needed. Plans
//! are made at the start, for shapes that are known then. Not here: which products go there (`ops/dense.rs`).

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use cudarc::cublaslt::{result, sys};

use super::device::Context;
use super::{CudaError, Device, DevicePtr, Stream};

/// The oldest library that is used: that of the driver that the kernels need.
pub const CUBLASLT_VERSION_MIN: usize = 130_000;
/// What matrices begin at a multiple of, in bytes; algorithms are chosen for it.
pub(super) const ALIGNMENT: u32 = 16;

/// Why it cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoCublasLt {
    /// It is not installed, or not where libraries are looked for.
    NoLibrary,
    /// It lacks a function: too old, or another library.
    NoFunction(&'static str),
    /// It is older than [`CUBLASLT_VERSION_MIN`].
    Old(usize),
}

impl fmt::Display for NoCublasLt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLibrary => {
                f.write_str("no libcublasLt: it comes with the CUDA toolkit, and is not among the libraries")
            }
            Self::NoFunction(name) => write!(f, "libcublasLt lacks {name}"),
            Self::Old(found) => {
                write!(f, "libcublasLt has version {found}, {CUBLASLT_VERSION_MIN} is needed")
            }
        }
    }
}

impl std::error::Error for NoCublasLt {}

/// Every function of it that is called here: cudarc panics at the first call of one that is not there.
const FUNCTIONS: &[&str] = &[
    "cublasLtCreate\0",
    "cublasLtDestroy\0",
    "cublasLtGetVersion\0",
    "cublasLtMatmul\0",
    "cublasLtMatmulAlgoGetHeuristic\0",
    "cublasLtMatmulDescCreate\0",
    "cublasLtMatmulDescDestroy\0",
    "cublasLtMatmulDescSetAttribute\0",
    "cublasLtMatmulPreferenceCreate\0",
    "cublasLtMatmulPreferenceDestroy\0",
    "cublasLtMatmulPreferenceSetAttribute\0",
    "cublasLtMatrixLayoutCreate\0",
    "cublasLtMatrixLayoutDestroy\0",
];

/// The version of the library, if it can be used. Never panics.
///
/// # Errors
/// Why it cannot.
pub fn cublaslt_version() -> Result<usize, NoCublasLt> {
    // SAFETY: loads the library if there is one, which runs its constructors: the same trust as linking to it.
    if !unsafe { sys::is_culib_present() } {
        return Err(NoCublasLt::NoLibrary);
    }
    // SAFETY: the library is there; symbols are looked up and not called.
    let has = |name: &str| unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()).is_ok() };
    if let Some(absent) = FUNCTIONS.iter().find(|name| !has(name)) {
        return Err(NoCublasLt::NoFunction(absent.trim_end_matches('\0')));
    }
    // SAFETY: takes nothing, and was looked for above.
    let version = unsafe { sys::cublasLtGetVersion() };
    if version < CUBLASLT_VERSION_MIN { Err(NoCublasLt::Old(version)) } else { Ok(version) }
}

/// What the library says, as an error of the device.
fn said(doing: &'static str) -> impl Fn(result::CublasError) -> CudaError {
    move |error| CudaError::Driver { doing, name: format!("{:?}", error.0) }
}

/// The library on one device.
#[derive(Debug)]
pub(super) struct Library {
    context: Arc<Context>,
    handle: sys::cublasLtHandle_t,
    /// y = W x for W in rows: a product of W transposed, as the library counts.
    product: sys::cublasLtMatmulDesc_t,
}

// SAFETY: the library's handles and descriptions may be used from any thread; nothing here changes them after `open`.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    pub(super) fn open(device: &Device) -> Result<Self, CudaError> {
        cublaslt_version().map_err(CudaError::NoCublasLt)?;
        let context = Arc::clone(device.context());
        context.make_current()?;
        let handle = result::create_handle().map_err(said("start cuBLASLt"))?;
        let mut library = Self { context, handle, product: std::ptr::null_mut() };
        let (sums, numbers) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F);
        library.product = result::create_matmul_desc(sums, numbers).map_err(said("describe a product"))?;
        let transposed = 1_i32;
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        // SAFETY: the description was made above; the attribute is an i32.
        unsafe {
            let value = std::ptr::from_ref(&transposed).cast::<c_void>();
            result::set_matmul_desc_attribute(library.product, attribute, value, size_of::<i32>())
        }
        .map_err(said("describe a product"))?;
        Ok(library)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            // SAFETY: made by `open`, destroyed once; a plan holds the library, so none is left. Errors have nobody to go to.
            unsafe {
                if !self.product.is_null() {
                    let _ = result::destroy_matmul_desc(self.product);
                }
                let _ = result::destroy_handle(self.handle);
            }
        }
    }
}

/// The description of a matrix.
#[derive(Debug)]
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// Columns one after the other, `leading` values from one to the next.
    fn new(kind: sys::cudaDataType_t, rows: usize, columns: usize, leading: usize) -> Result<Self, CudaError> {
        let leading = i64::try_from(leading)
            .map_err(|_| CudaError::Shape { what: "cuBLASLt: values between columns", value: leading })?;
        let layout = result::create_matrix_layout(kind, rows as u64, columns as u64, leading);
        layout.map(Self).map_err(said("describe a matrix"))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What an algorithm is chosen by.
#[derive(Debug)]
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(workspace_bytes: usize) -> Result<Self, CudaError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Self(result::create_matmul_pref().map_err(said("choose a product"))?);
        let set = |attribute, value: *const c_void, bytes| {
            // SAFETY: made above; each attribute is as long as is said.
            unsafe { result::set_matmul_pref_attribute(preference.0, attribute, value, bytes) }
                .map_err(said("choose a product"))
        };
        let workspace = std::ptr::from_ref(&workspace_bytes).cast();
        set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace, size_of::<usize>())?;
        for attribute in [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set(attribute, std::ptr::from_ref(&ALIGNMENT).cast(), size_of::<u32>())?;
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// How one product of one shape is computed: y `[rows, stride]` f32 = x `[rows, inputs]` bf16 times W `[outputs, inputs]` bf16.
#[derive(Debug)]
pub(super) struct ProductPlan {
    library: Arc<Library>,
    w: Layout,
    x: Layout,
    y: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace_bytes: usize,
}

// SAFETY: as of `Library`.
unsafe impl Send for ProductPlan {}
// SAFETY: as of `Library`.
unsafe impl Sync for ProductPlan {}

impl ProductPlan {
    /// The best algorithm, as the library guesses, that takes at most so much memory. Nothing runs.
    pub(super) fn new(
        library: &Arc<Library>,
        [rows, outputs, inputs, stride]: [usize; 4],
        workspace_bytes: usize,
    ) -> Result<Self, CudaError> {
        use sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};
        library.context.make_current()?;
        let w = Layout::new(CUDA_R_16BF, inputs, outputs, inputs)?;
        let x = Layout::new(CUDA_R_16BF, inputs, rows, inputs)?;
        let y = Layout::new(CUDA_R_32F, outputs, rows, stride)?;
        let preference = Preference::new(workspace_bytes)?;
        let chosen = {
            let (handle, product) = (library.handle, library.product);
            // SAFETY: all descriptions live here.
            unsafe { result::get_matmul_algo_heuristic(handle, product, w.0, x.0, y.0, y.0, preference.0) }
        };
        let chosen = chosen.map_err(said("choose a product"))?;
        if chosen.workspaceSize > workspace_bytes {
            return Err(CudaError::Range {
                what: "cuBLASLt: workspace",
                needed: chosen.workspaceSize,
                bytes: workspace_bytes,
            });
        }
        let library = Arc::clone(library);
        Ok(Self { library, w, x, y, algorithm: chosen.algo, workspace_bytes: chosen.workspaceSize })
    }

    /// Gives the product to `stream`.
    ///
    /// # Safety
    /// The addresses must be device memory that is as long as the plan's shape takes, begin at multiples of [`ALIGNMENT`], and
    /// `workspace` be as long as the plan was allowed.
    pub(super) unsafe fn launch(&self, stream: &Stream, [w, x, y, workspace]: [DevicePtr; 4]) -> Result<(), CudaError> {
        self.library.context.make_current()?;
        let (one, zero) = (1.0_f32, 0.0_f32);
        let constant = |of: DevicePtr| of.0 as *const c_void;
        let output = y.0 as *mut c_void;
        // SAFETY: as the caller promises; both factors are f32, by the description, and read before the call returns.
        unsafe {
            result::matmul(
                self.library.handle,
                self.library.product,
                std::ptr::from_ref(&one).cast(),
                std::ptr::from_ref(&zero).cast(),
                constant(w),
                self.w.0,
                constant(x),
                self.x.0,
                output.cast_const(),
                self.y.0,
                output,
                self.y.0,
                &raw const self.algorithm,
                workspace.0 as *mut c_void,
                self.workspace_bytes,
                stream.handle().cast(),
            )
        }
        .map_err(said("multiply with cuBLASLt"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As of the driver: the emulation has what is called, and nothing else.
    #[test]
    fn every_function_of_the_emulated_library_is_looked_for() {
        let source = include_str!("../../emulation/fake_cublaslt.cpp");
        let names = source.lines().filter_map(|line| line.strip_prefix("API ")?.split(['(', ' ']).nth(1));
        let mut emulated: Vec<String> = names.map(|name| format!("{name}\0")).collect();
        emulated.sort();
        let mut looked_for = FUNCTIONS.to_vec();
        looked_for.sort_unstable();
        assert_eq!(emulated, looked_for);
    }

    #[test]
    fn what_is_missing_is_said() {
        assert!(NoCublasLt::NoLibrary.to_string().starts_with("no libcublasLt"));
        assert_eq!(NoCublasLt::Old(120_805).to_string(), "libcublasLt has version 120805, 130000 is needed");
    }
}
