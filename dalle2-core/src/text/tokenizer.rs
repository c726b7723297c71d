//! CLIP's byte-pair tokenizer (Radford et al. 2021, §2.4) on the `tokenizers` crate.
//!
//! Stages: [`clean`](super::clean) → split into contractions, words, single digits and runs of signs → bytes → merges with
//! an end-of-word mark. Special and added tokens in the text become their ids, as in the reference.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use tokenizers::{
    AddedToken, Model, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    SplitDelimiterBehavior, Tokenizer,
    models::bpe::{BPE, Merges, Vocab},
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use super::{
    clean,
    files::{self, Files},
    merges::{self, END_OF_WORD, END_TEXT, START_TEXT},
    vocabulary::{TokenizerJson, Vocabulary},
};
use crate::{ConfigError, Error, Result};

/// Id of `<|startoftext|>` in the published vocabulary.
pub const START: u32 = 49_406;
/// Id of `<|endoftext|>` in the published vocabulary.
pub const END: u32 = 49_407;

/// Matches contractions, words, single digits and runs of other signs, which white space separates.
const SPLIT: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The padding after the end token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PadWith {
    /// Id 0, as in OpenAI's code.
    #[default]
    Zero,
    /// The end token, as in most published checkpoints of diffusers.
    EndOfText,
}

/// A caption of [`ClipTokenizer::encode_truncated`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TruncatedTokens {
    /// Start, caption, end and padding.
    pub ids: Vec<u32>,
    /// Number of ids without the padding.
    pub length: usize,
    /// Whether the caption exceeded the context.
    pub is_truncated: bool,
}

/// The tokenizer of CLIP. Cheap to clone; usable from several threads.
///
/// ```
/// use dalle2_core::text::{ClipTokenizer, END, PadWith, START};
///
/// # fn main() -> dalle2_core::Result<()> {
/// let tokenizer = ClipTokenizer::openai()?;
/// assert_eq!(tokenizer.encode("A red apple")?, [320, 736, 3055]);
/// let (ids, len) = tokenizer.encode_padded("A red apple", 8, PadWith::Zero)?;
/// assert_eq!((ids, len), (vec![START, 320, 736, 3055, END, 0, 0, 0], 5));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ClipTokenizer {
    inner: Arc<Tokenizer>,
    start: u32,
    end: u32,
    pad: u32,
    max_length: Option<usize>,
    /// All ids are below this number.
    vocab_size: usize,
    /// The original files, to write them back unchanged; `None` for the embedded vocabulary.
    files: Option<Arc<Files>>,
}

impl ClipTokenizer {
    /// Returns the tokenizer of the published CLIP models: 49,408 entries, embedded in the crate, built once per process.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the embedded vocabulary is damaged.
    pub fn openai() -> Result<Self> {
        static BUILT: OnceLock<ClipTokenizer> = OnceLock::new();
        if let Some(built) = BUILT.get() {
            return Ok(built.clone());
        }
        let (vocab, merges) = merges::published()?;
        let built = Self::from_parts(vocab, merges, &[]).map_err(Error::Tokenizer)?;
        Ok(BUILT.get_or_init(|| built).clone())
    }

    /// Reads the tokenizer of a model directory: `tokenizer.json` if it exists, otherwise `vocab.json`, `merges.txt` and
    /// `added_tokens.json`. The padding token and the length of sequences come from `tokenizer_config.json` and
    /// `special_tokens_map.json`, if these exist.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Json`] if a file cannot be read, [`Error::Format`] if it is not a byte-pair tokenizer with
    /// CLIP's start and end tokens, a token or id occurs twice, a merge has a token outside the vocabulary, or the padding
    /// token is not in the vocabulary; each names the file.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let mut tokenizer = Self::read_vocabulary(dir)?;
        let settings = files::read_settings(dir)?;
        if let Some((token, path)) = settings.pad {
            let id = tokenizer.inner.token_to_id(&token);
            tokenizer.pad = id.ok_or_else(|| {
                Error::format(path, format!("`pad_token` is {token:?}, which the vocabulary does not have"))
            })?;
        }
        tokenizer.max_length = settings.max_length;
        tokenizer.files = Some(Arc::new(files::read_files(dir)?));
        Ok(tokenizer)
    }

    /// Reads the tokenizer of a model directory if it has the files of one.
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir).
    pub fn find(dir: impl AsRef<Path>) -> Result<Option<Self>> {
        let dir = dir.as_ref();
        let has_files = ["tokenizer.json", "vocab.json"].iter().any(|name| dir.join(name).is_file());
        has_files.then(|| Self::from_dir(dir)).transpose()
    }

    /// Returns whether this is the tokenizer of [`openai`](Self::openai).
    pub fn is_openai(&self) -> bool {
        self.files.is_none()
    }

    fn read_vocabulary(dir: &Path) -> Result<Self> {
        let fast = dir.join("tokenizer.json");
        if fast.is_file() {
            let bytes = files::read_file(&fast)?;
            let json: TokenizerJson = serde_json::from_slice(&bytes).map_err(|e| Error::json(&fast, e))?;
            json.check().map_err(|message| Error::format(&fast, message))?;
            let inner =
                Tokenizer::from_bytes(bytes).map_err(|e| Error::format(&fast, format!("is not a tokenizer: {e}")))?;
            return Self::new(inner, &[]).map_err(|message| Error::format(&fast, message));
        }
        let vocab_path = dir.join("vocab.json");
        let merges_path = dir.join("merges.txt");
        if !vocab_path.is_file() && !merges_path.is_file() {
            return Err(Error::format(
                dir,
                "holds no tokenizer: expected `tokenizer.json`, or `vocab.json` and `merges.txt`",
            ));
        }
        let mut vocab: Vocabulary =
            serde_json::from_slice(&files::read_file(&vocab_path)?).map_err(|e| Error::json(&vocab_path, e))?;
        let text = String::from_utf8(files::read_file(&merges_path)?)
            .map_err(|e| Error::format(&merges_path, format!("is not UTF-8: {e}")))?;
        let merges = merges::parse(&text).map_err(|line| {
            Error::format(&merges_path, format!("line {line} is not two tokens with a space between"))
        })?;
        vocab.check_merges(&merges).map_err(|message| Error::format(&merges_path, message))?;
        let mut added = Vec::new();
        for (token, id) in files::read_added_tokens(dir)? {
            // Captions are matched after their clean-up.
            let cleaned = clean(&token);
            let name = if cleaned.is_empty() || vocab.contains(&cleaned) { token } else { cleaned };
            vocab.add(name.clone(), id).map_err(|message| Error::format(dir, message))?;
            added.push(name);
        }
        Self::from_parts(vocab.into_vocab(), merges, &added).map_err(|message| Error::format(dir, message))
    }

    fn from_parts(vocab: Vocab, merges: Merges, added: &[String]) -> Result<Self, String> {
        let bpe = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .end_of_word_suffix(END_OF_WORD.to_string())
            .build()
            .map_err(|e| e.to_string())?;
        let split = Split::new(SplitPattern::Regex(SPLIT.to_string()), SplitDelimiterBehavior::Removed, true)
            .map_err(|e| e.to_string())?;
        // Without a prefix space and the splitting of GPT-2.
        let bytes = ByteLevel::new(false, true, false);
        let mut inner = Tokenizer::new(bpe);
        inner.with_pre_tokenizer(Some(Sequence::new(vec![
            PreTokenizerWrapper::Split(split),
            PreTokenizerWrapper::ByteLevel(bytes),
        ])));
        Self::new(inner, added)
    }

    /// Wraps a tokenizer without its padding, post-processing, normalisation and truncation, which this type does itself.
    fn new(mut inner: Tokenizer, added: &[String]) -> Result<Self, String> {
        if !matches!(inner.get_model(), ModelWrapper::BPE(_)) {
            return Err("is not a byte-pair model, as CLIP's tokenizer is".to_string());
        }
        let id = |token: &str| {
            inner
                .get_model()
                .token_to_id(token)
                .ok_or_else(|| format!("the vocabulary lacks `{token}`, so this is not a CLIP tokenizer"))
        };
        let (start, end) = (id(START_TEXT)?, id(END_TEXT)?);
        inner.with_padding(None).with_post_processor(None::<PostProcessorWrapper>);
        inner.with_normalizer(None::<NormalizerWrapper>).map_err(|e| e.to_string())?;
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        let special = [START_TEXT, END_TEXT].map(|token| AddedToken::from(token, true).normalized(false));
        inner.add_special_tokens(special).map_err(|e| e.to_string())?;
        let added = added.iter().filter(|token| ![START_TEXT, END_TEXT].contains(&token.as_str()));
        inner
            .add_tokens(added.map(|token| AddedToken::from(token, false).normalized(false)))
            .map_err(|e| e.to_string())?;
        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        Ok(Self { inner: Arc::new(inner), start, end, pad: end, max_length: None, vocab_size, files: None })
    }

    /// Writes the tokenizer in Hugging Face's layout and returns the class that reads it: its original files unchanged, or
    /// for the embedded tokenizer `vocab.json`, `merges.txt` and their settings, with sequences of `context_length` and the
    /// padding token `pad`.
    ///
    /// # Errors
    /// If a file cannot be written or `pad` is not in the vocabulary.
    pub fn save(&self, dir: impl AsRef<Path>, context_length: usize, pad: u32) -> Result<&'static str> {
        let dir = dir.as_ref();
        if let Some(files) = &self.files {
            files::write_files(dir, files)?;
            let slow = files.iter().any(|(name, _)| name == "vocab.json");
            return Ok(if slow { "CLIPTokenizer" } else { "CLIPTokenizerFast" });
        }
        let token = self.inner.id_to_token(pad);
        let token =
            token.ok_or_else(|| Error::Tokenizer(format!("the padding token {pad} is not in the vocabulary")))?;
        let (vocabulary, merges) = merges::published()?;
        let vocabulary = vocabulary.into_iter().map(|(token, id)| (token, id.into())).collect();
        let merges: String = merges.iter().map(|(a, b)| format!("{a} {b}\n")).collect();
        files::write_files(dir, &files::new_files(&vocabulary, &merges, &token, context_length))?;
        Ok("CLIPTokenizer")
    }

    /// Returns the id of the start token.
    pub fn start(&self) -> u32 {
        self.start
    }

    /// Returns the id of the end token.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// Returns the id of the padding token: that of the tokenizer's files, otherwise the end token.
    pub fn pad_token(&self) -> u32 {
        self.pad
    }

    /// Returns the length of padded sequences, if the tokenizer's files have it.
    pub fn max_length(&self) -> Option<usize> {
        self.max_length
    }

    /// Returns the size of the vocabulary: all ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Cleans `text` and returns its ids without start and end tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if a vocabulary from a file cannot express the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(clean(text), false);
        let encoding = encoding.map_err(|e| Error::Tokenizer(format!("caption {}: {e}", head(text))))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Returns a sequence of `context_length` ids (start, caption, end, padding) and its length without the padding.
    ///
    /// # Errors
    /// [`Error::CaptionTooLong`] if the caption exceeds the context; [`Error::Config`] if `context_length` is below 2.
    pub fn encode_padded(&self, caption: &str, context_length: usize, pad: PadWith) -> Result<(Vec<u32>, usize)> {
        let ids = self.encode(caption)?;
        let len = ids.len() + 2;
        if len > context_length && context_length >= 2 {
            let caption = caption.to_owned();
            return Err(Error::CaptionTooLong { caption, tokens: len, limit: context_length });
        }
        self.frame(ids, context_length, pad)
    }

    /// Encodes like [`encode_padded`](Self::encode_padded), but truncates a caption that exceeds the context before its end
    /// token.
    ///
    /// # Errors
    /// [`Error::Config`] if `context_length` is below 2.
    pub fn encode_truncated(&self, caption: &str, context_length: usize, pad: PadWith) -> Result<TruncatedTokens> {
        let mut ids = self.encode(caption)?;
        let max = context_length.saturating_sub(2);
        let is_truncated = ids.len() > max;
        ids.truncate(max);
        let (ids, length) = self.frame(ids, context_length, pad)?;
        Ok(TruncatedTokens { ids, length, is_truncated })
    }

    /// Returns the text of `ids` without start and end tokens, with words separated by one space. Invalid UTF-8 is replaced.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if an id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let byte_of: std::collections::BTreeMap<char, u8> = merges::byte_symbols().into_iter().collect();
        let mut bytes = Vec::new();
        for &id in ids.iter().filter(|&&id| id != self.start && id != self.end) {
            let token = self.inner.id_to_token(id).ok_or_else(|| {
                Error::Tokenizer(format!("id {id} is not in the vocabulary of {} entries", self.vocab_size()))
            })?;
            let symbols = token.strip_suffix(END_OF_WORD);
            bytes.extend(symbols.unwrap_or(&token).chars().filter_map(|c| byte_of.get(&c)));
            if symbols.is_some() {
                bytes.push(b' ');
            }
        }
        Ok(String::from_utf8_lossy(&bytes).trim_end().to_string())
    }

    fn frame(&self, ids: Vec<u32>, context_length: usize, pad: PadWith) -> Result<(Vec<u32>, usize)> {
        if context_length < 2 {
            return Err(ConfigError::new("context_length", context_length, "at least 2: start and end").into());
        }
        let len = ids.len() + 2;
        let padding = match pad {
            PadWith::Zero => 0,
            PadWith::EndOfText => self.end,
        };
        let mut sequence = Vec::with_capacity(context_length);
        sequence.push(self.start);
        sequence.extend(ids);
        sequence.push(self.end);
        sequence.resize(context_length, padding);
        Ok((sequence, len))
    }
}

/// Returns the beginning of a caption in quotes, for a message.
fn head(text: &str) -> String {
    const SHOWN: usize = 40;
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{:?}", format!("{}…", &text[..at])),
        None => format!("{text:?}"),
    }
}
