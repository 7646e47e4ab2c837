//! What can go wrong with a model, said so that a person can act on it.

use std::path::{Path, PathBuf};

/// Everything that reading, writing or building a model can fail with.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The operating system refused: no such file, no right, no space.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb: "read", "write", "rename".
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A JSON file is not JSON, or not of the expected form.
    #[error("{}:{line}: not valid here: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line of the fault, from 1.
        line: usize,
        /// The parser's reason.
        reason: String,
    },
    /// A field of a configuration holds something this program does not compute.
    #[error("{}: field \"{field}\": expected {expected}, found {found}", path.display())]
    Field {
        /// The configuration file.
        path: PathBuf,
        /// Field name, with dots for nested ones.
        field: String,
        /// What would have been right.
        expected: String,
        /// What the file says.
        found: String,
    },
    /// A weights file cannot be read as safetensors.
    #[error(
        "{}: not a whole safetensors file ({reason}); copy it again from where it came, \
         it was probably cut short", path.display()
    )]
    WeightsFile {
        /// The file.
        path: PathBuf,
        /// What the format check says.
        reason: String,
    },
    /// A tensor the configuration asks for is not in the weights.
    #[error(
        "{}: tensor \"{tensor}\" is missing (expected shape {expected:?}); \
         the weights do not belong to this config.json, or a shard is absent", path.display()
    )]
    TensorAbsent {
        /// The file or folder that was searched.
        path: PathBuf,
        /// Hugging Face name of the tensor.
        tensor: String,
        /// The shape the configuration asks for.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error(
        "{}: tensor \"{tensor}\": expected shape {expected:?} from config.json, found {found:?}; \
         use the config.json that was saved with these weights", path.display()
    )]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// Hugging Face name of the tensor.
        tensor: String,
        /// The shape the configuration asks for.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in a number format that is not read here.
    #[error(
        "{}: tensor \"{tensor}\": expected F32, BF16 or F16, found {found}; \
         save the model in one of these first", path.display()
    )]
    TensorType {
        /// The file.
        path: PathBuf,
        /// Hugging Face name of the tensor.
        tensor: String,
        /// The type in the file.
        found: String,
    },
    /// A tensor is in the weights that the configuration knows nothing of.
    #[error(
        "{}: tensor \"{tensor}\" has no place in this architecture; \
         leaving it out would compute something else than the model's makers did", path.display()
    )]
    TensorUnknown {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
    },
    /// Tokens that do not fit the model: outside its vocabulary, or more than its context.
    #[error("the tokens do not fit the model: {0}")]
    Batch(String),
    /// A name that cannot be a folder of the home.
    #[error(
        "\"{name}\" cannot be a name: {reason}; use letters, digits, '-', '_' and '.', for example my-model"
    )]
    Name {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No model of that name, and no such folder.
    #[error("no model \"{name}\": not in {} and not a folder{}", models.display(), hint(nearest, available))]
    UnknownModel {
        /// The name as given.
        name: String,
        /// Folder of the models that was searched.
        models: PathBuf,
        /// The most similar existing name, if one is similar.
        nearest: Option<String>,
        /// All existing names.
        available: Vec<String>,
    },
}

fn hint(nearest: &Option<String>, available: &[String]) -> String {
    match (nearest, available) {
        (Some(name), _) => format!("; did you mean \"{name}\"?"),
        (None, []) => "; there are no models yet, `strata demo` makes some".to_string(),
        (None, names) => format!("; there are: {}", names.join(", ")),
    }
}

impl ModelError {
    /// For `map_err`: an operating-system error with what was being done to which path.
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ModelError {
        let path = path.to_path_buf();
        move |source| ModelError::Io { doing, path, source }
    }

    /// For `map_err`: a JSON error with its file.
    pub fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> ModelError {
        let path = path.to_path_buf();
        move |source| ModelError::Json { path, line: source.line(), reason: source.to_string() }
    }
}
