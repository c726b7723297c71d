//! What the page asks for, as JSON.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use dalle2::base::image::{GrayImage, Mask};
use dalle2::{ConfigError, GenerateRequest};
use serde::{Deserialize, Serialize};

use super::limits;
use super::model::Model;
use super::pictures::{PictureId, decode};

/// One job: the name of what is to be done, with its arguments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Images of a caption.
    Generate(Generate),
    /// Images that share what CLIP sees in a picture.
    Variations(Variations),
    /// The way from one picture or caption to another.
    Interpolate(Interpolate),
    /// A picture changed by what two captions differ in.
    TextDiff(TextDiff),
    /// A part of a picture drawn anew.
    Inpaint(Inpaint),
    /// One image of several pictures and captions.
    Mix(Mix),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    pub caption: String,
    /// What guidance moves away from.
    #[serde(default)]
    pub negative_caption: String,
    #[serde(default)]
    pub settings: Settings,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variations {
    pub image: PictureId,
    /// Noisiness, from 0 to 1.
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
    pub image: PictureId,
    /// What the picture shows; may be empty.
    #[serde(default)]
    pub from: String,
    /// What it should show.
    pub to: String,
    /// From 0, the picture, to 1, the difference alone.
    pub strength: f64,
    pub frames: usize,
    #[serde(default)]
    pub settings: Settings,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inpaint {
    pub image: PictureId,
    /// White is drawn anew, black is kept; of the picture's size.
    pub mask: MaskPng,
    /// What the whole picture shows; if empty, the embedding is that of the picture.
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

/// A picture or a caption.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Image(PictureId),
    Caption(String),
}

/// Where the noise comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Noise {
    /// That of the picture: layout and details stay.
    #[default]
    Own,
    /// Drawn from the seed.
    Seed,
}

/// What all tasks share. What is not set is the model's own.
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
    /// The mask: white is drawn anew.
    ///
    /// # Errors
    /// When the image is damaged or too large, or has no white.
    pub fn mask(&self) -> Result<Mask, String> {
        let image = decode(&self.0)?;
        let white = GrayImage::from_fn(image.width(), image.height(), |x, y| {
            let [r, g, b] = image.get_pixel(x, y).0.map(u16::from);
            image::Luma([((r + g + b) / 3) as u8])
        });
        let mask = Mask::edit(&white);
        match mask.edited_share() > 0.0 {
            true => Ok(mask),
            false => Err("nothing is marked: paint what is to be drawn anew".into()),
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

    /// Whether embeddings of captions are asked of the prior, and embeddings of pictures of the image encoder.
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

    /// The pictures that it reads.
    pub fn pictures(&self) -> Vec<PictureId> {
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

    /// The request that goes to the pipeline, with the caption that the decoder reads.
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
    /// Names the field, its value and what would be right.
    pub fn check(&self, model: &Model) -> Result<(), ConfigError> {
        self.settings().check(model)?;
        let (captions, images) = self.embeds();
        if captions && !model.captions {
            return Err(ConfigError::new("task", self.name(), "the model has no prior: begin with pictures"));
        }
        if images && !model.images {
            return Err(ConfigError::new("task", self.name(), "the model has no image encoder: begin with captions"));
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
                let expected = format!("the model draws {:?} pixels a side", model.sizes);
                Err(ConfigError::new("settings.size", size, expected))
            }
            _ => Ok(()),
        }
    }
}

/// Refuses what lies outside `low..=high`, and what is no number.
fn within<T: PartialOrd + std::fmt::Display>(field: &str, value: T, low: T, high: T) -> Result<(), ConfigError> {
    match value >= low && value <= high {
        true => Ok(()),
        false => Err(ConfigError::new(field, value, format!("must be between {low} and {high}"))),
    }
}

fn length(field: &str, text: &str) -> Result<(), ConfigError> {
    within(&format!("characters of {field}"), text.chars().count(), 0, limits::CAPTION)
}

/// Refuses captions that say nothing.
fn caption(field: &str, text: &str) -> Result<(), ConfigError> {
    match text.trim().is_empty() {
        true => Err(ConfigError::new(field, format!("{text:?}"), "say what to draw")),
        false => length(field, text),
    }
}

fn part(field: &str, part: &Part) -> Result<(), ConfigError> {
    match part {
        Part::Image(_) => Ok(()),
        Part::Caption(text) => caption(field, text),
    }
}
