//! Upper bounds.

use std::time::Duration;

use serde::Serialize;

/// Jobs that wait; one more runs.
pub const WAITING: usize = 8;
/// Jobs that are remembered after they have ended.
pub const ENDED: usize = 32;
/// Maximum number of stored images; the oldest is removed first.
pub const GALLERY: usize = 240;
/// Pages that listen at the same time.
pub const STREAMS: usize = 16;
/// Requests whose bodies are read at the same time.
pub const BODIES: usize = 4;
/// Time to send a request's body and get the answer.
pub const REQUEST_TIME: Duration = Duration::from_secs(30);
/// Maximum size of an upload in bytes.
pub const UPLOAD: usize = 16 << 20;
/// Bytes of any other body.
pub const JSON: usize = 2 << 20;
/// Maximum side of an upload in pixels.
pub const SIDE: u32 = 8192;
/// Maximum number of pixels of an upload.
pub const PIXELS: u64 = 24 << 20;
/// Side to which an upload is reduced, in pixels.
pub const STORED_SIDE: u32 = 512;
/// Characters of a caption.
pub const CAPTION: usize = 1000;
/// Images of one job.
pub const IMAGES: usize = 8;
/// Frames of one job.
pub const FRAMES: usize = 16;
/// Sampling steps of a stage.
pub const STEPS: usize = 250;
/// Guidance scale.
pub const GUIDANCE: f64 = 20.0;
/// Images and captions of one mix.
pub const SOURCES: usize = 4;
/// Weight of a part of a mix, towards it or away from it.
pub const WEIGHT: f64 = 2.0;
/// Seeds are whole numbers that a script can hold exactly.
pub const SEED: u64 = (1 << 53) - 1;

/// The bounds that the page holds its fields to.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Limits {
    waiting: usize,
    upload: usize,
    caption: usize,
    images: usize,
    frames: usize,
    steps: usize,
    guidance: f64,
    sources: usize,
    weight: f64,
    seed: u64,
}

impl Limits {
    /// As the constants say.
    pub const ALL: Self = Self {
        waiting: WAITING,
        upload: UPLOAD,
        caption: CAPTION,
        images: IMAGES,
        frames: FRAMES,
        steps: STEPS,
        guidance: GUIDANCE,
        sources: SOURCES,
        weight: WEIGHT,
        seed: SEED,
    };
}
