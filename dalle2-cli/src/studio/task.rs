//! Tasks that the page requests, as JSON.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use dalle2::base::image::{GrayImage, Mask};
use dalle2::{ConfigError, GenerateRequest};
use serde::{Deserialize, Serialize};

use super::gallery::{ImageId, decode};
use super::limits;
use super::model::Model;

/// One task by name, with its arguments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Images of a caption.
    Generate(Generate),
    /// Images with the CLIP embedding of an image.
    Variations(Variations),
    /// Frames between two images or captions.
    Interpolate(Interpolate),
    /// An image changed along the difference of two captions.
    TextDiff(TextDiff),
    /// An image with a region generated anew.
    Inpaint(Inpaint),
    /// One image from several images and captions.
    Mix(Mix),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    pub caption: String,
    /// Caption to move away from.
    #[serde(default)]
    pub negative_caption: String,
    #[serde(default)]
    pub settings: Settings,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variations {
    pub image: ImageId,
    /// DDIM noise level, from 0 to 1.
    pub eta: f64,
    #[serde(default)]
    pub noise: Noise,
    #[serde(default)]
    pub settings: Settings,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interpolate {
    pub from: Part,
    pub to: Part,
    /// Both ends included.
    pub frames: usize,
    #[serde(default)]
    pub noise: Noise,
    #[serde(default)]
    pub settings: Settings,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextDiff {
    pub image: ImageId,
    /// Caption of the image; may be empty.
    #[serde(default)]
    pub from: String,
    /// Caption to change towards.
    pub to: String,
    /// From 0, the image, to 1, the difference alone.
    pub strength: f64,
    pub frames: usize,
    #[serde(default)]
    pub settings: Settings,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inpaint {
    pub image: ImageId,
    /// White is generated anew, black stays; of the size of the image.
    pub mask: MaskPng,
    /// Caption of the result; if empty, the image provides the embedding.
    #[serde(default)]
    pub caption: String,
    #[serde(default)]
    pub settings: Settings,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    pub parts: Vec<Weighted>,
    #[serde(default)]
    pub settings: Settings,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weighted {
    pub part: Part,
    pub weight: f64,
}

/// An image or a caption.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Image(ImageId),
    Caption(String),
}

/// Source of the noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Noise {
    /// Inverted from the image: layout and details stay.
    #[default]
    Own,
    /// Sampled from the seed.
    Seed,
}

/// Settings of every task; unset ones default to the model's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Of the first image; image i has `seed + i`. Drawn at random if not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Number of images; tasks with frames have one.
    pub images: usize,
    /// Sampling steps of the decoder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior_steps: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upsampler_steps: Option<usize>,
    /// Guidance scale of the decoder; 1 is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
    /// Side of the images in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: None,
            images: 1,
            steps: None,
            prior_steps: None,
            upsampler_steps: None,
            guidance: None,
            size: None,
        }
    }
}

/// A PNG in base64, with or without `data:image/png;base64,` in front.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MaskPng(Vec<u8>);

impl TryFrom<String> for MaskPng {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let encoded = text.strip_prefix("data:image/png;base64,").unwrap_or(&text);
        STANDARD.decode(encoded).map(Self).map_err(|e| format!("not a PNG in base64: {e}"))
    }
}

impl From<MaskPng> for String {
    fn from(mask: MaskPng) -> Self {
        STANDARD.encode(mask.0)
    }
}

impl MaskPng {
    /// The mask: white is generated anew.
    ///
    /// # Errors
    /// When the image is damaged or too large, or lacks white.
    pub fn mask(&self) -> Result<Mask, String> {
        let image = decode(&self.0)?;
        let white = GrayImage::from_fn(image.width(), image.height(), |x, y| {
            let [r, g, b] = image.get_pixel(x, y).0.map(u16::from);
            image::Luma([((r + g + b) / 3) as u8])
        });
        let mask = Mask::edit(&white);
        if mask.edited_share() > 0.0 {
            Ok(mask)
        } else {
            Err("the mask is empty: paint the region to generate anew".into())
        }
    }
}

impl Task {
    /// Name in the API.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Generate(_) => "generate",
            Self::Variations(_) => "variations",
            Self::Interpolate(_) => "interpolate",
            Self::TextDiff(_) => "text_diff",
            Self::Inpaint(_) => "inpaint",
            Self::Mix(_) => "mix",
        }
    }

    pub fn settings(&self) -> &Settings {
        match self {
            Self::Generate(task) => &task.settings,
            Self::Variations(task) => &task.settings,
            Self::Interpolate(task) => &task.settings,
            Self::TextDiff(task) => &task.settings,
            Self::Inpaint(task) => &task.settings,
            Self::Mix(task) => &task.settings,
        }
    }

    /// Whether the task needs the prior (for captions) and the image encoder (for images).
    fn embeds(&self) -> (bool, bool) {
        let of_parts = |parts: &[&Part]| {
            let caption = |part: &&Part| matches!(part, Part::Caption(_));
            (parts.iter().any(caption), !parts.iter().all(caption))
        };
        match self {
            Self::Generate(_) => (true, false),
            Self::Variations(_) | Self::TextDiff(_) => (false, true),
            Self::Inpaint(task) => (!task.caption.trim().is_empty(), task.caption.trim().is_empty()),
            Self::Interpolate(task) => of_parts(&[&task.from, &task.to]),
            Self::Mix(task) => of_parts(&task.parts.iter().map(|weighted| &weighted.part).collect::<Vec<_>>()),
        }
    }

    /// The images that it reads.
    pub fn images(&self) -> Vec<ImageId> {
        let of_part = |part: &Part| match part {
            Part::Image(id) => Some(*id),
            Part::Caption(_) => None,
        };
        match self {
            Self::Generate(_) => Vec::new(),
            Self::Variations(Variations { image, .. })
            | Self::TextDiff(TextDiff { image, .. })
            | Self::Inpaint(Inpaint { image, .. }) => vec![*image],
            Self::Interpolate(task) => [&task.from, &task.to].into_iter().filter_map(of_part).collect(),
            Self::Mix(task) => task.parts.iter().filter_map(|weighted| of_part(&weighted.part)).collect(),
        }
    }

    /// The request to the pipeline, with the caption of the decoder.
    pub fn request(&self) -> GenerateRequest {
        let request = match self {
            Self::Generate(task) => GenerateRequest::new(&task.caption).negative_caption(&task.negative_caption),
            Self::Inpaint(task) => GenerateRequest::new(&task.caption),
            _ => GenerateRequest::default(),
        };
        self.settings().apply(request)
    }

    /// Checks every value against its bounds and the model.
    ///
    /// # Errors
    /// Names the field, its value and the accepted range.
    pub fn check(&self, model: &Model) -> Result<(), ConfigError> {
        self.settings().check(model)?;
        let (captions, images) = self.embeds();
        if captions && !model.captions {
            return Err(ConfigError::new("task", self.name(), "the model lacks a prior: start from images"));
        }
        if images && !model.images {
            return Err(ConfigError::new("task", self.name(), "the model lacks an image encoder: start from captions"));
        }
        match self {
            Self::Generate(task) => {
                caption("caption", &task.caption)?;
                length("negative_caption", &task.negative_caption)
            }
            Self::Variations(task) => within("eta", task.eta, 0.0, 1.0),
            Self::Interpolate(task) => {
                part("from", &task.from)?;
                part("to", &task.to)?;
                within("frames", task.frames, 2, limits::FRAMES)
            }
            Self::TextDiff(task) => {
                length("from", &task.from)?;
                caption("to", &task.to)?;
                within("strength", task.strength, 0.0, 1.0)?;
                within("frames", task.frames, 1, limits::FRAMES)
            }
            Self::Inpaint(task) => length("caption", &task.caption),
            Self::Mix(task) => {
                within("number of parts", task.parts.len(), 1, limits::SOURCES)?;
                for weighted in &task.parts {
                    part("part", &weighted.part)?;
                    within("weight", weighted.weight, -limits::WEIGHT, limits::WEIGHT)?;
                }
                Ok(())
            }
        }
    }
}

impl Settings {
    fn apply(&self, mut request: GenerateRequest) -> GenerateRequest {
        request = request.num_images(self.images);
        if let Some(seed) = self.seed {
            request = request.seed(seed);
        }
        if let Some(steps) = self.steps {
            request = request.decoder_steps(steps);
        }
        if let Some(steps) = self.prior_steps {
            request = request.prior_steps(steps);
        }
        if let Some(steps) = self.upsampler_steps {
            request = request.upsampler_steps(steps);
        }
        if let Some(guidance) = self.guidance {
            request = request.guidance(guidance);
        }
        if let Some(size) = self.size {
            request = request.size(size);
        }
        request
    }

    fn check(&self, model: &Model) -> Result<(), ConfigError> {
        within("settings.images", self.images, 1, limits::IMAGES)?;
        within("settings.seed", self.seed.unwrap_or(0), 0, limits::SEED)?;
        within("settings.steps", self.steps.unwrap_or(1), 1, limits::STEPS)?;
        within("settings.prior_steps", self.prior_steps.unwrap_or(1), 1, limits::STEPS)?;
        within("settings.upsampler_steps", self.upsampler_steps.unwrap_or(1), 1, limits::STEPS)?;
        within("settings.guidance", self.guidance.unwrap_or(1.0), 0.0, limits::GUIDANCE)?;
        match self.size {
            Some(size) if !model.sizes.contains(&size) => {
                let expected = format!("the model generates images with sides of {:?} pixels", model.sizes);
                Err(ConfigError::new("settings.size", size, expected))
            }
            _ => Ok(()),
        }
    }
}

/// Refuses values outside `low..=high`, and NaN.
fn within<T: PartialOrd + std::fmt::Display>(field: &str, value: T, low: T, high: T) -> Result<(), ConfigError> {
    if value >= low && value <= high {
        Ok(())
    } else {
        Err(ConfigError::new(field, value, format!("must be between {low} and {high}")))
    }
}

fn length(field: &str, text: &str) -> Result<(), ConfigError> {
    within(&format!("characters of {field}"), text.chars().count(), 0, limits::CAPTION)
}

/// Refuses empty captions.
fn caption(field: &str, text: &str) -> Result<(), ConfigError> {
    if text.trim().is_empty() {
        Err(ConfigError::new(field, format!("{text:?}"), "must not be empty"))
    } else {
        length(field, text)
    }
}

fn part(field: &str, part: &Part) -> Result<(), ConfigError> {
    match part {
        Part::Image(_) => Ok(()),
        Part::Caption(text) => caption(field, text),
    }
}
