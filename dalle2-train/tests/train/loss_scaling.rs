//! Training with a scaled loss, in f32 and in f16.

use dalle2_core::FloatType;
use dalle2_train::LossScaling;

use super::*;

fn scaled(initial: f64) -> TrainConfig {
    TrainConfig { loss_scaling: Some(LossScaling { initial, ..Default::default() }), ..config() }
}

/// In f16, from a factor that every gradient overflows with, which grows after three good steps.
fn f16() -> TrainConfig {
    let loss_scaling = LossScaling { initial: 2f64.powi(30), growth_interval: 3, ..Default::default() };
    TrainConfig { steps: 40, precision: FloatType::F16, loss_scaling: Some(loss_scaling), ..config() }
}

fn loss_scales(dir: &Path) -> Vec<f64> {
    timeless(dir).into_iter().map(|record| record.loss_scale.unwrap()).collect()
}

#[test]
fn a_scale_changes_nothing_but_the_rounding() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let run = |name: &str, config: TrainConfig| {
        let dir = temp.path().join(name);
        let trained = train(config, &dir, quiet(), &Points::new()).unwrap();
        (bits(&trained.model), timeless(&dir))
    };
    let (plain, plain_records) = run("plain", config());
    // Powers of two do not touch the digits of a float, clipping and two batches a step included.
    let growing = LossScaling { initial: 1024.0, growth_interval: 3, ..Default::default() };
    let (exact, records) = run("exact", TrainConfig { loss_scaling: Some(growing), ..config() });
    assert_eq!(exact, plain);
    for (record, plain) in records.iter().zip(&plain_records) {
        assert_eq!((record.loss, record.grad_norm, record.overflows), (plain.loss, plain.grad_norm, Some(0)));
        assert_eq!(record.loss_scale, Some(1024.0 * 2f64.powi((record.step as i32 - 1) / 3)));
        assert_eq!((plain.loss_scale, plain.overflows), (None, None));
    }
    let (_, records) = run("rounded", scaled(1000.0));
    for (record, plain) in records.iter().zip(&plain_records) {
        let close = |a: Option<f64>, b: Option<f64>| (a.unwrap() / b.unwrap() - 1.0).abs() < 1e-4;
        assert!(close(record.loss, plain.loss) && close(record.grad_norm, plain.grad_norm), "{record:?} {plain:?}");
    }
    assert_ne!(records[0].grad_norm, plain_records[0].grad_norm, "the factor was there");
}

#[test]
fn the_scale_runs_down_without_a_step_and_without_divergence_and_then_grows() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let config =
        TrainConfig { max_skipped_in_a_row: 2, ema_decay: None, checkpoint_every: 1, keep_checkpoints: 40, ..f16() };
    let trained = train(config, temp.path(), quiet(), &Points::new()).unwrap();
    let records = timeless(temp.path());
    let overflows = records.iter().take_while(|record| record.grad_norm.is_none()).count();
    assert!((4..26).contains(&overflows), "{overflows}");
    assert_eq!(records[overflows - 1].overflows, Some(overflows as u64));
    assert!(records.iter().all(|record| record.skipped == 0 && record.loss.is_some()), "{records:?}");
    // Every overflow halves the factor and leaves the weights alone.
    let scales = loss_scales(temp.path());
    (0..=overflows).for_each(|i| assert_eq!(scales[i], 2f64.powi(30 - i as i32)));
    let weights =
        |step: usize| bits(&read_checkpoint(temp.path().join(format!("checkpoints/step-{step}")), mlp(0.3)).unwrap());
    assert_eq!(weights(1), weights(overflows));
    assert_ne!(weights(overflows), weights(overflows + 1));
    // From there, three good steps double it, until it is too high again.
    for i in overflows..scales.len() - 1 {
        let expected = match (records[i].grad_norm, i - overflows) {
            (None, _) => vec![scales[i] / 2.0],
            (Some(_), _) => vec![scales[i], scales[i] * 2.0],
        };
        assert!(expected.contains(&scales[i + 1]), "after step {}: {scales:?}", i + 1);
    }
    let doubled: Vec<usize> = (overflows..scales.len() - 1).filter(|&i| scales[i + 1] == 2.0 * scales[i]).collect();
    assert!(!doubled.is_empty(), "{scales:?}");
    for i in doubled {
        assert!(records[i - 2..=i].iter().all(|record| record.grad_norm.is_some()), "three good steps: {records:?}");
    }
    let report = trained.report;
    assert_eq!(report.overflows, records.iter().filter(|record| record.grad_norm.is_none()).count() as u64);
    assert!(report.overflows > overflows as u64, "it grew until it overflowed: {scales:?}");
    assert_eq!(report.skipped, 0);
}

#[test]
fn f16_learns_what_f32_learns() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let run = |precision: FloatType| {
        let dir = temp.path().join(format!("{precision:?}"));
        let config = TrainConfig { precision, steps: 60, ..config() };
        let trained = Trainer::new(config, &dir).options(quiet()).run(mlp(0.0), &Points::new(), &mut ()).unwrap();
        (trained, timeless(&dir))
    };
    let ((full, expected), (half, found)) = (run(FloatType::F32), run(FloatType::F16));
    assert_eq!((half.report.overflows, half.report.skipped), (0, 0));
    assert_eq!(found[0].loss_scale, Some(65_536.0), "the default");
    for (found, expected) in found.iter().zip(&expected) {
        let (found, expected) = (found.loss.unwrap(), expected.loss.unwrap());
        assert!((found - expected).abs() < 0.02 * expected.max(0.05), "{found} {expected}");
    }
    assert_ne!(bits(&half.model), bits(&full.model));
    assert!(bits(&half.model).iter().filter(|bits| **bits & 0x1fff != 0).count() > 50, "the weights are f32");
}

#[test]
fn a_resumed_run_with_a_scale_equals_an_uninterrupted_one_bit_for_bit() {
    let _alone = alone();
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = train(f16(), whole.path(), quiet(), &Points::new()).unwrap();
    let overflows = timeless(whole.path()).iter().take_while(|record| record.grad_norm.is_none()).count() as u64;
    // In the middle of the way down, and between two good steps.
    for stop in [3, overflows + 2, overflows + 7] {
        train(f16(), parts.path(), RunOptions { stop_after: Some(stop), ..resuming() }, &Points::new()).unwrap();
    }
    let resumed = train(f16(), parts.path(), resuming(), &Points::new()).unwrap();
    assert_eq!(bits(&resumed.model), bits(&expected.model));
    assert_eq!(bits(&resumed.ema.unwrap()), bits(&expected.ema.unwrap()));
    assert_eq!(timeless(parts.path()), timeless(whole.path()));
    assert_eq!(resumed.report.overflows, expected.report.overflows);
}

#[test]
fn a_gradient_that_no_scale_makes_finite_still_ends_the_run() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    // The loss itself is not a number: the scale has nothing to do with it.
    let config = TrainConfig { max_skipped_in_a_row: 3, ..scaled(1024.0) };
    let source = Points { broken: 10..100, ..Points::new() };
    let error = train(config, temp.path(), quiet(), &source).unwrap_err().to_string();
    assert!(error.contains("3 steps in a row"), "{error}");
    assert!(loss_scales(temp.path()).iter().all(|scale| *scale == 1024.0));
    assert_eq!(timeless(temp.path()).last().unwrap().overflows, Some(0));
}

#[test]
fn several_devices_scale_as_one_does() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let trainer = |name: &str| Trainer::new(f16(), temp.path().join(name)).options(quiet());
    let one = trainer("one").run(mlp(0.0), &Points::new(), &mut ()).unwrap();
    let devices = [Device::flex(), Device::flex()];
    let two = trainer("two").run_on(&devices, mlp(0.0), &Points::new(), &mut ()).unwrap();
    assert_eq!(bits(&two.model), bits(&one.model));
    assert_eq!(timeless(&temp.path().join("two")), timeless(&temp.path().join("one")));
    assert!(one.report.overflows > 0);
}

#[test]
fn settings_of_loss_scaling_are_checked() {
    let temp = tempfile::tempdir().unwrap();
    let bad = TrainConfig { loss_scaling: Some(LossScaling { backoff: 2.0, ..Default::default() }), ..config() };
    let trainer = Trainer::new(bad, temp.path().join("bad")).options(quiet());
    let error = trainer.run(mlp(0.0), &Points::new(), &mut ()).unwrap_err().to_string();
    assert!(error.contains("`train.loss_scaling.backoff` = 2"), "{error}");
}
