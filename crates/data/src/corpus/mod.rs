//! Corpora: raw text for the base stage, streamed document by document.

mod parquet;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::DataError;
use crate::files::{self, FileDigest, Lines, Listing};
use crate::message::Origin;
use crate::records::{json_object, text_field};

const KINDS: [&str; 4] = ["txt", "md", "jsonl", "parquet"];

/// One text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The text; never empty and not only white space.
    pub text: String,
    /// The file and the line (Parquet: row) where it starts.
    pub origin: Origin,
}

impl AsRef<str> for Document {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl Document {
    /// The file it comes from.
    pub fn source(&self) -> &Path {
        &self.origin.path
    }
}

/// The files of a corpus; nothing is read before [`Corpus::documents`].
#[derive(Debug, Clone)]
pub struct Corpus {
    listing: Listing,
}

impl Corpus {
    /// Lists `.txt`, `.md`, `.jsonl` (each also `.zst` or `.gz`) and `.parquet` files: those given and
    /// those in folders given, recursively and in sorted order. A file met twice counts once.
    ///
    /// # Errors
    /// A path that does not exist, a file given by name that has another ending, no file at all.
    pub fn open(paths: &[PathBuf]) -> Result<Corpus, DataError> {
        Ok(Corpus { listing: files::list_files(paths, &KINDS, "corpus text")? })
    }

    /// The files, in reading order.
    pub fn files(&self) -> &[PathBuf] {
        &self.listing.files
    }

    /// How many files in the given folders have another ending and are not read.
    pub fn ignored_files(&self) -> u64 {
        self.listing.ignored
    }

    /// Bytes of all files on disk: an estimate of the work, for compressed files a low one.
    ///
    /// # Errors
    /// [`DataError::Io`] when a file has gone.
    pub fn bytes_on_disk(&self) -> Result<u64, DataError> {
        self.files()
            .iter()
            .map(|path| Ok(std::fs::metadata(path).map_err(DataError::io(path, "open"))?.len()))
            .sum()
    }

    /// Hashes all files, for the lineage of a model.
    ///
    /// # Errors
    /// [`DataError::Io`] when a file cannot be read.
    pub fn digests(&self) -> Result<Vec<FileDigest>, DataError> {
        files::digests(self.files().iter().map(PathBuf::as_path))
    }

    /// Streams the documents. After an error the iterator ends. A corpus without any document is an
    /// error at the end; single empty documents are passed over and counted.
    pub fn documents(&self) -> Documents {
        Documents {
            listing: self.listing.clone(),
            next_file: 0,
            current: None,
            yielded: 0,
            empty: 0,
            finished: false,
        }
    }
}

/// The documents of a [`Corpus`], in order.
pub struct Documents {
    listing: Listing,
    next_file: usize,
    current: Option<Open>,
    yielded: u64,
    empty: u64,
    finished: bool,
}

enum Open {
    /// `.txt`: documents separated by two or more empty lines.
    Text { lines: Lines, path: Arc<Path> },
    /// `.md`: the file is the document.
    Whole { lines: Lines, path: Arc<Path> },
    /// `.jsonl`: a document a line.
    Json { lines: Lines, path: Arc<Path> },
    /// `.parquet`: a document a row.
    Parquet(Box<parquet::Rows>),
}

impl Documents {
    /// Documents so far that were empty or white space only, and so were not returned.
    pub fn empty_documents(&self) -> u64 {
        self.empty
    }

    fn advance(&mut self) -> Result<Option<Document>, DataError> {
        loop {
            let Some(open) = &mut self.current else {
                let Some(path) = self.listing.files.get(self.next_file) else {
                    if self.yielded == 0 {
                        return Err(DataError::Empty {
                            what: "documents",
                            paths: self.listing.given.clone(),
                            files: self.listing.files.len(),
                        });
                    }
                    return Ok(None);
                };
                self.next_file += 1;
                self.current = Some(Open::new(path)?);
                continue;
            };
            match open.next_document()? {
                None => self.current = None,
                Some(document) if document.text.trim().is_empty() => self.empty += 1,
                Some(document) => {
                    self.yielded += 1;
                    return Ok(Some(document));
                }
            }
        }
    }
}

impl Iterator for Documents {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let next = self.advance().transpose();
        self.finished = !matches!(next, Some(Ok(_)));
        next
    }
}

impl Open {
    fn new(path: &Path) -> Result<Open, DataError> {
        let shared: Arc<Path> = Arc::from(path);
        Ok(match files::kind_of(path, &KINDS) {
            Some("jsonl") => Open::Json { lines: Lines::open(path)?, path: shared },
            Some("md") => Open::Whole { lines: Lines::open(path)?, path: shared },
            Some("parquet") => Open::Parquet(Box::new(parquet::Rows::open(path)?)),
            _ => Open::Text { lines: Lines::open(path)?, path: shared },
        })
    }

    fn next_document(&mut self) -> Result<Option<Document>, DataError> {
        match self {
            Open::Text { lines, path } => next_text(lines, path),
            Open::Whole { lines, path } => {
                let mut text = String::new();
                while let Some(line) = lines.next_line()? {
                    text.push_str(line);
                }
                let end = lines.line() == 0 || text.is_empty();
                Ok((!end).then(|| Document { text, origin: Origin { path: path.clone(), line: 1 } }))
            }
            Open::Json { lines, path } => loop {
                let Some(line) = lines.next_line()? else { return Ok(None) };
                if line.trim().is_empty() {
                    continue;
                }
                let line = line.to_string();
                let origin = Origin { path: path.clone(), line: lines.line() };
                let object = json_object(&line, &origin)?;
                let text = text_field(&object, "text", &origin)?;
                return Ok(Some(Document { text, origin }));
            },
            Open::Parquet(rows) => rows.next_document(),
        }
    }
}

/// Reads up to the next two empty lines. Surrounding empty lines belong to no document.
fn next_text(lines: &mut Lines, path: &Arc<Path>) -> Result<Option<Document>, DataError> {
    let mut text = String::new();
    let mut start = 0;
    let mut empty = String::new();
    let mut empty_count = 0;
    while let Some(line) = lines.next_line()? {
        if line.trim_end_matches(['\r', '\n']).is_empty() {
            if text.is_empty() {
                continue;
            }
            empty.push_str(line);
            empty_count += 1;
            if empty_count == 2 {
                break;
            }
            continue;
        }
        // Separators between documents are dropped, empty lines inside one are kept.
        text.push_str(&empty);
        text.push_str(line);
        empty.clear();
        empty_count = 0;
        if start == 0 {
            start = lines.line();
        }
    }
    if text.is_empty() {
        return Ok(None);
    }
    Ok(Some(Document { text, origin: Origin { path: path.clone(), line: start } }))
}
