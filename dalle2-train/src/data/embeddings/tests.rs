use super::*;
use dalle2_core::TokenMask;

const D: usize = 3;
const W: usize = 2;
const S: usize = 4;

fn info(items: usize) -> EmbeddingInfo {
    let source = "a test".to_owned();
    let (data_fingerprint, encoder_fingerprint) = (Some("data 1".into()), Some("clip 1".into()));
    let (embed_dim, token_width, context_length, shard_size) = (D, W, S, 3);
    EmbeddingInfo {
        embed_dim,
        token_width,
        context_length,
        items,
        shard_size,
        source,
        data_fingerprint,
        encoder_fingerprint,
    }
}

/// Pairs whose every number follows from their index.
fn pairs(indices: std::ops::Range<usize>) -> EmbeddedPairs {
    let (device, n) = (Device::flex(), indices.len());
    let numbers = |width: usize, factor: f32| -> Vec<f32> {
        indices.clone().flat_map(|i| (0..width).map(move |j| factor * (i as f32 + 0.25 * j as f32))).collect()
    };
    let lengths: Vec<usize> = indices.clone().map(|i| 1 + i % S).collect();
    EmbeddedPairs {
        captions: indices.clone().map(|i| format!("caption {i}")).collect(),
        text: TextCondition {
            pooled: Tensor::from_data(TensorData::new(numbers(D, 1.0), [n, D]), &device),
            tokens: Tensor::from_data(TensorData::new(numbers(S * W, 0.5), [n, S, W]), &device),
            mask: TokenMask::from_lengths(&lengths, S, &device),
        },
        image: Tensor::from_data(TensorData::new(numbers(D, -1.0), [n, D]), &device),
    }
}

fn written(dir: &std::path::Path, items: usize) -> EmbeddingWriter {
    let mut writer = EmbeddingWriter::open(dir, info(items)).unwrap();
    writer.write_null(&pairs(0..1).text).unwrap();
    for shard in writer.pending().to_vec() {
        writer.write(shard, &pairs(info(items).items_of(shard))).unwrap();
    }
    writer
}

fn shard(dir: &std::path::Path, number: usize) -> std::path::PathBuf {
    dir.join(format!("shard-{number:05}.safetensors"))
}

#[test]
fn pairs_come_back_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    assert!(written(dir.path(), 8).pending().is_empty());
    let set = EmbeddingSet::open(dir.path()).unwrap();
    assert_eq!((set.len(), set.problems().len(), set.captions()[7].as_str()), (8, 0, "caption 7"));
    let (found, device) = (set.batch(&[7, 2], &Device::flex()), Device::flex());
    let expected = [pairs(7..8), pairs(2..3)];
    let both = |of: fn(&EmbeddedPairs) -> Tensor<2>| Tensor::cat(expected.iter().map(of).collect(), 0).into_data();
    assert_eq!(found.captions, ["caption 7", "caption 2"]);
    assert_eq!(found.image.into_data(), both(|p| p.image.clone()));
    assert_eq!(found.text.pooled.into_data(), both(|p| p.text.pooled.clone()));
    // These numbers have few bits, so 16 hold them exactly.
    let tokens: Vec<_> = expected.iter().map(|p| p.text.tokens.clone()).collect();
    assert_eq!(found.text.tokens.into_data(), Tensor::cat(tokens, 0).into_data());
    let keep: Vec<bool> = found.text.mask.keep().into_data().iter::<bool>().collect();
    assert_eq!(keep, [true, true, true, true, true, true, true, false]);
    assert_eq!(set.null(&device).pooled.into_data(), pairs(0..1).text.pooled.into_data());
    assert_eq!(set.embeddings(&device).0.dims(), [8, D]);
}

#[test]
fn an_interrupted_set_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = EmbeddingWriter::open(dir.path(), info(8)).unwrap();
    assert_eq!(writer.pending(), [0, 1, 2]);
    writer.write(1, &pairs(3..6)).unwrap();
    let mut again = EmbeddingWriter::open(dir.path(), info(8)).unwrap();
    assert_eq!(again.pending(), [0, 2]);
    let message = again.write(2, &pairs(6..9)).unwrap_err().to_string();
    assert!(message.contains("shard-00002") && message.contains("expected 2 pairs"), "{message}");
    let other = EmbeddingInfo { source: "another".into(), ..info(8) };
    assert!(EmbeddingWriter::open(dir.path(), other).unwrap_err().to_string().contains("another set"));
}

#[test]
fn a_damaged_shard_is_reported_left_out_and_written_again() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 8);
    let mut bytes = std::fs::read(shard(dir.path(), 1)).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(shard(dir.path(), 1), &bytes).unwrap();
    let set = EmbeddingSet::open(dir.path()).unwrap();
    assert_eq!((set.len(), set.info().items), (5, 8));
    let problem = &set.problems()[0];
    assert!(problem.item.contains("shard-00001") && problem.reason.contains("checksum"), "{problem:?}");
    std::fs::write(shard(dir.path(), 2), &bytes[..40]).unwrap();
    std::fs::remove_file(shard(dir.path(), 0)).unwrap();
    let message = EmbeddingSet::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("the set of embedded pairs is empty"), "{message}");
    assert_eq!(EmbeddingWriter::open(dir.path(), info(8)).unwrap().pending(), [0, 1, 2]);
}

#[test]
fn values_that_are_not_finite_are_refused_with_their_caption() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = EmbeddingWriter::open(dir.path(), info(3)).unwrap();
    let mut bad = pairs(0..3);
    bad.image = bad.image.slice_assign(s![1..2, ..], Tensor::full([1, D], f32::NAN, &Device::flex()));
    let message = writer.write(0, &bad).unwrap_err().to_string();
    assert!(message.contains("image") && message.contains("`caption 1`"), "{message}");
}

#[test]
fn other_sizes_are_refused_with_both_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = written(dir.path(), 3);
    let mut wide = pairs(0..3);
    wide.image = Tensor::ones([3, D + 1], &Device::flex());
    assert!(writer.write(0, &wide).unwrap_err().to_string().contains("width 4"));
    let set = EmbeddingSet::open(dir.path()).unwrap();
    set.check_sizes(D, W, S).unwrap();
    let message = set.check_sizes(8, W, S).unwrap_err().to_string();
    assert!(message.contains("width 3") && message.contains("width 8"), "{message}");
    assert!(EmbeddingSet::open(dir.path().join("none")).unwrap_err().to_string().contains("embeddings.json"));
    assert!(EmbeddingWriter::open(dir.path(), info(0)).unwrap_err().to_string().contains("`items` = 0"));
}
