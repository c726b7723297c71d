//! Rows of a Parquet file.

use std::fs::File;
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row as Record};
use parquet::schema::types::Type;

use super::{Columns, List, Row, places};
use dalle2_core::{Error, Result};

/// Adds the rows to `list`, numbered from 1, and returns the expected form. Only the two columns are read.
pub(super) fn read(path: &Path, columns: &Columns, list: &mut List<'_>) -> Result<String> {
    let failed = |e: ParquetError| Error::format(path, e.to_string());
    let reader = SerializedFileReader::new(File::open(path).map_err(|e| Error::io(path, e))?).map_err(failed)?;
    let schema = reader.metadata().file_metadata().schema();
    let fields = schema.get_fields();
    let (image, caption) = places(path, columns, fields.iter().map(|field| field.name()))?;
    for field in [&fields[image], &fields[caption]] {
        if !field.is_primitive() {
            let message = format!("column `{}` is not text: images must be files that the column names", field.name());
            return Err(Error::format(path, message));
        }
    }
    // A column may serve as both.
    let mut selected = vec![fields[image].clone()];
    if caption != image {
        selected.push(fields[caption].clone());
    }
    let projection = Type::group_type_builder(schema.name()).with_fields(selected).build().map_err(failed)?;
    let rows = reader.get_row_iter(Some(projection)).map_err(failed)?;
    for (number, record) in (1..).zip(rows) {
        match record {
            Ok(record) => list.add(number, row(&record, columns)),
            // Nothing after a damaged page can be trusted to be in step.
            Err(e) => {
                list.add(number, Err(format!("the rest of the file cannot be read: {e}")));
                break;
            }
        }
    }
    Ok(format!("rows with the text columns `{}` and `{}`", columns.image, columns.caption))
}

fn row(record: &Record, columns: &Columns) -> Row {
    let text = |name: &str| {
        let field = record.get_column_iter().find(|(column, _)| *column == name).map(|(_, field)| field);
        match field {
            Some(Field::Str(text)) => Ok(text.clone()),
            // Writers that do not mark their text columns as such.
            Some(Field::Bytes(bytes)) => {
                bytes.as_utf8().map(String::from).map_err(|_| format!("column `{name}` is not UTF-8 text"))
            }
            Some(Field::Null) | None => Err(format!("column `{name}` is empty")),
            Some(_) => Err(format!("column `{name}` is not text")),
        }
    };
    Ok((text(&columns.image)?, text(&columns.caption)?))
}
