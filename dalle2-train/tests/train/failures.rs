//! Failures of hooks, logs and second writers lose no work.

use super::*;

/// The callback that fails.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Callback {
    Validate,
    Sample,
    Export,
    Panic,
}

/// Fails at step 6, as a full disk does.
struct FailsAtSix(Callback);

impl FailsAtSix {
    fn fail(&self, callback: Callback, step: u64) -> Result<()> {
        if self.0 == callback && step == 6 { Err(Error::Input("no space left".into())) } else { Ok(()) }
    }
}

impl Hooks<Mlp> for FailsAtSix {
    fn validate(&mut self, _model: &Mlp, step: u64) -> Result<Vec<(String, f64)>> {
        assert!(self.0 != Callback::Panic || step != 6, "no space left");
        self.fail(Callback::Validate, step).map(|()| Vec::new())
    }

    fn sample(&mut self, _model: &Mlp, step: u64, _path: &Path) -> Result<()> {
        self.fail(Callback::Sample, step)
    }

    fn export(&mut self, _model: &Mlp, _pipeline: &mut PipelineDir) -> Result<()> {
        self.fail(Callback::Export, 6)
    }
}

#[test]
fn a_hook_that_fails_leaves_a_checkpoint_to_resume_from() {
    let _alone = alone();
    let straight = tempfile::tempdir().unwrap();
    let expected = bits(&train(config(), straight.path(), quiet(), &Points::new()).unwrap().model);
    for callback in [Callback::Validate, Callback::Sample, Callback::Export, Callback::Panic] {
        let temp = tempfile::tempdir().unwrap();
        let every = Some(6);
        let config = TrainConfig { checkpoint_every: 6, sample_every: every, validate_every: every, ..config() };
        let trainer = Trainer::new(config.clone(), temp.path()).options(quiet());
        let error = trainer.run(mlp(0.3), &Points::new(), &mut FailsAtSix(callback)).unwrap_err();
        assert!(error.to_string().contains("no space left"), "{callback:?}: {error}");
        assert_eq!(steps_on_disk(temp.path()), ["step-6"], "{callback:?}");
        assert_eq!(timeless(temp.path()).len(), 6, "{callback:?}: the step is logged");
        let resumed = Trainer::new(config, temp.path()).options(resuming()).run(mlp(0.3), &Points::new(), &mut ());
        assert_eq!(bits(&resumed.unwrap().model), expected, "{callback:?}");
    }
}

/// A power failure can leave any bytes at the end of the log; the checkpoints are complete.
#[test]
fn damaged_lines_of_the_log_are_dropped() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let options = RunOptions { stop_after: Some(8), ..quiet() };
    train(config(), temp.path(), options, &Points::new()).unwrap();
    let path = temp.path().join("metrics.jsonl");
    let mut bytes = fs::read(&path).unwrap();
    bytes.splice(0..0, *b"\xff\xfe\0\n");
    bytes.extend(b"{\"step\": 9, \"lo\xff\0\0\0\n");
    fs::write(&path, bytes).unwrap();
    assert_eq!(read_metrics(&path).unwrap().len(), 8);
    assert_eq!(train(config(), temp.path(), resuming(), &Points::new()).unwrap().report.steps, 12);
    assert_eq!(read_metrics(&path).unwrap().len(), 12);
    assert!(String::from_utf8(fs::read(&path).unwrap()).is_ok(), "the damaged lines are gone");
}

#[test]
fn more_batches_than_can_be_counted_are_refused() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let config = TrainConfig { steps: u64::MAX, accumulation: 2, ..config() };
    let options = RunOptions { stop_after: Some(2), ..quiet() };
    let error = train(config, temp.path(), options, &Points::new()).unwrap_err().to_string();
    assert!(error.contains("`train.steps` = 18446744073709551615"), "{error}");
}

#[test]
fn a_second_run_in_one_directory_is_refused() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let lock = dalle2_core::store::DirLock::acquire(temp.path()).unwrap();
    let error = train(config(), temp.path(), resuming(), &Points::new()).unwrap_err().to_string();
    assert!(error.contains("is in use") && error.contains(&temp.path().display().to_string()), "{error}");
    drop(lock);
    assert_eq!(train(config(), temp.path(), resuming(), &Points::new()).unwrap().report.steps, 12);
}
