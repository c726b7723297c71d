//! The random checkpoint has the reference's layout, and the pipeline runs it.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use dalle2::base::store::Weights;
use dalle2::{Device, GenerateRequest, LoadOptions, Pipeline, Residency};
use dalle2_tools::random_checkpoint::{Sizes, write};

#[test]
fn the_layout_is_that_of_the_reference() {
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny-unclip/pipeline");
    for part in Sizes::tiny().parts() {
        let Some((file, mut tensors)) = part.weights else { continue };
        let weights = Weights::open(reference.join(part.folder).join(file)).unwrap();
        // The reference has another vocabulary.
        tensors.remove("text_model.embeddings.token_embedding.weight");
        let names = weights.names().filter(|name| !name.contains("token_embedding"));
        assert!(names.eq(tensors.keys()), "{}", part.folder);
        for (name, shape) in tensors {
            assert_eq!(weights.shape(&name), Some(&shape[..]), "{}: {name}", part.folder);
        }
    }
}

#[test]
fn the_large_preset_has_the_published_number_of_parameters() {
    let parameters = |folder: &str| -> usize {
        let part = Sizes::karlo().parts().into_iter().find(|part| part.folder == folder).unwrap();
        part.weights.unwrap().1.values().map(|shape| shape.iter().product::<usize>()).sum()
    };
    // Millions of parameters, as published with the reference.
    for (folder, millions) in
        [("prior", 1022), ("decoder", 885), ("text_proj", 8), ("super_res_first", 692), ("super_res_last", 692)]
    {
        assert_eq!((parameters(folder) as f64 / 1e6).round() as usize, millions, "{folder}");
    }
}

#[test]
fn a_random_checkpoint_generates_the_same_image_resident_and_one_stage_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &Sizes::tiny(), 1, |_, _| {}).unwrap();
    let generate = |residency| {
        let options = LoadOptions::new(&Device::flex()).residency(residency);
        let pipeline = Pipeline::from_pretrained_with(dir.path(), &options).unwrap();
        let request = GenerateRequest::new("a red apple").seed(3).prior_steps(2).decoder_steps(2).upsampler_steps(2);
        pipeline.generate(request).unwrap().images.remove(0)
    };
    let image = generate(Residency::Resident);
    assert_eq!(image.dimensions(), (32, 32));
    assert!(image.pixels().any(|pixel| pixel != image.get_pixel(0, 0)));
    assert_eq!(image, generate(Residency::OneStage));
}
