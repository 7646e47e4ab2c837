//! `lineage.json`: where a model comes from, so that it can be explained and made again.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{ModelError, folder, weights};

/// Name of the file inside a model's folder.
pub const FILE: &str = "lineage.json";

/// Everything that went into a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// The model's name.
    pub name: String,
    /// The stage that made it: `base`, `command` or `dialogue`.
    pub stage: String,
    /// The model it was trained from; none for a base model.
    pub parent: Option<Parent>,
    /// The files it was trained on.
    pub data: Vec<DataFile>,
    /// Every setting of the run, as in its `run.toml`.
    pub recipe: Value,
    /// Seed of weights and data order.
    pub seed: u64,
    /// Tokens seen in this stage, repeats counted.
    pub tokens: u64,
    /// Floating-point operations spent in this stage.
    pub flops: f64,
    /// What was measured at the end, for example `loss` in nats per token and `bits_per_byte`.
    pub metrics: Value,
    /// Program and version.
    pub software: String,
}

/// A model that another one was trained from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its name.
    pub name: String,
    /// SHA-256 of its weights file, in hexadecimal.
    pub sha256: String,
}

/// A file that was trained on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// Where it was.
    pub path: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// Its size in bytes.
    pub bytes: u64,
}

impl Lineage {
    /// Reads `lineage.json` of `folder`; `None` where there is none, as in folders made elsewhere.
    ///
    /// # Errors
    /// The file is there but cannot be read or is not a lineage.
    pub fn load(folder: &Path) -> Result<Option<Lineage>, ModelError> {
        let path = folder.join(FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(serde_json::from_str(&text).map_err(ModelError::json(&path))?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ModelError::io("read", &path)(error)),
        }
    }

    /// Writes `lineage.json` into `folder`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), ModelError> {
        folder::write_json(&folder.join(FILE), self)
    }
}

impl Parent {
    /// Names the model in `folder` as a parent, by the hash of its weights (of its index, when sharded).
    ///
    /// # Errors
    /// The weights cannot be read.
    pub fn of(name: &str, folder: &Path) -> Result<Parent, ModelError> {
        let single = folder.join(weights::SINGLE_FILE);
        let file = if single.exists() { single } else { folder.join(weights::INDEX_FILE) };
        Ok(Parent { name: name.to_string(), sha256: sha256_file(&file)?.sha256 })
    }
}

/// Path, hash and size of a file, read in pieces.
///
/// # Errors
/// The file cannot be read.
pub fn sha256_file(path: &Path) -> Result<DataFile, ModelError> {
    let mut file = File::open(path).map_err(ModelError::io("read", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 1 << 16];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut buffer).map_err(ModelError::io("read", path))?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        bytes += read as u64;
    }
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(DataFile { path: path.display().to_string(), sha256, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lineage_survives_the_disk_and_absence_is_not_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Lineage::load(folder.path()).unwrap(), None);
        let lineage = Lineage {
            name: "sales".into(),
            stage: "command".into(),
            parent: Some(Parent { name: "base".into(), sha256: "00".into() }),
            data: vec![DataFile { path: "pairs.jsonl".into(), sha256: "11".into(), bytes: 5 }],
            recipe: serde_json::json!({"rows": 16}),
            seed: 7,
            tokens: 1000,
            flops: 1.5e12,
            metrics: serde_json::json!({"loss": 1.25}),
            software: "strata 0.1.0".into(),
        };
        lineage.save(folder.path()).unwrap();
        assert_eq!(Lineage::load(folder.path()).unwrap(), Some(lineage));
        std::fs::write(folder.path().join(FILE), "{\"name\": \n3}").unwrap();
        let message = Lineage::load(folder.path()).unwrap_err().to_string();
        assert!(message.contains("lineage.json:2"), "{message}");
    }

    #[test]
    fn a_file_has_the_hash_of_the_standard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        let digest = sha256_file(&path).unwrap();
        // FIPS 180-4, example B.1.
        let standard = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((digest.sha256.as_str(), digest.bytes), (standard, 3));
    }
}
