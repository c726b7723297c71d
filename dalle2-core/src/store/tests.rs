use std::collections::BTreeMap;

use burn::module::Param;
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use safetensors::SafeTensors;

use super::*;
use crate::nn::{LayerNorm, LayerNormConfig};
use crate::{Error, FloatType};

#[derive(Module, Debug)]
struct Toy {
    proj: Linear,
    norms: Vec<LayerNorm>,
    scale: Param<Tensor<1>>,
}

fn toy(d_out: usize, device: &Device) -> Toy {
    Toy {
        proj: LinearConfig::new(3, d_out).init(device),
        norms: vec![LayerNormConfig::new(d_out).init(device); 2],
        scale: Param::from_tensor(Tensor::from_floats([2.5], device)),
    }
}

fn weights(toy: &Toy) -> Vec<f32> {
    toy.proj.weight.val().into_data().try_to_vec().unwrap()
}

#[test]
fn saved_and_loaded_is_equal_and_named_as_in_pytorch() {
    let device = Device::flex();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sub/model.safetensors");
    let saved = toy(5, &device);
    save_module(&saved, &path, FloatType::F32, &BTreeMap::new()).unwrap();
    let loaded = load_module(toy(5, &device), &path).unwrap();
    assert_eq!(weights(&saved), weights(&loaded));
    let x = Tensor::<2>::random([7, 3], burn::tensor::Distribution::Default, &device);
    loaded.proj.forward(x.clone()).into_data().assert_eq(&saved.proj.forward(x).into_data(), true);

    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("proj.weight").unwrap().shape(), [5, 3]);
    assert!(file.tensor("norms.1.bias").is_ok());
    assert_eq!(file.names().len(), 7);
}

#[test]
fn every_deviation_is_listed() {
    let device = Device::flex();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let rename = |name: &str| name.replace("norms.1", "extra");
    save_module_as(&toy(5, &device), &path, FloatType::F16, &BTreeMap::new(), &rename).unwrap();
    let Err(Error::Weights { missing, unexpected, mismatched, .. }) = load_module(toy(4, &device), &path) else {
        panic!("must be refused");
    };
    assert_eq!(missing, ["norms.1.bias", "norms.1.weight"]);
    assert_eq!(unexpected, ["extra.bias", "extra.weight"]);
    let names: Vec<_> = mismatched.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["norms.0.bias", "norms.0.weight", "proj.bias", "proj.weight"]);
}

#[test]
fn truncated_and_foreign_files_are_refused() {
    let device = Device::flex();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    save_module(&toy(5, &device), &path, FloatType::F32, &BTreeMap::new()).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for cut in [0, 4, 8, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        let error = load_module(toy(5, &device), &path).unwrap_err().to_string();
        assert!(error.contains("model.safetensors"), "{error}");
    }
    let mut absurd = u64::MAX.to_le_bytes().to_vec();
    absurd.extend_from_slice(b"{}");
    std::fs::write(&path, absurd).unwrap();
    assert!(load_module(toy(5, &device), &path).is_err());
}

#[test]
fn values_that_do_not_fit_are_refused() {
    let device = Device::flex();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let mut module = toy(5, &device);
    module.scale = Param::from_tensor(Tensor::from_floats([1e6], &device));
    let error = save_module(&module, &path, FloatType::F16, &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("scale"), "{error}");
    assert!(!path.exists());
    save_module(&module, &path, FloatType::Bf16, &BTreeMap::new()).unwrap();
}

#[test]
fn a_file_that_was_loaded_is_written_again_byte_for_byte() {
    let device = Device::flex();
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first.safetensors"), dir.path().join("second.safetensors"));
    for float_type in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
        save_module(&toy(5, &device), &first, float_type, &BTreeMap::new()).unwrap();
        let loaded = load_module(toy(5, &device), &first).unwrap();
        save_module(&loaded, &second, float_type, &BTreeMap::new()).unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap(), "{float_type:?}");
    }
    // The crate of the format writes the same file from the same tensors.
    let bytes = std::fs::read(&first).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    assert_eq!(safetensors::serialize(file.tensors(), Some(metadata)).unwrap(), bytes);
}

#[test]
fn tensors_without_usable_values_are_all_listed() {
    let device = Device::flex();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let module = toy(5, &device);
    save_module(&module, &path, FloatType::F32, &BTreeMap::new()).unwrap();
    let message = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let Err(error @ Error::Weights { .. }) = load_module(toy(5, &device), &path) else {
            panic!("must be refused");
        };
        error.to_string()
    };
    // Every value becomes NaN, so all seven tensors are at fault.
    let mut bytes = std::fs::read(&path).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[start..].fill(0xff);
    let error = message(&bytes);
    for name in module_tensors(&module, &str::to_owned).keys() {
        assert!(error.contains(&format!("{name}: element 0 is NaN")), "{error}");
    }
    // Integers of the same width.
    let header = String::from_utf8(bytes[8..start].to_vec()).unwrap().replace("F32", "I32");
    let integers = [&bytes[..8], header.as_bytes(), &bytes[start..]].concat();
    assert_eq!(message(&integers).matches("has element type I32").count(), 7);
}

#[test]
fn a_writer_takes_exactly_what_was_announced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let shapes = BTreeMap::from([("a".to_owned(), vec![2, 3]), ("b".to_owned(), vec![1])]);
    let mut writer = WeightsWriter::create(&path, FloatType::F16, shapes.clone(), &BTreeMap::new()).unwrap();
    assert!(writer.write("c", &[1.0]).unwrap_err().to_string().contains("c was not announced"));
    writer.write("b", &[0.5]).unwrap();
    assert!(writer.write("b", &[0.5]).is_err());
    assert!(writer.finish().unwrap_err().to_string().contains("not written: a"));
    assert!(!path.exists());

    let mut writer = WeightsWriter::create(&path, FloatType::F16, shapes, &BTreeMap::new()).unwrap();
    writer.write("b", &[0.5]).unwrap();
    writer.write("a", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    writer.finish().unwrap();
    let weights = Weights::open(&path).unwrap();
    assert_eq!((weights.shape("a"), weights.dtype("b")), (Some(&[2, 3][..]), Some(Dtype::F16)));
    assert_eq!(weights.read("a").unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
