//! The most expensive operations of the networks, at shapes of the Karlo-size networks and of the bundled one.
//!
//! ```text
//! cargo bench --bench operations
//! cargo bench --bench operations -- conv3x3
//! cargo xtask peer operations --python PYTHON      # compared with PyTorch, see benches/peer/README.md
//! ```
//!
//! Names are `operation/shape`, as in `benches/peer/operations.py`, which measures the same operations. Weights are noise;
//! the time does not depend on them. The prefix `train_` marks a forward and a backward pass. The prefix `bf16_` marks
//! weights in bf16; PyTorch uses bf16 for inputs and results too.
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNormConfig, LinearConfig, PaddingConfig2d};
use burn::prelude::*;
use burn::tensor::{Distribution, FloatDType};
use clap::Parser;
use dalle2::base::nn;

/// Seconds of warm-up, seconds of measurement, and number of samples.
const WARM_UP: f64 = 0.3;
const MEASURE: f64 = 1.0;
const SAMPLES: usize = 10;

/// Channels and side of square feature maps, batch 1: Karlo's decoder at 64 px and its upsampler at 256 px.
const MAPS: [[usize; 2]; 8] =
    [[320, 64], [640, 32], [960, 16], [1280, 8], [320, 256], [640, 128], [960, 64], [1280, 32]];
/// The bundled decoder with a batch of 16.
const SMALL: [usize; 3] = [16, 128, 16];

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

/// Waits for a result.
fn run<const D: usize>(result: Tensor<D>) {
    black_box(result.into_data());
}

fn convolution(channels: usize, kernel: usize) -> Conv2d {
    let padding = PaddingConfig2d::Explicit(kernel / 2, kernel / 2, kernel / 2, kernel / 2);
    Conv2dConfig::new([channels, channels], [kernel, kernel]).with_padding(padding).init(&Device::flex())
}

/// Measure single operations.
#[derive(Debug, Parser)]
struct Cli {
    /// Prefixes of the operations to measure
    names: Vec<String>,
    /// Prints all medians as one JSON object, in seconds
    #[arg(long)]
    json: bool,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// Medians in seconds, by name.
struct Medians {
    cli: Cli,
    seconds: BTreeMap<String, f64>,
}

impl Medians {
    /// Measures an operation if it is selected: the median over samples, each of several runs.
    fn add(&mut self, operation: &str, shape: &[usize], mut f: impl FnMut()) {
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        let name = format!("{operation}/{}", shape.join("x"));
        if !self.cli.names.is_empty() && !self.cli.names.iter().any(|start| name.starts_with(start.as_str())) {
            return;
        }
        let (start, mut runs) = (Instant::now(), 0);
        while runs == 0 || start.elapsed().as_secs_f64() < WARM_UP {
            f();
            runs += 1;
        }
        let per_run = start.elapsed().as_secs_f64() / f64::from(runs);
        let repeat = ((MEASURE / SAMPLES as f64 / per_run) as usize).max(1);
        let mut samples: Vec<f64> = (0..SAMPLES)
            .map(|_| {
                let start = Instant::now();
                (0..repeat).for_each(|_| f());
                start.elapsed().as_secs_f64() / repeat as f64
            })
            .collect();
        samples.sort_by(f64::total_cmp);
        let median = f64::midpoint(samples[SAMPLES / 2 - 1], samples[SAMPLES / 2]);
        if !self.cli.json {
            println!("{name:42} {:10.3} ms", median * 1e3);
        }
        self.seconds.insert(name, median);
    }
}

fn maps(medians: &mut Medians) {
    for [channels, side] in MAPS {
        let shape = [1, channels, side, side];
        let x = random(shape);
        for kernel in [3, 1] {
            let conv = convolution(channels, kernel);
            medians.add(&format!("conv{kernel}x{kernel}"), &shape, || run(nn::conv2d(&conv, x.clone())));
            let conv = nn::cast_weights(conv, FloatDType::BF16);
            medians.add(&format!("bf16_conv{kernel}x{kernel}"), &shape, || run(nn::conv2d(&conv, x.clone())));
        }
        let norm = GroupNormConfig::new(32, channels).init(&Device::flex());
        medians.add("group_norm_silu", &shape, || run(nn::group_norm_silu(&norm, x.clone())));
        let [scale, shift] = [0; 2].map(|_| random([1, channels]));
        medians.add("group_norm_film_silu", &shape, || {
            run(nn::group_norm_film_silu(&norm, x.clone(), scale.clone(), shift.clone()));
        });
        medians.add("silu", &shape, || run(nn::silu(x.clone())));
    }
}

fn rows(medians: &mut Medians) {
    for [tokens, width] in [[2 * 81, 2048], [2 * 77, 1280]] {
        let x = random([tokens, width]);
        let norm = nn::LayerNormConfig::new(width).init(&Device::flex());
        medians.add("layer_norm", &[tokens, width], || run(nn::layer_norm(&norm, x.clone())));
        let wide = random([tokens, 4 * width]);
        medians.add("gelu", &[tokens, 4 * width], || run(nn::gelu(wide.clone())));
        medians.add("quick_gelu", &[tokens, 4 * width], || run(nn::quick_gelu(wide.clone())));
        let linear = LinearConfig::new(width, 4 * width).init(&Device::flex());
        medians.add("linear", &[tokens, width], || run(nn::linear(&linear, x.clone())));
        let linear = nn::cast_weights(linear, FloatDType::BF16);
        medians.add("bf16_linear", &[tokens, width], || run(nn::linear(&linear, x.clone())));
    }
    for [heads, queries, keys, head_dim] in
        [[8, 1024, 1024, 64], [10, 1024, 1105, 64], [15, 256, 337, 64], [32, 81, 81, 64]]
    {
        let q = random([1, heads, queries, head_dim]);
        let [k, v] = [0; 2].map(|_| random([1, heads, keys, head_dim]));
        let shape = [heads, queries, keys, head_dim];
        medians.add("attention", &shape, || run(nn::attention(q.clone(), k.clone(), v.clone(), None)));
    }
}

fn training(medians: &mut Medians) {
    let device = Device::flex().autodiff();
    let [batch, channels, side] = SMALL;
    let shape = [batch, channels, side, side];
    let x = random(shape).autodiff().require_grad();
    let padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
    let conv = Conv2dConfig::new([channels, channels], [3, 3]).with_padding(padding).init(&device);
    medians.add("train_conv3x3", &shape, || {
        black_box(nn::conv2d(&conv, x.clone()).sum().backward());
    });
    let norm = GroupNormConfig::new(32, channels).init(&device);
    medians.add("train_group_norm_silu", &shape, || {
        black_box(nn::group_norm_silu(&norm, x.clone()).sum().backward());
    });
    medians.add("train_silu", &shape, || {
        black_box(nn::silu(x.clone()).sum().backward());
    });
    let rows = random([batch, 77, 192]).autodiff().require_grad();
    let linear = LinearConfig::new(192, 768).init(&device);
    medians.add("train_linear", &[batch, 77, 192], || {
        black_box(nn::linear(&linear, rows.clone()).sum().backward());
    });
}

fn main() {
    dalle2::keep_memory();
    let mut medians = Medians { cli: Cli::parse(), seconds: BTreeMap::new() };
    // Samplers and the trainer also run on the pool.
    dalle2::base::on_pool(&Device::flex(), || {
        for part in [maps, rows, training] {
            part(&mut medians);
        }
    });
    if medians.cli.json {
        println!("{}", serde_json::json!(medians.seconds));
    }
}
