//! The home folder: finished models by name, and the runs that made them.

use std::path::{Path, PathBuf};

use crate::ModelError;

/// The home folder. Nothing is created until something is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    path: PathBuf,
}

impl Home {
    /// A home at `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Home {
        Home { path: path.into() }
    }

    /// The home folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Folder of the finished model `name`, existing or not.
    ///
    /// # Errors
    /// `name` cannot be a folder's name.
    pub fn model(&self, name: &str) -> Result<PathBuf, ModelError> {
        check_name(name)?;
        Ok(self.path.join("models").join(name))
    }

    /// Folder of the run `name`, existing or not.
    ///
    /// # Errors
    /// `name` cannot be a folder's name.
    pub fn run(&self, name: &str) -> Result<PathBuf, ModelError> {
        check_name(name)?;
        Ok(self.path.join("runs").join(name))
    }

    /// Names of the finished models, sorted; empty when there is no home yet.
    ///
    /// # Errors
    /// The folder is there but cannot be listed.
    pub fn models(&self) -> Result<Vec<String>, ModelError> {
        let folder = self.path.join("models");
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(ModelError::io("list", &folder)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(ModelError::io("list", &folder))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if check_name(&name).is_ok() && entry.path().join("config.json").exists() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// The folder of a model given by name or by path, wherever a person writes one. A name of the home
    /// comes first; anything else must be a folder with a `config.json`.
    ///
    /// # Errors
    /// [`ModelError::UnknownModel`] with the nearest existing name.
    pub fn resolve(&self, name_or_path: &str) -> Result<PathBuf, ModelError> {
        if let Ok(folder) = self.model(name_or_path)
            && folder.join("config.json").exists()
        {
            return Ok(folder);
        }
        let path = PathBuf::from(name_or_path);
        if path.join("config.json").exists() {
            return Ok(path);
        }
        let available = self.models()?;
        let nearest = available
            .iter()
            .map(|name| (edit_distance(name, name_or_path), name))
            .min()
            .filter(|(distance, name)| *distance <= 1 + name.len() / 3)
            .map(|(_, name)| name.clone());
        let models = self.path.join("models");
        Err(ModelError::UnknownModel { name: name_or_path.to_string(), models, nearest, available })
    }
}

/// Checks that `name` can be a folder of the home and nothing else.
///
/// # Errors
/// [`ModelError::Name`] with what is wrong.
pub fn check_name(name: &str) -> Result<(), ModelError> {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    let reason = if name.is_empty() {
        "it is empty".to_string()
    } else if name.starts_with(['.', '-']) {
        "it begins with a dot or a dash".to_string()
    } else if name.len() > 100 {
        "it is longer than 100 bytes".to_string()
    } else if let Some(other) = name.chars().find(|c| !allowed(*c)) {
        format!("it contains {other:?}")
    } else {
        return Ok(());
    };
    Err(ModelError::Name { name: name.to_string(), reason })
}

/// Levenshtein distance in characters.
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home_with(names: &[&str]) -> (tempfile::TempDir, Home) {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path());
        for name in names {
            let model = home.model(name).unwrap();
            std::fs::create_dir_all(&model).unwrap();
            std::fs::write(model.join("config.json"), "{}").unwrap();
        }
        (folder, home)
    }

    #[test]
    fn models_are_found_by_name_and_by_path() {
        let (_folder, home) = home_with(&["sales", "demo-base"]);
        assert_eq!(home.models().unwrap(), ["demo-base", "sales"]);
        let by_name = home.resolve("sales").unwrap();
        assert_eq!(home.resolve(by_name.to_str().unwrap()).unwrap(), by_name);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        let (_folder, home) = home_with(&["sales", "demo-base"]);
        let message = home.resolve("demo-bse").unwrap_err().to_string();
        assert!(message.contains("did you mean \"demo-base\""), "{message}");
        let message = home.resolve("zebra-crossing").unwrap_err().to_string();
        assert!(message.contains("there are: demo-base, sales"), "{message}");
        let (_folder, empty) = home_with(&[]);
        assert!(empty.resolve("x").unwrap_err().to_string().contains("strata demo"));
    }

    #[test]
    fn names_cannot_leave_the_home() {
        let (_folder, home) = home_with(&[]);
        for name in ["", "..", ".hidden", "a/b", "a\\b", "-rf", "a b", "a\0b", &"x".repeat(101)] {
            assert!(matches!(home.model(name), Err(ModelError::Name { .. })), "{name:?}");
            assert!(matches!(home.run(name), Err(ModelError::Name { .. })), "{name:?}");
        }
        assert!(home.model("Köln_v1.2-x").is_ok());
    }

    #[test]
    fn edit_distance_counts_single_changes() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("same", "same"), 0);
    }
}
