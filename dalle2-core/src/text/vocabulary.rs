//! Vocabularies and merges from files, checked before the tokenizer is built from them.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tokenizers::models::bpe::{Merges, Vocab};

/// Upper bound of token ids.
const MAX_ID: u32 = 1 << 24;

/// Token names and ids. Names are unique and not empty, ids are unique and below [`MAX_ID`].
#[derive(Debug, Default)]
pub(super) struct Vocabulary {
    ids: HashMap<String, u32>,
    used: HashSet<u32>,
}

impl Vocabulary {
    /// Adds a token; the same token with the same id may occur again.
    pub(super) fn add(&mut self, name: String, id: u32) -> Result<(), String> {
        if name.is_empty() {
            return Err(format!("the token with the id {id} has an empty name"));
        }
        if id >= MAX_ID {
            return Err(format!("the token {name:?} has the id {id}, expected an id below {MAX_ID}"));
        }
        match self.ids.get(&name) {
            Some(known) if *known == id => return Ok(()),
            Some(known) => return Err(format!("the token {name:?} has the ids {known} and {id}")),
            None => {}
        }
        if !self.used.insert(id) {
            return Err(format!("the id {id} of the token {name:?} belongs to another token, too"));
        }
        self.ids.insert(name, id);
        Ok(())
    }

    /// Checks that both tokens of each merge and their concatenation are in the vocabulary.
    pub(super) fn check_merges(&self, merges: &Merges) -> Result<(), String> {
        for (number, (left, right)) in merges.iter().enumerate() {
            let merged = format!("{left}{right}");
            if let Some(missing) = [left, right, &merged].into_iter().find(|token| !self.ids.contains_key(*token)) {
                let number = number + 1;
                return Err(format!(
                    "merge {number}, {left:?} + {right:?}: the vocabulary lacks the token {missing:?}"
                ));
            }
        }
        Ok(())
    }

    /// Returns the form of the tokenizers crate.
    pub(super) fn into_vocab(self) -> Vocab {
        self.ids.into_iter().collect()
    }

    /// Returns whether a token is in the vocabulary.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.ids.contains_key(name)
    }
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tokens;

        impl<'de> Visitor<'de> for Tokens {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of token names and ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                let mut vocabulary = Vocabulary::default();
                while let Some((name, id)) = map.next_entry::<String, u32>()? {
                    if vocabulary.contains(&name) {
                        return Err(A::Error::custom(format!("the token {name:?} occurs twice")));
                    }
                    vocabulary.add(name, id).map_err(A::Error::custom)?;
                }
                Ok(vocabulary)
            }
        }

        deserializer.deserialize_map(Tokens)
    }
}

/// The parts of a `tokenizer.json` that are checked.
#[derive(Deserialize)]
pub(super) struct TokenizerJson {
    model: ModelJson,
    #[serde(default)]
    added_tokens: Vec<AddedJson>,
}

#[derive(Deserialize)]
struct ModelJson {
    vocab: Vocabulary,
    merges: Vec<MergeJson>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
}

/// A merge in the older or the newer form.
#[derive(Deserialize)]
#[serde(untagged)]
enum MergeJson {
    Text(String),
    Pair(String, String),
}

#[derive(Deserialize)]
struct AddedJson {
    id: u32,
    content: String,
}

impl TokenizerJson {
    /// Checks the vocabulary, the merges and the added tokens.
    pub(super) fn check(self) -> Result<(), String> {
        let Self { model: ModelJson { mut vocab, merges, continuing_subword_prefix }, added_tokens } = self;
        if continuing_subword_prefix.is_some_and(|prefix| !prefix.is_empty()) {
            return Err("`continuing_subword_prefix` must be empty, as in CLIP's tokenizer".into());
        }
        let pair = |merge: MergeJson| match merge {
            MergeJson::Pair(left, right) => Ok((left, right)),
            MergeJson::Text(text) => match text.split_once(' ') {
                Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
                None => Err(format!("the merge {text:?} is not two tokens with a space between")),
            },
        };
        let merges: Merges = merges.into_iter().map(pair).collect::<Result<_, _>>()?;
        vocab.check_merges(&merges)?;
        added_tokens.into_iter().try_for_each(|token| vocab.add(token.content, token.id))
    }
}
