//! The published merge list, embedded, and the vocabulary that follows from it (Sennrich et al. 2016; CLIP's byte-level
//! variant). Provenance and licence: `bpe_simple_vocab_16e6.md` beside this file.

use std::io::Read;

use flate2::read::GzDecoder;
use tokenizers::models::bpe::{Merges, Vocab};

use crate::{Error, Result};

const MERGES: &[u8] = include_bytes!("bpe_simple_vocab_16e6.txt.gz");
/// Number of merges in the published list: 49,408 entries less twice 256 bytes and 2 special tokens.
const N_MERGES: usize = 49_152 - 256 - 2;

/// Suffix of tokens at the end of a word.
pub(super) const END_OF_WORD: &str = "</w>";
pub(super) const START_TEXT: &str = "<|startoftext|>";
pub(super) const END_TEXT: &str = "<|endoftext|>";

/// Returns the vocabulary (token to id) and merges of the published CLIP models.
///
/// # Errors
/// [`Error::Tokenizer`] if the embedded list is damaged.
pub(super) fn published() -> Result<(Vocab, Merges)> {
    let mut text = String::new();
    GzDecoder::new(MERGES)
        .read_to_string(&mut text)
        .map_err(|e| Error::Tokenizer(format!("the embedded merge list is damaged: {e}")))?;
    let merges = parse(&text).map_err(|line| {
        Error::Tokenizer(format!("the embedded merge list is damaged: line {line} is not two tokens"))
    })?;
    if merges.len() != N_MERGES {
        return Err(Error::Tokenizer(format!("the embedded merge list has {} lines, not {N_MERGES}", merges.len())));
    }
    Ok((vocabulary(&merges), merges))
}

/// Reads a merge list: a `#version` line, then two tokens to a line.
///
/// # Errors
/// The number (from 1) of the first line that is not two tokens.
pub(super) fn parse(text: &str) -> Result<Merges, usize> {
    text.lines()
        .enumerate()
        .filter(|(i, line)| !line.is_empty() && (*i > 0 || !line.starts_with("#version")))
        .map(|(i, line)| match line.split_once(' ') {
            Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => Ok((a.to_string(), b.to_string())),
            _ => Err(i + 1),
        })
        .collect()
}

/// Ids in order: 256 bytes, 256 bytes that end a word, one per merge, start, end.
fn vocabulary(merges: &Merges) -> Vocab {
    let bytes = byte_symbols();
    let plain = bytes.iter().map(|(c, _)| c.to_string());
    let ending = bytes.iter().map(|(c, _)| format!("{c}{END_OF_WORD}"));
    let merged = merges.iter().map(|(a, b)| format!("{a}{b}"));
    let special = [START_TEXT, END_TEXT].map(String::from);
    plain.chain(ending).chain(merged).chain(special).zip(0..).collect()
}

/// Returns the printable character of each byte, in the order of the vocabulary: first the printable bytes as themselves,
/// then the others as U+0100, U+0101, …
pub(super) fn byte_symbols() -> Vec<(char, u8)> {
    let printable = |b: &u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let rest = (0..=u8::MAX).filter(|b| !printable(b)).zip('\u{100}'..).map(|(b, c)| (c, b));
    (0..=u8::MAX).filter(printable).map(|b| (char::from(b), b)).chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vocabulary_has_the_published_size_and_anchors() {
        let (vocab, merges) = published().unwrap();
        assert_eq!((vocab.len(), merges.len()), (49_408, 48_894));
        for (token, id) in [("!", 0), ("!</w>", 256), ("in", 512), (START_TEXT, 49_406), (END_TEXT, 49_407)] {
            assert_eq!(vocab[token], id, "{token}");
        }
    }

    #[test]
    fn every_byte_has_a_different_symbol() {
        let symbols = byte_symbols();
        let chars: std::collections::BTreeSet<char> = symbols.iter().map(|(c, _)| *c).collect();
        let bytes: std::collections::BTreeSet<u8> = symbols.iter().map(|(_, b)| *b).collect();
        assert_eq!((chars.len(), bytes.len()), (256, 256));
        assert_eq!(symbols[0], ('!', b'!'));
        assert!(symbols.contains(&('Ġ', b' ')));
    }

    #[test]
    fn a_line_that_is_not_two_tokens_is_named() {
        assert_eq!(parse("#version: 0.2\ni n\nbroken\n"), Err(3));
        assert_eq!(parse("a b c\n"), Err(1));
        assert_eq!(parse("#version: 0.2\n# version\n").unwrap().len(), 1); // only the first line is a header
    }
}
