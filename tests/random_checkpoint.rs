//! The random checkpoint of the example: the layout it writes is the reference's, and the pipeline runs it.

#![allow(clippy::unwrap_used)]

#[path = "../examples/make_random_checkpoint/layout.rs"]
mod layout;

use std::path::Path;

use dalle2::core::store::Weights;
use dalle2::{Device, GenerateRequest, LoadOptions, Pipeline, Residency};
use layout::Sizes;

#[test]
fn the_layout_is_that_of_the_reference() {
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-unclip/pipeline");
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
    // Millions, as the reference's documentation of sizes has them.
    for (folder, millions) in
        [("prior", 1022), ("decoder", 885), ("text_proj", 8), ("super_res_first", 692), ("super_res_last", 692)]
    {
        assert_eq!((parameters(folder) as f64 / 1e6).round() as usize, millions, "{folder}");
    }
}

#[test]
fn a_random_checkpoint_draws_an_image_and_the_same_one_stage_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    layout::write(dir.path(), &Sizes::tiny(), 1, |_, _| {}).unwrap();
    let draw = |residency| {
        let options = LoadOptions::new(&Device::flex()).residency(residency);
        let pipeline = Pipeline::from_pretrained_with(dir.path(), &options).unwrap();
        let request = GenerateRequest::new("a red apple").seed(3).prior_steps(2).decoder_steps(2).upsampler_steps(2);
        pipeline.generate(request).unwrap().images.remove(0)
    };
    let image = draw(Residency::Resident);
    assert_eq!(image.dimensions(), (32, 32));
    assert!(image.pixels().any(|pixel| pixel != image.get_pixel(0, 0)));
    assert_eq!(image, draw(Residency::OneStage));
}
