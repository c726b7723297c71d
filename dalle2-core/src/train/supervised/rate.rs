//! The learning rate of a configuration, as a scheduler of Burn's.

use burn::lr_scheduler::{LrScheduler, LrSchedulerRecord};
use burn::optim::LearningRate;

use super::super::TrainConfig;

/// [`TrainConfig::learning_rate_at`], step by step.
#[derive(Debug, Clone)]
pub(super) struct ConfiguredRate {
    config: TrainConfig,
    step: u64,
}

impl ConfiguredRate {
    pub fn new(config: TrainConfig) -> Self {
        Self { config, step: 0 }
    }
}

impl LrScheduler for ConfiguredRate {
    fn step(&mut self) -> LearningRate {
        self.step += 1;
        self.config.learning_rate_at(self.step - 1)
    }

    fn to_record(&self) -> LrSchedulerRecord {
        LrSchedulerRecord::new().with_scalar("step", self.step)
    }

    fn load_record(&mut self, record: LrSchedulerRecord) {
        self.step = record.scalar("step").unwrap_or(self.step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_goes_on_where_the_schedule_was() {
        let config = TrainConfig { steps: 20, warmup: 5, learning_rate: 0.5, ..Default::default() };
        let expected: Vec<f64> = (0..20).map(|step| config.learning_rate_at(step)).collect();
        let mut first = ConfiguredRate::new(config.clone());
        let mut rates: Vec<f64> = (0..12).map(|_| first.step()).collect();
        let bytes = first.to_record().into_bytes().unwrap();
        let mut second = ConfiguredRate::new(config);
        second.load_record(LrSchedulerRecord::from_bytes(bytes).unwrap());
        rates.extend((12..20).map(|_| second.step()));
        assert_eq!(rates, expected);
    }
}
