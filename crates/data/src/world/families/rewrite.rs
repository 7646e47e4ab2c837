//! Families that say the same in another form.

use super::Example;
use crate::world::scene::Scene;
use crate::world::words::{ACTIONS, IRREGULAR_PLURALS, OPPOSITES, THINGS, with_article};

/// Every word with its opposite, both ways.
pub(in crate::world) fn opposites() -> Vec<(&'static str, &'static str)> {
    OPPOSITES.iter().flat_map(|&(one, other)| [(one, other), (other, one)]).collect()
}

/// The opposites of two words.
pub(super) fn opposite(scene: &mut Scene) -> Example {
    let chosen = scene.combination("opposites", &opposites(), 2, |pair| pair[0].0 != pair[1].1);
    let prompt = match scene.random.below(2) {
        0 => format!("Give the opposite of each word: {}, {}", chosen[0].0, chosen[1].0),
        _ => format!("What are the opposites of {} and {}?", chosen[0].0, chosen[1].0),
    };
    (prompt, format!("{}, {}", chosen[0].1, chosen[1].1))
}

/// Every noun with its plural.
pub(in crate::world) fn plurals() -> Vec<(&'static str, String)> {
    let regular = THINGS.iter().map(|thing| (*thing, format!("{thing}s")));
    let irregular = IRREGULAR_PLURALS.iter().map(|(one, many)| (*one, many.to_string()));
    // Irregular nouns stand twice: they are the ones to learn.
    irregular.clone().chain(irregular).chain(regular).collect()
}

/// The plurals of two nouns.
pub(super) fn plural(scene: &mut Scene) -> Example {
    let all = plurals();
    let nouns: Vec<&str> = all.iter().map(|(noun, _)| *noun).collect();
    let chosen = scene.combination("plurals", &nouns, 2, |pair| pair[0] != pair[1]);
    let many: Vec<&str> = chosen
        .iter()
        .filter_map(|noun| all.iter().find(|(one, _)| one == noun))
        .map(|(_, many)| many.as_str())
        .collect();
    let prompt = match scene.random.below(2) {
        0 => format!("Write the plural of each word: {}, {}", chosen[0], chosen[1]),
        _ => format!("What are the plurals of {} and {}?", chosen[0], chosen[1]),
    };
    (prompt, many.join(", "))
}

/// A sentence about today, told of the past.
pub(super) fn past_tense(scene: &mut Scene) -> Example {
    let (_, third, past, places) = scene.pick(&ACTIONS);
    let (name, place) = (scene.name(), scene.pick(&places));
    let sentence = format!("{name} {third} {place}.");
    let prompt = match scene.random.below(2) {
        0 => format!("Put this sentence in the past: {sentence}"),
        _ => format!("{sentence}\nWrite the sentence in the past tense."),
    };
    (prompt, format!("{name} {past} {place}."))
}

/// A sentence about myself, told of somebody else.
pub(super) fn third_person(scene: &mut Scene) -> Example {
    let (base, third, _, places) = scene.pick(&ACTIONS);
    let (name, town, place) = (scene.name(), scene.town(), scene.pick(&places));
    let prompt = match scene.random.below(2) {
        0 => format!("I {base} {place} in {town}.\nPut {name} in place of I."),
        _ => format!("Write about {name} and not about me: I {base} {place} in {town}."),
    };
    (prompt, format!("{name} {third} {place} in {town}."))
}

/// A sentence, denied.
pub(super) fn negate(scene: &mut Scene) -> Example {
    let person = scene.person();
    let (fact, denial) = match scene.random.below(2) {
        0 => (
            format!("{} is {}.", person.name, with_article(person.job)),
            format!("{} is not {}.", person.name, with_article(person.job)),
        ),
        _ => {
            let town = person.town;
            let (name, colour) = (person.name, person.colour);
            (
                format!("The house of {name} in {town} is {colour}."),
                format!("The house of {name} in {town} is not {colour}."),
            )
        }
    };
    let prompt = match scene.random.below(2) {
        0 => format!("Say the contrary with the word not: {fact}"),
        _ => format!("{fact}\nPut the word not in this sentence."),
    };
    (prompt, denial)
}

/// The first letters of a first and a second name.
pub(super) fn initials(scene: &mut Scene) -> Example {
    let names = scene.names(2);
    let prompt = match scene.random.below(2) {
        0 => format!("Write the initials of {} {}.", names[0], names[1]),
        _ => format!("What are the initials of {} {}?", names[0], names[1]),
    };
    (prompt, format!("{}. {}.", &names[0][..1], &names[1][..1]))
}

/// A few sentences about somebody, cut down to one of a fixed form.
pub(super) fn summary(scene: &mut Scene) -> Example {
    let person = scene.person();
    let (name, pronoun) = (person.name, person.pronoun());
    let mut details = [
        format!("{pronoun} has {}.", with_article(person.pet)),
        format!("{pronoun} likes {}.", person.likes),
        format!("{pronoun} is {} years old.", person.age),
    ];
    scene.random.shuffle(&mut details);
    let (job, town) = (with_article(person.job), person.town);
    let text = match scene.random.below(2) {
        0 => format!("{name} works as {job}. {} {pronoun} lives in {town}. {}", details[0], details[1]),
        _ => format!("{name} lives in {town}. {} {} {pronoun} works as {job}.", details[0], details[1]),
    };
    let prompt = match scene.random.below(2) {
        0 => format!("{text}\nSay in one sentence who {name} is."),
        _ => format!("Summarise this in one sentence.\n{text}"),
    };
    (prompt, format!("{name} is {job} from {town}."))
}

/// A form, filled in from what somebody says.
pub(super) fn form(scene: &mut Scene) -> Example {
    let person = scene.person();
    let (name, town, job) = (person.name, person.town, with_article(person.job));
    let text = match scene.random.below(3) {
        0 => format!("My name is {name}. I live in {town} and I am {job}."),
        1 => format!("I am {job}. My name is {name} and my town is {town}."),
        _ => format!("I live in {town}. I am {job} and my name is {name}."),
    };
    let prompt = match scene.random.below(2) {
        0 => format!("{text}\nFill in the form: name, town, job."),
        _ => format!("Fill in name, town and job.\n{text}"),
    };
    (prompt, format!("name: {name}; town: {town}; job: {}", person.job))
}
