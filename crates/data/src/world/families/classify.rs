//! Families whose answer is one of a few labels, or one of the items shown.

use super::Example;
use crate::world::scene::Scene;
use crate::world::words::{ASPECTS, BLAME, KINDS, PATIENT, PRAISE, TOPICS, URGENT, VENUES};

/// A review of a place, with its verdict.
pub(in crate::world) fn review(scene: &mut Scene) -> (String, &'static str) {
    let good = scene.random.coin();
    let verdict = if good { "positive" } else { "negative" };
    let words = scene.random.pick_distinct(if good { &PRAISE } else { &BLAME }, 2);
    let aspects = scene.random.pick_distinct(&ASPECTS, 2);
    let (venue, name, town) = (scene.pick(&VENUES), scene.name(), scene.town());
    let opening = match scene.random.below(2) {
        0 => format!("I went to the {venue} in {town}."),
        _ => format!("{name} was at the {venue} in {town}."),
    };
    let body = match scene.random.below(2) {
        0 => format!("The {} was {}.", aspects[0], words[0]),
        _ => format!("The {} was {} and the {} was {}.", aspects[0], words[0], aspects[1], words[1]),
    };
    (format!("{opening} {body}"), verdict)
}

/// Says whether a review is positive or negative.
pub(super) fn sentiment(scene: &mut Scene) -> Example {
    let (review, verdict) = review(scene);
    let prompt = match scene.random.below(2) {
        0 => format!("Is this review positive or negative?\n{review}"),
        _ => format!("{review}\nIs the review positive or negative?"),
    };
    (prompt, verdict.to_string())
}

/// A note that belongs to one topic.
pub(in crate::world) fn note(scene: &mut Scene) -> (String, &'static str) {
    let (topic, lines) = scene.pick(&TOPICS);
    let lines = scene.random.pick_distinct(&lines, 2);
    let (name, town) = (scene.name(), scene.town());
    (format!("{name} writes from {town}: {} {}", lines[0], lines[1]), topic)
}

/// Names the topic of a note.
pub(super) fn topic(scene: &mut Scene) -> Example {
    let (note, topic) = note(scene);
    let prompt = match scene.random.below(2) {
        0 => format!("What is the topic of this note?\n{note}"),
        _ => format!("{note}\nName the topic of the note."),
    };
    (prompt, topic.to_string())
}

/// A call that is urgent or can wait.
pub(in crate::world) fn call(scene: &mut Scene) -> (String, &'static str) {
    let (lines, label) = if scene.random.coin() { (&URGENT, "urgent") } else { (&PATIENT, "can wait") };
    let (line, name, town) = (scene.pick(lines), scene.name(), scene.town());
    let text = match scene.random.below(2) {
        0 => format!("This is {name} from {town}. {line}"),
        _ => format!("{line} Call {name} in {town}."),
    };
    (text, label)
}

/// Says whether a message is urgent.
pub(super) fn urgency(scene: &mut Scene) -> Example {
    let (call, label) = call(scene);
    let prompt = match scene.random.below(2) {
        0 => format!("Is this message urgent, or can it wait?\n{call}"),
        _ => format!("{call}\nIs the message urgent, or can it wait?"),
    };
    (prompt, label.to_string())
}

/// All words that belong to a kind, with their kind.
pub(in crate::world) fn kinds_of_words() -> Vec<(&'static str, &'static str)> {
    KINDS.iter().flat_map(|(kind, members)| members.iter().map(|word| (*word, *kind))).collect()
}

/// Names the kinds of two things.
pub(super) fn category(scene: &mut Scene) -> Example {
    let chosen = scene.combination("kinds", &kinds_of_words(), 2, |pair| pair[0].1 != pair[1].1);
    let ((one, its), (other, others)) = (chosen[0], chosen[1]);
    let prompt = match scene.random.below(2) {
        0 => format!("Name the kind of each thing: {one}, {other}"),
        _ => format!("What kind of thing is each of these? {one}, {other}"),
    };
    (prompt, format!("{its}, {others}"))
}

/// Three words of one kind and one of another, in random order; the odd word is given again.
pub(in crate::world) fn odd_group(scene: &mut Scene) -> (Vec<&'static str>, &'static str, &'static str) {
    let kinds = scene.random.pick_distinct(&KINDS, 2);
    // Drawn anew until the combination of all four words belongs to this part.
    let (mut group, odd) = loop {
        let mut group = scene.random.pick_distinct(&kinds[0].1, 3);
        let odd = scene.pick(&kinds[1].1);
        group.push(odd);
        if scene.owns("odd", &group) {
            break (group, odd);
        }
    };
    scene.random.shuffle(&mut group);
    (group, odd, kinds[0].0)
}

/// Finds the word that is not of the same kind as the others.
pub(super) fn odd_one_out(scene: &mut Scene) -> Example {
    let (group, odd, _) = odd_group(scene);
    let list = group.join(", ");
    let prompt = match scene.random.below(2) {
        0 => format!("Which word does not belong with the others? {list}"),
        _ => format!("Find the odd word: {list}"),
    };
    (prompt, odd.to_string())
}
