//! The schedulers: timesteps, tables and every recorded step.

use anyhow::{Result, bail};
use burn::prelude::*;
use dalle2::base::diffusion::{
    NoiseSchedule, Prediction, RecordedNoise, SamplerOptions, SamplingPlan, VarianceType, sample,
};

use super::{Comparison, Fixture};

/// Splits a recorded network output `[B, C, …]` into the prediction and, if it is learned, the variance.
pub fn split<const D: usize>(output: Tensor<D>, variance: VarianceType) -> Prediction<D> {
    match variance {
        VarianceType::LearnedRange => {
            let half = output.dims()[1] / 2;
            let variance = output.clone().narrow(1, half, half);
            Prediction { output: output.narrow(1, 0, half), variance: Some(variance) }
        }
        _ => output.into(),
    }
}

impl Comparison {
    pub fn timesteps(&mut self, file: &Fixture) -> Result<()> {
        let schedule = self.parts.prior.config().diffusion.noise_schedule()?;
        for name in file.names("n")? {
            let plan = SamplingPlan::new(&schedule, name[1..].parse()?)?;
            let timesteps: Vec<i64> = plan.timesteps().into_iter().map(|t| t as i64).collect();
            self.exact(format!("timesteps/{name}"), &timesteps, &file.integers(&name)?)?;
        }
        Ok(())
    }

    pub fn prior_scheduler(&mut self, file: &Fixture) -> Result<()> {
        let config = self.parts.prior.config();
        let (schedule, options) = (config.diffusion.noise_schedule()?, config.sampler_options(None));
        self.tables(file, &schedule)?;
        self.sequence::<2>(file, &schedule, &options)
    }

    pub fn decoder_scheduler(&mut self, file: &Fixture) -> Result<()> {
        let config = &self.parts.decoder.config().diffusion;
        let (schedule, options) = (config.noise_schedule()?, config.sampler_options(&config.defaults()));
        self.tables(file, &schedule)?;
        self.sequence::<4>(file, &schedule, &options)
    }

    pub fn super_res_scheduler(&mut self, file: &Fixture) -> Result<()> {
        let config = &self.parts.upsampler.config().diffusion;
        let (schedule, options) = (config.noise_schedule()?, config.sampler_options(&config.defaults()));
        self.tables(file, &schedule)?;
        self.sequence::<4>(file, &schedule, &options)
    }

    fn tables(&mut self, file: &Fixture, schedule: &NoiseSchedule) -> Result<()> {
        let recorded = file.names("")?;
        for (name, table) in [("betas", schedule.betas()), ("alphas_cumprod", schedule.alphas_cumprod())] {
            if recorded.iter().any(|recorded| recorded == name) {
                let expected = super::to_f64(&file.floats(name)?.1);
                if expected.len() != table.len() {
                    bail!("{name}: {} values, expected the recorded {}", table.len(), expected.len());
                }
                self.values(format!("{}/{name}", file.name()), table, &expected, self.tolerance);
            }
        }
        Ok(())
    }

    /// Takes the recorded steps with recorded outputs and noise: each from its recorded sample, then all in sequence.
    fn sequence<const D: usize>(
        &mut self,
        file: &Fixture,
        schedule: &NoiseSchedule,
        options: &SamplerOptions,
    ) -> Result<()> {
        let name = file.name().to_owned();
        let recorded = file.timesteps("timesteps")?;
        let plan = SamplingPlan::new(schedule, recorded.len())?;
        let as_integers = |timesteps: Vec<usize>| timesteps.into_iter().map(|t| t as i64).collect::<Vec<_>>();
        self.exact(format!("{name}/timesteps"), &as_integers(plan.timesteps()), &as_integers(recorded))?;

        let outputs = file.stack::<D>("model_outputs", &self.device)?;
        let samples = file.stack::<D>("samples", &self.device)?;
        let clean = file.stack::<D>("pred_original", &self.device)?;
        let noise = file.stack::<D>("noise", &self.device)?;
        let (mut single, mut estimates) = (Vec::new(), Vec::new());
        for k in 0..plan.num_steps() {
            let mut source = RecordedNoise::new();
            if let Some(noise) = noise.get(k) {
                push(&mut source, noise.clone())?;
            }
            let mut denoise = |_: Tensor<D>, _: usize| Ok(split(outputs[k].clone(), options.variance));
            let mut on_step = |_: usize, _: usize, x_start: &Tensor<D>| {
                estimates.push(x_start.clone());
                Ok(())
            };
            let part = plan.part(k..k + 1)?;
            single.push(sample(&part, options, samples[k].clone(), &mut denoise, &mut source, &mut on_step)?);
        }
        self.row(format!("{name}/samples"), Tensor::cat(single, 0), Tensor::cat(samples[1..].to_vec(), 0))?;
        self.row(format!("{name}/pred_original"), Tensor::cat(estimates, 0), Tensor::cat(clean, 0))?;

        let mut source = RecordedNoise::new();
        noise.into_iter().try_for_each(|noise| push(&mut source, noise))?;
        let mut step = 0;
        let mut denoise = |_: Tensor<D>, _: usize| {
            step += 1;
            Ok(split(outputs[step - 1].clone(), options.variance))
        };
        let mut on_step = |_: usize, _: usize, _: &Tensor<D>| Ok(());
        let last = sample(&plan, options, samples[0].clone(), &mut denoise, &mut source, &mut on_step)?;
        self.row(format!("{name}/last sample"), last, samples[samples.len() - 1].clone())
    }
}

/// Appends a recorded array to a noise source.
pub fn push<const D: usize>(source: &mut RecordedNoise, noise: Tensor<D>) -> Result<()> {
    let shape = noise.dims();
    let values = noise.into_data().try_to_vec::<f32>().map_err(|e| anyhow::anyhow!("recorded noise: {e}"))?;
    Ok(source.push(&shape, values)?)
}
