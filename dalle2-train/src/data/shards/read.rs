//! Reading samples: by position from plain shards, forward from compressed ones.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::read::MultiGzDecoder;

use super::index::{ShardIndex, Span};

/// Plain shards that are held open.
const FILES: usize = 64;
/// Compressed shards that are being unpacked: a window reaches from one into the next, an epoch into another.
const STREAMS: usize = 4;

/// The bytes of a sample.
#[derive(Debug)]
pub(super) struct Fetched {
    pub image: Vec<u8>,
    pub caption: Vec<u8>,
}

/// A sample: the number of its shard, the shard, and its number there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub id: usize,
    pub shard: &'a ShardIndex,
    pub number: usize,
}

/// Opens shards and keeps some of them open. Several threads may read at once.
#[derive(Debug)]
pub(super) struct Reader {
    files: Mutex<VecDeque<(usize, Arc<File>)>>,
    streams: Mutex<Streams>,
}

impl Reader {
    /// Creates a reader with a buffer of `bytes` for unpacked samples.
    pub(super) fn new(buffer: usize) -> Self {
        let streams = Streams { buffer, ..Streams::default() };
        Self { files: Mutex::default(), streams: Mutex::new(streams) }
    }

    /// The image and the caption of a sample.
    pub(super) fn fetch(&self, place: Place<'_>) -> io::Result<Arc<Fetched>> {
        if place.shard.compressed {
            return self.streams.lock().unwrap_or_else(PoisonError::into_inner).fetch(place);
        }
        let (file, sample) = (self.file(place)?, place.shard.samples[place.number]);
        Ok(Arc::new(Fetched { image: read_at(&file, sample.0)?, caption: read_at(&file, sample.1)? }))
    }

    /// The caption of a sample alone.
    pub(super) fn fetch_caption(&self, place: Place<'_>) -> io::Result<Vec<u8>> {
        if place.shard.compressed {
            self.fetch(place).map(|fetched| fetched.caption.clone())
        } else {
            read_at(&*self.file(place)?, place.shard.samples[place.number].1)
        }
    }

    /// Bytes in the buffer, and samples that were unpacked in all.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        (streams.bytes, streams.unpacked)
    }

    fn file(&self, place: Place<'_>) -> io::Result<Arc<File>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, file)) = files.iter().find(|(id, _)| *id == place.id) {
            return Ok(file.clone());
        }
        let file = Arc::new(File::open(&place.shard.path)?);
        if files.len() == FILES {
            files.pop_front();
        }
        files.push_back((place.id, file.clone()));
        Ok(file)
    }
}

#[cfg(unix)]
fn read_at(file: &File, span: Span) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; span.1 as usize];
    file.read_exact_at(&mut bytes, span.0)?;
    Ok(bytes)
}

#[cfg(windows)]
fn read_at(file: &File, span: Span) -> io::Result<Vec<u8>> {
    use std::os::windows::fs::FileExt;
    let mut bytes = vec![0; span.1 as usize];
    let mut done = 0;
    while done < bytes.len() {
        match file.seek_read(&mut bytes[done..], span.0 + done as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => done += read,
        }
    }
    Ok(bytes)
}

/// Compressed shards on the way from start to end, and the samples that were passed.
#[derive(Default)]
struct Streams {
    open: VecDeque<Stream>,
    samples: HashMap<(usize, usize), Arc<Fetched>>,
    /// The unpacked samples, the oldest first; the oldest are dropped first.
    age: VecDeque<(usize, usize)>,
    bytes: usize,
    buffer: usize,
    #[cfg(test)]
    unpacked: usize,
}

struct Stream {
    /// Of the shard.
    id: usize,
    reader: MultiGzDecoder<BufReader<File>>,
    /// Bytes that were unpacked.
    position: u64,
    /// The next sample.
    next: usize,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").field("bytes", &self.bytes).field("buffer", &self.buffer).finish_non_exhaustive()
    }
}

impl Streams {
    /// A sample that was passed, or the next ones up to it. One that has left the buffer is reached from the start of the
    /// shard again, so the buffer decides about the time and never about the result.
    fn fetch(&mut self, Place { id, shard, number }: Place<'_>) -> io::Result<Arc<Fetched>> {
        if let Some(fetched) = self.samples.get(&(id, number)) {
            return Ok(fetched.clone());
        }
        let reachable = self.open.iter().position(|stream| stream.id == id && stream.next <= number);
        let mut stream = match reachable.and_then(|at| self.open.remove(at)) {
            Some(stream) => stream,
            None => Stream::open(id, shard)?,
        };
        loop {
            let at = stream.next;
            let fetched = Arc::new(stream.read(shard)?);
            #[cfg(test)]
            {
                self.unpacked += 1;
            }
            self.keep((id, at), fetched.clone());
            if at == number {
                if self.open.len() == STREAMS {
                    self.open.pop_front();
                }
                self.open.push_back(stream);
                return Ok(fetched);
            }
        }
    }

    fn keep(&mut self, key: (usize, usize), fetched: Arc<Fetched>) {
        self.bytes += fetched.image.len() + fetched.caption.len();
        if let Some(again) = self.samples.insert(key, fetched) {
            self.bytes -= again.image.len() + again.caption.len();
        } else {
            self.age.push_back(key);
        }
        while self.bytes > self.buffer {
            let Some(left) = self.age.pop_front().and_then(|oldest| self.samples.remove(&oldest)) else { break };
            self.bytes -= left.image.len() + left.caption.len();
        }
    }
}

impl Stream {
    fn open(id: usize, shard: &ShardIndex) -> io::Result<Self> {
        let file = BufReader::with_capacity(1 << 18, File::open(&shard.path)?);
        Ok(Self { id, reader: MultiGzDecoder::new(file), position: 0, next: 0 })
    }

    /// The next sample. Image and caption come in either order.
    fn read(&mut self, shard: &ShardIndex) -> io::Result<Fetched> {
        let sample = shard.samples[self.next];
        self.next += 1;
        let (image, caption);
        if sample.0.0 <= sample.1.0 {
            image = self.span(sample.0)?;
            caption = self.span(sample.1)?;
        } else {
            caption = self.span(sample.1)?;
            image = self.span(sample.0)?;
        }
        Ok(Fetched { image, caption })
    }

    fn span(&mut self, span: Span) -> io::Result<Vec<u8>> {
        let before = span.0.checked_sub(self.position).ok_or(io::ErrorKind::InvalidData)?;
        let skipped = io::copy(&mut self.reader.by_ref().take(before), &mut io::sink())?;
        let mut bytes = Vec::with_capacity(span.1 as usize);
        let read = self.reader.by_ref().take(span.1).read_to_end(&mut bytes)? as u64;
        if skipped < before || read < span.1 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position = span.end();
        Ok(bytes)
    }
}
