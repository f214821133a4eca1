//! A check that the sandbox works on this machine: a component of a few bytes is compiled by the child, loaded and called.
//! Not here: plugins.

use wasmtime::Store;
use wasmtime::component::Linker;

use crate::{PluginError, PluginHost, sandbox};

/// `(component` with a core module whose function `f` returns 42, lifted and exported as `f: func() -> u32` `)`.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0\
    \x01\x22\0asm\x01\0\0\0\x01\x05\x01\x60\0\x01\x7f\x03\x02\x01\0\x07\x05\x01\x01f\0\0\x0a\x06\x01\x04\0\x41\x2a\x0b\
    \x02\x04\x01\0\0\0\
    \x06\x07\x01\0\0\x01\0\x01f\
    \x07\x05\x01\x40\0\0\x79\
    \x08\x06\x01\0\0\0\0\0\
    \x0b\x07\x01\0\x01f\x01\0\0";
const ANSWER: u32 = 42;
/// Ticks of the epoch that the call may take.
const TICKS_MAX: u64 = 1000;

impl PluginHost {
    /// Compiles, loads and calls a component of a few bytes. Nothing of it is kept. What confines the compiler, beside its limits.
    ///
    /// # Errors
    /// What does not work on this machine.
    pub async fn self_test(&self) -> Result<String, PluginError> {
        let engine = self.engine();
        let (artefact, confined) = self.compiler().compile(COMPONENT, None).await?;
        let component = artefact.load(engine).map_err(|error| sandbox::internal(&error))?;
        let mut store = Store::new(engine, ());
        store.set_epoch_deadline(TICKS_MAX);
        let answer = async {
            let instance = Linker::new(engine).instantiate_async(&mut store, &component).await?;
            let function = instance.get_typed_func::<(), (u32,)>(&mut store, "f")?;
            function.call_async(&mut store, ()).await
        };
        match answer.await.map_err(|error| sandbox::internal(&error))? {
            (ANSWER,) => Ok(confined),
            (other,) => Err(PluginError::Internal(format!("the sandbox computed {other} in place of {ANSWER}"))),
        }
    }
}
