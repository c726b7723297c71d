//! Attention. The softmax turns an absolute error of a score into a relative error of a weight.

use super::*;

/// Relative error of a score, with respect to the sum of the absolute terms of its product.
const SCORE: f64 = 5e-7;

#[derive(Debug)]
struct Case {
    /// B, heads, Sq, Sk, Dh
    dims: [usize; 5],
    /// Number of items of the mask, if any.
    masks: Option<usize>,
}

impl Case {
    fn random(rng: &mut TestRng) -> Self {
        loop {
            // From 16 heads on, a task computes a full head.
            let heads = rng.choose(&[1, 2, 3, 8, 17]);
            let (b, s_q, s_k) = (rng.size(2), rng.side(40), rng.side(70));
            let masks = rng.choose(&[None, Some(1), Some(b)]);
            let case = Self { dims: [b, heads, s_q, s_k, rng.channels()], masks };
            if case.dims.iter().product::<usize>() < 500_000 {
                return case;
            }
        }
    }

    /// Shapes of q, k and v.
    fn shapes(&self) -> [[usize; 4]; 3] {
        let [b, heads, s_q, s_k, d] = self.dims;
        [s_q, s_k, s_k].map(|s| [b, heads, s, d])
    }

    /// The mask as a tensor and repeated over the batch; some rows are fully masked.
    fn mask(&self, rng: &mut TestRng, device: &Device) -> (Option<Tensor<4, Bool>>, Vec<bool>) {
        let [b, _, s_q, s_k, _] = self.dims;
        let Some(masks) = self.masks else { return (None, vec![false; b * s_q * s_k]) };
        let mut mask: Vec<bool> = (0..masks * s_q * s_k).map(|_| rng.one_in(3)).collect();
        mask.chunks_mut(s_k).filter(|_| rng.one_in(5)).for_each(|row| row.fill(true));
        let data = TensorData::new(mask.clone(), [masks, 1, s_q, s_k]);
        (Some(Tensor::from_data(data, device)), mask.repeat(b / masks))
    }

    /// Absolute tolerances of the results. With δ the largest error of a score in its row, a weight w lies between
    /// `w e⁻²ᵟ` and `w e²ᵟ`, at most 1 and at least 1 minus the other weights.
    fn tolerances(&self, [q, k, v]: [&[f64]; 3], mask: &[bool]) -> Vec<f64> {
        let [b, heads, s_q, s_k, d] = self.dims;
        let absolute = |x: &[f64]| x.iter().map(|x| x.abs()).collect::<Vec<_>>();
        let [absolute_q, absolute_k] = [q, k].map(absolute);
        let sizes = scores_f64(&absolute_q, &absolute_k, &vec![false; mask.len()], self.dims);
        let scores = scores_f64(q, k, mask, self.dims);
        let mut tolerances = Vec::with_capacity(b * heads * s_q * d);
        for (row, (scores, sizes)) in scores.chunks(s_k).zip(sizes.chunks(s_k)).enumerate() {
            let open = scores.iter().zip(sizes).filter(|(score, _)| score.is_finite() && **score > f64::from(f32::MIN));
            let delta = SCORE * open.fold(0.0, |max, (_, size)| size.max(max));
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = max + scores.iter().map(|score| (score - max).exp()).sum::<f64>().ln();
            let above: Vec<f64> = scores
                .iter()
                .map(|score| (score - log_sum + 2.0 * delta).min(0.0).exp() - (score - log_sum).exp())
                .collect();
            let all: f64 = above.iter().sum();
            let v = &v[row / s_q * s_k * d..][..s_k * d];
            let lost = 1e-37 * s_k as f64 * v.iter().filter(|v| v.is_finite()).fold(0.0, |max, v| v.abs().max(max));
            tolerances.extend((0..d).map(|e| {
                let of_weights = (0..s_k).map(|j| {
                    let weight = (scores[j] - log_sum).exp();
                    let below = (weight * (1.0 - (-2.0 * delta).exp())).min(all - above[j]);
                    (above[j] + below + 1e-6 * weight) * v[j * d + e].abs()
                });
                of_weights.sum::<f64>() + lost + 2.0 * s_k as f64 * DENORMAL
            }));
        }
        tolerances
    }
}

#[test]
fn attention_agrees_with_f64_over_random_shapes() {
    let (device, mut rng) = (Device::flex(), TestRng::new(7));
    for number in 0..300 {
        let case = Case::random(&mut rng);
        let [of_q, of_k] = rng.two_scales();
        let mut scales = [of_q, of_k, rng.choose(&SCALES)];
        let non_finite = rng.one_in(3).then(|| rng.size(3));
        if non_finite.is_some() {
            scales = [1.0; 3];
        }
        let shapes = case.shapes();
        let mut inputs = [0, 1, 2].map(|i| rng.normal(shapes[i].iter().product(), scales[i]));
        if let Some(input) = non_finite {
            rng.insert_non_finite(&mut inputs[input - 1]);
        }
        let (mask, masked) = case.mask(&mut rng, &device);
        let [q, k, v] = [0, 1, 2].map(|i| tensor(&inputs[i], shapes[i], &device));
        let wide = inputs.each_ref().map(|v| to_f64(v));
        let [wide_q, wide_k, wide_v] = wide.each_ref().map(|v| v.as_slice());
        let expected = attention_f64(wide_q, wide_k, wide_v, &masked, case.dims);
        let tolerances = case.tolerances([wide_q, wide_k, wide_v], &masked);
        // With gradients attention is composed differently, because it saves its weights.
        let of_leaves = {
            let device = Device::flex().autodiff();
            let [q, k, v] = [0, 1, 2].map(|i| tensor(&inputs[i], shapes[i], &device).require_grad());
            let mask = case.masks.map(|masks| {
                let [b, _, s_q, s_k, _] = case.dims;
                let data = TensorData::new(masked[..masked.len() / b * masks].to_vec(), [masks, 1, s_q, s_k]);
                Tensor::from_data(data, &device)
            });
            attention(q, k, v, mask)
        };
        for (way, actual) in [("", attention(q, k, v, mask)), ("with gradients", of_leaves)] {
            let what = format!("attention {way} {number}, {case:?}, scales {scales:?}, non_finite {non_finite:?}");
            check(&what, &host(actual), &expected, |i| tolerances[i], |_| false);
        }
    }
}

#[test]
fn gradients_of_attention_are_adjoint_to_f64_over_random_shapes() {
    let (device, mut rng) = (Device::flex().autodiff(), TestRng::new(8));
    for number in 0..200 {
        let case = Case::random(&mut rng);
        let shapes = case.shapes();
        let [inputs, directions] = [(); 2].map(|()| shapes.map(|shape| rng.normal(shape.iter().product(), 1.0)));
        let (mask, masked) = case.mask(&mut rng, &device);
        let leaves = [0, 1, 2].map(|i| tensor(&inputs[i], shapes[i], &device).require_grad());
        let [q, k, v] = leaves.clone();
        let of_y = rng.normal(shapes[0].iter().product(), 1.0);
        let grads = (attention(q, k, v, mask) * tensor(&of_y, shapes[0], &device)).sum().backward();
        for (i, leaf) in leaves.iter().enumerate() {
            let direction = to_f64(&directions[i]);
            // The change along the direction, by central differences.
            let step = 1e-5;
            let [above, below] = [step, -step].map(|step| {
                let mut wide = inputs.each_ref().map(|v| to_f64(v));
                wide[i].iter_mut().zip(&direction).for_each(|(x, direction)| *x += step * direction);
                attention_f64(&wide[0], &wide[1], &wide[2], &masked, case.dims)
            });
            let change: Vec<f64> =
                above.iter().zip(below).map(|(above, below)| (above - below) / (2.0 * step)).collect();
            let gradient = to_f64(&host(leaf.grad(&grads).unwrap()));
            let what = format!("attention {number}, {case:?}, gradient {i}");
            check_adjoint(&what, [&to_f64(&of_y), &change], [&gradient, &direction]);
        }
    }
}
