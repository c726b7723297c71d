//! Rows as separated fields.

use std::path::Path;

use csv::{ByteRecord, ReaderBuilder};

use super::{Columns, List, Row, places};
use dalle2_core::{Error, Result};

/// Adds the rows to `list`, numbered by their first line, and returns the expected form.
pub(super) fn read(path: &Path, columns: &Columns, delimiter: u8, list: &mut List<'_>) -> Result<String> {
    let failed = |e: csv::Error| match e.into_kind() {
        csv::ErrorKind::Io(source) => Error::io(path, source),
        other => Error::format(path, format!("{:?}", other)),
    };
    let mut reader = ReaderBuilder::new().delimiter(delimiter).flexible(true).from_path(path).map_err(failed)?;
    let header = reader.byte_headers().map_err(failed)?.clone();
    let names: Vec<String> =
        header.iter().map(|name| String::from_utf8_lossy(name.trim_ascii()).into_owned()).collect();
    let (image, caption) = places(path, columns, names.iter().map(String::as_str))?;
    let mut record = ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(failed)? {
        let line = record.position().map_or(0, csv::Position::line);
        list.add(line, row(&record, [image, caption], names.len()));
    }
    Ok(format!("rows with the columns `{}` and `{}`", columns.image, columns.caption))
}

fn row(record: &ByteRecord, [image, caption]: [usize; 2], columns: usize) -> Row {
    if record.len() != columns {
        return Err(format!("the row has {} fields, the header {columns}", record.len()));
    }
    let text = |place: usize| {
        let bytes = record.get(place).unwrap_or_default();
        std::str::from_utf8(bytes).map(String::from).map_err(|_| format!("field {} is not UTF-8 text", place + 1))
    };
    Ok((text(image)?, text(caption)?))
}
