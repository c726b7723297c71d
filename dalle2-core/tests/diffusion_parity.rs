//! DDPM steps against the recorded steps of the reference implementation's unCLIP scheduler.
//!
//! The fixtures hold, for five timesteps, the model outputs, the noise that was drawn and every sample on the way.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;

use burn::prelude::*;
use burn::tensor::Tolerance;
use dalle2_core::diffusion::*;
use safetensors::{Dtype, SafeTensors};

/// Relative and absolute tolerance of a plan with the reference's rounding.
const ROUNDED: (f32, f32) = (1e-5, 1e-5);
/// Relative and absolute tolerance of an exact plan: the reference's first and last step lose digits in `f32`.
const EXACT: (f32, f32) = (1e-3, 1e-3);

struct Fixture(Vec<u8>);

impl Fixture {
    fn open(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.safetensors"));
        Self(std::fs::read(path).unwrap())
    }

    fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::F32);
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (view.shape().to_vec(), values)
    }

    fn integers(&self, name: &str) -> Vec<usize> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::I64);
        view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize).collect()
    }

    /// The arrays that are stacked along the first axis.
    fn stack<const D: usize>(&self, name: &str, device: &Device) -> Vec<Tensor<D>> {
        let (shape, values) = self.floats(name);
        let item: [usize; D] = shape[1..].try_into().unwrap();
        let size = item.iter().product();
        values.chunks(size).map(|v| Tensor::from_data(TensorData::new(v.to_vec(), item), device)).collect()
    }
}

fn cosine() -> NoiseSchedule {
    NoiseSchedule::new(BetaSchedule::Cosine, 1000).unwrap()
}

fn assert_close<const D: usize>(found: &Tensor<D>, expected: &Tensor<D>, tolerance: (f32, f32)) {
    let tolerance = Tolerance::rel_abs(tolerance.0, tolerance.1);
    found.to_data().assert_approx_eq::<f32>(&expected.to_data(), tolerance);
}

fn assert_recorded_steps<const D: usize>(name: &str, options: SamplerOptions) {
    let plan = |schedule: NoiseSchedule| SamplingPlan::new(&schedule, 5).unwrap();
    assert_recorded_plan::<D>(name, options, &plan(cosine()), EXACT);
    assert_recorded_plan::<D>(name, options, &plan(cosine().rounded(Rounding::Single)), ROUNDED);
}

fn assert_recorded_plan<const D: usize>(
    name: &str,
    options: SamplerOptions,
    plan: &SamplingPlan,
    tolerance: (f32, f32),
) {
    let device = Device::flex();
    let fixture = Fixture::open(name);
    assert_eq!(plan.timesteps(), fixture.integers("timesteps"));
    let (outputs, samples) = (fixture.stack::<D>("model_outputs", &device), fixture.stack::<D>("samples", &device));
    let clean = fixture.stack::<D>("pred_original", &device);

    let mut noise = RecordedNoise::new();
    let (shape, values) = fixture.floats("noise");
    for array in values.chunks(shape[1..].iter().product()) {
        noise.push(&shape[1..], array.to_vec()).unwrap();
    }

    let mut step = 0;
    let mut denoise = |x_t: Tensor<D>, _t: usize| {
        assert_close(&x_t, &samples[step], tolerance);
        let output = outputs[step].clone();
        step += 1;
        Ok(match options.variance {
            VarianceType::LearnedRange => {
                let [output, variance] = output.chunk(2, 1).try_into().unwrap();
                Prediction { output, variance: Some(variance) }
            }
            _ => output.into(),
        })
    };
    let mut on_step = |done: usize, total: usize, x_start: &Tensor<D>| {
        assert_eq!(total, 5);
        assert_close(x_start, &clean[done - 1], tolerance);
        Ok(())
    };
    let out = sample(plan, &options, samples[0].clone(), &mut denoise, &mut noise, &mut on_step).unwrap();
    assert_close(&out, &samples[5], tolerance);
    assert_eq!(noise.remaining(), 0);
}

#[test]
fn tables_equal_the_recorded_ones() {
    let fixture = Fixture::open("scheduler_prior");
    let schedule = cosine();
    for (name, table) in [("betas", schedule.betas()), ("alphas_cumprod", schedule.alphas_cumprod())] {
        for (t, (expected, found)) in fixture.floats(name).1.iter().zip(table).enumerate() {
            assert!((found - *expected as f64).abs() < 1e-4 * found, "{name}[{t}]: {found} is not {expected}");
        }
    }
}

#[test]
fn rounded_tables_equal_the_recorded_ones_bit_for_bit() {
    let fixture = Fixture::open("scheduler_prior");
    let schedule = cosine().rounded(Rounding::Single);
    for (name, table) in [("betas", schedule.betas()), ("alphas_cumprod", schedule.alphas_cumprod())] {
        let recorded: Vec<f64> = fixture.floats(name).1.into_iter().map(f64::from).collect();
        assert_eq!(table, recorded, "{name}");
    }
}

#[test]
fn timesteps_equal_the_recorded_ones() {
    let fixture = Fixture::open("timesteps");
    for n in [2, 5, 7, 25, 50, 64, 250, 1000] {
        let plan = SamplingPlan::new(&cosine(), n).unwrap();
        assert_eq!(plan.timesteps(), fixture.integers(&format!("n{n}")), "{n} steps");
    }
}

#[test]
fn prior_steps_equal_the_recorded_ones() {
    assert_recorded_steps::<2>(
        "scheduler_prior",
        SamplerOptions {
            prediction: PredictionType::XStart,
            variance: VarianceType::FixedSmall,
            sampler: Sampler::Ddpm,
            clip: Clip::Range(5.0),
        },
    );
}

#[test]
fn decoder_steps_equal_the_recorded_ones() {
    assert_recorded_steps::<4>(
        "scheduler_decoder",
        SamplerOptions {
            prediction: PredictionType::Epsilon,
            variance: VarianceType::LearnedRange,
            sampler: Sampler::Ddpm,
            clip: Clip::Range(1.0),
        },
    );
}

#[test]
fn upsampler_steps_equal_the_recorded_ones() {
    assert_recorded_steps::<4>(
        "scheduler_super_res",
        SamplerOptions {
            prediction: PredictionType::Epsilon,
            variance: VarianceType::FixedSmall,
            sampler: Sampler::Ddpm,
            clip: Clip::Range(1.0),
        },
    );
}
