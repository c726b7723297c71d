//! Image embeddings as sequences of discrete tokens (DALL·E 2, section 2.2).
//!
//! An embedding becomes its first K principal components, in order of decreasing eigenvalue, each put into one of
//! N buckets of equal width. The paper leaves the edges open; here component k has the edges
//! `low[k] + i · (high[k] − low[k]) / N` for i from 0 to N, where `low` and `high` are the least and the largest value
//! of the training set, widened by 5 % of their distance on either side. Values beyond fall into the outermost
//! bucket. A token stands for the middle of its bucket, so a value in range comes back with an error of at most half a
//! bucket.
//!
//! The cosine of image and caption embedding becomes a token of its own, whose buckets hold equal shares of the training
//! set: its edges are quantiles. So the upper half of the buckets is the upper half of the distribution.

use std::path::Path;

use burn::prelude::*;
use dalle2_core::metrics::cosine_similarity;
use dalle2_core::nn::l2_normalize;
use dalle2_core::store::{read_json, write_json};
use dalle2_core::{Components, ConfigError, EmbeddingPca, EmbeddingScale, Error, Result};
use serde::{Deserialize, Serialize};

use super::AutoregressivePriorConfig;

/// What widens the range of the training set on either side.
const MARGIN: f64 = 0.05;
/// File of the principal components in a prior's directory.
const PCA_FILE: &str = "pca.safetensors";
/// File of the bucket edges in a prior's directory.
const BUCKETS_FILE: &str = "buckets.json";

/// Edges of the buckets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Buckets {
    /// Number N of buckets of each component.
    count: usize,
    /// Lower edge of the first bucket of each component.
    low: Vec<f64>,
    /// Upper edge of the last bucket of each component.
    high: Vec<f64>,
    /// The edges between the buckets of the cosine of z_i and z_t, increasing.
    dot_edges: Vec<f64>,
}

/// Turns image embeddings into tokens and back.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingQuantizer {
    pca: EmbeddingPca,
    scale: EmbeddingScale,
    buckets: Buckets,
}

/// How a [`EmbeddingQuantizer`] is fitted.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizerOptions {
    /// How many components are kept.
    pub components: Components,
    /// Buckets of each component, at least 2.
    pub buckets: usize,
    /// Buckets of the dot product, even.
    pub dot_buckets: usize,
    /// Scale of the image embeddings before their components are taken.
    pub image_scale: EmbeddingScale,
}

impl QuantizerOptions {
    /// What a configuration asks for.
    pub fn of(config: &AutoregressivePriorConfig) -> Self {
        Self {
            components: Components::Fixed(config.components),
            buckets: config.buckets,
            dot_buckets: config.dot_buckets,
            image_scale: config.image_scale.clone(),
        }
    }
}

impl EmbeddingQuantizer {
    /// Finds components and edges for a training set of embeddings in CLIP's space.
    ///
    /// # Shapes
    /// - image, text: `[N, D]`, row i of both belongs together
    ///
    /// # Errors
    /// As [`EmbeddingPca::fit`], and when the shapes differ or a number of buckets is too small.
    pub fn fit(image: Tensor<2>, text: Tensor<2>, options: &QuantizerOptions) -> Result<Self> {
        if options.buckets < 2 || options.dot_buckets < 2 {
            let fewest = options.buckets.min(options.dot_buckets);
            return Err(ConfigError::new("buckets", fewest, "must be at least 2").into());
        }
        options.image_scale.validate(image.dims()[1])?;
        let scaled = options.image_scale.scale(image.clone());
        let pca = EmbeddingPca::fit(scaled.clone(), options.components)?;
        let (values, k) = (pca.coordinates(scaled)?, pca.num_components());
        let (mut low, mut high) = (vec![f64::INFINITY; k], vec![f64::NEG_INFINITY; k]);
        for row in values.chunks_exact(k) {
            for (component, value) in row.iter().enumerate() {
                low[component] = low[component].min(*value);
                high[component] = high[component].max(*value);
            }
        }
        for (low, high) in low.iter_mut().zip(&mut high) {
            let margin = (MARGIN * (*high - *low)).max(1e-6); // a component without variance has a range too
            (*low, *high) = (*low - margin, *high + margin);
        }
        let dot_edges = quantiles(dots(image, text)?, options.dot_buckets);
        let buckets = Buckets { count: options.buckets, low, high, dot_edges };
        Ok(Self { pca, scale: options.image_scale.clone(), buckets })
    }

    /// Number K of components, the length of a sequence.
    pub fn num_components(&self) -> usize {
        self.pca.num_components()
    }

    /// Number of buckets of each component.
    pub fn num_buckets(&self) -> usize {
        self.buckets.count
    }

    /// Number of buckets of the dot product.
    pub fn num_dot_buckets(&self) -> usize {
        self.buckets.dot_edges.len() + 1
    }

    /// The principal components.
    pub fn pca(&self) -> &EmbeddingPca {
        &self.pca
    }

    /// Width of a bucket of a component, in the scaled space.
    ///
    /// # Panics
    /// When `component` is not below K.
    pub fn bucket_width(&self, component: usize) -> f64 {
        (self.buckets.high[component] - self.buckets.low[component]) / self.buckets.count as f64
    }

    /// The tokens of image embeddings, row-major `[B, K]`, each below the number of buckets.
    ///
    /// # Shapes
    /// - image: `[B, D]`, in CLIP's space
    ///
    /// # Errors
    /// When the width is another one or a value is not finite.
    pub fn encode(&self, image: Tensor<2>) -> Result<Vec<usize>> {
        let (values, k) = (self.pca.coordinates(self.scale.scale(image))?, self.num_components());
        let token = |(i, value): (usize, &f64)| {
            let place = (value - self.buckets.low[i % k]) / self.bucket_width(i % k);
            (place.max(0.0) as usize).min(self.buckets.count - 1)
        };
        Ok(values.iter().enumerate().map(token).collect())
    }

    /// The middle of a bucket of a component, in the scaled space.
    fn middle(&self, component: usize, token: usize) -> f64 {
        self.buckets.low[component] + (token as f64 + 0.5) * self.bucket_width(component)
    }

    /// The image embeddings that rows of K tokens stand for, in CLIP's space; embeddings that live on a sphere are put
    /// onto it.
    ///
    /// # Shapes
    /// `B * K` tokens -> `[B, D]`
    ///
    /// # Panics
    /// When the tokens are no whole rows.
    pub fn decode(&self, tokens: &[usize], device: &Device) -> Tensor<2> {
        let (k, d) = (self.num_components(), self.pca.embed_dim());
        assert!(tokens.len().is_multiple_of(k), "{} tokens are no rows of {k}", tokens.len());
        let values: Vec<f64> = tokens.iter().enumerate().map(|(i, token)| self.middle(i % k, *token)).collect();
        let scaled: Vec<f32> = self.pca.embeddings_at(&values, k).into_iter().map(|v| v as f32).collect();
        let scaled = Tensor::from_data(TensorData::new(scaled, [tokens.len() / k, d]), device);
        match &self.scale {
            EmbeddingScale::L2 => l2_normalize(scaled),
            scale => scale.unscale(scaled),
        }
    }

    /// The token of the dot product of each pair: of the embeddings at unit length, that is, of their cosine.
    ///
    /// # Shapes
    /// - image, text: `[B, D]`, in CLIP's space
    ///
    /// # Errors
    /// When the shapes differ or a value is not finite.
    pub fn dot_tokens(&self, image: Tensor<2>, text: Tensor<2>) -> Result<Vec<usize>> {
        let token = |value: f64| self.buckets.dot_edges.partition_point(|edge| *edge <= value);
        Ok(dots(image, text)?.into_iter().map(token).collect())
    }

    /// What is lost when embeddings are replaced by their K components, as a share of the training set's variance; the
    /// buckets add at most (width / 2)² for each component.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn reconstruction_error(&self, image: Tensor<2>) -> Result<f64> {
        self.pca.reconstruction_error(self.scale.scale(image))
    }

    /// Writes components and edges into a prior's directory.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.pca.save(dir.join(PCA_FILE))?;
        write_json(dir.join(BUCKETS_FILE), &self.buckets)
    }

    /// Reads what [`Self::save`] wrote, for embeddings of this scale.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the edges do not fit the components.
    pub fn load(dir: &Path, scale: EmbeddingScale) -> Result<Self> {
        let pca = EmbeddingPca::load(dir.join(PCA_FILE))?;
        let path = dir.join(BUCKETS_FILE);
        let buckets: Buckets = read_json(&path)?;
        let k = pca.num_components();
        let ordered = buckets.low.iter().zip(&buckets.high).all(|(low, high)| low < high && (high - low).is_finite());
        if [buckets.low.len(), buckets.high.len()] != [k, k] || !ordered || buckets.count < 2 {
            let message = format!(
                "{} low and {} high edges for {k} components: each needs one of both, low below high, and 2 buckets or more",
                buckets.low.len(),
                buckets.high.len()
            );
            return Err(Error::format(&path, message));
        }
        if buckets.dot_edges.is_empty()
            || !buckets.dot_edges.is_sorted()
            || buckets.dot_edges.iter().any(|e| e.is_nan())
        {
            return Err(Error::format(&path, "`dot_edges` must be numbers in increasing order, at least one"));
        }
        Ok(Self { pca, scale, buckets })
    }

    /// Refuses a quantizer that is not the configuration's.
    pub(super) fn check(&self, config: &AutoregressivePriorConfig) -> Result<()> {
        for (what, found, expected) in [
            ("embedding width", self.pca.embed_dim(), config.embed_dim),
            ("components", self.num_components(), config.components),
            ("buckets", self.num_buckets(), config.buckets),
            ("dot product buckets", self.num_dot_buckets(), config.dot_buckets),
        ] {
            if found != expected {
                let message = format!("{what}: the quantizer has {found}, the configuration {expected}");
                return Err(Error::Mismatch(message));
            }
        }
        match self.scale == config.image_scale {
            true => Ok(()),
            false => Err(Error::Mismatch(format!(
                "image scale: the quantizer has {:?}, the configuration {:?}",
                self.scale, config.image_scale
            ))),
        }
    }
}

/// Cosine of each pair.
fn dots(image: Tensor<2>, text: Tensor<2>) -> Result<Vec<f64>> {
    let cosines = cosine_similarity(image, text)?;
    let values: Vec<f32> =
        cosines.try_into_vec_as().map_err(|e| Error::Device(format!("reading cosines back: {e}")))?;
    match values.iter().position(|v| !v.is_finite()) {
        Some(row) => Err(Error::Input(format!("the embeddings of pair {row} are not finite"))),
        None => Ok(values.into_iter().map(f64::from).collect()),
    }
}

/// The `count` − 1 values that cut `values` into parts of one size.
fn quantiles(mut values: Vec<f64>, count: usize) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    (1..count)
        .map(|i| {
            let place = i as f64 / count as f64 * last as f64;
            let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
            below + (above - below) * place.fract()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dalle2_core::diffusion::standard_normal;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    const D: usize = 10;

    fn random(n: usize, seed: u64) -> Tensor<2> {
        let values = standard_normal(&mut ChaCha8Rng::seed_from_u64(seed), n * D);
        Tensor::from_data(TensorData::new(values, [n, D]), &Device::flex())
    }

    fn options(components: usize, buckets: usize) -> QuantizerOptions {
        let components = Components::Fixed(components);
        QuantizerOptions { components, buckets, dot_buckets: 8, image_scale: EmbeddingScale::None }
    }

    fn quantizer(components: usize, buckets: usize) -> EmbeddingQuantizer {
        EmbeddingQuantizer::fit(random(200, 1), random(200, 2), &options(components, buckets)).unwrap()
    }

    #[test]
    fn a_value_comes_back_within_half_a_bucket() {
        for buckets in [8, 1024] {
            let quantizer = quantizer(D, buckets);
            let z = random(200, 1);
            let tokens = quantizer.encode(z.clone()).unwrap();
            assert!(tokens.iter().all(|t| *t < buckets));
            let expected = quantizer.pca().coordinates(z).unwrap();
            let found = quantizer.pca().coordinates(quantizer.decode(&tokens, &Device::flex())).unwrap();
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let half = quantizer.bucket_width(i % D) / 2.0;
                assert!((found - expected).abs() <= half + 1e-5, "component {}: {found} {expected}", i % D);
            }
            // With all components, tokens determine the embedding: a second round changes nothing.
            assert_eq!(quantizer.encode(quantizer.decode(&tokens, &Device::flex())).unwrap(), tokens);
        }
    }

    #[test]
    fn values_out_of_range_fall_into_the_outermost_bucket() {
        let quantizer = quantizer(3, 16);
        let far = quantizer.pca().inverse(Tensor::from_floats([[99.0, -99.0, 0.0]], &Device::flex())).unwrap();
        let tokens = quantizer.encode(far).unwrap();
        assert_eq!(tokens[..2], [15, 0]);
        assert!((4..12).contains(&tokens[2]));
    }

    #[test]
    fn the_buckets_of_the_dot_product_hold_equal_shares() {
        let tokens = quantizer(3, 16).dot_tokens(random(200, 1), random(200, 2)).unwrap();
        let counts: Vec<usize> = (0..8).map(|bucket| tokens.iter().filter(|t| **t == bucket).count()).collect();
        assert!(counts.iter().all(|count| (24..=26).contains(count)), "{counts:?}");
        let device = Device::flex();
        let along = Tensor::<2>::ones([1, D], &device);
        let quantizer = quantizer(3, 16);
        assert_eq!(quantizer.dot_tokens(along.clone() * 3.0, along.clone()).unwrap(), [7]);
        assert_eq!(quantizer.dot_tokens(along.clone() * -1.0, along).unwrap(), [0]);
    }

    #[test]
    fn spheres_are_returned_to() {
        let options = QuantizerOptions { image_scale: EmbeddingScale::L2, ..options(6, 64) };
        let quantizer = EmbeddingQuantizer::fit(random(200, 1) * 7.0, random(200, 2), &options).unwrap();
        let z = quantizer.decode(&quantizer.encode(random(4, 3)).unwrap(), &Device::flex());
        let lengths: Vec<f32> = z.square().sum_dim(1).into_data().try_to_vec().unwrap();
        assert!(lengths.iter().all(|l| (l - 1.0).abs() < 1e-5), "{lengths:?}");
        assert!(quantizer.reconstruction_error(random(200, 1)).unwrap() < 0.5);
    }

    #[test]
    fn saved_and_loaded_it_is_the_same_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let quantizer = quantizer(4, 32);
        quantizer.save(dir.path()).unwrap();
        assert_eq!(EmbeddingQuantizer::load(dir.path(), EmbeddingScale::None).unwrap(), quantizer);
        let mut buckets = quantizer.buckets.clone();
        buckets.low.pop();
        write_json(dir.path().join(BUCKETS_FILE), &buckets).unwrap();
        let message = EmbeddingQuantizer::load(dir.path(), EmbeddingScale::None).unwrap_err().to_string();
        assert!(message.contains("buckets.json") && message.contains("3 low and 4 high"), "{message}");
    }

    #[test]
    fn sets_that_cannot_be_quantized_are_refused() {
        let message = |image, text, options: &QuantizerOptions| {
            EmbeddingQuantizer::fit(image, text, options).unwrap_err().to_string()
        };
        let empty = Tensor::<2>::zeros([0, D], &Device::flex());
        assert!(message(empty.clone(), empty, &options(3, 8)).contains("empty"));
        assert!(message(random(5, 1), random(5, 2), &options(6, 8)).contains("5 embeddings"));
        assert!(message(random(9, 1) * f32::NAN, random(9, 2), &options(3, 8)).contains("NaN"));
        assert!(message(random(9, 1), random(9, 2), &options(3, 1)).contains("`buckets` = 1"));
        assert!(message(random(9, 1), random(8, 2), &options(3, 8)).contains("[8, 10]"));
    }
}
