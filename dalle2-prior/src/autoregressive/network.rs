//! The transformer of the autoregressive prior (DALL·E 2, section 2.2).
//!
//! It reads [encoded caption tokens, caption embedding z_t, dot product, components 1 … K − 1] under a causal mask; its
//! output at the dot product is the distribution of the first component's bucket, its output at component k that of
//! component k + 1. Where the paper leaves things open: learned positions, one table of buckets for all components, exact
//! GELU, a final layer norm. Rows of the table and of the output layer start as sinusoids of the bucket's number, so that
//! neighbouring buckets, which stand for nearly the same value, start alike and learn from one another.

use burn::module::{Initializer, Param};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::FloatDType;
use dalle2_core::nn::{LayerNorm, LayerNormConfig, Transformer, layer_norm, linear};
use dalle2_core::{EmbeddingScale, TextCondition};

use super::AutoregressivePriorConfig;
use super::config::MIDDLE_TOKENS;
use crate::cache::KeyValueCache;
use crate::caption::attention_mask;

/// Amplitude of the sinusoids that rows of the bucket table start as: the size of a projected embedding.
const TABLE_AMPLITUDE: f64 = 0.5;
/// Amplitude of those of the output layer: small enough that the first distribution is broad, large enough that the
/// direction of a token moves it.
const OUTPUT_AMPLITUDE: f64 = 0.1;
/// Deviation of positions and dot products at the start: the size of the tokens they are added to, or a component would
/// learn late which one it is.
const POSITION_STD: f64 = 0.3;

/// The network: a caption, a dot product and buckets so far to the distribution of the next bucket.
#[derive(Module, Debug)]
pub struct AutoregressiveNetwork {
    /// Caption tokens to transformer tokens, `[W, d_model]`.
    pub token_proj: Linear,
    /// Caption embedding z_t to a token, `[D, d_model]`.
    pub text_proj: Linear,
    /// Dot products, `[dot_buckets + 1, d_model]`; the last row stands for a dropped caption.
    pub dot_table: Embedding,
    /// Buckets, `[buckets, d_model]`.
    pub bucket_table: Embedding,
    /// Learned positions of all tokens, `[S + 1 + K, d_model]`.
    pub positions: Param<Tensor<2>>,
    /// The transformer.
    pub transformer: Transformer,
    /// Norm before the output.
    pub norm: LayerNorm,
    /// Token to the logits of the next bucket, `[d_model, buckets]`.
    pub output: Linear,
    #[module(skip)]
    text_scale: EmbeddingScale,
    n_heads: usize,
    context_length: usize,
}

/// A batch of captions on their way: what the transformer has read so far.
#[derive(Debug, Clone)]
pub struct AutoregressiveState {
    cache: KeyValueCache,
    /// `[B, 1, T, T]` for the whole sequence.
    mask: Tensor<4, Bool>,
}

impl AutoregressiveState {
    /// Number of tokens read, each of them once.
    pub fn tokens_read(&self) -> usize {
        self.cache.len()
    }

    /// The same captions for other rows of the batch: row i of the result is row `rows[i]` of this.
    pub fn select(&self, rows: &[usize]) -> Self {
        let rows: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows.clone(), [rows.len()]), &self.mask.device());
        // Masks are not numbers to every backend's `select`.
        let mask = self.mask.clone().int().select(0, rows.clone()).bool();
        Self { cache: self.cache.select(&rows), mask }
    }
}

impl AutoregressivePriorConfig {
    /// Builds the network of a [valid](Self::validate) configuration with fresh weights.
    pub fn init(&self, device: &Device) -> AutoregressiveNetwork {
        let d = self.d_model;
        let token_sized = Initializer::Normal { mean: 0.0, std: POSITION_STD };
        let linear = |d_input, d_output| LinearConfig::new(d_input, d_output).init(device);
        let waves = sinusoids(self.buckets, d, device); // [buckets, d_model]
        let mut bucket_table = EmbeddingConfig::new(self.buckets, d).init(device);
        bucket_table.weight = Param::from_tensor(waves.clone() * TABLE_AMPLITUDE);
        let mut output = linear(d, self.buckets);
        output.weight = Param::from_tensor(waves.transpose() * OUTPUT_AMPLITUDE);
        output.bias = Some(Initializer::Zeros.init([self.buckets], device));
        AutoregressiveNetwork {
            token_proj: linear(self.token_width, d),
            text_proj: linear(self.embed_dim, d),
            dot_table: EmbeddingConfig::new(self.dot_buckets + 1, d).with_initializer(token_sized.clone()).init(device),
            bucket_table,
            positions: token_sized.init([self.sequence_length(), d], device),
            transformer: self.transformer().init(device),
            norm: LayerNormConfig::new(d).init(device),
            output,
            text_scale: self.text_scale.clone(),
            n_heads: self.n_heads,
            context_length: self.context_length,
        }
    }
}

/// Cosines, then sines, of π·f·(i + ½) / count for the row i, with frequencies f from ½ to count / 4 in a geometric
/// series: waves from twice the range down to eight buckets.
fn sinusoids(count: usize, width: usize, device: &Device) -> Tensor<2> {
    let half = width / 2;
    let longest: f64 = 0.5;
    let ratio = (count as f64 / 4.0 / longest).max(1.0);
    let frequency = |j: usize| longest * ratio.powf(j as f64 / (half - 1).max(1) as f64);
    let angle = |i: usize, j: usize| std::f64::consts::PI * frequency(j) * (i as f64 + 0.5) / count as f64;
    let row = |i: usize| {
        let cosines = (0..half).map(move |j| angle(i, j).cos() as f32);
        cosines.chain((0..half).map(move |j| angle(i, j).sin() as f32))
    };
    Tensor::from_data(TensorData::new((0..count).flat_map(row).collect::<Vec<f32>>(), [count, width]), device)
}

impl AutoregressiveNetwork {
    /// The logits of every component's bucket, given the true ones before it.
    ///
    /// # Shapes
    /// - text: B captions of S tokens
    /// - dot: `[B]`, the token of the dot product, or the number of its buckets for a dropped caption
    /// - tokens: `[B, K]`, the buckets
    /// - output: `[B, K, buckets]`
    ///
    /// # Panics
    /// When a batch, a width or a number of tokens is another one than the configuration's.
    pub fn forward(&self, text: &TextCondition, dot: Tensor<1, Int>, tokens: Tensor<2, Int>) -> Tensor<3> {
        let (caption, k) = (self.context_length + 1, tokens.dims()[1]);
        let mut parts = vec![self.caption_tokens(text), self.dot_token(dot)];
        if k > 1 {
            let read = self.bucket_table.forward(tokens.narrow(1, 0, k - 1)); // the last one is never read
            parts.push(read + self.positions(caption + 1, k - 1));
        }
        let mask = attention_mask(&text.mask, MIDDLE_TOKENS + k - 1);
        let hidden = self.transformer.forward(Tensor::cat(parts, 1), Some(mask)); // [B, S + 1 + K, d_model]
        self.logits(hidden.narrow(1, caption, k))
    }

    /// Reads captions: what is the same for all embeddings that are drawn for them.
    ///
    /// # Panics
    /// As [`Self::forward`].
    pub fn read_captions(&self, text: &TextCondition) -> AutoregressiveState {
        let total = self.positions.dims()[0];
        let mask = attention_mask(&text.mask, total - self.context_length);
        let mut cache = KeyValueCache::new(&self.transformer, self.n_heads);
        let caption = self.context_length + 1;
        let own = mask.clone().narrow(2, 0, caption).narrow(3, 0, caption);
        cache.extend(&self.transformer, self.caption_tokens(text), own);
        AutoregressiveState { cache, mask }
    }

    /// Reads the dot product and gives the logits of the first component's bucket.
    ///
    /// # Shapes
    /// - dot: `[B]`
    /// - output: `[B, buckets]`
    pub fn read_dot(&self, state: &mut AutoregressiveState, dot: Tensor<1, Int>) -> Tensor<2> {
        self.read(state, self.dot_token(dot))
    }

    /// Reads a component's bucket and gives the logits of the next one's.
    ///
    /// # Shapes
    /// - token: `[B]`
    /// - output: `[B, buckets]`
    ///
    /// # Panics
    /// When all components have been read.
    pub fn read_bucket(&self, state: &mut AutoregressiveState, token: Tensor<1, Int>) -> Tensor<2> {
        let position = self.positions(state.cache.len(), 1);
        self.read(state, self.bucket_table.forward(token.unsqueeze_dim::<2>(1)) + position)
    }

    /// One more token `[B, 1, d_model]`; only this one is computed.
    fn read(&self, state: &mut AutoregressiveState, token: Tensor<3>) -> Tensor<2> {
        let read = state.cache.len();
        let mask = state.mask.clone().narrow(2, read, 1).narrow(3, 0, read + 1);
        let hidden = state.cache.extend(&self.transformer, token, mask);
        self.logits(hidden).squeeze_dim::<2>(1)
    }

    /// The first S + 1 tokens, with their positions.
    fn caption_tokens(&self, text: &TextCondition) -> Tensor<3> {
        let dtype = self.positions.val().dtype();
        let pooled = linear(&self.text_proj, self.text_scale.scale(text.pooled.clone()).cast(dtype));
        let tokens = linear(&self.token_proj, text.tokens.clone().cast(dtype));
        let tokens = Tensor::cat(vec![tokens, pooled.unsqueeze_dim::<3>(1)], 1);
        assert_eq!(tokens.dims()[1], self.context_length + 1, "captions have {} tokens", self.context_length);
        tokens + self.positions(0, self.context_length + 1)
    }

    /// `[B]` -> `[B, 1, d_model]`
    fn dot_token(&self, dot: Tensor<1, Int>) -> Tensor<3> {
        self.dot_table.forward(dot.unsqueeze_dim::<2>(1)) + self.positions(self.context_length + 1, 1)
    }

    /// `[1, count, d_model]`
    fn positions(&self, first: usize, count: usize) -> Tensor<3> {
        self.positions.val().narrow(0, first, count).unsqueeze::<3>()
    }

    /// `[B, any, d_model]` -> `[B, any, buckets]`, in f32
    fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        linear(&self.output, layer_norm(&self.norm, hidden)).cast(FloatDType::F32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tolerance};
    use dalle2_core::TokenMask;

    const S: usize = 5;
    const K: usize = 6;

    fn config() -> AutoregressivePriorConfig {
        AutoregressivePriorConfig {
            components: K,
            buckets: 16,
            dot_buckets: 4,
            d_model: 32,
            n_heads: 4,
            n_layers: 2,
            ..AutoregressivePriorConfig::tiny(12, 10, S)
        }
    }

    fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
    }

    fn text(lengths: &[usize], device: &Device) -> TextCondition {
        TextCondition {
            pooled: random([lengths.len(), 12], device),
            tokens: random([lengths.len(), S, 10], device),
            mask: TokenMask::from_lengths(lengths, S, device),
        }
    }

    /// A network whose output layer tells everything apart.
    fn network(device: &Device) -> AutoregressiveNetwork {
        let mut network = config().init(device);
        network.output = LinearConfig::new(32, 16).init(device);
        network
    }

    fn tokens(rows: &[[i64; K]], device: &Device) -> Tensor<2, Int> {
        Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), K]), device)
    }

    fn ids(values: &[i64], device: &Device) -> Tensor<1, Int> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
    }

    fn largest<const D: usize>(x: Tensor<D>) -> f32 {
        x.abs().max().into_scalar::<f32>()
    }

    #[test]
    fn a_component_sees_the_caption_and_those_before_it_alone() {
        let device = Device::flex();
        let (network, text) = (network(&device), text(&[5], &device));
        let logits = |changed: usize| {
            let mut row = [3; K];
            row[changed] = 12;
            network.forward(&text, ids(&[1], &device), tokens(&[row], &device))
        };
        let before = network.forward(&text, ids(&[1], &device), tokens(&[[3; K]], &device));
        assert_eq!(before.dims(), [1, K, 16]);
        for changed in 0..K {
            let change = (logits(changed) - before.clone()).abs().max_dim(2).into_data().try_to_vec::<f32>().unwrap();
            assert!(change[..=changed].iter().all(|c| *c == 0.0), "component {changed}: {change:?}");
            assert!(change[changed + 1..].iter().all(|c| *c > 1e-5), "component {changed}: {change:?}");
        }
    }

    #[test]
    fn dot_product_and_caption_reach_every_component_and_padding_none() {
        let device = Device::flex();
        let (network, base) = (network(&device), text(&[3], &device));
        let forward =
            |text: &TextCondition, dot| network.forward(text, ids(&[dot], &device), tokens(&[[2; K]], &device));
        let before = forward(&base, 1);
        let least = |after: Tensor<3>| (after - before.clone()).abs().max_dim(2).min().into_scalar::<f32>();
        assert!(least(forward(&base, 4)) > 1e-5, "the row of dropped captions is one of its own");
        let other_pooled = TextCondition { pooled: random([1, 12], &device), ..base.clone() };
        assert!(least(forward(&other_pooled, 1)) > 1e-5);
        let changed = |position: usize| {
            let token = random([1, 1, 10], &device);
            let tokens = base.tokens.clone().slice_assign(s![0..1, position..position + 1, ..], token);
            forward(&TextCondition { tokens, ..base.clone() }, 1)
        };
        assert!(least(changed(2)) > 1e-5);
        assert_eq!(largest(changed(3) - before.clone()), 0.0);
    }

    #[test]
    fn the_cache_gives_the_same_logits_and_reads_every_token_once() {
        let device = Device::flex();
        let (network, text) = (network(&device), text(&[1, 3, 5], &device));
        let rows = [[3, 1, 15, 0, 7, 2], [9, 9, 4, 1, 0, 11], [5, 6, 7, 8, 9, 10]];
        let dot = ids(&[0, 3, 4], &device);
        let whole = network.forward(&text, dot.clone(), tokens(&rows, &device));

        let mut state = network.read_captions(&text);
        assert_eq!(state.tokens_read(), S + 1);
        let mut logits = vec![network.read_dot(&mut state, dot)];
        for k in 0..K - 1 {
            let column: Vec<i64> = rows.iter().map(|row| row[k]).collect();
            logits.push(network.read_bucket(&mut state, ids(&column, &device)));
            // Linear in the number of components: one more token each, none twice.
            assert_eq!(state.tokens_read(), S + 1 + 1 + k + 1);
        }
        let stepped = Tensor::stack::<3>(logits, 1);
        assert!(largest(stepped - whole) <= 1e-5);
        assert_eq!(state.tokens_read(), config().sequence_length());
    }

    #[test]
    fn rows_of_a_state_can_be_repeated_and_reordered() {
        let device = Device::flex();
        let (network, text) = (network(&device), text(&[2, 5], &device));
        let mut plain = network.read_captions(&text);
        let mut picked = plain.select(&[1, 0, 1]);
        let expected = network.read_dot(&mut plain, ids(&[2, 2], &device));
        let found = network.read_dot(&mut picked, ids(&[2, 2, 2], &device));
        let rows = Tensor::cat(vec![expected.clone().narrow(0, 1, 1), expected], 0); // 1, 0, 1
        found.into_data().assert_approx_eq::<f32>(&rows.into_data(), Tolerance::rel_abs(1e-5, 1e-6));
    }

    #[test]
    fn neighbouring_buckets_start_alike() {
        let rows = sinusoids(1024, 32, &Device::flex());
        let cosine = |a: usize, b: usize| {
            let [a, b] = [a, b].map(|i| rows.clone().narrow(0, i, 1));
            (a * b).sum().into_scalar::<f32>() / 16.0 // a cosine and a sine of one angle have length 1 together
        };
        assert!((cosine(500, 500) - 1.0).abs() < 1e-5);
        assert!(cosine(500, 501) > 0.95 && cosine(500, 516) < 0.9 && cosine(0, 1023) < 0.2);
    }

    #[test]
    fn the_first_distribution_is_broad() {
        let device = Device::flex();
        let network = config().init(&device);
        let logits = network.forward(&text(&[4], &device), ids(&[0], &device), tokens(&[[1; K]], &device));
        assert!(largest(logits) < 2.5);
    }
}
