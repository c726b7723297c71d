//! The thread that runs the jobs.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use dalle2::{Error, Event, Generation, NoisePath, Pipeline, RgbImage, Source, StartNoise};
use image::{ImageFormat, imageops};
use serde_json::json;

use super::gallery::{Gallery, ImageId, Origin};
use super::queue::{Message, Outcome, Progress, Queue, State, Work};
use super::task::{Noise, Part, Task};

/// Shortest time between two previews.
const PREVIEWS: Duration = Duration::from_millis(150);
/// Shortest time between two reports of progress.
const REPORTS: Duration = Duration::from_millis(30);
/// Longest side of a preview, in pixels.
const PREVIEW_SIDE: u32 = 128;

/// Runs jobs until the queue is closed.
pub fn run(pipeline: &Pipeline, queue: &Queue, gallery: &Gallery) {
    while let Some(work) = queue.take() {
        let start = Instant::now();
        // A panic must not affect the other jobs.
        let result = catch_unwind(AssertUnwindSafe(|| generate(pipeline, queue, gallery, &work)))
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the job panicked; the terminal shows where")));
        let seconds = start.elapsed().as_secs_f64();
        let outcome = match result {
            Ok((images, seed)) => Outcome { state: State::Done, images, error: None, seed: Some(seed), seconds },
            Err(error) => {
                let cancelled = matches!(error.downcast_ref(), Some(Error::Cancelled));
                let state = if cancelled { State::Cancelled } else { State::Failed };
                let error = (!cancelled).then(|| format!("{error:#}"));
                Outcome { state, images: Vec::new(), error, seed: None, seconds }
            }
        };
        // In this order, so that a page has the images of a finished job.
        queue.tell(Message::Gallery);
        queue.finish(work.id, outcome);
    }
}

/// Runs a job and stores its images.
fn generate(pipeline: &Pipeline, queue: &Queue, gallery: &Gallery, work: &Work) -> Result<(Vec<ImageId>, u64)> {
    let mut reporter = Reporter { queue, work, stage: String::new(), reported: None, shown: None };
    let generation = perform(pipeline, gallery, &work.task, |event| reporter.report(&event))?;
    let caption = title(&work.task, gallery);
    let mut stored = Vec::with_capacity(generation.images.len());
    let last = generation.images.len();
    for (index, image) in generation.images.into_iter().enumerate() {
        let label = label(&work.task, index, last);
        let origin = Origin {
            by: work.task.name(),
            job: Some(work.id),
            caption: caption.clone(),
            label,
            seed: generation.seeds.get(index).copied(),
        };
        stored.push(gallery.add(&image, origin)?.id);
    }
    Ok((stored, generation.seeds.first().copied().unwrap_or_default()))
}

fn perform(
    pipeline: &Pipeline,
    gallery: &Gallery,
    task: &Task,
    hook: impl FnMut(Event<'_>) -> dalle2::Result<()>,
) -> Result<Generation> {
    let request = task.request();
    let source = |part: &Part| -> Result<Source> {
        Ok(match part {
            Part::Image(id) => Source::Image(gallery.image(*id)?),
            Part::Caption(caption) => Source::Caption(caption.clone()),
        })
    };
    Ok(match task {
        Task::Generate(_) => pipeline.generate_with(request, hook)?,
        Task::Variations(task) => {
            let start = match task.noise {
                Noise::Own => StartNoise::Inverted,
                Noise::Seed => StartNoise::Random,
            };
            let vary = pipeline.vary(&gallery.image(task.image)?).eta(task.eta).start_noise(start);
            vary.request(request).hook(hook).run()?
        }
        Task::Interpolate(task) => {
            let noise = match task.noise {
                Noise::Own => NoisePath::Inverted,
                Noise::Seed => NoisePath::Fixed,
            };
            let interpolate = pipeline.interpolate(source(&task.from)?, source(&task.to)?);
            interpolate.frames(task.frames).noise_path(noise).request(request).hook(hook).run()?
        }
        Task::TextDiff(task) => {
            let text_diff = pipeline.text_diff(&gallery.image(task.image)?, &task.from, &task.to);
            text_diff.strength(task.strength).frames(task.frames).request(request).hook(hook).run()?
        }
        Task::Inpaint(task) => {
            let mask = task.mask.mask().map_err(anyhow::Error::msg).context("mask")?;
            pipeline.inpaint(&gallery.image(task.image)?, &mask).request(request).hook(hook).run()?
        }
        Task::Mix(task) => {
            let parts: Result<Vec<_>> =
                task.parts.iter().map(|weighted| Ok((source(&weighted.part)?, weighted.weight))).collect();
            pipeline.mix(parts?).request(request).hook(hook).run()?
        }
    })
}

/// A short description of a job.
pub fn title(task: &Task, gallery: &Gallery) -> String {
    let image = |id: &ImageId| match gallery.get(*id) {
        Some(image) if !image.origin.caption.is_empty() => image.origin.caption,
        _ => id.to_string(),
    };
    let part = |part: &Part| match part {
        Part::Image(id) => image(id),
        Part::Caption(caption) => caption.clone(),
    };
    match task {
        Task::Generate(task) => task.caption.clone(),
        Task::Variations(task) => format!("variation of {}", image(&task.image)),
        Task::Interpolate(task) => format!("from {} to {}", part(&task.from), part(&task.to)),
        Task::TextDiff(task) if task.from.is_empty() => format!("{}, to {}", image(&task.image), task.to),
        Task::TextDiff(task) => format!("{}, from {} to {}", image(&task.image), task.from, task.to),
        Task::Inpaint(task) if task.caption.is_empty() => format!("{}, inpainted", image(&task.image)),
        Task::Inpaint(task) => format!("{}, inpainted: {}", image(&task.image), task.caption),
        Task::Mix(task) => {
            let parts: Vec<String> =
                task.parts.iter().map(|weighted| format!("{} × {}", weighted.weight, part(&weighted.part))).collect();
            parts.join(" + ")
        }
    }
}

/// The position of a frame; empty for single images.
fn label(task: &Task, index: usize, frames: usize) -> String {
    match task {
        Task::Interpolate(_) => format!("{:.2}", index as f64 / (frames.max(2) - 1) as f64),
        Task::TextDiff(task) => format!("{:.2}", task.strength * (index + 1) as f64 / frames as f64),
        _ => String::new(),
    }
}

/// Reports the progress of a job to the pages.
struct Reporter<'a> {
    queue: &'a Queue,
    work: &'a Work,
    stage: String,
    reported: Option<Instant>,
    shown: Option<Instant>,
}

impl Reporter<'_> {
    fn report(&mut self, event: &Event<'_>) -> dalle2::Result<()> {
        if self.work.cancelled() {
            return Err(Error::Cancelled);
        }
        let due = |last: Option<Instant>, every| last.is_none_or(|last| last.elapsed() >= every);
        let stage = event.stage.to_string();
        let turn = stage != self.stage || event.step == event.total;
        if !turn && !due(self.reported, REPORTS) {
            return Ok(());
        }
        let previews = if turn || due(self.shown, PREVIEWS) { previews(event) } else { Vec::new() };
        self.reported = Some(Instant::now());
        if !previews.is_empty() {
            self.shown = self.reported;
        }
        let (step, total, first_image) = (event.step, event.total, event.first_image);
        let message = json!({
            "job": self.work.id, "stage": stage, "step": step, "total": total, "first_image": first_image,
            "previews": previews,
        });
        self.queue.step(self.work.id, Progress { stage: stage.clone(), step, total, first_image }, message.to_string());
        self.stage = stage;
        Ok(())
    }
}

/// The current estimates as `data:` addresses; none in stages without images.
fn previews(event: &Event<'_>) -> Vec<String> {
    // A failed preview is skipped: the result reports its own errors.
    let images = event.preview().ok().flatten().unwrap_or_default();
    images.iter().filter_map(data_address).collect()
}

fn data_address(image: &RgbImage) -> Option<String> {
    let small = if image.width().max(image.height()) > PREVIEW_SIDE {
        &imageops::thumbnail(image, PREVIEW_SIDE, PREVIEW_SIDE)
    } else {
        image
    };
    let mut png = Cursor::new(Vec::new());
    small.write_to(&mut png, ImageFormat::Png).ok()?;
    Some(format!("data:image/png;base64,{}", STANDARD.encode(png.into_inner())))
}
