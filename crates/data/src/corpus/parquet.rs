//! The string column `text` of a Parquet file, row by row.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::ByteArrayType;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::Document;
use crate::error::DataError;
use crate::message::Origin;

/// Rows decoded at a time: enough to amortise, little enough to hold.
const BATCH: usize = 256;

/// Reads one file; row groups are opened one after the other.
pub(super) struct Rows {
    path: Arc<Path>,
    reader: SerializedFileReader<File>,
    column: usize,
    nullable: bool,
    next_group: usize,
    current: Option<ColumnReaderImpl<ByteArrayType>>,
    row: u64,
    ready: VecDeque<Document>,
}

impl Rows {
    pub fn open(path: &Path) -> Result<Rows, DataError> {
        let problem = |problem: String| DataError::Parquet { path: PathBuf::from(path), problem };
        let file = File::open(path).map_err(DataError::io(path, "open"))?;
        let reader = SerializedFileReader::new(file).map_err(|error| problem(error.to_string()))?;
        let schema = reader.metadata().file_metadata().schema_descr_ptr();
        let columns = schema.columns();
        let Some(column) = columns.iter().position(|column| column.path().string() == "text") else {
            let names: Vec<String> = columns.iter().map(|column| column.path().string()).collect();
            return Err(problem(format!(
                "no column \"text\"; it has: {}; rename the column that holds the text",
                names.join(", ")
            )));
        };
        let descriptor = &columns[column];
        if descriptor.physical_type() != Type::BYTE_ARRAY || descriptor.max_rep_level() != 0 {
            return Err(problem(format!(
                "column \"text\" must be a string column and is {}; write one string a row",
                descriptor.physical_type()
            )));
        }
        Ok(Rows {
            path: Arc::from(path),
            nullable: descriptor.max_def_level() > 0,
            reader,
            column,
            next_group: 0,
            current: None,
            row: 0,
            ready: VecDeque::new(),
        })
    }

    pub fn next_document(&mut self) -> Result<Option<Document>, DataError> {
        loop {
            if let Some(document) = self.ready.pop_front() {
                return Ok(Some(document));
            }
            if self.current.is_none() {
                if self.next_group == self.reader.num_row_groups() {
                    return Ok(None);
                }
                self.current = Some(self.open_group()?);
                self.next_group += 1;
            }
            self.fill()?;
        }
    }

    fn problem(&self, problem: impl ToString) -> DataError {
        DataError::Parquet { path: self.path.to_path_buf(), problem: problem.to_string() }
    }

    fn open_group(&self) -> Result<ColumnReaderImpl<ByteArrayType>, DataError> {
        let group = self.reader.get_row_group(self.next_group).map_err(|error| self.problem(error))?;
        match group.get_column_reader(self.column).map_err(|error| self.problem(error))? {
            ColumnReader::ByteArrayColumnReader(column) => Ok(column),
            _ => Err(self.problem("column \"text\" is not a string column in every row group")),
        }
    }

    fn fill(&mut self) -> Result<(), DataError> {
        let Some(column) = &mut self.current else { return Ok(()) };
        let mut levels = Vec::new();
        let mut values = Vec::new();
        let levels_buffer = self.nullable.then_some(&mut levels);
        let result = column.read_records(BATCH, levels_buffer, None, &mut values);
        let (records, found, _) = result.map_err(|error| self.problem(error))?;
        if records == 0 {
            self.current = None;
            return Ok(());
        }
        if found != records {
            let null = levels.iter().position(|level| *level == 0).unwrap_or(0) as u64;
            return Err(DataError::Record {
                origin: Origin { path: self.path.clone(), line: self.row + null + 1 },
                field: "field \"text\"".into(),
                problem: "is null, expected a string".into(),
                cure: "remove the row or fill in its text".into(),
            });
        }
        for value in values {
            self.row += 1;
            let origin = Origin { path: self.path.clone(), line: self.row };
            let text = std::str::from_utf8(value.data()).map_err(|error| DataError::Record {
                origin: origin.clone(),
                field: "field \"text\"".into(),
                problem: format!("is not UTF-8 at byte {} of the value", error.valid_up_to()),
                cure: "write the column as UTF-8 strings".into(),
            })?;
            self.ready.push_back(Document { text: text.to_string(), origin });
        }
        Ok(())
    }
}
