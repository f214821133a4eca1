//! llama.cpp, measured by the same means: installed from its Python package's sources into the cache (`install`), driven
//! through its low-level interface (`driver`), and as a server (`crate::process`). Not here: what is measured.

mod driver;
mod install;

pub(crate) use driver::Driver;
pub(crate) use install::{FORMATS, Installed, ensure};
