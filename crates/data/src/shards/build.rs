//! Making shards: tokenising documents, splitting them, writing the file.

use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{HEADER, Header};
use crate::corpus::Document;
use crate::error::DataError;
use crate::files::write_atomic;
use crate::hash::{sha256, uniform};
use crate::split::{blocks, threshold};
use crate::tokenizer::Tokenizer;

/// The file that is trained on.
pub const TRAIN_FILE: &str = "train.bin";
/// The file that is measured on.
pub const HELD_OUT_FILE: &str = "held-out.bin";

/// Longer documents are split into blocks, since whole ones would make the held-out part lumpy.
const LONG_DOCUMENT: usize = 64 << 10;
/// Bytes of a block of a long document.
const BLOCK: usize = 16 << 10;
/// With fewer units than this, a corpus is small and all its documents are cut into small blocks.
const FEW_UNITS: usize = 64;
/// Bytes of a block of a small corpus.
const SMALL_BLOCK: usize = 2 << 10;
/// Bytes tokenised at a time.
const CHUNK: usize = 8 << 20;

/// How a corpus becomes shards.
#[derive(Debug, Clone)]
pub struct ShardOptions {
    /// Fraction of the text that is held out, in [0, 1).
    pub held_out: f64,
}

impl Default for ShardOptions {
    fn default() -> Self {
        ShardOptions { held_out: 0.01 }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardReport {
    /// Documents read.
    pub documents: u64,
    /// Text tokens in the training part.
    pub train_tokens: u64,
    /// UTF-8 bytes in the training part.
    pub train_bytes: u64,
    /// Text tokens in the held-out part.
    pub held_out_tokens: u64,
    /// UTF-8 bytes in the held-out part.
    pub held_out_bytes: u64,
}

/// Tokenises `documents` into [`TRAIN_FILE`] and [`HELD_OUT_FILE`] in `folder`.
///
/// What is split is documents, or the paragraph-blocks of documents over 64 KiB and of small corpora;
/// the SHA-256 of its text decides to which side each goes, so equal text is never on both. Neighbouring
/// blocks on one side stay one document. With three blocks or more and a fraction above 0 the held-out
/// part is never empty, and the training part never is.
///
/// # Errors
/// Errors of `documents` and of writing; a tokenizer without an end-of-text token.
pub fn build(
    documents: impl IntoIterator<Item = Result<Document, DataError>>,
    tokenizer: &Tokenizer,
    options: &ShardOptions,
    folder: &Path,
) -> Result<ShardReport, DataError> {
    let mut splitter = Splitter::new(options.held_out)?;
    let mut train = Spool::new(tokenizer, folder)?;
    let mut held_out = Spool::new(tokenizer, folder)?;
    let mut count = 0;
    {
        let mut sink = |text: String, held: bool| if held { held_out.add(text) } else { train.add(text) };
        for document in documents {
            count += 1;
            splitter.push(document?.text, &mut sink)?;
        }
        splitter.finish(&mut sink)?;
    }
    let (train_tokens, train_bytes) = train.write(&folder.join(TRAIN_FILE))?;
    let (held_out_tokens, held_out_bytes) = held_out.write(&folder.join(HELD_OUT_FILE))?;
    Ok(ShardReport { documents: count, train_tokens, train_bytes, held_out_tokens, held_out_bytes })
}

/// Tokenises `documents` into one shard, without splitting: for text that is held out already.
///
/// # Errors
/// As [`build`].
pub fn write(
    documents: impl IntoIterator<Item = Result<Document, DataError>>,
    tokenizer: &Tokenizer,
    path: &Path,
) -> Result<(), DataError> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut spool = Spool::new(tokenizer, folder)?;
    for document in documents {
        spool.add(document?.text)?;
    }
    spool.write(path).map(|_| ())
}

/// Decides which side each text goes to.
struct Splitter {
    threshold: u64,
    /// The first documents, until it is known whether the corpus is small.
    waiting: Option<Vec<String>>,
    units: usize,
}

type Sink<'s> = dyn FnMut(String, bool) -> Result<(), DataError> + 's;

impl Splitter {
    fn new(fraction: f64) -> Result<Splitter, DataError> {
        Ok(Splitter { threshold: threshold(fraction)?, waiting: Some(Vec::new()), units: 0 })
    }

    fn push(&mut self, text: String, sink: &mut Sink<'_>) -> Result<(), DataError> {
        let Some(waiting) = &mut self.waiting else {
            return emit(&[text], BLOCK, self.threshold, None, sink);
        };
        self.units += units(&text, BLOCK).len();
        waiting.push(text);
        if self.units >= FEW_UNITS {
            let waiting = self.waiting.take().unwrap_or_default();
            emit(&waiting, BLOCK, self.threshold, Forced::among(&waiting, BLOCK, self.threshold), sink)?;
        }
        Ok(())
    }

    fn finish(&mut self, sink: &mut Sink<'_>) -> Result<(), DataError> {
        let waiting = self.waiting.take().unwrap_or_default();
        emit(
            &waiting,
            SMALL_BLOCK,
            self.threshold,
            Forced::among(&waiting, SMALL_BLOCK, self.threshold),
            sink,
        )
    }
}

/// The units of a text that are split: blocks of `block` bytes, or the text itself where it is not long.
fn units(text: &str, block: usize) -> Vec<&str> {
    if block == BLOCK && text.len() <= LONG_DOCUMENT { vec![text] } else { blocks(text, block) }
}

/// Hashes that are put on a side whatever the threshold, so that neither side is empty.
struct Forced {
    held_out: u64,
    train: u64,
}

impl Forced {
    fn among(texts: &[String], block: usize, threshold: u64) -> Option<Forced> {
        let mut hashes: Vec<u64> =
            texts.iter().flat_map(|text| units(text, block)).map(|unit| uniform(unit.as_bytes())).collect();
        let many = hashes.len() > 2;
        hashes.sort_unstable();
        hashes.dedup();
        let (held_out, train) = (*hashes.first()?, *hashes.last()?);
        // One or two blocks are all for training, however they hash: `held_out` is then never reached.
        let held_out = if many && threshold > 0 && held_out != train { held_out } else { train };
        Some(Forced { held_out, train })
    }
}

fn emit(
    texts: &[String],
    block: usize,
    threshold: u64,
    forced: Option<Forced>,
    sink: &mut Sink<'_>,
) -> Result<(), DataError> {
    let is_held_out = |unit: &str| {
        let hash = uniform(unit.as_bytes());
        match &forced {
            Some(forced) if hash == forced.train => false,
            // With one distinct side forced to training, nothing else is held out either.
            Some(forced) if forced.held_out == forced.train => false,
            Some(forced) if hash == forced.held_out => true,
            _ => hash < threshold,
        }
    };
    for text in texts {
        let mut run = String::new();
        let mut side = false;
        for unit in units(text, block) {
            let held = is_held_out(unit);
            if held != side && !run.is_empty() {
                sink(std::mem::take(&mut run), side)?;
            }
            side = held;
            run.push_str(unit);
        }
        if !run.is_empty() {
            sink(run, side)?;
        }
    }
    Ok(())
}

/// Tokens on their way to a shard: they wait in a temporary file, since the header and the tables that
/// stand before them are known only at the end.
struct Spool<'t> {
    tokenizer: &'t Tokenizer,
    file: BufWriter<std::fs::File>,
    folder: std::path::PathBuf,
    width: u32,
    begin: u32,
    end: u32,
    starts: Vec<u64>,
    bytes: Vec<u64>,
    waiting: Vec<String>,
    waiting_bytes: usize,
}

impl<'t> Spool<'t> {
    fn new(tokenizer: &'t Tokenizer, folder: &Path) -> Result<Spool<'t>, DataError> {
        std::fs::create_dir_all(folder).map_err(DataError::io(folder, "create"))?;
        let file = tempfile::tempfile_in(folder).map_err(DataError::io(folder, "write into"))?;
        let Some(end) = tokenizer.eos_id() else {
            return Err(DataError::Tokenizer {
                path: None,
                problem: "has no end-of-text token; set eos_token in tokenizer_config.json".into(),
            });
        };
        Ok(Spool {
            tokenizer,
            file: BufWriter::with_capacity(1 << 20, file),
            folder: folder.to_path_buf(),
            width: if tokenizer.vocab_size() <= 1 << 16 { 2 } else { 4 },
            // Where texts have no beginning of their own, the end of the one before begins the next.
            begin: tokenizer.bos_id().unwrap_or(end),
            end,
            starts: vec![0],
            bytes: Vec::new(),
            waiting: Vec::new(),
            waiting_bytes: 0,
        })
    }

    fn add(&mut self, text: String) -> Result<(), DataError> {
        self.waiting_bytes += text.len();
        self.waiting.push(text);
        if self.waiting_bytes >= CHUNK { self.flush() } else { Ok(()) }
    }

    /// Tokenises what waits. Long texts are cut after line feeds, which are borders of tokens anyway:
    /// the tokenizer needs many bytes of memory for each byte of one text.
    fn flush(&mut self) -> Result<(), DataError> {
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let pieces: Vec<Vec<&str>> = waiting.iter().map(|text| blocks(text, BLOCK)).collect();
        let ids = self.tokenizer.encode_plain_batch(&pieces.concat())?;
        let mut ids = ids.into_iter();
        for (text, pieces) in waiting.iter().zip(&pieces) {
            let mut length = 0;
            for ids in ids.by_ref().take(pieces.len()) {
                length += ids.len() as u64;
                for id in ids {
                    let bytes = id.to_le_bytes();
                    self.file
                        .write_all(&bytes[..self.width as usize])
                        .map_err(DataError::io(&self.folder, "write into"))?;
                }
            }
            self.starts.push(self.starts.last().copied().unwrap_or(0) + length);
            self.bytes.push(text.len() as u64);
        }
        Ok(())
    }

    /// Writes the shard; returns its tokens and UTF-8 bytes.
    fn write(mut self, path: &Path) -> Result<(u64, u64), DataError> {
        self.flush()?;
        let mut tables = Vec::new();
        for length in self.tokenizer.byte_lengths() {
            tables.extend(u16::try_from(*length).unwrap_or(u16::MAX).to_le_bytes());
        }
        for number in self.starts.iter().chain(&self.bytes) {
            tables.extend(number.to_le_bytes());
        }
        let header = Header {
            width: self.width,
            vocab: self.tokenizer.vocab_size() as u32,
            begin: self.begin,
            end: self.end,
            tokens: self.starts.last().copied().unwrap_or(0),
            documents: self.bytes.len() as u64,
            text_bytes: self.bytes.iter().sum(),
            tokenizer: self.tokenizer.sha256(),
            tables: sha256(&tables),
        };
        let spool_failed = DataError::io(&self.folder, "write into");
        let file = self.file.into_inner().map_err(std::io::IntoInnerError::into_error);
        let mut file = file.map_err(spool_failed)?;
        file.seek(SeekFrom::Start(0)).map_err(DataError::io(&self.folder, "read from"))?;
        write_atomic(path, |writer| {
            let bytes: [u8; HEADER] = header.to_bytes();
            writer.write_all(&bytes)?;
            writer.write_all(&tables)?;
            std::io::copy(&mut BufReader::with_capacity(1 << 20, file).by_ref(), writer)
        })?;
        Ok((header.tokens, header.text_bytes))
    }
}
