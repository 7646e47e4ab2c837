//! The one error type of this crate.

use std::path::PathBuf;

use crate::message::Origin;

/// What can be wrong with data, files or tokenizers. Every variant says where, what came, what was
/// expected and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A path that was given does not exist.
    #[error("{}: no such file or folder; check the path", .path.display())]
    NotFound {
        /// The path as given.
        path: PathBuf,
    },
    /// A file that was named explicitly has an ending that nothing here reads.
    #[error("{}: cannot read this kind of file as {what}; expected one of: {supported}", .path.display())]
    UnknownExtension {
        /// The file.
        path: PathBuf,
        /// What it was to be read as: "a corpus", "pairs", …
        what: &'static str,
        /// The endings that are read, as one line.
        supported: String,
    },
    /// Folders were given and no file in them has an ending that is read.
    #[error(
        "no {what} found in {}: {ignored} other files there; expected files ending in one of: {supported}",
        list(.paths)
    )]
    NoFiles {
        /// What was looked for.
        what: &'static str,
        /// The paths as given.
        paths: Vec<PathBuf>,
        /// Files seen and not read.
        ignored: u64,
        /// The endings that are read.
        supported: String,
    },
    /// The files exist and hold nothing.
    #[error("{} holds no {what}: {files} files read, all of them empty; add some text", list(.paths))]
    Empty {
        /// What was expected: "documents", "pairs", …
        what: &'static str,
        /// The paths as given.
        paths: Vec<PathBuf>,
        /// Files read.
        files: usize,
    },
    /// Reading or writing failed in the operating system or in a decompressor.
    #[error("{}: cannot {action}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// "read", "write", …
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// Bytes that are not UTF-8.
    #[error(
        "{}:{line}: not UTF-8 at byte {byte} of the file{hint}; convert it to UTF-8, for example with iconv",
        .path.display()
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Byte offset from the start of the (decompressed) file, from 0.
        byte: u64,
        /// What the file looks like instead, where that is plain.
        hint: &'static str,
    },
    /// A line (or a row of a Parquet file) does not have the expected shape.
    #[error("{origin}: {field}: {problem}; {cure}")]
    Record {
        /// File and line.
        origin: Origin,
        /// The field, such as `field "messages[2].role"`, or `line`.
        field: String,
        /// What came and what was expected.
        problem: String,
        /// What to do.
        cure: String,
    },
    /// A Parquet file that cannot be read as a corpus.
    #[error("{}: not a usable Parquet corpus: {problem}", .path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A tokenizer that cannot be trained, read, saved or used.
    #[error("tokenizer{}: {problem}", .path.as_ref().map(|p| format!(" {}", p.display())).unwrap_or_default())]
    Tokenizer {
        /// The file, where one is concerned.
        path: Option<PathBuf>,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A chat template that does not compile, fails, or cannot be used for training.
    #[error("chat template: {problem}")]
    Template {
        /// What the template engine or the check said.
        problem: String,
    },
    /// A shard file that is truncated, damaged or made for something else.
    #[error("{}: not a usable token shard: {problem}; build it again from the corpus", .path.display())]
    Shard {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        problem: String,
    },
    /// An example with more tokens than fit into one sequence.
    #[error(
        "{origin}: this example has {tokens} tokens and a sequence holds {sequence}; shorten it, train with a \
         longer sequence, or ask for long examples to be cut or dropped"
    )]
    LongExample {
        /// Where the example comes from.
        origin: Origin,
        /// Positions the example needs.
        tokens: usize,
        /// Positions a row has.
        sequence: usize,
    },
    /// A setting that cannot work, or a saved position that belongs to other data.
    #[error("{what}: {problem}")]
    Setting {
        /// Which setting.
        what: &'static str,
        /// What was expected and what came.
        problem: String,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl DataError {
    /// An input or output failure on `path` while doing `action`.
    pub(crate) fn io(path: &std::path::Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| DataError::Io { path, action, source }
    }
}
