//! Filters refuse captions and images where they are installed, and only there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use dalle2::base::image::Mask;
use dalle2::{BlockList, Device, Error, ImageFilter, PromptFilter, Result, RgbImage, SimilarityFilter, Verdict};

use support::{pipeline, request};

fn reason<T: std::fmt::Debug>(result: Result<T>) -> String {
    match result {
        Err(Error::Refused(reason)) => reason,
        other => panic!("nothing was refused: {other:?}"),
    }
}

#[test]
fn listed_words_are_refused_whole_and_in_any_case() {
    let list = BlockList::new(["Apple", "red  heart"]).unwrap();
    let refused = |caption: &str| list.check(caption).unwrap() != Verdict::Allow;
    assert!(refused("an APPLE.") && refused("apple") && refused("one red-heart, please"));
    assert!(!refused("pineapple") && !refused("apples") && !refused("a red big heart") && !refused(""));
    assert!(BlockList::new(["ok", " - "]).unwrap_err().to_string().contains("phrases"));
}

#[test]
fn captions_are_refused_before_anything_is_drawn() {
    let free = pipeline(&Device::flex());
    free.generate(request()).unwrap();
    let filtered = free.clone().with_prompt_filter(BlockList::new(["apple"]).unwrap());
    let output = |_: dalle2::Event<'_>| -> Result<()> { panic!("a stage ran") };
    assert!(reason(filtered.generate_with(request(), output)).contains("apple"));
    let image = RgbImage::from_pixel(16, 16, image::Rgb([9, 200, 90]));
    let quick = || request().max_upsamplers(0);
    let unnamed = || dalle2::GenerateRequest::default().seed(1).decoder_steps(2).max_upsamplers(0);
    assert!(reason(filtered.text_diff(&image, "", "apple").request(unnamed()).run()).contains("apple"));
    assert!(reason(filtered.interpolate(&image, "apple").request(unnamed()).run()).contains("apple"));
    assert!(reason(filtered.mix([("apple".into(), 1.0)]).request(unnamed()).run()).contains("apple"));
    let hole = Mask::edit_where(16, 16, |x, _| x < 8);
    assert!(reason(filtered.inpaint(&image, &hole).request(request()).hook(output).run()).contains("apple"));
    assert!(reason(filtered.vary(&image).request(request()).hook(output).run()).contains("apple"));
    let negative = unnamed().caption("koala").guidance(3.0).negative_caption("apple");
    assert!(reason(filtered.validate(&negative)).contains("apple"));
    assert!(reason(filtered.generate(negative)).contains("apple"));
    free.generate(quick()).unwrap();
}

/// Refuses the second image of each batch.
struct Second;

impl ImageFilter for Second {
    fn check(&self, images: &[RgbImage]) -> Result<Vec<Verdict>> {
        let verdict = |i| if i == 1 { Verdict::Refuse("the second".into()) } else { Verdict::Allow };
        Ok((0..images.len()).map(verdict).collect())
    }
}

#[test]
fn images_are_refused_by_their_number() {
    let filtered = pipeline(&Device::flex()).with_image_filter(Second);
    filtered.generate(request().num_images(2).batch_size(1)).unwrap();
    let message = reason(filtered.generate(request().num_images(5).batch_size(4)));
    assert_eq!(message, "image 1: the second");
    let (image, hole) = (RgbImage::new(8, 8), Mask::edit_where(8, 8, |x, _| x < 4));
    let fills = filtered.inpaint(&image, &hole).request(request().num_images(2)).run();
    assert_eq!(reason(fills), "image 1: the second");
}

#[test]
fn similar_images_are_refused_from_the_threshold_on() {
    let pipeline = pipeline(&Device::flex());
    let image = RgbImage::from_pixel(16, 16, image::Rgb([9, 200, 90]));
    let embedding = pipeline.embed_image(&image).unwrap();
    let text = pipeline.text_encoder().encode(&["apple"]).unwrap().pooled;
    let cosine = dalle2::base::metrics::cosine_similarity(embedding, text).unwrap().into_scalar::<f32>();
    let check = |threshold: f64| {
        let filter = SimilarityFilter::new(&pipeline, &["apple"], threshold).unwrap();
        filter.check(std::slice::from_ref(&image)).unwrap().remove(0)
    };
    assert_eq!(check(f64::from(cosine) + 1e-3), Verdict::Allow);
    assert!(matches!(check(f64::from(cosine) - 1e-3), Verdict::Refuse(reason) if reason.contains("apple")));
    assert!(SimilarityFilter::new(&pipeline, &["apple"], f64::NAN).unwrap_err().to_string().contains("threshold"));
    assert!(SimilarityFilter::new(&pipeline, &[], 0.5).unwrap_err().to_string().contains("descriptions"));
}
