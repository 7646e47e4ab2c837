//! Folders that appear whole or not at all, and the small JSON files inside a model's folder.

use std::fs::{self, File};
use std::path::Path;

use serde::Serialize;
use serde_json::json;

use crate::{Config, ModelError, NamedTensor, read_weights};

/// Reads configuration and weights of the Hugging Face folder `folder`.
///
/// # Errors
/// As [`Config::load`] and [`read_weights`].
pub fn read_model(folder: &Path) -> Result<(Config, Vec<NamedTensor>), ModelError> {
    let config = Config::load(folder)?;
    let tensors = read_weights(folder, &config.tensors())?;
    Ok((config, tensors))
}

/// Makes the folder `target` appear whole or not at all. `write` fills an empty folder beside it; then every
/// file is flushed to the disk and the folder renamed into place. An existing `target` is exchanged in one
/// step where the system can do that, so that a reader sees the old or the new one, never half.
///
/// # Errors
/// Whatever `write` returns, or an operating-system error. The old `target` is then untouched and nothing is
/// left beside it.
pub fn write_folder<E: From<ModelError>>(
    target: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(ModelError::io("create", parent))?;
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}.writing-");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    // Temporary folders are by default for their owner alone; a model is an ordinary folder, under the
    // process's file mode mask like any other.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    // Removed again when dropped, so an early return leaves nothing behind.
    let temporary = builder.tempdir_in(parent).map_err(ModelError::io("create a folder in", parent))?;
    write(temporary.path())?;
    sync_tree(temporary.path())?;
    if target.exists() {
        exchange(temporary.path(), target)?;
    } else {
        fs::rename(temporary.path(), target).map_err(ModelError::io("rename into place", target))?;
    }
    sync(parent)?;
    Ok(())
}

/// Swaps two folders. Linux does it in one step; elsewhere the old one is moved aside first.
fn exchange(new: &Path, target: &Path) -> Result<(), ModelError> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, new, CWD, target, RenameFlags::EXCHANGE) {
            Ok(()) => return Ok(()),
            // File systems without the exchange answer one of these; the slower way follows.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => return Err(ModelError::io("rename into place", target)(error.into())),
        }
    }
    let aside = new.with_extension("old");
    fs::rename(target, &aside).map_err(ModelError::io("move aside", target))?;
    if let Err(error) = fs::rename(new, target) {
        let _ = fs::rename(&aside, target);
        return Err(ModelError::io("rename into place", target)(error));
    }
    fs::remove_dir_all(&aside).map_err(ModelError::io("remove", &aside))
}

fn sync_tree(folder: &Path) -> Result<(), ModelError> {
    for entry in fs::read_dir(folder).map_err(ModelError::io("list", folder))? {
        let path = entry.map_err(ModelError::io("list", folder))?.path();
        if path.is_dir() { sync_tree(&path)? } else { sync(&path)? }
    }
    sync(folder)
}

fn sync(path: &Path) -> Result<(), ModelError> {
    // Folders can be opened for syncing on Unix only.
    if cfg!(not(unix)) && path.is_dir() {
        return Ok(());
    }
    File::open(path).and_then(|file| file.sync_all()).map_err(ModelError::io("flush", path))
}

/// Writes `value` as indented JSON with a final newline. Not atomic: write inside [`write_folder`].
///
/// # Errors
/// The file cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ModelError> {
    let mut text = serde_json::to_string_pretty(value).map_err(ModelError::json(path))?;
    text.push('\n');
    fs::write(path, text).map_err(ModelError::io("write", path))
}

/// Writes `generation_config.json`: what stops a generation, and greedy decoding unless asked otherwise.
///
/// # Errors
/// The file cannot be written.
pub fn write_generation_config(folder: &Path, config: &Config) -> Result<(), ModelError> {
    let value = json!({ "bos_token_id": config.bos, "eos_token_id": config.eos, "do_sample": false });
    write_json(&folder.join("generation_config.json"), &value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_folder_replaces_the_old_one_whole() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("model");
        for (file, text) in [("old", "1"), ("new", "2")] {
            write_folder(&target, |folder| {
                fs::create_dir(folder.join("inner")).unwrap();
                fs::write(folder.join("inner").join(file), text).map_err(ModelError::io("write", folder))
            })
            .unwrap();
        }
        assert_eq!(names(&target.join("inner")), ["new"]);
        assert_eq!(names(home.path()), ["model"], "nothing is left beside it");
    }

    #[test]
    fn a_full_disk_leaves_the_old_folder_and_no_trace() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("model");
        let write = |text: &'static str, fail: bool| {
            write_folder(&target, |folder| {
                let path = folder.join("weights");
                fs::write(&path, text).map_err(ModelError::io("write", &path))?;
                if fail {
                    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
                    return Err(ModelError::io("write", &path)(full));
                }
                Ok(())
            })
        };
        assert!(write("first", true).is_err());
        assert!(names(home.path()).is_empty());
        write("second", false).unwrap();
        assert!(matches!(write("third", true), Err(ModelError::Io { .. })));
        assert_eq!(fs::read_to_string(target.join("weights")).unwrap(), "second");
        assert_eq!(names(home.path()), ["model"]);
    }

    #[test]
    fn a_folder_that_cannot_be_replaced_is_an_error() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("file").join("model");
        fs::write(home.path().join("file"), "in the way").unwrap();
        assert!(matches!(write_folder(&target, |_| Ok(())), Err(ModelError::Io { .. })));
    }
}
