//! Learned embeddings of tokens and sinusoidal embeddings of diffusion timesteps (Vaswani et al. 2017, section 3.5;
//! Ho et al. 2020, appendix B).

use burn::nn::Embedding;
use burn::prelude::*;

use super::kernels;

/// Looks up the rows of a table for token ids.
///
/// # Shapes
/// - `ids`: `[B, S]`
/// - result: `[B, S, D]`
///
/// # Panics
/// If an id is not below the number of rows.
pub fn embedding(layer: &Embedding, ids: Tensor<2, Int>) -> Tensor<3> {
    kernels::embedding(layer, ids).unwrap_or_else(|ids| layer.forward(ids))
}

/// Embeds timesteps as cosines, then sines, of `dim / 2` frequencies exp(−ln 10000 · i / (`dim` / 2)).
///
/// # Shapes
/// - `t`: B timesteps
/// - result: `[B, dim]`
///
/// # Panics
/// If `dim` is odd.
pub fn timestep_embedding(t: &[usize], dim: usize, device: &Device) -> Tensor<2> {
    assert!(dim.is_multiple_of(2), "the width of a timestep embedding must be even, got {dim}");
    let half = dim / 2;
    let frequencies: Vec<f64> = (0..half).map(|i| (-(10_000f64.ln()) * i as f64 / half as f64).exp()).collect();
    let mut values = Vec::with_capacity(t.len() * dim);
    for &t in t {
        values.extend(frequencies.iter().map(|f| (t as f64 * f).cos() as f32));
        values.extend(frequencies.iter().map(|f| (t as f64 * f).sin() as f32));
    }
    Tensor::from_data(TensorData::new(values, [t.len(), dim]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    #[test]
    fn matches_the_closed_form() {
        let embedding = timestep_embedding(&[0, 1, 999], 4, &Device::flex());
        // Two frequencies: 1 and 10000^(-1/2) = 0.01.
        let expected = TensorData::from([
            [1.0, 1.0, 0.0, 0.0],
            [1f32.cos(), 0.01f32.cos(), 1f32.sin(), 0.01f32.sin()],
            [999f64.cos() as f32, 9.99f64.cos() as f32, 999f64.sin() as f32, 9.99f64.sin() as f32],
        ]);
        embedding.into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-6, 1e-6));
    }

    #[test]
    #[should_panic(expected = "must be even")]
    fn refuses_an_odd_width() {
        timestep_embedding(&[1], 5, &Device::flex());
    }
}
