//! Stage three: a dialogue model, which converses over many turns, from a command model and dialogues.

use strata_data::{Example, records};

use crate::TrainError;
use crate::examples::{ExamplesRequest, Source, train_examples};
use crate::run::{Finished, Workplace};

/// Trains a dialogue model on the dialogues in `request.data`. The loss falls on the assistant's turns, on all
/// of them.
///
/// # Errors
/// The model or the dialogues cannot be read, training diverges, or a file cannot be written.
pub fn train_dialogue(request: &ExamplesRequest, place: &mut Workplace<'_>) -> Result<Finished, TrainError> {
    train_examples("dialogue", request, place, || {
        let dialogues = records::dialogues(&request.data)?;
        let files = dialogues.digests()?;
        let examples =
            dialogues.map(|dialogue| Ok(Example::from(dialogue?))).collect::<Result<_, TrainError>>()?;
        Ok(Source { examples, files })
    })
}
