//! Stage two: a command model, which follows instructions, from a base model and prompt/response pairs.

use strata_data::{Example, records};

use crate::TrainError;
use crate::examples::{ExamplesRequest, Source, train_examples};
use crate::run::{Finished, Workplace};

/// Trains a command model on the pairs in `request.data`. The loss falls on the responses only.
///
/// # Errors
/// The model or the pairs cannot be read, training diverges, or a file cannot be written.
pub fn train_command(request: &ExamplesRequest, place: &mut Workplace<'_>) -> Result<Finished, TrainError> {
    train_examples("command", request, place, || {
        let pairs = records::pairs(&request.data)?;
        let files = pairs.digests()?;
        let examples = pairs.map(|pair| Ok(Example::from(pair?))).collect::<Result<_, TrainError>>()?;
        Ok(Source { examples, files })
    })
}
