//! Attention masks. As everywhere in Burn, `true` means masked out.

use burn::prelude::*;

/// The mask under which position i reads positions 0 to i.
///
/// # Shapes
/// `[1, 1, S, S]`, `true` above the diagonal
pub fn causal_mask(s: usize, device: &Device) -> Tensor<4, Bool> {
    Tensor::<2, Bool>::tril_mask([s, s], 0, device).unsqueeze::<4>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hides_exactly_the_future() {
        let mask = causal_mask(3, &Device::flex());
        assert_eq!(mask.dims(), [1, 1, 3, 3]);
        let hidden: Vec<bool> = mask.into_data().iter::<bool>().collect();
        assert_eq!(hidden, [false, true, true, false, false, true, false, false, false]);
    }
}
