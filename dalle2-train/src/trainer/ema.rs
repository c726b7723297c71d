//! The moving average of the weights, which sampling uses.

use std::collections::HashMap;

use burn::module::{ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::prelude::*;
use burn::tensor::container::TensorContainer;
use burn::tensor::{DType, FloatDType};
use rayon::prelude::*;

use super::host::{CHUNK, HostTensor, Sweep, vectorized};

/// An exponential moving average of a model's parameters, in f32.
///
/// After update n, counted from 0, each parameter is d·average + (1 − d)·parameter with d = min(decay, (1 + n) / (10 + n)),
/// so that the first averages do not consist of the random start.
#[derive(Debug, Clone)]
pub struct Ema<M> {
    shadow: M,
    decay: f64,
    updates: u64,
}

impl<M: Module> Ema<M> {
    /// Starts at the parameters of `model`.
    pub fn new(model: &M, decay: f64) -> Self {
        Self { shadow: model.valid().map(&mut ToF32), decay, updates: 0 }
    }

    /// Goes on from stored parameters and their number of updates.
    pub fn resume(shadow: M, decay: f64, updates: u64) -> Self {
        Self { shadow: shadow.valid().map(&mut ToF32), decay, updates }
    }

    /// Moves the average towards the parameters of `model`, which must be the model it was started from or descend from
    /// it by optimizer steps: parameters are matched by their ids, and parameters without a match stay.
    pub fn update(self, model: &M) -> Self {
        let mut online = Online::default();
        model.visit(&mut online);
        let decay = decay_at(self.decay, self.updates);
        let shadow = self.shadow.map(&mut Towards { online: online.values, weight: 1.0 - decay });
        Self { shadow, decay: self.decay, updates: self.updates + 1 }
    }

    /// The averaged model without autodiff, its parameters of the same types as those of `model`.
    pub fn model(&self, like: &M) -> M {
        let mut types = Types::default();
        like.visit(&mut types);
        self.shadow.clone().map(&mut types)
    }

    /// The averaged model in f32.
    pub fn shadow(&self) -> &M {
        &self.shadow
    }

    /// Number of updates so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }
}

fn decay_at(decay: f64, updates: u64) -> f64 {
    decay.min((1 + updates) as f64 / (10 + updates) as f64)
}

#[derive(Default)]
struct Online {
    values: TensorContainer<ParamId>,
}

impl ModuleVisitor for Online {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.values.register(param.id, param.val().without_autodiff());
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.values.register(param.id, param.val().without_autodiff());
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.values.register(param.id, param.val().without_autodiff());
    }
}

struct Towards {
    online: TensorContainer<ParamId>,
    weight: f64,
}

impl ModuleMapper for Towards {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(online) = self.online.remove::<Tensor<D>>(&param.id) else { return param };
        let weight = self.weight;
        param.map(|average| {
            if !(HostTensor::fits(&average) && HostTensor::fits(&online)) {
                let online = online.cast(FloatDType::F32);
                return average.mul_scalar(1.0 - weight) + online.mul_scalar(weight);
            }
            let (mut average, online) = (HostTensor::new(average), HostTensor::new(online));
            average.slice_mut().par_chunks_mut(CHUNK).zip(online.slice().par_chunks(CHUNK)).for_each(
                |(average, online)| {
                    vectorized(Average { average, online, keep: (1.0 - weight) as f32, weight: weight as f32 });
                },
            );
            average.into_tensor()
        })
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let online = self.online.remove::<Tensor<D, Int>>(&param.id);
        param.map(|old| online.unwrap_or(old))
    }

    fn map_bool<const D: usize>(&mut self, param: Param<Tensor<D, Bool>>) -> Param<Tensor<D, Bool>> {
        let online = self.online.remove::<Tensor<D, Bool>>(&param.id);
        param.map(|old| online.unwrap_or(old))
    }
}

/// `average · keep + online · weight`, a piece of it.
struct Average<'a> {
    average: &'a mut [f32],
    online: &'a [f32],
    keep: f32,
    weight: f32,
}

impl Sweep for Average<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (average, online) in self.average.iter_mut().zip(self.online) {
            *average = *average * self.keep + *online * self.weight;
        }
    }
}

struct ToF32;

impl ModuleMapper for ToF32 {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| tensor.cast(FloatDType::F32))
    }
}

#[derive(Default)]
struct Types {
    of: HashMap<ParamId, DType>,
}

impl ModuleVisitor for Types {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.of.insert(param.id, param.val().dtype());
    }
}

impl ModuleMapper for Types {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.of.get(&param.id).map(|dtype| FloatDType::from(*dtype)) {
            Some(dtype) => param.map(|tensor| tensor.cast(dtype)),
            None => param,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Module, Debug)]
    struct One {
        value: Param<Tensor<1>>,
    }

    fn one(value: f32) -> One {
        One { value: Param::from_tensor(Tensor::from_floats([value, -value], &Device::flex().autodiff())) }
    }

    fn set(model: One, value: f32) -> One {
        let device = Device::flex().autodiff();
        One { value: model.value.map(|_| Tensor::from_floats([value, -value], &device).require_grad()) }
    }

    fn read(model: &One) -> Vec<f32> {
        model.value.val().into_data().try_to_vec::<f32>().unwrap()
    }

    #[test]
    fn follows_the_closed_form_with_warm_up() {
        let mut model = one(1.0);
        let mut ema = Ema::new(&model, 0.3);
        let mut expected = 1.0f64;
        for n in 0..8u64 {
            let value = (n as f32 * 0.37).cos() * 3.0;
            model = set(model, value);
            ema = ema.update(&model);
            let decay = f64::min(0.3, (1.0 + n as f64) / (10.0 + n as f64));
            expected = decay * expected + (1.0 - decay) * value as f64;
            assert!((read(ema.shadow())[0] as f64 - expected).abs() < 1e-6, "update {n}");
            assert_eq!(read(ema.shadow())[1], -read(ema.shadow())[0]);
        }
        assert_eq!(ema.updates(), 8);
        assert_eq!(decay_at(0.3, 0), 0.1);
        assert_eq!(decay_at(0.3, 100), 0.3);
    }

    #[test]
    fn the_average_neither_changes_the_model_nor_trains() {
        let model = one(1.0);
        let ema = Ema::new(&model, 0.0);
        let moved = set(model.clone(), 5.0);
        let before = ema.clone();
        let ema = ema.update(&moved);
        assert_eq!(read(&model), [1.0, -1.0], "the start shared its memory with the average");
        assert_eq!(read(before.shadow()), [1.0, -1.0], "so did an earlier average");
        assert!((read(ema.shadow())[0] - (0.0 + 5.0)).abs() < 1e-6);
        assert!(!ema.model(&moved).value.val().device().is_autodiff());
    }
}
