//! Listing, opening, hashing and atomically writing files.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::DataError;
use crate::hash::hex;

/// A data file's identity, for the lineage of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// The file as it was found.
    pub path: PathBuf,
    /// SHA-256 of the bytes on disk (compressed, where the file is), lower-case hexadecimal.
    pub sha256: String,
    /// Bytes on disk.
    pub bytes: u64,
}

/// Hashes `files` in the given order.
///
/// # Errors
/// [`DataError::Io`] when one cannot be read.
pub fn digests<'a>(files: impl IntoIterator<Item = &'a Path>) -> Result<Vec<FileDigest>, DataError> {
    files.into_iter().map(digest).collect()
}

fn digest(path: &Path) -> Result<FileDigest, DataError> {
    let mut file = File::open(path).map_err(DataError::io(path, "open"))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut buffer).map_err(DataError::io(path, "read"))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
    Ok(FileDigest { path: path.to_path_buf(), sha256: hex(&hasher.finalize()), bytes })
}

/// The endings that `kinds` (without dot, lower case) cover, compressed ones included.
pub(crate) fn supported(kinds: &[&str]) -> String {
    let mut names: Vec<String> = kinds.iter().map(|kind| format!(".{kind}")).collect();
    names.push("(all but .parquet also with .zst or .gz)".into());
    if !kinds.contains(&"parquet") {
        names.pop();
        names.push("(also with .zst or .gz)".into());
    }
    names.join(" ")
}

/// The kind of `path` among `kinds`, by its ending without `.zst`/`.gz` and regardless of case.
pub(crate) fn kind_of<'k>(path: &Path, kinds: &[&'k str]) -> Option<&'k str> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let (name, compressed) = match name.strip_suffix(".zst").or_else(|| name.strip_suffix(".gz")) {
        Some(inner) => (inner.to_string(), true),
        None => (name, false),
    };
    let (_, extension) = name.rsplit_once('.')?;
    // Parquet compresses inside and is read from the end, so it cannot be wrapped.
    kinds.iter().copied().find(|kind| *kind == extension && !(compressed && *kind == "parquet"))
}

/// Files found below some paths.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    /// The paths as given, for error messages.
    pub given: Vec<PathBuf>,
    /// Files to read, each once: in the order given, folders recursively in sorted order.
    pub files: Vec<PathBuf>,
    /// Files seen in folders whose ending is not among the kinds.
    pub ignored: u64,
}

/// Lists the files of `kinds` under `paths`.
pub(crate) fn list_files(
    paths: &[PathBuf],
    kinds: &[&str],
    what: &'static str,
) -> Result<Listing, DataError> {
    let mut listing = Listing { given: paths.to_vec(), files: Vec::new(), ignored: 0 };
    let mut seen = HashSet::new();
    let mut add = |path: &Path, files: &mut Vec<PathBuf>| -> Result<(), DataError> {
        let real = path.canonicalize().map_err(DataError::io(path, "open"))?;
        if seen.insert(real) {
            files.push(path.to_path_buf());
        }
        Ok(())
    };
    for path in paths {
        if !path.exists() {
            return Err(DataError::NotFound { path: path.clone() });
        }
        if !path.is_dir() {
            if kind_of(path, kinds).is_none() {
                return Err(DataError::UnknownExtension {
                    path: path.clone(),
                    what,
                    supported: supported(kinds),
                });
            }
            add(path, &mut listing.files)?;
            continue;
        }
        for entry in walkdir::WalkDir::new(path).follow_links(true).sort_by_file_name() {
            let entry = entry.map_err(|error| {
                let at = error.path().unwrap_or(path).to_path_buf();
                let source =
                    error.into_io_error().unwrap_or_else(|| std::io::Error::other("a loop of links"));
                DataError::Io { path: at, action: "list", source }
            })?;
            if !entry.file_type().is_file() {
                continue;
            }
            if kind_of(entry.path(), kinds).is_some() {
                add(entry.path(), &mut listing.files)?;
            } else {
                listing.ignored += 1;
            }
        }
    }
    if listing.files.is_empty() {
        return Err(DataError::NoFiles {
            what,
            paths: paths.to_vec(),
            ignored: listing.ignored,
            supported: supported(kinds),
        });
    }
    Ok(listing)
}

/// Lines of a text file, decompressed by its ending and checked to be UTF-8.
pub(crate) struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    buffer: Vec<u8>,
    line: u64,
    offset: u64,
}

impl Lines {
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io(path, "open"))?;
        let name = path.to_string_lossy().to_ascii_lowercase();
        let reader: Box<dyn BufRead + Send> = if name.ends_with(".zst") {
            let decoder =
                zstd::stream::read::Decoder::new(file).map_err(DataError::io(path, "decompress"))?;
            Box::new(BufReader::with_capacity(1 << 16, decoder))
        } else if name.ends_with(".gz") {
            let decoder = flate2::bufread::MultiGzDecoder::new(BufReader::new(file));
            Box::new(BufReader::with_capacity(1 << 16, decoder))
        } else {
            Box::new(BufReader::with_capacity(1 << 16, file))
        };
        Ok(Lines { path: path.to_path_buf(), reader, buffer: Vec::new(), line: 0, offset: 0 })
    }

    /// The number of the line last returned, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// The next line with its line feed, or `None` at the end.
    pub fn next_line(&mut self) -> Result<Option<&str>, DataError> {
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        let read =
            self.reader.read_until(b'\n', &mut self.buffer).map_err(DataError::io(&self.path, "read"))?;
        if read == 0 {
            return Ok(None);
        }
        self.line += 1;
        let utf16 = self.line == 1 && matches!(self.buffer.get(..2), Some([0xff, 0xfe] | [0xfe, 0xff]));
        match std::str::from_utf8(&self.buffer) {
            // A byte order mark is not text.
            Ok(line) if self.line == 1 => Ok(Some(line.strip_prefix('\u{feff}').unwrap_or(line))),
            Ok(line) => Ok(Some(line)),
            Err(error) => Err(DataError::NotUtf8 {
                path: self.path.clone(),
                line: self.line,
                byte: self.offset + error.valid_up_to() as u64,
                hint: if utf16 { " (it looks like UTF-16)" } else { "" },
            }),
        }
    }
}

/// Writes a file so that it appears whole or not at all: temporary name beside it, fsync, rename.
pub(crate) fn write_atomic<T>(
    path: &Path,
    write: impl FnOnce(&mut std::io::BufWriter<&mut File>) -> std::io::Result<T>,
) -> Result<T, DataError> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(DataError::io(folder, "create"))?;
    let mut temporary = tempfile::Builder::new()
        .prefix(".partial-")
        .tempfile_in(folder)
        .map_err(DataError::io(folder, "write into"))?;
    let result = {
        let mut writer = std::io::BufWriter::with_capacity(1 << 20, temporary.as_file_mut());
        let result = write(&mut writer).map_err(DataError::io(path, "write"))?;
        writer.flush().map_err(DataError::io(path, "write"))?;
        result
    };
    temporary.as_file().sync_all().map_err(DataError::io(path, "write"))?;
    share_like_other_files(temporary.as_file()).map_err(DataError::io(path, "set the permissions of"))?;
    temporary.persist(path).map_err(|error| DataError::Io {
        path: path.to_path_buf(),
        action: "rename to",
        source: error.error,
    })?;
    // The rename itself must survive a power cut; not every file system lets a folder be synced.
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(result)
}

/// Temporary files are private to their owner; models and shards are to be read by a group's members.
#[cfg(unix)]
fn share_like_other_files(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn share_like_other_files(_file: &File) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_recognised_with_and_without_compression() {
        let kinds = ["txt", "jsonl", "parquet"];
        let kind = |name: &str| kind_of(Path::new(name), &kinds);
        assert_eq!(kind("a.txt"), Some("txt"));
        assert_eq!(kind("b/A.TXT.GZ"), Some("txt"));
        assert_eq!(kind("a.jsonl.zst"), Some("jsonl"));
        assert_eq!(kind("a.parquet"), Some("parquet"));
        assert_eq!(kind("a.parquet.gz"), None);
        assert_eq!(kind("a.gz"), None);
        assert_eq!(kind("txt"), None);
    }

    #[test]
    fn an_interrupted_write_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write_atomic(&path, |writer| writer.write_all(b"first")).unwrap();
        let failed = write_atomic(&path, |writer| {
            writer.write_all(b"second")?;
            Err::<(), _>(std::io::Error::other("disk full"))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn sha256_is_that_of_the_bytes_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc.txt");
        std::fs::write(&path, "abc").unwrap();
        let digest = &digests([path.as_path()]).unwrap()[0];
        // FIPS 180-4, example of a one-block message.
        assert_eq!(digest.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(digest.bytes, 3);
    }
}
