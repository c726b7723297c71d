//! Number of activations that a forward pass saves for the backward pass.

use crate::nn::TransformerConfig;

/// Numbers that a transformer's forward pass over one sequence of `tokens` keeps for the backward pass.
///
/// A block keeps the inputs and outputs of its two norms, queries, keys and values, what attention gives before and after
/// its output layer, the attention's probabilities, and the feed-forward part's values before and after the nonlinearity.
pub fn kept_by_transformer(config: &TransformerConfig, tokens: usize) -> u64 {
    let [d, f, h, s] = [config.d_model, config.feed_forward_width(), config.n_heads, tokens].map(|n| n as u64);
    let dropout = if config.dropout > 0.0 { 2 * d } else { 0 };
    let per_token = 10 * d + 2 * f + h * s + dropout;
    config.n_layers as u64 * s * per_token
}
