//! Token shards: a tokenised corpus as one memory-mapped file.
//!
//! All numbers are little-endian. Layout, in this order:
//!
//! | part | bytes |
//! |---|---|
//! | header, see `Header` | 160 |
//! | UTF-8 bytes a token stands for, `u16` each, `vocab` of them | 2 × vocab |
//! | start of every document in the tokens, `u64` each, and at last their number | 8 × (documents + 1) |
//! | UTF-8 bytes of every document, `u64` each | 8 × documents |
//! | tokens, `u16` or `u32` each, without those that begin and end a text | width × tokens |
//!
//! The header ends with its own SHA-256 and holds that of the tables, so a damaged file is found when
//! it is opened; the tokens are checked against the vocabulary as they are read.

mod build;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::DataError;
use crate::hash::sha256;

pub use build::{HELD_OUT_FILE, ShardOptions, ShardReport, TRAIN_FILE, build, write};

const MAGIC: [u8; 8] = *b"STRSHARD";
const VERSION: u32 = 1;
const HEADER: usize = 160;

/// The fixed start of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Header {
    /// Bytes per token: 2 or 4.
    width: u32,
    vocab: u32,
    begin: u32,
    end: u32,
    tokens: u64,
    documents: u64,
    text_bytes: u64,
    tokenizer: [u8; 32],
    tables: [u8; 32],
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend(MAGIC);
        for number in [VERSION, self.width, self.vocab, self.begin, self.end, 0] {
            bytes.extend(number.to_le_bytes());
        }
        for number in [self.tokens, self.documents, self.text_bytes] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.tokenizer);
        bytes.extend(self.tables);
        bytes.extend([0; 8]);
        let digest = sha256(&bytes);
        bytes.extend(digest);
        let mut header = [0; HEADER];
        header.copy_from_slice(&bytes);
        header
    }

    fn from_bytes(bytes: &[u8]) -> Result<Header, String> {
        if bytes.len() < HEADER {
            return Err(format!("it has {} bytes and its header alone takes {HEADER}", bytes.len()));
        }
        if bytes[..8] != MAGIC {
            return Err("it does not start as a token shard does".into());
        }
        if sha256(&bytes[..HEADER - 32]) != bytes[HEADER - 32..HEADER] {
            return Err("its header is damaged (checksum)".into());
        }
        let short = |at: usize| u32_at(bytes, at);
        let long = |at: usize| u64_at(bytes, at);
        if short(8) != VERSION {
            return Err(format!("it has version {}, expected {VERSION}", short(8)));
        }
        let mut header = Header {
            width: short(12),
            vocab: short(16),
            begin: short(20),
            end: short(24),
            tokens: long(32),
            documents: long(40),
            text_bytes: long(48),
            tokenizer: [0; 32],
            tables: [0; 32],
        };
        header.tokenizer.copy_from_slice(&bytes[56..88]);
        header.tables.copy_from_slice(&bytes[88..120]);
        if !matches!(header.width, 2 | 4) {
            return Err(format!("its tokens have {} bytes, expected 2 or 4", header.width));
        }
        Ok(header)
    }

    /// Where the parts after the header start, and the length of the file; `None` where that overflows.
    fn layout(&self) -> Option<Layout> {
        let starts = (HEADER as u64).checked_add(2 * u64::from(self.vocab))?;
        let bytes = starts.checked_add(self.documents.checked_add(1)?.checked_mul(8)?)?;
        let tokens = bytes.checked_add(self.documents.checked_mul(8)?)?;
        let end = tokens.checked_add(self.tokens.checked_mul(u64::from(self.width))?)?;
        let at = |position: u64| usize::try_from(position).ok();
        Some(Layout { starts: at(starts)?, bytes: at(bytes)?, tokens: at(tokens)?, end: at(end)? })
    }
}

#[derive(Debug, Clone, Copy)]
struct Layout {
    starts: usize,
    bytes: usize,
    tokens: usize,
    end: usize,
}

/// Four bytes at `at`, which the caller has checked to be there.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// A tokenised corpus, open for reading; shared between threads without locks.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    map: Mmap,
    header: Header,
    layout: Layout,
    byte_lengths: Vec<u16>,
}

impl Shard {
    /// Opens and checks a shard.
    ///
    /// # Errors
    /// [`DataError::Io`], or [`DataError::Shard`] for a file that is truncated, damaged, or none.
    pub fn open(path: &Path) -> Result<Shard, DataError> {
        let problem = |problem: String| DataError::Shard { path: path.to_path_buf(), problem };
        let file = File::open(path).map_err(DataError::io(path, "open"))?;
        // SAFETY: the map is read-only. Its content could only change under it if another program wrote
        // into the file in place; this crate never does (files appear by rename), every index read from
        // the map is checked before it is used, and tokens are any bytes.
        let map = unsafe { Mmap::map(&file) }.map_err(DataError::io(path, "map"))?;
        let header = Header::from_bytes(&map).map_err(problem)?;
        let layout = header.layout().ok_or_else(|| problem("its header gives impossible sizes".into()))?;
        if map.len() != layout.end {
            return Err(problem(format!("it has {} bytes, expected {}", map.len(), layout.end)));
        }
        if sha256(&map[HEADER..layout.tokens]) != header.tables {
            return Err(problem("its tables are damaged (checksum)".into()));
        }
        let byte_lengths = map[HEADER..layout.starts]
            .chunks_exact(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
            .collect();
        let shard = Shard { path: path.to_path_buf(), map, header, layout, byte_lengths };
        let mut last = 0;
        for document in 0..=shard.documents() {
            let start = shard.start(document);
            let wanted = if document == 0 { 0..=0 } else { last..=shard.header.tokens };
            if !wanted.contains(&start) || (document == shard.documents() && start != shard.header.tokens) {
                return Err(problem(format!("document {document} starts at an impossible place")));
            }
            last = start;
        }
        Ok(shard)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of documents.
    pub fn documents(&self) -> u64 {
        self.header.documents
    }

    /// Number of text tokens: without those that begin and end each document.
    pub fn tokens(&self) -> u64 {
        self.header.tokens
    }

    /// UTF-8 bytes of all documents.
    pub fn text_bytes(&self) -> u64 {
        self.header.text_bytes
    }

    /// UTF-8 bytes of one document; 0 for one that is not there.
    pub fn document_bytes(&self, document: u64) -> u64 {
        if document >= self.documents() {
            0
        } else {
            u64_at(&self.map, self.layout.bytes + 8 * document as usize)
        }
    }

    /// Number of tokens of one document; 0 for one that is not there.
    pub fn document_tokens(&self, document: u64) -> u64 {
        if document >= self.documents() { 0 } else { self.start(document + 1) - self.start(document) }
    }

    /// Reads `count` tokens of `document` from its token `from` on, as far as there are any.
    ///
    /// # Errors
    /// [`DataError::Shard`] for a token outside the vocabulary: the file is damaged.
    pub fn read(&self, document: u64, from: u64, count: usize, into: &mut Vec<u32>) -> Result<(), DataError> {
        let length = self.document_tokens(document);
        if from >= length {
            return Ok(());
        }
        let count = (count as u64).min(length - from);
        let width = self.header.width as usize;
        let start = self.layout.tokens + (self.start(document) + from) as usize * width;
        let bytes = &self.map[start..start + count as usize * width];
        let before = into.len();
        if width == 2 {
            into.extend(
                bytes.chunks_exact(2).map(|token| u32::from(u16::from_le_bytes([token[0], token[1]]))),
            );
        } else {
            into.extend(bytes.chunks_exact(4).map(|token| u32_at(token, 0)));
        }
        if let Some(bad) = into[before..].iter().find(|token| **token >= self.header.vocab) {
            let problem = format!(
                "document {document} holds token {bad}, and the vocabulary has {}",
                self.header.vocab
            );
            into.truncate(before);
            return Err(DataError::Shard { path: self.path.clone(), problem });
        }
        Ok(())
    }

    /// The token that begins a text.
    pub fn begin_token(&self) -> u32 {
        self.header.begin
    }

    /// The token that ends a text.
    pub fn end_token(&self) -> u32 {
        self.header.end
    }

    /// UTF-8 bytes that each token stands for, by id.
    pub fn byte_lengths(&self) -> &[u16] {
        &self.byte_lengths
    }

    /// SHA-256 of the tokenizer that made the shard; compare with `Tokenizer::sha256`.
    pub fn tokenizer_sha256(&self) -> [u8; 32] {
        self.header.tokenizer
    }

    fn start(&self, document: u64) -> u64 {
        u64_at(&self.map, self.layout.starts + 8 * document as usize)
    }
}
