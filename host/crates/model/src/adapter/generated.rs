//! Adapters of numbers out of a seed, for benches on a CUDA device. Not here: adapters that someone made.

use types::{Module, ModuleSet};

use super::LoraAdapter;
use super::device_form::{DeviceFactors, DeviceTerm, RANK_MULTIPLE};
use super::packed::{Layers, Traits};
use crate::ModelConfig;

impl LoraAdapter {
    /// One of this rank on every module of every layer, packed for [`crate::Precision::Bf16`]. `None` if the rank is 0 or
    /// the sizes are beyond any memory.
    #[must_use]
    pub fn generated(config: &ModelConfig, rank: u32, seed: u64) -> Option<Self> {
        let padded = usize::try_from(rank).ok()?.checked_next_multiple_of(RANK_MULTIPLE)?;
        let term = |layer, module: Module| {
            DeviceTerm::new(layer, module, padded, config.module_shape(module), 1.0 / padded as f32, false)
        };
        let terms = (0..config.layers).flat_map(|layer| Module::ALL.map(|module| term(layer, module))).collect();
        let factors = DeviceFactors::of_noise(terms, config.layers, seed)?;
        let traits = Traits { rank, modules: ModuleSet::ALL, invocation: None };
        Some(Self::new(traits, Layers::Device(factors), config.clone(), None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Precision;
    use crate::adapter::tiny_config;

    #[test]
    fn a_generated_adapter_is_for_its_base_and_has_its_rank_everywhere() {
        let config = tiny_config(2);
        let adapter = LoraAdapter::generated(&config, 16, 1).unwrap();
        assert!(adapter.fits(&config, Precision::Bf16) && !adapter.fits(&tiny_config(3), Precision::Bf16));
        let values: usize =
            Module::ALL.iter().map(|module| config.module_shape(*module)).map(|(i, o)| 16 * (i + o)).sum();
        assert_eq!(adapter.memory_bytes(), 2 * 2 * values);
        let factors = |seed| LoraAdapter::generated(&config, 3, seed).unwrap();
        assert_eq!(factors(1).device_factors().unwrap().bytes(), factors(1).device_factors().unwrap().bytes());
        assert_ne!(factors(1).device_factors().unwrap().bytes(), factors(2).device_factors().unwrap().bytes());
        assert!(LoraAdapter::generated(&config, 0, 1).is_none());
    }
}
