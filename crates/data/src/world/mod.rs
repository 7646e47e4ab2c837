//! The sample world: a seeded generator of plain English for demonstrations and tests.
//!
//! People with jobs, towns, pets and houses, shops with prices, stations, schools and letters give raw
//! text for the base stage, prompt/response pairs of [`FAMILIES`] for the command stage, dialogues of
//! [`DIALOGUE_FAMILIES`] for the dialogue stage, and tasks of both kinds to measure them.
//!
//! Everything is made for models of a few million parameters: few words, short sentences, answers that
//! are copied from the prompt or come from a small set. Facts hold within one text only, so that a model
//! must read and cannot recall.
//!
//! **The parts are disjoint by construction.** Names of people and towns belong to one part. A prompt
//! without names is made of a combination of words that belongs to one part, whatever its order, by a
//! hash. Raw text, pairs, dialogues and tasks draw from the same two pools.
//!
//! ```
//! use strata_data::world::{Part, World};
//! let world = World::new(7);
//! let document = world.base_text(Part::Training, 1_000).next();
//! assert!(document.is_some());
//! assert_eq!(world.pairs(Part::Training, 50).len(), 50);
//! ```

mod dialogues;
mod documents;
mod families;
mod names;
mod passages;
mod random;
mod scene;
mod words;
mod write;

#[cfg(test)]
mod tests;

use std::collections::HashSet;

use names::Names;
use scene::Scene;

pub use dialogues::DIALOGUE_FAMILIES;
pub use families::FAMILIES;
pub use write::{write_dialogue_tasks, write_dialogues, write_pairs, write_tasks, write_text};

/// What stands between two documents in a text file: two empty lines.
pub const DOCUMENT_SEPARATOR: &str = "\n\n\n";

/// How often a duplicate is drawn anew before it is accepted: families with few combinations run out.
const REDRAWS: usize = 50;

/// Which part of the world a text is drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What models are trained on.
    Training,
    /// What they are measured on; no name and no combination of words in common with training.
    HeldOut,
}

/// Who speaks in a dialogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name used in files: `user` or `assistant`.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// A prompt and the response to learn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// What the user asks.
    pub prompt: String,
    /// The one right response.
    pub response: String,
    /// One of [`FAMILIES`].
    pub family: &'static str,
}

/// A prompt and the answer that is compared exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// What the user asks.
    pub prompt: String,
    /// The one right answer.
    pub answer: String,
    /// One of [`FAMILIES`].
    pub family: &'static str,
}

/// A conversation: user and assistant in turn, user first, assistant last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialogue {
    /// Who says what, in order.
    pub messages: Vec<(Role, String)>,
    /// One of [`DIALOGUE_FAMILIES`].
    pub family: &'static str,
}

/// A conversation that ends in a user turn whose answer depends on an earlier turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialogueTask {
    /// Who says what, in order; the last turn is the user's.
    pub messages: Vec<(Role, String)>,
    /// The one right answer to the last turn.
    pub answer: String,
    /// One of [`DIALOGUE_FAMILIES`].
    pub family: &'static str,
}

/// A small world. Equal seeds give equal worlds and equal texts.
#[derive(Clone, Debug)]
pub struct World {
    seed: u64,
    training: Names,
    held_out: Names,
}

impl World {
    /// The world of this seed.
    pub fn new(seed: u64) -> World {
        let (training, held_out) = names::draw(seed);
        World { seed, training, held_out }
    }

    /// The names of people and towns of one part, people first.
    pub fn entity_names(&self, part: Part) -> impl Iterator<Item = &str> {
        let names = self.names(part);
        names.people.iter().chain(&names.towns).map(String::as_str)
    }

    /// Documents of raw text that, joined with [`DOCUMENT_SEPARATOR`], make at least `bytes` bytes (and
    /// less than one document more). They are made one by one as the iterator is read.
    pub fn base_text(&self, part: Part, bytes: usize) -> impl Iterator<Item = String> {
        let mut scene = Scene::new(self, part, "text");
        let mut written = 0;
        std::iter::from_fn(move || {
            if written >= bytes {
                return None;
            }
            scene.begin();
            let document = documents::document(&mut scene);
            written += document.len() + DOCUMENT_SEPARATOR.len();
            Some(document)
        })
    }

    /// `count` prompt/response pairs, the families mixed, harder families oftener.
    pub fn pairs(&self, part: Part, count: usize) -> Vec<Pair> {
        let mut scene = Scene::new(self, part, "pairs");
        let round: Vec<&families::Family> =
            families::TABLE.iter().flat_map(|family| std::iter::repeat_n(family, family.weight)).collect();
        let mut seen = HashSet::new();
        let mut order = round.clone();
        (0..count)
            .map(|index| {
                if index % round.len() == 0 {
                    scene.random.shuffle(&mut order);
                }
                let family = order[index % round.len()];
                let (prompt, response) = fresh(&mut scene, &mut seen, family.make);
                Pair { prompt, response, family: family.name }
            })
            .collect()
    }

    /// `per_family` tasks of every family, family by family. They are drawn apart from [`World::pairs`]:
    /// training tasks may repeat training pairs, held-out tasks never do.
    pub fn tasks(&self, part: Part, per_family: usize) -> Vec<Task> {
        let mut scene = Scene::new(self, part, "tasks");
        let mut seen = HashSet::new();
        let mut tasks = Vec::with_capacity(per_family * families::TABLE.len());
        for family in &families::TABLE {
            for _ in 0..per_family {
                let (prompt, answer) = fresh(&mut scene, &mut seen, family.make);
                tasks.push(Task { prompt, answer, family: family.name });
            }
        }
        tasks
    }

    /// `count` dialogues, the families mixed.
    pub fn dialogues(&self, part: Part, count: usize) -> Vec<Dialogue> {
        self.conversations(part, count, "dialogues")
    }

    /// `count` tasks whose last turn needs an earlier one, the families mixed.
    pub fn dialogue_tasks(&self, part: Part, count: usize) -> Vec<DialogueTask> {
        self.conversations(part, count, "dialogue tasks")
            .into_iter()
            .filter_map(|mut dialogue| {
                let (_, answer) = dialogue.messages.pop()?;
                Some(DialogueTask { messages: dialogue.messages, answer, family: dialogue.family })
            })
            .collect()
    }

    fn conversations(&self, part: Part, count: usize, purpose: &str) -> Vec<Dialogue> {
        let mut scene = Scene::new(self, part, purpose);
        (0..count)
            .map(|index| {
                let family = &dialogues::TABLE[index % dialogues::TABLE.len()];
                let roles = [Role::User, Role::Assistant].into_iter().cycle();
                scene.begin();
                let messages = roles.zip((family.make)(&mut scene)).collect();
                Dialogue { messages, family: family.name }
            })
            .collect()
    }

    fn names(&self, part: Part) -> &Names {
        match part {
            Part::Training => &self.training,
            Part::HeldOut => &self.held_out,
        }
    }
}

/// An example whose prompt was not seen before, as long as one is found in a few draws.
fn fresh(
    scene: &mut Scene,
    seen: &mut HashSet<String>,
    make: fn(&mut Scene) -> families::Example,
) -> families::Example {
    let mut draw = || {
        scene.begin();
        make(scene)
    };
    let mut example = draw();
    for _ in 0..REDRAWS {
        if !seen.contains(&example.0) {
            break;
        }
        example = draw();
    }
    seen.insert(example.0.clone());
    example
}
