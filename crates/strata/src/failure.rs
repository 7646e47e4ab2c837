//! Errors as a person and a script see them: the chain of reasons on stderr, and an exit code.

use std::process::ExitCode;

use strata_data::DataError;
use strata_generate::GenerateError;
use strata_model::ModelError;
use strata_serve::KeyError;
use strata_train::TrainError;

/// Wrong usage that only shows once the command runs.
#[derive(Debug)]
pub struct BadInput(pub String);

impl std::fmt::Display for BadInput {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for BadInput {}

/// Shows the error and returns its exit code: 2 for wrong usage or bad input, 1 for everything else.
pub fn report(error: &anyhow::Error) -> ExitCode {
    // A reader that went away (a pager that was closed) is no failure worth words.
    if error.chain().any(|cause| {
        let broken = cause.downcast_ref::<std::io::Error>();
        broken.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    }) {
        return ExitCode::from(1);
    }
    let mut told = error.to_string();
    eprintln!("error: {told}");
    for cause in error.chain().skip(1) {
        // Many errors already end with their source's words; saying them twice helps nobody.
        let text = cause.to_string();
        if !told.contains(&text) {
            eprintln!("  because: {text}");
        }
        told = text;
    }
    ExitCode::from(if error.chain().any(is_bad_input) { 2 } else { 1 })
}

fn is_bad_input(cause: &(dyn std::error::Error + 'static)) -> bool {
    let by_train = |error: &TrainError| match error {
        TrainError::Model(error) => bad_model(error),
        TrainError::Data(error) => bad_data(error),
        TrainError::Request(_) | TrainError::Run { .. } => true,
        _ => false,
    };
    cause.is::<BadInput>()
        || cause.downcast_ref::<TrainError>().is_some_and(by_train)
        || cause.downcast_ref::<ModelError>().is_some_and(bad_model)
        || cause.downcast_ref::<DataError>().is_some_and(bad_data)
        || cause.downcast_ref::<KeyError>().is_some_and(|error| {
            matches!(error, KeyError::Name(_) | KeyError::Taken(_) | KeyError::Unknown(_))
        })
        || cause.downcast_ref::<GenerateError>().is_some_and(|error| match error {
            GenerateError::Model(error) => bad_model(error),
            GenerateError::Prompt { .. } | GenerateError::NotNumbers => true,
        })
}

fn bad_model(error: &ModelError) -> bool {
    !matches!(error, ModelError::Io { source, .. } if source.kind() != std::io::ErrorKind::NotFound)
}

fn bad_data(error: &DataError) -> bool {
    !matches!(error, DataError::Io { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_errors_and_failures_have_different_codes() {
        let bad = anyhow::Error::from(TrainError::Request("no".into())).context("training");
        assert!(bad.chain().any(is_bad_input));
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let failed = anyhow::Error::from(ModelError::io("write", std::path::Path::new("x"))(full));
        assert!(!failed.chain().any(is_bad_input));
    }
}
