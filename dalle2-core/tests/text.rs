//! The tokenizer against the reference implementation's ids, and on inputs that are not captions.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, io::Read, path::Path};

use dalle2_core::{
    Error,
    text::{ClipTokenizer, END, PadWith, START, TruncatedTokens, clean},
};

fn openai() -> ClipTokenizer {
    ClipTokenizer::openai().unwrap()
}

#[test]
fn every_reference_pair_is_reproduced() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clip_tokens_ref.json.gz");
    let mut json = String::new();
    flate2::read::GzDecoder::new(fs::File::open(path).unwrap()).read_to_string(&mut json).unwrap();
    let pairs: Vec<(String, Vec<u32>)> = serde_json::from_str(&json).unwrap();
    assert_eq!(pairs.len(), 5_961);
    let tokenizer = openai();
    let wrong: Vec<_> = pairs.iter().filter(|(text, ids)| tokenizer.encode(text).unwrap() != *ids).collect();
    assert!(wrong.is_empty(), "{} differ, for example {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
}

/// Ids computed with the reference implementation.
#[test]
fn clean_up_and_special_tokens_reach_the_ids() {
    let tokenizer = openai();
    for (text, ids) in [
        ("It’s the “best”", &[585, 568, 518, 257, 949, 257][..]),
        ("ΟΔΟΣ", &[138, 123, 138, 112, 138, 123, 139, 480]),
        ("'S don'T I'LL", &[568, 847, 713, 328, 1342]),
        ("🍎🏽👩‍🚀", &[2011, 236, 8514, 26304, 13542]),
        ("½ ² 一二三", &[33613, 41175, 19759, 222, 21078, 234, 19759, 487]),
        ("a photo of <|endoftext|> cat", &[320, 1125, 539, END, 2368]),
        ("a<|ENDOFTEXT|>b", &[320, END, 321]),
        ("<|startoftext|>", &[START]),
    ] {
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
    }
}

#[test]
fn padding_frames_the_caption() {
    let tokenizer = openai();
    let zeros = tokenizer.encode_padded("a red apple", 7, PadWith::Zero).unwrap();
    assert_eq!(zeros, (vec![START, 320, 736, 3055, END, 0, 0], 5));
    let ends = tokenizer.encode_padded("a red apple", 7, PadWith::EndOfText).unwrap();
    assert_eq!(ends, (vec![START, 320, 736, 3055, END, END, END], 5));
    assert_eq!(tokenizer.encode_padded("a red apple", 5, PadWith::Zero).unwrap().1, 5);
    for empty in ["", " \t\n"] {
        assert_eq!(tokenizer.encode_padded(empty, 3, PadWith::Zero).unwrap(), (vec![START, END, 0], 2));
    }
}

#[test]
fn an_overlong_caption_is_refused_or_truncated() {
    let tokenizer = openai();
    let caption = "apple ".repeat(100);
    let message = tokenizer.encode_padded(&caption, 77, PadWith::Zero).unwrap_err().to_string();
    for part in ["apple apple", "102 tokens", "limit is 77"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(message.len() < 200, "{message}");
    let TruncatedTokens { ids, length, is_truncated } =
        tokenizer.encode_truncated(&caption, 77, PadWith::Zero).unwrap();
    assert_eq!((ids.len(), length, ids[0], ids[75], ids[76]), (77, 77, START, 3055, END));
    assert!(is_truncated);
    assert!(!tokenizer.encode_truncated("apple", 3, PadWith::Zero).unwrap().is_truncated);
    for short in [0, 1] {
        assert!(matches!(tokenizer.encode_padded("a", short, PadWith::Zero), Err(Error::Config(_))));
        assert!(matches!(tokenizer.encode_truncated("a", short, PadWith::Zero), Err(Error::Config(_))));
    }
}

#[test]
fn decoding_inverts_encoding_up_to_spaces() {
    let tokenizer = openai();
    let (ids, _) = tokenizer.encode_padded("A Red apple, 漢字 and 🍎", 40, PadWith::EndOfText).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a red apple , 漢字 and 🍎");
    assert_eq!(tokenizer.decode(&[]).unwrap(), "");
    let message = tokenizer.decode(&[60_000]).unwrap_err().to_string();
    assert!(message.contains("60000") && message.contains("49408"), "{message}");
}

#[test]
fn a_megabyte_without_a_break_is_encoded() {
    let tokenizer = openai();
    for text in
        ["a".repeat(1 << 20), "!".repeat(1 << 20), "a ".repeat(1 << 19), "é1".repeat(1 << 18), "&".repeat(1 << 20)]
    {
        let ids = tokenizer.encode(&text).unwrap();
        assert!(!ids.is_empty());
        assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
    }
}

/// A small vocabulary in the published layout: the bytes `a`, `b`, `c` and one merge.
fn write_small(dir: &Path) {
    let vocab = r#"{"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6}"#;
    fs::write(dir.join("vocab.json"), vocab).unwrap();
    fs::write(dir.join("merges.txt"), "#version: 0.2\na b</w>\n").unwrap();
}

#[test]
fn a_directory_with_vocabulary_and_merges_is_read() {
    let dir = tempfile::tempdir().unwrap();
    write_small(dir.path());
    let tokenizer = ClipTokenizer::from_dir(dir.path()).unwrap();
    assert_eq!((tokenizer.start(), tokenizer.end(), tokenizer.vocab_size()), (5, 6, 7));
    assert_eq!(tokenizer.encode("AB ba").unwrap(), [4, 1, 2]);
    assert_eq!(tokenizer.encode_padded("ab", 4, PadWith::EndOfText).unwrap().0, [5, 4, 6, 6]);
}

#[test]
fn a_tokenizer_json_is_read() {
    let dir = tempfile::tempdir().unwrap();
    // As published for CLIP, with padding, truncation and a post-processor that must not double ours.
    let json = r#"{
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 6, "pad_type_id": 0, "pad_token": "<|endoftext|>"},
        "added_tokens": [
            {"id": 5, "content": "<|startoftext|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": true},
            {"id": 6, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
        "post_processor": {"type": "RobertaProcessing", "sep": ["<|endoftext|>", 6], "cls": ["<|startoftext|>", 5], "trim_offsets": false, "add_prefix_space": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<|endoftext|>", "continuing_subword_prefix": "", "end_of_word_suffix": "</w>", "fuse_unk": false,
            "vocab": {"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6}, "merges": ["a b</w>"]}
    }"#;
    fs::write(dir.path().join("tokenizer.json"), json).unwrap();
    let tokenizer = ClipTokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.encode("AB ba ab a").unwrap(), [4, 1, 2, 4, 2]);
    assert_eq!(tokenizer.encode_padded("ab", 4, PadWith::Zero).unwrap(), (vec![5, 4, 6, 0], 3));
}

#[test]
fn the_clean_up_equals_the_reference() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clean_up.json");
    let pairs: Vec<(String, String)> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert!(pairs.len() >= 38);
    for (text, expected) in &pairs {
        assert_eq!(clean(text), *expected, "{text:?}");
    }
}

/// A small vocabulary with a token that was added to it.
#[test]
fn added_tokens_are_matched_before_the_text_is_split() {
    let dir = tempfile::tempdir().unwrap();
    write_small(dir.path());
    fs::write(dir.path().join("added_tokens.json"), r#"{"<ab-Toy>": 9, "<|endoftext|>": 6}"#).unwrap();
    let tokenizer = ClipTokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.encode("a <AB-toy> ab").unwrap(), [2, 9, 4]);
    assert_eq!((tokenizer.end(), tokenizer.pad_token(), tokenizer.vocab_size()), (6, 6, 10));
    fs::remove_file(dir.path().join("added_tokens.json")).unwrap();
    let config = r#"{"added_tokens_decoder": {"8": {"content": "<ab>"}, "6": {"content": "<|endoftext|>"}}}"#;
    fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    assert_eq!(ClipTokenizer::from_dir(dir.path()).unwrap().encode("<ab>").unwrap(), [8]);
}

#[test]
fn hostile_tokenizer_files_are_refused() {
    let error = |dir: &Path| ClipTokenizer::from_dir(dir).unwrap_err().to_string();
    let small = r#"{"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6}"#;
    for (from, to, expected) in [
        ("\"b\": 1", "\"b\": 0", "belongs to another token"),
        ("\"b\": 1", "\"a\": 1", "occurs twice"),
        ("\"b\": 1", "\"\": 1", "empty name"),
        ("\"b\": 1", "\"b\": 4294967295", "expected an id below"),
        ("\"a\": 0, ", "", "lacks the token \"a\""),
        ("\"ab</w>\": 4, ", "", "lacks the token \"ab</w>\""),
    ] {
        let dir = tempfile::tempdir().unwrap();
        write_small(dir.path());
        let vocab = small.replace(from, to);
        assert_ne!(vocab, small);
        fs::write(dir.path().join("vocab.json"), &vocab).unwrap();
        assert!(error(dir.path()).contains(expected), "{}", error(dir.path()));
        for (prefix, also) in [("null", expected), ("\"####\"", "continuing_subword_prefix")] {
            let dir = tempfile::tempdir().unwrap();
            let json = format!(
                r#"{{"version": "1.0", "model": {{"type": "BPE", "continuing_subword_prefix": {prefix},
                    "end_of_word_suffix": "</w>", "vocab": {vocab}, "merges": ["a b</w>"]}}}}"#
            );
            fs::write(dir.path().join("tokenizer.json"), json).unwrap();
            let message = error(dir.path());
            assert!(message.contains(also) || message.contains(expected), "{message}");
        }
    }
    // A sparse file of 12 GiB and a directory in place of a file.
    let dir = tempfile::tempdir().unwrap();
    write_small(dir.path());
    fs::File::create(dir.path().join("vocab.json")).unwrap().set_len(12 << 30).unwrap();
    assert!(error(dir.path()).contains("exceeds the maximum size"));
    fs::remove_file(dir.path().join("vocab.json")).unwrap();
    fs::create_dir(dir.path().join("vocab.json")).unwrap();
    assert!(error(dir.path()).contains("not a regular file"));
}

#[test]
fn damaged_directories_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let error = |dir: &Path| ClipTokenizer::from_dir(dir).unwrap_err().to_string();
    let message = error(dir.path());
    assert!(message.contains("tokenizer.json") && message.contains("merges.txt"), "{message}");

    write_small(dir.path());
    fs::write(dir.path().join("merges.txt"), "#version: 0.2\nab\n").unwrap();
    let message = error(dir.path());
    assert!(message.contains("merges.txt") && message.contains("line 2"), "{message}");

    fs::write(dir.path().join("merges.txt"), "#version: 0.2\nx y\n").unwrap();
    let message = error(dir.path());
    assert!(message.contains('x') && message.contains("vocabulary"), "{message}");

    fs::remove_file(dir.path().join("merges.txt")).unwrap();
    assert!(error(dir.path()).contains("merges.txt"));

    write_small(dir.path());
    fs::write(dir.path().join("vocab.json"), r#"{"a": 0, "b": 1, "b</w>": 2, "ab</w>": 3"#).unwrap();
    assert!(error(dir.path()).contains("vocab.json"));
    fs::write(dir.path().join("vocab.json"), r#"{"a": 0, "b": 1, "b</w>": 2, "ab</w>": 3}"#).unwrap();
    assert!(error(dir.path()).contains("<|startoftext|>"));

    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(error(dir.path()).contains("tokenizer.json"));
}
