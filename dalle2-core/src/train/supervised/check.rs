//! What a run under Burn's loop cannot do.

use super::super::{Precision, TrainConfig};
use crate::ConfigError;

/// Checks that Burn's own loop can do what the configuration asks for.
///
/// # Errors
/// Names the first field that it would leave out, or that is out of range.
pub fn check_supervised(config: &TrainConfig) -> Result<(), ConfigError> {
    config.validate()?;
    let absent = |field: &str, value: Option<String>, why: &str| match value {
        Some(value) => Err(ConfigError::new(field, value, format!("must be null under Burn's loop, {why}"))),
        None => Ok(()),
    };
    absent("ema_decay", config.ema_decay.map(|v| v.to_string()), "which keeps no average of the weights")?;
    absent("watch", config.watch.as_ref().map(|v| v.figure.clone()), "which knows no figures of the validation hook")?;
    absent("validate_every", config.validate_every.map(|v| v.to_string()), "which calls no validation hook")?;
    absent("sample_every", config.sample_every.map(|v| v.to_string()), "which calls no sample hook")?;
    absent("keep_every", config.keep_every.map(|v| v.to_string()), "which keeps the newest checkpoints only")?;
    absent("loss_scaling", config.loss_scaling.map(|v| v.initial.to_string()), "which does not scale the loss")?;
    if config.precision != Precision::F32 {
        let expected = "must be f32 under Burn's loop, which keeps no second copy of the weights";
        return Err(ConfigError::new("precision", format!("{:?}", config.precision).to_lowercase(), expected));
    }
    if !config.steps.is_multiple_of(config.checkpoint_every) {
        let epoch = config.checkpoint_every;
        let expected =
            format!("must be a multiple of checkpoint_every, {epoch}, the length of an epoch of Burn's loop");
        return Err(ConfigError::new("steps", config.steps, expected));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::{Goal, LossScaling, Watch};
    use super::*;

    #[test]
    fn what_would_be_left_out_is_refused_by_name() {
        let fits = TrainConfig { ema_decay: None, steps: 1000, checkpoint_every: 250, ..Default::default() };
        assert!(check_supervised(&fits).is_ok());
        let field = |config: TrainConfig| check_supervised(&config).unwrap_err().field;
        assert_eq!(field(TrainConfig { ema_decay: Some(0.9), ..fits.clone() }), "ema_decay");
        assert_eq!(field(TrainConfig { validate_every: Some(5), ..fits.clone() }), "validate_every");
        let watch = Some(Watch { figure: "recall".into(), goal: Goal::Highest, patience: None });
        assert_eq!(field(TrainConfig { watch, validate_every: Some(5), ..fits.clone() }), "watch");
        assert_eq!(field(TrainConfig { sample_every: Some(5), ..fits.clone() }), "sample_every");
        assert_eq!(field(TrainConfig { keep_every: Some(5), ..fits.clone() }), "keep_every");
        let loss_scaling = Some(LossScaling::default());
        assert_eq!(field(TrainConfig { loss_scaling, ..fits.clone() }), "loss_scaling");
        assert_eq!(field(TrainConfig { precision: Precision::Bf16, ..fits.clone() }), "precision");
        assert_eq!(field(TrainConfig { learning_rate: -1.0, ..fits.clone() }), "learning_rate");
        let error = check_supervised(&TrainConfig { steps: 1001, ..fits }).unwrap_err().to_string();
        assert!(error.contains("`steps` = 1001") && error.contains("multiple of checkpoint_every, 250"), "{error}");
    }
}
