//! Going through the headers of a shard.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use tar::{Archive, Entries, Entry, PaxExtensions};

use super::ShardOptions;
use super::index::{Sample, ShardIndex, Span};
use crate::data::items::caption;
use dalle2_core::image::MAX_FILE;

/// Longest caption member that is read, in bytes.
pub(super) const MAX_CAPTION: u64 = 1 << 20;
/// Longest name, as a record before its member, that is read, in bytes.
const MAX_NAME: u64 = 64 << 10;

/// Whether a file begins like one that gzip made.
pub(super) fn is_compressed(file: &mut File) -> std::io::Result<bool> {
    let mut start = Vec::new();
    file.by_ref().take(2).read_to_end(&mut start)?;
    file.rewind()?;
    Ok(start == [0x1f, 0x8b])
}

/// The samples of a shard, read through once. What is wrong is a problem of the index, never an error.
pub(super) fn scan(path: &Path, options: &ShardOptions) -> ShardIndex {
    let opened = File::open(path).and_then(|mut file| {
        let length = file.metadata()?.len();
        Ok((is_compressed(&mut file)?, length, file))
    });
    let (compressed, length, file) = match opened {
        Ok(opened) => opened,
        Err(e) => return ShardIndex::unreadable(path, e),
    };
    let mut scan = Scan::new(path, options, compressed);
    if compressed {
        let mut archive = Archive::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 18, file)));
        scan.entries(archive.entries(), u64::MAX);
    } else {
        let mut archive = Archive::new(BufReader::with_capacity(1 << 12, file));
        scan.entries(archive.entries_with_seek(), length);
    }
    scan.index
}

/// The members of one sample that were met so far.
#[derive(Default)]
struct Group {
    key: String,
    image: Option<(Span, String)>,
    /// The extensions that were met, of members that matter.
    extensions: Vec<String>,
    /// The best caption: the number of its field, and where it is.
    caption: Option<(usize, Span)>,
    /// Why the sample, or its best caption, cannot be used; the first of several reasons.
    fault: Option<String>,
    /// Something in its name or kind forbids the whole sample.
    refused: bool,
}

struct Scan<'a> {
    options: &'a ShardOptions,
    index: ShardIndex,
    group: Group,
    seen: HashSet<String>,
}

impl<'a> Scan<'a> {
    fn new(path: &Path, options: &'a ShardOptions, compressed: bool) -> Self {
        let index = ShardIndex {
            path: path.to_path_buf(),
            compressed,
            samples: vec![],
            names: String::new(),
            problems: vec![],
        };
        Self { options, index, group: Group::default(), seen: HashSet::new() }
    }

    fn entries<R: Read>(&mut self, entries: std::io::Result<Entries<'_, R>>, length: u64) {
        let result = entries.and_then(|entries| {
            // Records that say something about the next member are read here: their length is not limited there.
            let mut long_name = None;
            for entry in entries.raw(true) {
                let mut entry = entry?;
                let span = Span(entry.raw_file_position(), entry.size());
                if span.end() > length {
                    let message = format!("is cut off at {length} bytes");
                    return Err(std::io::Error::other(message));
                }
                let kind = entry.header().entry_type();
                if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
                    long_name = name_record(&mut entry)?.or(long_name);
                } else if !kind.is_gnu_longlink() && !kind.is_pax_global_extensions() {
                    let name = long_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
                    if !kind.is_dir() {
                        // Names are written into logs.
                        let name = String::from_utf8_lossy(&name).replace(char::is_control, "\u{fffd}");
                        self.member(&name, &mut entry, span)?;
                    }
                }
            }
            Ok(())
        });
        self.finish();
        if let Err(e) = result {
            let reason = format!("{e}; the {} samples before are used", self.index.len());
            self.index.problems.push((String::new(), reason));
        } else if self.index.samples.is_empty() && self.index.problems.is_empty() {
            self.index.problems.push((String::new(), "holds no captioned image".into()));
        }
        self.index.samples.shrink_to_fit();
        self.index.names.shrink_to_fit();
    }

    fn member<R: Read>(&mut self, name: &str, entry: &mut Entry<'_, R>, span: Span) -> std::io::Result<()> {
        let name = name.trim_start_matches("./");
        let (key, extension) = split(name);
        let file = key.rsplit('/').next().unwrap_or_default();
        // Files like `._0001.jpg` are notes of the system that made the archive.
        if file.is_empty() && leads_away(name).is_none() {
            return Ok(());
        }
        if key != self.group.key {
            self.finish();
            self.group = Group { key: key.to_string(), ..Group::default() };
            if self.seen.contains(key) {
                self.refuse("the key occurs a second time in the shard; the first sample is used");
            }
        }
        let extension = extension.to_ascii_lowercase();
        let is_image = match &self.options.image {
            Some(wanted) => extension == wanted.to_ascii_lowercase(),
            None => ["jpg", "jpeg", "png", "webp"].contains(&extension.as_str()),
        };
        let field = self.options.captions.iter().position(|field| field.extension() == extension);
        let regular = entry.header().entry_type().is_file() || entry.header().entry_type().is_contiguous();
        if let Some(reason) = leads_away(name) {
            self.refuse(reason);
        } else if !regular {
            self.refuse(&format!("`{name}` is a link or a special file: only regular files are read"));
        } else if !is_image && field.is_none() {
            return Ok(());
        } else if self.group.extensions.contains(&extension) {
            let reason = format!("`{name}` occurs twice in the sample; the first is used");
            self.index.problems.push((key.to_string(), reason));
        } else {
            self.group.extensions.push(extension);
            match field {
                Some(field) if !is_image => return self.caption(field, entry, span),
                _ => self.image(name, span),
            }
        }
        Ok(())
    }

    fn image(&mut self, name: &str, span: Span) {
        if span.1 > MAX_FILE {
            self.fault(format!("`{name}` has {} bytes; an image file may have {MAX_FILE}", span.1));
        } else {
            self.group.image.get_or_insert_with(|| (span, name.to_string()));
        }
    }

    fn caption<R: Read>(&mut self, field: usize, entry: &mut Entry<'_, R>, span: Span) -> std::io::Result<()> {
        // Several fields may read different keys of one JSON file.
        let extension = self.options.captions[field].extension();
        if span.1 > MAX_CAPTION {
            self.fault(format!(".{extension}: has {} bytes; a caption may have {MAX_CAPTION}", span.1));
            return Ok(());
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < span.1 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let mut first_fault = None;
        for (number, candidate) in self.options.captions.iter().enumerate().skip(field) {
            let better = self.group.caption.is_none_or(|(best, _)| number < best);
            if candidate.extension() != extension || !better {
                continue;
            }
            let blank = || format!(".{extension}: the caption is empty");
            match candidate.text(&bytes).and_then(|text| caption(&text).ok_or_else(blank)) {
                Ok(_) => self.group.caption = Some((number, span)),
                Err(reason) => {
                    first_fault.get_or_insert(reason);
                }
            }
        }
        if let Some(reason) = first_fault {
            self.fault(reason);
        }
        Ok(())
    }

    fn fault(&mut self, reason: String) {
        self.group.fault.get_or_insert(reason);
    }

    fn refuse(&mut self, reason: &str) {
        if !self.group.refused {
            self.group.refused = true;
            self.group.fault = Some(reason.to_string());
        }
    }

    /// Ends the sample that was being read.
    fn finish(&mut self) {
        let Group { key, image, caption, fault, refused, .. } = std::mem::take(&mut self.group);
        match (image, caption) {
            // Something else, like a README, or the start of the shard.
            (None, None) if fault.is_none() => return,
            (Some((image, name)), Some((field, caption))) if !refused => {
                match (u8::try_from(field), u32::try_from(self.index.names.len() + name.len())) {
                    (Ok(field), Ok(end)) => {
                        self.index.names.push_str(&name);
                        self.index.samples.push(Sample(image, caption, field, end));
                    }
                    _ => self.index.problems.push((key.clone(), "the shard has too many samples or fields".into())),
                }
            }
            (image, caption) => {
                let fields: Vec<String> = self.options.captions.iter().map(ToString::to_string).collect();
                let reason = fault.unwrap_or_else(|| match (image, caption) {
                    (None, _) => "has a caption and no image".into(),
                    (_, _) => format!("lacks a caption: expected one of {}", fields.join(", ")),
                });
                self.index.problems.push((key.clone(), reason));
            }
        }
        self.seen.insert(key);
    }
}

/// The key of a sample and the extension of a member: what comes before and after the first dot of the file's name.
fn split(name: &str) -> (&str, &str) {
    let file = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[file..].find('.') {
        Some(dot) => (&name[..file + dot], &name[file + dot + 1..]),
        None => (name, ""),
    }
}

/// Why a name must not be trusted, if so. Names never become paths here, but who writes one like that means no good.
fn leads_away(name: &str) -> Option<&'static str> {
    let outside = name.starts_with('/') || name.contains('\\') || name.split('/').any(|part| part == "..");
    outside.then_some("the name leads out of the archive")
}

/// The name that a record gives to the next member, if it does.
fn name_record<R: Read>(entry: &mut Entry<'_, R>) -> std::io::Result<Option<Vec<u8>>> {
    if entry.size() > MAX_NAME {
        return Err(std::io::Error::other(format!("a record of {} bytes before a member", entry.size())));
    }
    let long_name = entry.header().entry_type().is_gnu_longname();
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes)?;
    if long_name {
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        return Ok(Some(bytes));
    }
    let mut name = None;
    for record in PaxExtensions::new(&bytes) {
        let record = record?;
        match record.key_bytes() {
            b"path" => name = Some(record.value_bytes().to_vec()),
            b"size" => return Err(std::io::Error::other("a member whose length is in an extended header")),
            _ => {}
        }
    }
    Ok(name)
}
