//! AdamW in one pass over memory.

use burn::module::{ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::{AdamW, AdamWConfig, AdamWState, AdaptiveMomentumState, LearningRate, ModuleOptimizer, Optimizer};
use burn::prelude::*;
use rayon::prelude::*;

use super::TrainConfig;
use super::host::{CHUNK, HostTensor, Sweep, vectorized};

/// The optimizer of a run: AdamW (Loshchilov and Hutter 2019), without decay on vectors and embedding tables.
pub fn optimizer<M: Module>(config: &TrainConfig, module: &M) -> ModuleOptimizer {
    let mut undecayed = Undecayed::default();
    module.visit(&mut undecayed);
    let decayed = ModuleOptimizer::from(OnePassAdamW::new(config, config.weight_decay));
    decayed.with_group(ParamGroup::from_ids(undecayed.ids), OnePassAdamW::new(config, 0.0), None)
}

/// Collects the parameters without weight decay: rank 1, and embedding tables.
#[derive(Default)]
struct Undecayed {
    containers: Vec<bool>,
    ids: Vec<ParamId>,
}

impl ModuleVisitor for Undecayed {
    fn enter_module(&mut self, _name: &str, container_type: &str) {
        self.containers.push(container_type.ends_with("Embedding"));
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.containers.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if D < 2 || self.containers.contains(&true) {
            self.ids.push(param.id);
        }
    }
}

/// Burn's [`AdamW`], with its state and, up to rounding, its result, as one loop where tensors live in main memory:
/// Burn's takes some fifteen passes over parameters, gradients and moments.
#[derive(Clone)]
struct OnePassAdamW {
    burn: AdamW,
    beta_1: f32,
    beta_2: f32,
    epsilon: f32,
    weight_decay: f64,
}

impl OnePassAdamW {
    fn new(config: &TrainConfig, weight_decay: f64) -> Self {
        let (beta_1, beta_2, epsilon) = (config.beta_1 as f32, config.beta_2 as f32, config.epsilon as f32);
        let burn = AdamWConfig::new()
            .with_beta_1(beta_1)
            .with_beta_2(beta_2)
            .with_epsilon(epsilon)
            .with_weight_decay(weight_decay as f32)
            .build();
        Self { burn, beta_1, beta_2, epsilon, weight_decay }
    }

    fn one_pass<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: AdaptiveMomentumState<D>,
    ) -> (Tensor<D>, AdaptiveMomentumState<D>) {
        let time = state.time + 1;
        let (mut values, grad) = (HostTensor::new(tensor), HostTensor::new(grad));
        let (mut first, mut second) = (HostTensor::new(state.moment_1), HostTensor::new(state.moment_2));
        let step = Step {
            beta_1: self.beta_1,
            beta_2: self.beta_2,
            epsilon: self.epsilon,
            correction_1: 1.0 / (1.0 - self.beta_1.powi(time as i32)),
            correction_2: 1.0 / (1.0 - self.beta_2.powi(time as i32)),
            keep: (1.0 - lr * self.weight_decay) as f32,
            lr: lr as f32,
        };
        let chunks = values.slice_mut().par_chunks_mut(CHUNK).zip(grad.slice().par_chunks(CHUNK));
        let moments = first.slice_mut().par_chunks_mut(CHUNK).zip(second.slice_mut().par_chunks_mut(CHUNK));
        chunks.zip(moments).for_each(|((values, grad), (first, second))| {
            vectorized(Chunk { step: &step, values, grad, first, second });
        });
        let state = AdaptiveMomentumState::new(time, first.into_tensor(), second.into_tensor());
        (values.into_tensor(), state)
    }
}

impl Optimizer for OnePassAdamW {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let fits = HostTensor::fits(&tensor)
            && HostTensor::fits(&grad)
            && state.iter().all(|s| HostTensor::fits(&s.momentum.moment_1) && HostTensor::fits(&s.momentum.moment_2));
        if !fits {
            return self.burn.step(lr, tensor, grad, state);
        }
        let momentum = match state {
            Some(state) => state.momentum,
            None => AdaptiveMomentumState::new(0, grad.zeros_like(), grad.zeros_like()),
        };
        let (tensor, momentum) = self.one_pass(lr, tensor, grad, momentum);
        (tensor, Some(AdamWState::new(momentum)))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        <AdamW as Optimizer>::to_device(state, device)
    }
}

/// The numbers of one step, the same for every element; the corrections are factors.
struct Step {
    beta_1: f32,
    beta_2: f32,
    epsilon: f32,
    correction_1: f32,
    correction_2: f32,
    keep: f32,
    lr: f32,
}

/// A chunk of the values that a step changes.
struct Chunk<'a> {
    step: &'a Step,
    values: &'a mut [f32],
    grad: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl Sweep for Chunk<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Step { beta_1, beta_2, epsilon, correction_1, correction_2, keep, lr } = *self.step;
        let (rest_1, rest_2) = (1.0 - beta_1, 1.0 - beta_2);
        let moments = self.first.iter_mut().zip(self.second.iter_mut());
        for ((value, grad), (first, second)) in self.values.iter_mut().zip(self.grad).zip(moments) {
            *first = *first * beta_1 + grad * rest_1;
            *second = *second * beta_2 + grad * grad * rest_2;
            let delta = (*first * correction_1) / ((*second * correction_2).sqrt() + epsilon);
            *value = *value * keep - delta * lr;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
    use burn::optim::GradientsParams;
    use burn::tensor::Tolerance;
    use dalle2_core::nn::{LayerNorm, LayerNormConfig};

    #[derive(Module, Debug)]
    struct Small {
        table: Embedding,
        norm: LayerNorm,
        out: Linear,
    }

    fn small() -> Small {
        let device = Device::flex().autodiff();
        let mut out = LinearConfig::new(8, 3).init(&device);
        let weight: Vec<f32> = (0..24).map(|i| (i as f32 * 0.7).sin()).collect();
        out.weight = Param::from_data(TensorData::new(weight, [8, 3]), &device);
        Small { table: EmbeddingConfig::new(5, 8).init(&device), norm: LayerNormConfig::new(8).init(&device), out }
    }

    /// A gradient that differs from step to step and from element to element.
    fn gradient(step: usize) -> Tensor<2> {
        let values: Vec<f32> = (0..24).map(|i| ((i * 5 + step * 11) as f32).sin() * 0.3).collect();
        Tensor::from_data(TensorData::new(values, [8, 3]), &Device::flex())
    }

    #[test]
    fn agrees_with_burn() {
        let config = TrainConfig { beta_2: 0.96, epsilon: 1e-6, weight_decay: 0.1, ..Default::default() };
        let burns = AdamWConfig::new().with_beta_2(0.96).with_epsilon(1e-6).with_weight_decay(0.1);
        let (mut ours, mut theirs) = (small(), small());
        let (mut our_optimizer, mut their_optimizer) = (optimizer(&config, &ours), burns.init());
        let start = ours.out.weight.val().into_data();
        for step in 0..20 {
            let grads = |id| {
                let mut grads = GradientsParams::new();
                grads.register(id, gradient(step));
                grads
            };
            let (our_grads, their_grads) = (grads(ours.out.weight.id), grads(theirs.out.weight.id));
            ours = our_optimizer.step(0.01, ours, our_grads);
            theirs = their_optimizer.step(0.01, theirs, their_grads);
        }
        let expected = theirs.out.weight.val().into_data();
        ours.out.weight.val().into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-6, 1e-7));
        assert_ne!(start, expected);
        assert!(ours.out.weight.is_require_grad());
    }

    #[test]
    fn only_matrices_are_decayed() {
        let config = TrainConfig { weight_decay: 0.5, ..Default::default() };
        let model = small();
        let mut optimizer = optimizer(&config, &model);
        let mut grads = GradientsParams::new();
        let plain = Device::flex();
        grads.register(model.table.weight.id, Tensor::<2>::zeros([5, 8], &plain));
        grads.register(model.norm.gamma.id, Tensor::<1>::zeros([8], &plain));
        grads.register(model.out.weight.id, Tensor::<2>::zeros([8, 3], &plain));
        let (table, gamma) = (model.table.weight.val().into_data(), model.norm.gamma.val().into_data());
        let decayed = (model.out.weight.val() * 0.95).into_data();
        let model = optimizer.step(0.1, model, grads);
        model.table.weight.val().into_data().assert_eq(&table, true);
        model.norm.gamma.val().into_data().assert_eq(&gamma, true);
        model.out.weight.val().into_data().assert_approx_eq::<f32>(&decayed, Tolerance::rel_abs(1e-6, 1e-7));
    }
}
