//! A batch that is divided among devices has the gradients of one that is not. The devices are several of the same CPU.

use super::*;

fn devices(count: usize) -> Vec<Device> {
    vec![Device::flex(); count]
}

/// A step on one device and the same with the batch divided, compared.
#[track_caller]
fn assert_divides(options: &ClipTaskOptions, patch_dropout: f64, counts: &[usize]) {
    let device = Device::flex().autodiff();
    let batch = batch(&device, patch_dropout);
    let clip = task(options, 0.0, &device).clip;
    let step = |options: &ClipTaskOptions, count: usize| {
        let task = ClipTask::with_clip(clip.clone(), options).unwrap().with_devices(&devices(count)).unwrap();
        let step = task.gradients(batch.clone(), 1.0);
        let value = step.output.loss.clone().into_scalar::<f32>();
        let accuracy = step.output.metrics[0].1.clone().into_scalar::<f32>();
        (gradients(&task, &step.grads), value, accuracy)
    };
    let (whole, value, accuracy) = step(&ClipTaskOptions { chunk: None, ..options.clone() }, 1);
    for count in counts {
        let (found, of_devices, accuracy_of_devices) = step(options, *count);
        assert_same_gradients(&found, &whole);
        assert!((value - of_devices).abs() < 1e-5, "{count} devices: {value} {of_devices}");
        assert_eq!(accuracy, accuracy_of_devices, "{count} devices");
    }
}

#[test]
fn a_divided_batch_has_the_loss_and_the_gradients_of_the_whole() {
    for loss in [ClipLoss::Softmax, ClipLoss::Sigmoid] {
        for chunk in [None, Some(3)] {
            assert_divides(&ClipTaskOptions { loss, chunk, ..Default::default() }, 0.0, &[2, 3, 5]);
        }
        assert_divides(&ClipTaskOptions { loss, ..Default::default() }, 0.5, &[2]);
    }
}

#[test]
fn negatives_come_from_other_devices() {
    // Were every device to contrast its own pairs only, the loss would be the mean of the two halves' losses.
    let device = Device::flex().autodiff();
    let options = ClipTaskOptions::default();
    let whole = batch(&device, 0.0);
    let one = task(&options, 0.0, &device);
    let loss = |task: &ClipTask, batch: ClipBatch| task.gradients(batch, 1.0).output.loss.into_scalar::<f32>();
    let halves = [0..8, 8..16].map(|rows| loss(&one, whole.part(&rows)));
    let apart = halves.iter().sum::<f32>() / 2.0;
    let together = loss(&one.clone().with_devices(&devices(2)).unwrap(), whole.clone());
    assert!((together - loss(&one, whole)).abs() < 1e-5);
    assert!((together - apart).abs() > 0.1, "{together} {apart}");
}

#[test]
fn a_locked_tower_has_no_gradients_on_any_device() {
    for chunk in [None, Some(3)] {
        let options = ClipTaskOptions { image_tower: ImageTower::Locked, chunk, ..Default::default() };
        assert_divides(&options, 0.0, &[3]);
    }
    let device = Device::flex().autodiff();
    let options = ClipTaskOptions { image_tower: ImageTower::Locked, ..Default::default() };
    let task = task(&options, 0.0, &device).with_devices(&devices(2)).unwrap();
    let step = task.gradients(batch(&device, 0.0), 1.0);
    assert!(gradients(&task, &step.grads).iter().all(|(path, _)| !path.starts_with("clip.vision")));
}

#[test]
fn there_may_be_more_devices_than_pairs() {
    let device = Device::flex().autodiff();
    let options = ClipTaskOptions::default();
    let three = batch(&device, 0.0).part(&(0..3));
    let one = task(&options, 0.0, &device);
    let expected = one.gradients(three.clone(), 1.0);
    let several = one.clone().with_devices(&devices(5)).unwrap();
    let found = several.gradients(three, 1.0);
    assert_same_gradients(&gradients(&several, &found.grads), &gradients(&one, &expected.grads));
}

#[test]
fn shares_are_nearly_equal_and_in_order() {
    for (b, devices, chunk) in [(16, 1, None), (16, 3, None), (10, 4, Some(2)), (3, 5, None), (7, 2, Some(100))] {
        let shares = cached::shares(b, devices, chunk);
        let sizes: Vec<usize> = shares.iter().map(cached::Share::len).collect();
        assert_eq!(sizes.iter().sum::<usize>(), b);
        assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
        let parts: Vec<_> = shares.iter().flat_map(cached::Share::rows_of_parts).collect();
        assert_eq!(parts.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..b).collect::<Vec<_>>());
        assert!(parts.iter().all(|rows| rows.len() <= chunk.unwrap_or(b)), "{parts:?}");
    }
}

#[test]
fn devices_draw_dropout_in_turn() {
    if !in_a_process_of_its_own("devices::devices_draw_dropout_in_turn") {
        return;
    }
    // In whatever order the devices come to draw, every part draws from its own seed.
    let device = Device::flex().autodiff();
    let batch = batch(&device, 0.25);
    for chunk in [None, Some(3)] {
        let task = task(&ClipTaskOptions { chunk, ..Default::default() }, 0.3, &device);
        let task = task.with_devices(&devices(2)).unwrap();
        let step = || gradients(&task, &task.gradients(batch.clone(), 1.0).grads);
        let first = step();
        (0..5).for_each(|_| assert_eq!(step(), first));
        let other = task.gradients(ClipBatch { seed: batch.seed + 1, ..batch.clone() }, 1.0);
        assert_ne!(gradients(&task, &other.grads), first, "and dropout matters");
    }
}

#[test]
fn the_scale_of_the_loss_is_that_of_the_gradients() {
    let device = Device::flex().autodiff();
    let batch = batch(&device, 0.0);
    for (chunk, count) in [(None, 1), (Some(5), 1), (None, 2)] {
        let task = task(&ClipTaskOptions { chunk, ..Default::default() }, 0.0, &device);
        let task = task.with_devices(&devices(count)).unwrap();
        let plain = task.gradients(batch.clone(), 1.0);
        let scaled = task.gradients(batch.clone(), 1024.0);
        let [plain_loss, loss] = [&plain, &scaled].map(|step| step.output.loss.clone().into_scalar::<f32>());
        assert_eq!(plain_loss, loss, "what is reported is not scaled");
        let divided = gradients(&task, &scaled.grads).into_iter().map(|(path, grad)| {
            let values: Vec<f32> = grad.iter::<f32>().map(|v| v / 1024.0).collect();
            (path, TensorData::new(values, grad.shape().clone()))
        });
        assert_eq!(divided.collect::<Vec<_>>(), gradients(&task, &plain.grads));
    }
}

#[test]
fn the_first_device_is_the_models() {
    let task = task(&ClipTaskOptions::default(), 0.0, &Device::flex().autodiff());
    let error = task.with_devices(&[]).unwrap_err().to_string();
    assert!(error.contains("`devices`"), "{error}");
}
