//! The table of a safetensors file, read without its values.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use safetensors::tensor::{Metadata, TensorInfo};

use super::source::Entry;

/// Longest header that the format allows, in bytes.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Reads the tensors of a file of `size` bytes, whose cursor stands at the start.
///
/// The header must describe the rest of the file byte for byte: no gaps, no overlaps, nothing beyond the end.
pub(super) fn read(file: &mut File, size: u64, part: usize) -> Result<BTreeMap<String, Entry>, String> {
    let incomplete = |what: &str| format!("not a complete safetensors file ({what})");
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|e| incomplete(&format!("the length of its header cannot be read: {e}")))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length > size.saturating_sub(8) {
        return Err(incomplete(&format!("a header of {length} bytes in a file of {size}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(|e| incomplete(&e.to_string()))?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|e| format!("not a safetensors file (header: {e})"))?;
    // The crate has checked that the tensors follow one another without gaps and that shapes take the bytes they claim.
    let start = 8 + length;
    if start.checked_add(metadata.data_len() as u64) != Some(size) {
        let (described, found) = (metadata.data_len(), size - start);
        return Err(incomplete(&format!("the header describes {described} bytes of values, the file has {found}")));
    }
    let entry = |(name, info): (String, &TensorInfo)| {
        let offset = start + info.data_offsets.0 as u64;
        (name, Entry::contiguous(part, info.dtype, info.shape.clone(), offset))
    };
    Ok(metadata.tensors().into_iter().map(entry).collect())
}
