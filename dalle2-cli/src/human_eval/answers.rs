//! The file that the page saves.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use dalle2::base::store::read_json;
use serde::{Deserialize, Serialize};

use super::study::{Key, KeyQuestion, Model};

/// A choice of a rater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    Left,
    Right,
    NotSure,
}

impl Choice {
    fn name(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Right => "right",
            Self::NotSure => "not_sure",
        }
    }

    /// The model that was preferred.
    pub fn preferred(self, question: &KeyQuestion) -> Option<Model> {
        match (self, question.left) {
            (Self::NotSure, _) => None,
            (Self::Left, left) => Some(left),
            (Self::Right, Model::A) => Some(Model::B),
            (Self::Right, Model::B) => Some(Model::A),
        }
    }
}

/// An answer to one question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    pub question: String,
    pub choice: Choice,
    /// Time until the choice, in milliseconds.
    pub ms: u64,
}

const FORMAT: &str = "dalle2-human-eval-answers";

/// One rater's answers, perhaps incomplete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    pub format: String,
    pub version: u32,
    pub study: String,
    /// Random, chosen by the page.
    pub rater: String,
    /// Name of the rater; may be empty.
    pub name: String,
    pub answers: Vec<Answer>,
    /// CRC-32 of what counts, as [`Answers::sum`] computes it.
    pub checksum: String,
}

impl Answers {
    /// The checksum that the answers should have.
    pub fn sum(&self) -> String {
        let answers = self.answers.iter().map(|a| format!("{} {} {}", a.question, a.choice.name(), a.ms));
        let lines: Vec<String> = [self.study.clone(), self.rater.clone()].into_iter().chain(answers).collect();
        format!("{:08x}", crc32fast::hash(lines.join("\n").as_bytes()))
    }

    /// Reads the answers of a study.
    ///
    /// # Errors
    /// When the file is missing, damaged or changed, of another study, or answers what was not asked.
    pub fn read(file: &Path, key: &Key) -> Result<Self> {
        let answers: Self = read_json(file).context("an answers file is damaged, or none")?;
        answers.check(key).with_context(|| file.display().to_string())?;
        Ok(answers)
    }

    fn check(&self, key: &Key) -> Result<()> {
        ensure!(
            self.format == FORMAT && self.version == 1,
            "is {:?} version {}; expected {FORMAT:?} version 1, which the page saves",
            self.format,
            self.version
        );
        ensure!(self.study == key.study, "answers study {}; the key belongs to study {}", self.study, key.study);
        ensure!(
            self.checksum == self.sum(),
            "the checksum is {}, expected {}: the file was damaged or edited after it was saved",
            self.checksum,
            self.sum()
        );
        let questions = key.by_id();
        let mut seen = HashMap::new();
        for (i, answer) in self.answers.iter().enumerate() {
            ensure!(
                questions.contains_key(answer.question.as_str()),
                "answers {:?}, which is not a question of the study",
                answer.question
            );
            if seen.insert(&answer.question, i).is_some() {
                bail!("answers {:?} twice", answer.question);
            }
        }
        Ok(())
    }
}
