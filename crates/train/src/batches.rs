//! The batches of the data crate as the trainer asks for them.

use serde_json::Value;
use strata_data::{BaseBatches, Batch, ExampleBatches};

use crate::{Batches, TrainError};

const ENDED: &str = "the batches came to an end, but training asks for endless ones";

fn to_value(state: impl serde::Serialize) -> Value {
    // A struct of numbers always has a JSON form.
    serde_json::to_value(state).unwrap_or(Value::Null)
}

fn from_value<T: serde::de::DeserializeOwned>(position: &Value) -> Result<T, TrainError> {
    serde_json::from_value(position.clone()).map_err(|error| {
        TrainError::Request(format!("the checkpoint's place in the data cannot be read: {error}"))
    })
}

impl Batches for BaseBatches {
    fn next_batch(&mut self) -> Result<Batch, TrainError> {
        BaseBatches::next_batch(self)?.ok_or_else(|| TrainError::Request(ENDED.into()))
    }
    fn position(&self) -> Value {
        to_value(BaseBatches::position(self))
    }
    fn seek(&mut self, position: &Value) -> Result<(), TrainError> {
        Ok(BaseBatches::seek(self, &from_value(position)?)?)
    }
}

impl Batches for ExampleBatches {
    fn next_batch(&mut self) -> Result<Batch, TrainError> {
        ExampleBatches::next_batch(self).ok_or_else(|| TrainError::Request(ENDED.into()))
    }
    fn position(&self) -> Value {
        to_value(ExampleBatches::position(self))
    }
    fn seek(&mut self, position: &Value) -> Result<(), TrainError> {
        Ok(ExampleBatches::seek(self, &from_value(position)?)?)
    }
}
