//! How the weights of a pipeline's parts are held: on which device, in which type, and for how long.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::prelude::*;
use burn::tensor::FloatDType;

use crate::nn;
use crate::store::{Weights, check_module_from, load_converted};
use crate::{ConfigError, FloatType, Result};

/// How long the weights of a stage stay in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Residency {
    /// From loading on: every generation starts at once.
    #[default]
    Resident,
    /// While their stage runs: a stage is read from disk when it begins and dropped when it ends, so that memory holds
    /// the largest stage and not the sum of all. Each batch of images reads every stage again.
    OneStage,
}

/// How a pipeline, or a part of one, is loaded.
///
/// ```
/// use burn::prelude::Device;
/// use dalle2_core::{FloatType, LoadOptions, Residency};
///
/// let options = LoadOptions::new(&Device::flex()).residency(Residency::OneStage).compute_type(FloatType::F16);
/// assert_eq!(options.residency, Residency::OneStage);
/// options.validate().unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where the networks compute.
    pub device: Device,
    /// How long weights stay in memory.
    pub residency: Residency,
    /// The element type in which the diffusion networks compute. Norms, softmax, schedules and CLIP's encoders stay in f32.
    ///
    /// On the CPU it is the type of the weights of linear and convolution layers, and activations stay in f32, see
    /// [`cast_weights`](crate::nn::cast_weights): half the memory, and in bf16 more speed on processors with AMX.
    pub compute_type: FloatType,
}

impl LoadOptions {
    /// Everything resident, in f32.
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone(), residency: Residency::default(), compute_type: FloatType::default() }
    }

    /// How long weights stay in memory.
    pub fn residency(mut self, residency: Residency) -> Self {
        self.residency = residency;
        self
    }

    /// The element type in which networks compute.
    pub fn compute_type(mut self, compute_type: FloatType) -> Self {
        self.compute_type = compute_type;
        self
    }

    /// Checks that the device can do what is asked of it.
    ///
    /// # Errors
    /// When the device has no arithmetic in the element type.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.device.supports_dtype(self.compute_type.dtype()) {
            return Ok(());
        }
        let expected = format!("the device {:?} does not compute in it: use f32", self.device);
        Err(ConfigError::new("compute_type", self.compute_type, expected))
    }

    /// Holds the network that `load` reads: reads it now; or compares its files with the configuration now, and reads
    /// them whenever a stage begins.
    ///
    /// # Errors
    /// When the options do not fit the device, or `load` fails now.
    pub fn hold<M: Module>(&self, load: impl Fn(Reading) -> Result<M> + Send + Sync + 'static) -> Result<Network<M>> {
        self.validate()?;
        let dtype = self.compute_type;
        // What was not read by `Reading::module` is converted now; the rest was as it was read.
        let values = move |load: &dyn Fn(Reading) -> Result<M>| Ok(convert(load(Reading::Values(dtype))?, dtype));
        match self.residency {
            Residency::Resident => Ok(Network::Resident(values(&load)?)),
            Residency::OneStage => {
                load(Reading::Headers)?;
                Ok(Network::OnDisk(Arc::new(move || values(&load))))
            }
        }
    }
}

/// How much of a weights file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Names, shapes and element types, to be compared with the module, which is left as it is.
    Headers,
    /// Everything, each parameter converted to the type before the next one is read.
    Values(FloatType),
}

impl Reading {
    /// Reads the parameters of a module, without autodiff, or compares them with the file. `rename` gives the name in the
    /// file of a parameter's field path.
    ///
    /// # Errors
    /// As [`load_module_from`](crate::store::load_module_from).
    pub fn module<M: Module>(self, module: M, weights: &Weights, rename: &dyn Fn(&str) -> String) -> Result<M> {
        match self {
            Self::Headers => check_module_from(&module, weights, rename).map(|()| module),
            Self::Values(kind) => Ok(load_converted(module, weights, rename, &mut Convert::to(kind))?.valid()),
        }
    }

    /// The same for a file that this library wrote.
    ///
    /// # Errors
    /// As [`load_module_from`](crate::store::load_module_from).
    pub fn own_module<M: Module>(self, module: M, path: impl AsRef<Path>) -> Result<M> {
        self.module(module, &Weights::open(path)?, &str::to_owned)
    }
}

/// Converts the parameters, one after another.
fn convert<M: Module>(module: M, float_type: FloatType) -> M {
    match float_type {
        FloatType::F32 => module,
        _ => module.map(&mut Convert::to(float_type)),
    }
}

/// Converts the weights of layers on the CPU, and everything on other devices.
struct Convert {
    dtype: Option<FloatDType>,
    layers: nn::CastWeights,
}

impl Convert {
    fn to(kind: FloatType) -> Self {
        let dtype = kind.dtype();
        Self { dtype: (kind != FloatType::F32).then_some(dtype), layers: nn::CastWeights::to(dtype) }
    }
}

impl ModuleMapper for Convert {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.layers.enter_module(name, container_type);
    }

    fn exit_module(&mut self, name: &str, container_type: &str) {
        self.layers.exit_module(name, container_type);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.dtype {
            None => param,
            Some(_) if nn::is_cpu(&param.lazy_device()) => self.layers.map_float(param),
            Some(dtype) => param.map(|value| value.cast(dtype)),
        }
    }
}

/// A network that is in memory, or is read when it is needed.
#[derive(Clone)]
pub enum Network<M> {
    /// In memory.
    Resident(M),
    /// Read anew by each [`Network::get`].
    OnDisk(Arc<dyn Fn() -> Result<M> + Send + Sync>),
}

impl<M: Clone> Network<M> {
    /// The network. Copies of a resident one share its weights; one that is on disk is read, and its weights live as
    /// long as what is returned.
    ///
    /// # Errors
    /// When reading fails.
    pub fn get(&self) -> Result<M> {
        match self {
            Self::Resident(network) => Ok(network.clone()),
            Self::OnDisk(load) => load(),
        }
    }
}

impl<M> From<M> for Network<M> {
    fn from(network: M) -> Self {
        Self::Resident(network)
    }
}

impl<M> fmt::Debug for Network<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resident(_) => "Resident",
            Self::OnDisk(_) => "OnDisk",
        })
    }
}

/// Element type of a network's first parameter; f32 for a network without any.
pub fn compute_type(module: &impl Module) -> FloatDType {
    struct First(Option<FloatDType>);
    impl ModuleVisitor for First {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.0.is_none() {
                self.0 = Some(param.val().dtype().into());
            }
        }
    }
    let mut first = First(None);
    module.visit(&mut first);
    first.0.unwrap_or(FloatDType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{Linear, LinearConfig};
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn load(reads: &Arc<AtomicUsize>) -> impl Fn(Reading) -> Result<Linear> + Send + Sync + 'static {
        let reads = reads.clone();
        move |reading| {
            if matches!(reading, Reading::Values(_)) {
                reads.fetch_add(1, Ordering::Relaxed);
            }
            Ok(LinearConfig::new(3, 2).init(&Device::flex()))
        }
    }

    #[test]
    fn a_resident_network_is_read_once_and_one_on_disk_each_time() {
        for (residency, before, after) in [(Residency::Resident, 1, 1), (Residency::OneStage, 0, 2)] {
            let reads = Arc::new(AtomicUsize::new(0));
            let network = LoadOptions::new(&Device::flex()).residency(residency).hold(load(&reads)).unwrap();
            assert_eq!(reads.load(Ordering::Relaxed), before, "{residency:?}");
            network.get().unwrap();
            network.get().unwrap();
            assert_eq!(reads.load(Ordering::Relaxed), after, "{residency:?}");
        }
    }

    #[test]
    fn parameters_have_the_type_that_was_asked_for() {
        for kind in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            let reads = Arc::new(AtomicUsize::new(0));
            let network = LoadOptions::new(&Device::flex()).compute_type(kind).hold(load(&reads)).unwrap();
            assert_eq!(compute_type(&network.get().unwrap()), kind.dtype());
        }
    }
}
