//! Training under Burn's own loop.

use std::sync::Arc;

use super::*;

/// Without what Burn's loop cannot do, and without a schedule that depends on the length.
fn plain() -> TrainConfig {
    TrainConfig { ema_decay: None, schedule: Schedule::Constant, ..config() }
}

fn under_burn(
    config: TrainConfig,
    dir: &Path,
    options: RunOptions,
    devices: usize,
    source: Points,
) -> Result<Trained<Mlp>> {
    let devices = vec![Device::flex(); devices];
    Trainer::new(config, dir).options(options).run_supervised(&devices, mlp(0.0), Arc::new(source), &mut ())
}

fn under_trainer(config: TrainConfig, dir: &Path, source: &impl BatchSource<Batch = Batch>) -> Trained<Mlp> {
    Trainer::new(config, dir).options(quiet()).run(mlp(0.0), source, &mut ()).unwrap()
}

#[test]
fn one_device_takes_the_steps_of_the_trainer_bit_for_bit() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    let cosine = TrainConfig { schedule: Schedule::Cosine { final_fraction: 0.1 }, ..plain() };
    let expected = under_trainer(cosine.clone(), &at("trainer"), &Points::new());
    let found = under_burn(cosine, &at("burn"), quiet(), 1, Points::new()).unwrap();
    assert_eq!(bits(&found.model), bits(&expected.model));
    assert_eq!(timeless(&at("burn")), timeless(&at("trainer")), "losses, rates and norms");
    assert_eq!((found.report.stop, found.report.steps, found.report.loss), (Stop::Finished, 12, expected.report.loss));
    assert!(found.report.checkpoint.ends_with("burn/checkpoint/model-3.bpk") && found.report.checkpoint.exists());
    assert!(!at("burn/burn/checkpoint/model-1.bpk").exists(), "the newest two are kept");
}

/// The batches of Burn's loop on two devices, in the order in which the trainer takes them: of the eight batches of an
/// epoch the first four belong to the first device.
struct Dealt(Points);

impl BatchSource for Dealt {
    type Batch = Batch;

    fn batch(&self, step: u64, device: &Device) -> Result<Batch> {
        let (epoch, within) = (step / 8, step % 8);
        self.0.batch(epoch * 8 + within % 2 * 4 + within / 2, device)
    }
}

#[test]
fn two_devices_take_the_mean_over_a_batch_each() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    let expected = under_trainer(plain(), &at("trainer"), &Dealt(Points::new()));
    let found = under_burn(plain(), &at("burn"), quiet(), 2, Points::new()).unwrap();
    assert_eq!(bits(&found.model), bits(&expected.model));
    let (found, expected) = (timeless(&at("burn")), timeless(&at("trainer")));
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!((found.step, found.grad_norm), (expected.step, expected.grad_norm));
        assert!((found.loss.unwrap() - expected.loss.unwrap()).abs() < 1e-6);
    }
    assert_eq!(found.len(), 12);
}

#[test]
fn a_run_goes_on_from_its_last_epoch_as_if_it_had_not_ended() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    let whole = under_burn(plain(), &at("whole"), quiet(), 1, Points::new()).unwrap();
    // Batch 21 is in the third epoch.
    let failing = Points { failing: Some(21), ..Points::new() };
    let error = under_burn(plain(), &at("parts"), resuming(), 1, failing).unwrap_err().to_string();
    assert!(error.contains("the disk caught fire"), "{error}");
    let refused = under_burn(plain(), &at("parts"), quiet(), 1, Points::new()).unwrap_err().to_string();
    assert!(refused.contains("holds a run of 2 epochs"), "{refused}");
    let resumed = under_burn(plain(), &at("parts"), resuming(), 1, Points::new()).unwrap();
    assert_eq!(bits(&resumed.model), bits(&whole.model));
    assert_eq!(timeless(&at("parts")), timeless(&at("whole")));
    assert_eq!((resumed.report.steps, resumed.report.loss), (12, whole.report.loss));

    let done = under_burn(plain(), &at("parts"), resuming(), 1, Points::new()).unwrap();
    assert_eq!((bits(&done.model), done.report.steps), (bits(&whole.model), 12), "there is nothing left to do");
    let longer = TrainConfig { steps: 16, ..plain() };
    assert_eq!(under_burn(longer, &at("parts"), resuming(), 2, Points::new()).unwrap().report.steps, 16);
}

#[test]
fn a_batch_of_nan_changes_nothing_but_the_count_and_many_end_the_run() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    let broken = || Points { broken: 9..10, ..Points::new() };
    let expected = under_trainer(plain(), &at("trainer"), &broken());
    let found = under_burn(plain(), &at("burn"), quiet(), 1, broken()).unwrap();
    assert_eq!((bits(&found.model), found.report.skipped), (bits(&expected.model), 1));

    let hopeless = TrainConfig { max_skipped_in_a_row: 3, ..plain() };
    // From step 6 on, which is in the second epoch.
    let broken = Points { broken: 10..1000, ..Points::new() };
    let error = under_burn(hopeless, &at("hopeless"), quiet(), 1, broken).unwrap_err().to_string();
    assert!(error.contains("3 steps in a row") && error.contains("by step 8"), "{error}");
    assert!(error.contains("the last checkpoint is that of step 4"), "{error}");
}

#[test]
fn what_burns_loop_would_leave_out_is_refused() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    let refuse = |config: TrainConfig, name: &str, options: RunOptions, devices: usize| {
        under_burn(config, &at(name), options, devices, Points::new()).unwrap_err().to_string()
    };
    let averaged = refuse(TrainConfig { ema_decay: Some(0.9), ..plain() }, "a", quiet(), 1);
    assert!(averaged.contains("`train.ema_decay` = 0.9"), "{averaged}");
    let limited = refuse(plain(), "a", RunOptions { max_seconds: Some(60.0), ..quiet() }, 1);
    assert!(limited.contains("`max_seconds` = 60"), "{limited}");
    let limited = refuse(plain(), "a", RunOptions { stop_after: Some(4), ..quiet() }, 1);
    assert!(limited.contains("`stop_after` = 4"), "{limited}");
    let uneven = refuse(plain(), "a", quiet(), 3);
    assert!(uneven.contains("multiple of the number of devices, 3"), "{uneven}");
    assert!(refuse(plain(), "a", quiet(), 0).contains("multiple of the number of devices, 0"));
    assert!(!at("a").exists(), "nothing was written");

    under_burn(TrainConfig { steps: 4, ..plain() }, &at("burn"), quiet(), 1, Points::new()).unwrap();
    let other = refuse(TrainConfig { seed: 5, ..plain() }, "burn", resuming(), 1);
    assert!(other.contains("`train.seed` = 11, and now it is 5"), "{other}");
    let epochs = refuse(TrainConfig { checkpoint_every: 2, ..plain() }, "burn", resuming(), 1);
    assert!(epochs.contains("`train.checkpoint_every` = 4") && epochs.contains("now it is 2"), "{epochs}");
    let trainer = Trainer::new(plain(), at("burn")).options(resuming());
    let error = trainer.run(mlp(0.0), &Points::new(), &mut ()).unwrap_err().to_string();
    assert!(error.contains("1 epochs under Burn's loop"), "{error}");

    under_trainer(plain(), &at("trainer"), &Points::new());
    let error = refuse(plain(), "trainer", resuming(), 1);
    assert!(error.contains("a run of 12 steps of the trainer"), "{error}");
}
