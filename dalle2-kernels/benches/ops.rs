//! Times the operations at training shapes against the same operations composed of Burn's.
//!
//! `cargo bench -p dalle2-kernels --bench ops [FILTER]`. Times are medians in milliseconds of the processor time of all
//! threads, which other programs disturb less than elapsed time; on systems other than Linux, of elapsed time.

use std::time::Instant;

use burn::nn::attention::generate_autoregressive_mask;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNormConfig, LayerNormConfig, LinearConfig, PaddingConfig2d};
use burn::prelude::*;
use burn::tensor::{Distribution, activation};
use dalle2_kernels as nn;

const MEASUREMENTS: usize = 5;

/// Processor time of all threads of this process, in nanoseconds.
fn processor_time() -> Option<u64> {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let schedstat = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        total += schedstat.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(total)
}

/// Seconds that `f` takes: processor time if available, else elapsed time.
fn seconds(f: &mut impl FnMut()) -> f64 {
    let (start, before) = (Instant::now(), processor_time());
    f();
    match (before, processor_time()) {
        (Some(before), Some(after)) => (after - before) as f64 * 1e-9,
        _ => start.elapsed().as_secs_f64(),
    }
}

/// Median time of `f`, repeated for about 50 ms because of the resolution of the clock.
fn median_ms(mut f: impl FnMut()) -> f64 {
    f();
    let start = Instant::now();
    f();
    let repeats = (0.05 / start.elapsed().as_secs_f64()).clamp(1.0, 1e4) as usize;
    let mut times: Vec<f64> =
        (0..MEASUREMENTS).map(|_| seconds(&mut || (0..repeats).for_each(|_| f())) / repeats as f64).collect();
    times.sort_by(f64::total_cmp);
    times[MEASUREMENTS / 2] * 1e3
}

/// One line of the table: `ours` and `burns` forward, then forward and backward with gradients for all inputs.
struct Bench {
    filter: String,
}

impl Bench {
    fn line<const D: usize, const E: usize>(
        &self,
        name: &str,
        inputs: &[Tensor<D>],
        ours: impl Fn(&[Tensor<D>]) -> Tensor<E>,
        burns: impl Fn(&[Tensor<D>]) -> Tensor<E>,
    ) {
        if !name.contains(&self.filter) {
            return;
        }
        let forward = |f: &dyn Fn(&[Tensor<D>]) -> Tensor<E>| {
            let plain: Vec<_> = inputs.iter().map(|x| x.clone().inner()).collect();
            median_ms(|| drop(f(&plain)))
        };
        let training = |f: &dyn Fn(&[Tensor<D>]) -> Tensor<E>| {
            median_ms(|| {
                let leaves: Vec<_> = inputs.iter().map(|x| x.clone().detach().require_grad()).collect();
                let y = f(&leaves);
                drop(y.backward());
            })
        };
        let with_kernels = |on, time: &dyn Fn() -> f64| {
            nn::set_kernels(on);
            time()
        };
        let of_ours = [with_kernels(true, &|| forward(&ours)), with_kernels(true, &|| training(&ours))];
        let of_burn = [with_kernels(false, &|| forward(&burns)), with_kernels(false, &|| training(&burns))];
        let cells = [0, 1].map(|i| format!("{:9.2} {:9.2} {:6.1}x", of_ours[i], of_burn[i], of_burn[i] / of_ours[i]));
        #[allow(clippy::print_stdout, reason = "a benchmark prints its table")]
        {
            println!("{name:38} {} | {}", cells[0], cells[1]);
        }
    }
}

fn normal<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

fn conv(channels: [usize; 2], kernel: usize, stride: usize, device: &Device) -> Conv2d {
    let pad = kernel / 2;
    Conv2dConfig::new(channels, [kernel, kernel])
        .with_stride([stride, stride])
        .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
        .init(device)
}

fn main() {
    // Cargo passes `--bench`; the first other argument filters.
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let bench = Bench { filter };
    let device = Device::flex().autodiff();
    #[allow(clippy::print_stdout, reason = "a benchmark prints its table")]
    {
        println!("{:38} {:^27} | {:^27}", "", "forward", "forward and backward");
        println!("{:38} {:>9} {:>9} {:>7} | {:>9} {:>9} {:>7}", "ms", "ours", "Burn", "", "ours", "Burn", "");
    }
    elementwise(&bench, &device);
    norms(&bench, &device);
    convolutions(&bench, &device);
    products(&bench, &device);
}

fn elementwise(bench: &Bench, device: &Device) {
    let x = [normal([32, 128, 16, 16], device)];
    bench.line("silu [32,128,16,16]", &x, |x| nn::silu(x[0].clone()), |x| activation::silu(x[0].clone()));
    bench.line("gelu [32,128,16,16]", &x, |x| nn::gelu(x[0].clone()), |x| activation::gelu(x[0].clone()));
    bench.line(
        "quick_gelu [32,128,16,16]",
        &x,
        |x| nn::quick_gelu(x[0].clone()),
        |x| x[0].clone() * activation::sigmoid(x[0].clone() * 1.702),
    );
}

fn norms(bench: &Bench, device: &Device) {
    for [c, side] in [[96, 32], [128, 16], [256, 8]] {
        let layer = GroupNormConfig::new(32, c).init(device);
        let x = [normal([32, c, side, side], device)];
        let film = [normal([32, c], device), normal([32, c], device)];
        bench.line(
            &format!("group_norm [32,{c},{side},{side}]"),
            &x,
            |x| nn::group_norm(&layer, x[0].clone()),
            |x| layer.forward(x[0].clone()),
        );
        let run = |x: &[Tensor<4>]| {
            // A fair comparison: neither side needs gradients of scale and shift.
            let [scale, shift] = film.clone().map(|f| if x[0].device().is_autodiff() { f } else { f.inner() });
            nn::group_norm_film_silu(&layer, x[0].clone(), scale, shift)
        };
        bench.line(&format!("group_norm_film_silu [32,{c},{side},{side}]"), &x, run, run);
    }
    let layer = nn::LayerNormConfig::new(256).init(device);
    let burns = LayerNormConfig::new(256).init(device);
    let x = [normal([32, 77, 256], device)];
    bench.line("layer_norm [32,77,256]", &x, |x| nn::layer_norm(&layer, x[0].clone()), |x| burns.forward(x[0].clone()));
}

fn convolutions(bench: &Bench, device: &Device) {
    for ([from, to], side, kernel, stride) in [
        ([3, 96], 32, 3, 1),
        ([96, 96], 32, 3, 1),
        ([96, 96], 32, 3, 2),
        ([128, 128], 16, 3, 1),
        ([256, 128], 16, 3, 1),
        ([256, 256], 8, 3, 1),
        ([256, 128], 16, 1, 1),
    ] {
        let layer = conv([from, to], kernel, stride, device);
        let x = [normal([32, from, side, side], device)];
        let name = format!("conv{kernel}x{kernel}/{stride} {from}->{to} [32,{side},{side}]");
        bench.line(&name, &x, |x| nn::conv2d(&layer, x[0].clone()), |x| layer.forward(x[0].clone()));
    }
}

fn products(bench: &Bench, device: &Device) {
    let layer = LinearConfig::new(256, 1024).init(device);
    let x = [normal([32, 77, 256], device)];
    bench.line("linear 256->1024 [32,77]", &x, |x| nn::linear(&layer, x[0].clone()), |x| layer.forward(x[0].clone()));

    let burns = |x: &[Tensor<4>], mask: Option<Tensor<4, Bool>>| {
        let options = burn::tensor::ops::AttentionModuleOptions::default();
        burn::tensor::module::attention(x[0].clone(), x[1].clone(), x[2].clone(), mask, None, options)
    };
    let [b, heads, d] = [32, 4, 64];
    for [s_q, s_k] in [[256, 256 + 21], [64, 64 + 21], [21, 21]] {
        let qkv = [s_q, s_k, s_k].map(|s| normal([b, heads, s, d], device));
        let name = format!("attention [{b},{heads},{s_q}x{s_k},{d}]");
        bench.line(&name, &qkv, |x| nn::attention(x[0].clone(), x[1].clone(), x[2].clone(), None), |x| burns(x, None));
    }
    let qkv = [77, 77, 77].map(|s| normal([b, heads, s, d], device));
    let mask = |x: &[Tensor<4>]| {
        let mask = generate_autoregressive_mask(1, 77, &x[0].device());
        Some(mask.unsqueeze_dim::<4>(1).expand([b, heads, 77, 77]))
    };
    bench.line(
        &format!("causal attention [{b},{heads},77x77,{d}]"),
        &qkv,
        |x| nn::attention(x[0].clone(), x[1].clone(), x[2].clone(), mask(x)),
        |x| burns(x, mask(x)),
    );
}
