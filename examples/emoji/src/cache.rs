//! Renderings of the whole catalogue at one size, in a file.
//!
//! Layout, little-endian: magic (8 bytes), version, size in pixels, number of sprites, checksum of the SVG sources,
//! checksum of the pixels (u32 each), then the premultiplied RGBA pixels of every sprite.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dalle2_core::{Error, Result};

use crate::Emoji;
use crate::render::sprite_bytes;

const MAGIC: &[u8; 8] = b"dl2emoji";
/// Raised whenever the pixels or the layout change.
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 28;

/// Which renderings a file must hold to be of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    size: u32,
    count: u32,
    sources: u32,
}

impl Key {
    pub fn new(catalogue: &[Emoji], size: u32) -> Self {
        let mut sources = crc32fast::Hasher::new();
        for emoji in catalogue {
            sources.update(emoji.glyph.as_bytes());
            sources.update(emoji.svg().as_bytes());
        }
        Self { size, count: catalogue.len() as u32, sources: sources.finalize() }
    }

    fn payload_bytes(&self) -> usize {
        self.count as usize * sprite_bytes(self.size)
    }

    fn header(&self, payload: &[u8]) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        for field in [VERSION, self.size, self.count, self.sources, crc32fast::hash(payload)] {
            header.extend(field.to_le_bytes());
        }
        header
    }
}

/// The file for renderings of `size` pixels.
pub(crate) fn path(directory: &Path, size: u32) -> PathBuf {
    directory.join(format!("renders-{size}.bin"))
}

/// Reads the renderings; `None` when there is no such file.
///
/// # Errors
/// When the file cannot be read, is damaged, or holds other renderings than `key` asks for.
pub(crate) fn read(path: &Path, key: Key) -> Result<Option<Vec<u8>>> {
    let mut bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    };
    let expected = HEADER_BYTES + key.payload_bytes();
    if bytes.len() != expected {
        return Err(Error::format(path, format!("{} bytes where {expected} are right", bytes.len())));
    }
    let payload = bytes.split_off(HEADER_BYTES);
    if bytes[..HEADER_BYTES - 4] != key.header(&[])[..HEADER_BYTES - 4] {
        return Err(Error::format(path, "the header has another version, size or set of images"));
    }
    if bytes != key.header(&payload) {
        return Err(Error::format(path, "the checksum of the pixels is wrong"));
    }
    Ok(Some(payload))
}

/// Writes the renderings under a temporary name and renames, so that no reader ever sees half a file.
///
/// # Errors
/// When the directory or the file cannot be written.
pub(crate) fn write(path: &Path, key: Key, payload: &[u8]) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory).map_err(|e| Error::io(directory, e))?;
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(|e| Error::io(directory, e))?;
    file.write_all(&key.header(payload)).and_then(|()| file.write_all(payload)).map_err(|e| Error::io(path, e))?;
    file.persist(path).map_err(|e| Error::io(path, e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key { size: 2, count: 3, sources: 77 };

    fn written(directory: &Path) -> (PathBuf, Vec<u8>) {
        let path = path(&directory.join("new"), KEY.size);
        let payload: Vec<u8> = (0..48).collect();
        write(&path, KEY, &payload).unwrap();
        (path, payload)
    }

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let (path, payload) = written(directory.path());
        assert_eq!(read(&path, KEY).unwrap(), Some(payload));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
        assert_eq!(read(&directory.path().join("renders-9.bin"), KEY).unwrap(), None);
    }

    #[test]
    fn damage_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let (path, _) = written(directory.path());
        let good = fs::read(&path).unwrap();
        for (position, message) in [(0, "header"), (9, "header"), (25, "checksum"), (30, "checksum"), (75, "checksum")]
        {
            let mut bad = good.clone();
            bad[position] ^= 1;
            fs::write(&path, &bad).unwrap();
            let error = read(&path, KEY).unwrap_err().to_string();
            assert!(error.contains(message) && error.contains("renders-2.bin"), "byte {position}: {error}");
        }
        fs::write(&path, &good[..40]).unwrap();
        assert!(read(&path, KEY).unwrap_err().to_string().contains("40 bytes where 76 are right"));
    }

    #[test]
    fn renderings_of_other_sources_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (path, _) = written(directory.path());
        assert!(read(&path, Key { sources: 78, ..KEY }).is_err());
    }

    #[test]
    fn an_unwritable_place_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let error = write(&path(&file, 2), KEY, &[0; 48]).unwrap_err().to_string();
        assert!(error.contains("file"), "{error}");
    }
}
