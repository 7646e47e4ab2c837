//! Weights in safetensors files: one `model.safetensors`, or shards named by an index.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, View};

use crate::ModelError;

/// One weight: its Hugging Face name, its shape (rows first), and its numbers in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Hugging Face name, for example `model.norm.weight`.
    pub name: String,
    /// Extent of each dimension, the slowest first.
    pub shape: Vec<usize>,
    /// `shape`'s product of numbers.
    pub data: Vec<f32>,
}

/// Name of the weights file when there is one.
pub const SINGLE_FILE: &str = "model.safetensors";
/// Name of the list of shards when there are several.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Reads the tensors of `folder` that `expected` names (name, shape), in that order, as f32. F32, BF16
/// and F16 are read. Buffers that carry no learnt numbers (`rotary_emb.inv_freq`) and the copy of a tied
/// head are passed over.
///
/// # Errors
/// A file is absent or cut short; a tensor is absent, of another shape or type, or unknown.
pub fn read_weights(
    folder: &Path,
    expected: &[(String, Vec<usize>)],
) -> Result<Vec<NamedTensor>, ModelError> {
    read_tensors(&weight_files(folder)?, expected)
}

/// Reads the tensors that `expected` names from safetensors `files`, as [`read_weights`] does.
///
/// # Errors
/// As [`read_weights`].
pub fn read_tensors(
    files: &[PathBuf],
    expected: &[(String, Vec<usize>)],
) -> Result<Vec<NamedTensor>, ModelError> {
    let mut found: HashMap<String, NamedTensor> = HashMap::new();
    let shapes: HashMap<&str, &[usize]> =
        expected.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    for path in files {
        let bytes = map_file(path)?;
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|error| ModelError::WeightsFile { path: path.clone(), reason: error.to_string() })?;
        for (name, view) in tensors.iter() {
            let Some(shape) = shapes.get(name) else {
                if name.ends_with("rotary_emb.inv_freq") || name == "lm_head.weight" {
                    continue;
                }
                return Err(ModelError::TensorUnknown { path: path.clone(), tensor: name.to_string() });
            };
            if view.shape() != *shape {
                return Err(ModelError::TensorShape {
                    path: path.clone(),
                    tensor: name.to_string(),
                    expected: shape.to_vec(),
                    found: view.shape().to_vec(),
                });
            }
            let data = to_f32(&view).ok_or_else(|| ModelError::TensorType {
                path: path.clone(),
                tensor: name.to_string(),
                found: format!("{:?}", view.dtype()),
            })?;
            found.insert(
                name.to_string(),
                NamedTensor { name: name.to_string(), shape: shape.to_vec(), data },
            );
        }
    }
    // With several shards none of them is to blame alone: the last one's folder is named.
    let searched = match files {
        [one] => one.as_path(),
        many => many.last().and_then(|path| path.parent()).unwrap_or(Path::new("")),
    };
    let absent = |name: &str, shape: &[usize]| ModelError::TensorAbsent {
        path: searched.to_path_buf(),
        tensor: name.to_string(),
        expected: shape.to_vec(),
    };
    expected.iter().map(|(name, shape)| found.remove(name).ok_or_else(|| absent(name, shape))).collect()
}

/// Writes `tensors` as f32 to `path` with the metadata `{"format": "pt"}` that transformers asks for.
/// Not atomic: write inside [`crate::folder::write_folder`].
///
/// # Errors
/// The file cannot be written.
pub fn write_weights(path: &Path, tensors: &[NamedTensor]) -> Result<(), ModelError> {
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let views = tensors.iter().map(|tensor| (tensor.name.as_str(), Stored(tensor)));
    // The library makes a file for its owner alone; a model is to be read by whoever may read its folder, under the process's file mode mask
    // like any other file.
    let ordinary = ordinary_permissions(path).map_err(ModelError::io("write", path))?;
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => ModelError::io("write", path)(source),
        other => ModelError::io("write", path)(std::io::Error::other(other.to_string())),
    })?;
    std::fs::set_permissions(path, ordinary).map_err(ModelError::io("write", path))
}

/// Those that a new file beside `path` has.
fn ordinary_permissions(path: &Path) -> std::io::Result<std::fs::Permissions> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    Ok(builder.tempfile_in(folder)?.as_file().metadata()?.permissions())
}

/// The weights files of a folder, in the order of their names.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let single = folder.join(SINGLE_FILE);
    let index_path = folder.join(INDEX_FILE);
    if single.exists() || !index_path.exists() {
        return Ok(vec![single]);
    }
    let text = std::fs::read_to_string(&index_path).map_err(ModelError::io("read", &index_path))?;
    let index: Index = serde_json::from_str(&text).map_err(ModelError::json(&index_path))?;
    let mut names: Vec<&String> = index.weight_map.values().collect();
    names.sort();
    names.dedup();
    // A shard is a file of this folder: an index from elsewhere must not make us open other files.
    if let Some(name) = names.iter().find(|name| name.contains(['/', '\\']) || name.starts_with('.')) {
        return Err(ModelError::Field {
            path: index_path,
            field: "weight_map".to_string(),
            expected: "names of files in the same folder".to_string(),
            found: name.to_string(),
        });
    }
    Ok(names.iter().map(|name| folder.join(name)).collect())
}

fn map_file(path: &Path) -> Result<Mmap, ModelError> {
    let file = File::open(path).map_err(ModelError::io("read", path))?;
    // SAFETY: the map is read only and lives for one call of `read_weights`. Finished folders are replaced
    // by rename and never written in place, so the bytes under the map stay what they were; a foreign
    // program that truncates the file meanwhile would end this process, as with any reader of maps.
    unsafe { Mmap::map(&file) }.map_err(ModelError::io("read", path))
}

/// The numbers of a tensor; `None` when its type is not read here.
fn to_f32(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let bytes = view.data();
    let halves = || bytes.as_chunks::<2>().0.iter();
    match view.dtype() {
        Dtype::F32 => Some(bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()),
        Dtype::BF16 => Some(halves().map(|two| half::bf16::from_le_bytes(*two).to_f32()).collect()),
        Dtype::F16 => Some(halves().map(|two| half::f16::from_le_bytes(*two).to_f32()).collect()),
        _ => None,
    }
}

/// A tensor on its way to a file.
struct Stored<'a>(&'a NamedTensor);

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.0.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.0.data.iter().flat_map(|number| number.to_le_bytes()).collect())
    }
    fn data_len(&self) -> usize {
        self.0.data.len() * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<NamedTensor> {
        let tensor = |name: &str, shape: &[usize]| NamedTensor {
            name: name.to_string(),
            shape: shape.to_vec(),
            data: (0..shape.iter().product()).map(|i| i as f32 * 0.37 - 1.0).collect(),
        };
        vec![tensor("b.weight", &[2, 3]), tensor("a.weight", &[5])]
    }

    fn shapes(tensors: &[NamedTensor]) -> Vec<(String, Vec<usize>)> {
        tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect()
    }

    #[test]
    fn weights_come_back_in_the_asked_order() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = sample();
        write_weights(&folder.path().join(SINGLE_FILE), &tensors).unwrap();
        assert_eq!(read_weights(folder.path(), &shapes(&tensors)).unwrap(), tensors);
    }

    #[test]
    fn shards_are_found_through_the_index() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = sample();
        write_weights(&folder.path().join("one.safetensors"), &tensors[..1]).unwrap();
        write_weights(&folder.path().join("two.safetensors"), &tensors[1..]).unwrap();
        let index = r#"{"metadata": {}, "weight_map":
            {"b.weight": "one.safetensors", "a.weight": "two.safetensors"}}"#;
        std::fs::write(folder.path().join(INDEX_FILE), index).unwrap();
        assert_eq!(read_weights(folder.path(), &shapes(&tensors)).unwrap(), tensors);
        std::fs::write(folder.path().join(INDEX_FILE), r#"{"weight_map": {"x": "../x"}}"#).unwrap();
        assert!(matches!(read_weights(folder.path(), &[]), Err(ModelError::Field { .. })));
    }

    #[test]
    fn half_formats_are_read_as_their_values() {
        let folder = tempfile::tempdir().unwrap();
        for (dtype, bytes) in
            [(Dtype::BF16, [0xC0, 0x3F, 0x20, 0xC0]), (Dtype::F16, [0x00, 0x3E, 0x00, 0xC1])]
        {
            // 1.5 and -2.5 in both formats.
            let view = TensorView::new(dtype, vec![2], &bytes).unwrap();
            safetensors::serialize_to_file([("x", view)], None, &folder.path().join(SINGLE_FILE)).unwrap();
            let read = read_weights(folder.path(), &[("x".to_string(), vec![2])]).unwrap();
            assert_eq!(read[0].data, [1.5, -2.5], "{dtype:?}");
        }
    }

    #[test]
    fn absent_wrong_and_unknown_tensors_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = sample();
        let path = folder.path().join(SINGLE_FILE);
        assert!(matches!(read_weights(folder.path(), &[]), Err(ModelError::Io { .. })));
        write_weights(&path, &tensors).unwrap();
        let mut asked = shapes(&tensors);
        asked[0].1 = vec![3, 2];
        let message = read_weights(folder.path(), &asked).unwrap_err().to_string();
        assert!(message.contains("b.weight") && message.contains("[3, 2]") && message.contains("[2, 3]"));
        asked = shapes(&tensors);
        asked.push(("c.weight".to_string(), vec![1]));
        assert!(matches!(read_weights(folder.path(), &asked), Err(ModelError::TensorAbsent { .. })));
        asked.remove(0);
        assert!(matches!(read_weights(folder.path(), &asked), Err(ModelError::TensorUnknown { .. })));
        let view = TensorView::new(Dtype::I8, vec![1], &[1]).unwrap();
        safetensors::serialize_to_file([("x", view)], None, &path).unwrap();
        let message = read_weights(folder.path(), &[("x".to_string(), vec![1])]).unwrap_err().to_string();
        assert!(message.contains("I8"), "{message}");
    }

    proptest! {
        #[test]
        fn a_file_cut_anywhere_is_an_error(cut in 0usize..1000) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(SINGLE_FILE);
            write_weights(&path, &sample()).unwrap();
            let whole = std::fs::read(&path).unwrap();
            let cut = cut % whole.len();
            std::fs::write(&path, &whole[..cut]).unwrap();
            let result = read_weights(folder.path(), &shapes(&sample()));
            prop_assert!(matches!(result, Err(ModelError::WeightsFile { .. })), "{result:?}");
        }
    }
}
