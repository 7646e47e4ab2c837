//! Answers to tasks, and how many of them are right.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use strata_data::{Role, Task, Tokenizer};
use strata_generate::{Limits, Sampling, generate};
use strata_model::{Decoder, Inference, Lineage, WeightFormat};
use strata_tensor::Cpu;

use crate::failure::BadInput;

/// A model opened for use.
pub struct Opened {
    /// The model.
    pub inference: Inference,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Whether it was taught to answer in turns; else it continues text.
    pub converses: bool,
    ours: bool,
}

impl Opened {
    /// Opens the model in `folder`, its weights held as asked.
    pub fn load(folder: &Path, cpu: &Cpu, weights: WeightFormat) -> Result<Opened> {
        let context = || format!("opening the model in {}", folder.display());
        let lineage = Lineage::load(folder).with_context(context)?;
        let decoder = Decoder::load(folder).with_context(context)?;
        let inference = Inference::with_format(decoder, cpu, weights);
        let tokenizer = Tokenizer::load(folder).with_context(context)?;
        let converses = lineage.as_ref().is_some_and(|lineage| lineage.stage != "base");
        Ok(Opened { inference, tokenizer, converses, ours: lineage.is_some() })
    }

    /// The tokens of a text to be continued.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode(text, true)?;
        // Our base models saw every document after its beginning; other tokenizers say themselves what they add.
        if let Some(bos) = self.tokenizer.bos_id()
            && (self.ours || ids.is_empty())
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The tokens at which an answer ends.
    pub fn stop(&self) -> Vec<u32> {
        let mut stop = self.tokenizer.eos_ids().to_vec();
        stop.extend(&self.inference.config().eos);
        stop.sort_unstable();
        stop.dedup();
        stop
    }
}

/// The right answers out of all, per family and together.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Score {
    /// Right answers.
    pub right: usize,
    /// Tasks.
    pub total: usize,
}

impl Score {
    /// The fraction of right answers; 0 of no tasks.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.total.max(1) as f64
    }
}

/// Longest answer in tokens: the tasks ask for words, not for essays.
const ANSWER_TOKENS: usize = 64;
/// Tasks that are answered at once.
const TOGETHER: usize = 64;

/// The model's greedy answers. A model that converses is asked in turns; a base model continues the
/// text of the question, and what it writes up to the end of the line counts.
pub fn answers(model: &Opened, cpu: &Cpu, tasks: &[Task]) -> Result<Vec<String>> {
    let prompts = tasks.iter().map(|task| prompt(model, task)).collect::<Result<Vec<_>>>()?;
    let limits = Limits { max_tokens: ANSWER_TOKENS, stop: model.stop() };
    let mut order: Vec<usize> = (0..tasks.len()).collect();
    // Prompts of like length are read together, and answers of like length end together.
    order.sort_by_key(|task| prompts[*task].len());
    let mut answers = vec![String::new(); tasks.len()];
    for group in order.chunks(TOGETHER) {
        let group_prompts: Vec<Vec<u32>> = group.iter().map(|task| prompts[*task].clone()).collect();
        let results =
            generate(&model.inference, cpu, &group_prompts, &limits, Sampling::default(), |_, _| true)
                .with_context(|| format!("answering the tasks near {}", tasks[group[0]].origin))?;
        for (task, result) in group.iter().zip(results) {
            let text = model.tokenizer.decode(&result.tokens, true)?;
            let text =
                if model.converses { text.as_str() } else { text.trim_start().lines().next().unwrap_or("") };
            answers[*task] = text.trim().to_string();
        }
    }
    Ok(answers)
}

/// Whether the task leaves room for an answer in the model's context.
pub fn fits(model: &Opened, task: &Task) -> Result<bool> {
    Ok(prompt(model, task)?.len() + ANSWER_TOKENS <= model.inference.context())
}

fn prompt(model: &Opened, task: &Task) -> Result<Vec<u32>> {
    if model.converses {
        return Ok(model.tokenizer.encode_prompt(&task.messages)?);
    }
    let lines: Vec<&str> = task.messages.iter().map(|message| message.content.as_str()).collect();
    model.encode_text(&format!("{}\n", lines.join("\n")))
}

/// Counts right answers by exact match, white space at the ends aside. Returns all, and each family.
pub fn score(tasks: &[Task], answers: &[String]) -> (Score, BTreeMap<String, Score>) {
    let mut all = Score::default();
    let mut families: BTreeMap<String, Score> = BTreeMap::new();
    for (task, answer) in tasks.iter().zip(answers) {
        let right = usize::from(answer.trim() == task.answer.trim());
        let family = families.entry(task.family.clone().unwrap_or_else(|| "all".to_string())).or_default();
        for score in [&mut all, family] {
            score.right += right;
            score.total += 1;
        }
    }
    (all, families)
}

/// The tasks that examples make: everything before the last answer, and that answer.
pub fn tasks_of(examples: Vec<strata_data::Example>, family: &str) -> Vec<Task> {
    let task = |mut example: strata_data::Example| {
        let last = example.messages.iter().rposition(|message| message.role == Role::Assistant)?;
        let answer = example.messages[last].content.clone();
        example.messages.truncate(last);
        let family = Some(family.to_string());
        (last > 0).then_some(Task { messages: example.messages, answer, family, origin: example.origin })
    };
    examples.into_iter().filter_map(task).collect()
}

/// An error for an empty list of tasks, which would give an accuracy of nothing.
pub fn require_some(tasks: &[Task]) -> Result<()> {
    if tasks.is_empty() {
        return Err(BadInput("there are no tasks to measure".into()).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use strata_data::{Message, Origin};

    fn task(answer: &str, family: Option<&str>) -> Task {
        Task {
            messages: vec![Message::new(Role::User, "?")],
            answer: answer.to_string(),
            family: family.map(String::from),
            origin: Origin::new("tasks.jsonl", 1),
        }
    }

    #[test]
    fn only_exact_answers_count() {
        let tasks = [task("red", Some("colour")), task("two", Some("count")), task("2", Some("count"))];
        let answers = ["red ", "Two", "2"].map(String::from);
        let (all, families) = score(&tasks, &answers);
        assert_eq!((all.right, all.total), (2, 3));
        assert_eq!(families["count"], Score { right: 1, total: 2 });
        assert_eq!(Score::default().accuracy(), 0.0);
    }
}
