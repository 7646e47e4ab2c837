//! Families about lists, marked words and repeated words.

use super::Example;
use crate::world::passages::remark;
use crate::world::scene::Scene;
use crate::world::words::{NUMBERS, SPOTS, THINGS, with_article};

/// A list of three or four things whose combination belongs to this part.
fn list(scene: &mut Scene) -> Vec<&'static str> {
    let count = scene.random.between(3, 4);
    scene.combination("list", &THINGS, count, |_| true)
}

/// The first thing of a list.
pub(super) fn first_item(scene: &mut Scene) -> Example {
    let items = list(scene);
    let listed = items.join(", ");
    let prompt = match scene.random.below(2) {
        0 => format!("What is the first word of this list? {listed}"),
        _ => format!("{listed}\nWhich word comes first in the list?"),
    };
    (prompt, items[0].to_string())
}

/// The last thing of a list.
pub(super) fn last_item(scene: &mut Scene) -> Example {
    let items = list(scene);
    let listed = items.join(", ");
    let prompt = match scene.random.below(2) {
        0 => format!("What is the last word of this list? {listed}"),
        _ => format!("{listed}\nWhich word comes last in the list?"),
    };
    (prompt, items[items.len() - 1].to_string())
}

/// The word between brackets.
pub(super) fn marked_word(scene: &mut Scene) -> Example {
    let things = scene.things(3);
    let (name, spot) = (scene.name(), scene.pick(&SPOTS));
    let marked = scene.random.below(3);
    let shown: Vec<String> = things
        .iter()
        .enumerate()
        .map(|(index, thing)| if index == marked { format!("[{thing}]") } else { thing.to_string() })
        .collect();
    let text = format!("{name} put the {}, the {} and the {} near the {spot}.", shown[0], shown[1], shown[2]);
    let prompt = match scene.random.below(2) {
        0 => format!("Which word is between brackets? {text}"),
        _ => format!("{text}\nWrite the word between the brackets."),
    };
    (prompt, things[marked].to_string())
}

/// One word, said several times.
pub(super) fn repeat(scene: &mut Scene) -> Example {
    let (name, word, times) = (scene.name(), scene.things(1)[0], scene.random.between(2, 4));
    let count = NUMBERS[times];
    let prompt = match scene.random.below(2) {
        0 => format!("Say the word {word} {count} times for {name}."),
        _ => format!("{name} wants to hear the word {word} {count} times. Say it."),
    };
    (prompt, vec![word; times].join(" "))
}

/// What somebody said, word for word.
pub(super) fn quote(scene: &mut Scene) -> Example {
    let names = scene.names(2);
    let said = remark(scene);
    let other = remark(scene);
    let text = format!("{} said: \"{said}.\" Then {} went home. {other}.", names[0], names[1]);
    let prompt = match scene.random.below(2) {
        0 => format!("{text}\nWhat did {} say?", names[0]),
        _ => format!("Copy the words between the quotes.\n{text}"),
    };
    (prompt, format!("{said}."))
}

/// Three words that begin with different letters, for the alphabet.
pub(in crate::world) fn words_to_sort(scene: &mut Scene) -> Vec<&'static str> {
    scene.combination("alphabet", &THINGS, 3, |words| {
        let first: Vec<u8> = words.iter().map(|word| word.as_bytes()[0]).collect();
        first[0] != first[1] && first[0] != first[2] && first[1] != first[2]
    })
}

/// Three words in the order of the alphabet.
pub(super) fn sort_words(scene: &mut Scene) -> Example {
    let words = words_to_sort(scene);
    let listed = words.join(", ");
    let mut sorted = words;
    sorted.sort_unstable();
    let prompt = match scene.random.below(2) {
        0 => format!("Sort these words by the alphabet: {listed}"),
        _ => format!("Write these words from A to Z: {listed}"),
    };
    (prompt, sorted.join(", "))
}

/// How many things does this person carry?
pub(super) fn count(scene: &mut Scene) -> Example {
    let total = scene.random.between(2, 5);
    let things: Vec<String> = scene.things(total).into_iter().map(with_article).collect();
    let name = scene.name();
    let text = format!("{name} has {}.", crate::world::words::joined(&things));
    let prompt = match scene.random.below(2) {
        0 => format!("{text}\nHow many things does {name} have?"),
        _ => format!("Count the things that {name} has.\n{text}"),
    };
    (prompt, NUMBERS[total].to_string())
}
