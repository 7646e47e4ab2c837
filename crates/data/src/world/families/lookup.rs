//! Families that find one fact in a passage.

use super::Example;
use crate::world::passages::{homes, jobs_and_towns, message, prices, sentences, timetable as trains};
use crate::world::scene::Scene;
use crate::world::words::{SIGHTS, coins, with_article};

/// Where somebody with a known job works: the passage names the job, the world knows the place.
pub(super) fn workplace(scene: &mut Scene) -> Example {
    let person = scene.person();
    let (name, job) = (person.name, with_article(person.job));
    let prompt = match scene.random.below(2) {
        0 => format!("{name} is {job}. Where does {name} work?"),
        _ => format!("{name} works as {job}. At which place does {name} work?"),
    };
    (prompt, format!("at the {}", person.workplace))
}

/// Who has this job, or lives in this town?
pub(super) fn who(scene: &mut Scene) -> Example {
    let count = scene.random.between(2, 3);
    let people = scene.people(count);
    let passage = jobs_and_towns(scene, &people);
    let person = scene.pick(&people);
    let question = match scene.random.below(2) {
        0 => format!("Who is the {}?", person.job),
        _ => format!("Who comes from {}?", person.town),
    };
    (format!("{passage}\n{question}"), person.name.to_string())
}

/// Where does this person live?
pub(super) fn where_from(scene: &mut Scene) -> Example {
    let count = scene.random.between(2, 3);
    let people = scene.people(count);
    let passage = jobs_and_towns(scene, &people);
    let person = scene.pick(&people);
    let question = match scene.random.below(2) {
        0 => format!("Where does {} live?", person.name),
        _ => format!("Where is the home of {}?", person.name),
    };
    (format!("{passage}\n{question}"), format!("in {}", person.town))
}

/// Which job does this person have?
pub(super) fn job(scene: &mut Scene) -> Example {
    let count = scene.random.between(2, 3);
    let people = scene.people(count);
    let passage = jobs_and_towns(scene, &people);
    let person = scene.pick(&people);
    let question = match scene.random.below(2) {
        0 => format!("What is the job of {}?", person.name),
        _ => format!("Which job does {} have?", person.name),
    };
    (format!("{passage}\n{question}"), person.job.to_string())
}

/// Which colour has this person's house?
pub(super) fn colour(scene: &mut Scene) -> Example {
    let count = scene.random.between(2, 3);
    let people = scene.people(count);
    let passage = homes(scene, &people);
    let person = scene.pick(&people);
    let question = match scene.random.below(2) {
        0 => format!("What colour is the house of {}?", person.name),
        _ => format!("Which colour is the house of {}?", person.name),
    };
    (format!("{passage}\n{question}"), person.colour.to_string())
}

/// What does this thing cost?
pub(super) fn price(scene: &mut Scene) -> Example {
    let count = scene.random.between(2, 4);
    let shop = prices(scene, count);
    let (thing, amount) = scene.pick(&shop.items);
    let question = match scene.random.below(2) {
        0 => format!("What does the {thing} cost?"),
        _ => format!("What is the price of the {thing}?"),
    };
    (format!("{}\n{question}", shop.passage), coins(amount))
}

/// When does this train leave?
pub(super) fn timetable(scene: &mut Scene) -> Example {
    let count = scene.random.between(2, 4);
    let table = trains(scene, count);
    let (town, time) = &table.trains[scene.random.below(table.trains.len())];
    let question = match scene.random.below(2) {
        0 => format!("When does the train to {town} leave?"),
        _ => format!("At what time is the train to {town}?"),
    };
    (format!("{}\n{question}", table.passage), format!("at {time}"))
}

/// Is this so? If not, the fact is true of the other person.
pub(super) fn yes_no(scene: &mut Scene) -> Example {
    let people = scene.people(2);
    let passage = jobs_and_towns(scene, &people);
    let asked = scene.random.below(2);
    let told = scene.random.below(2);
    let question = match scene.random.below(2) {
        0 => format!("Is {} {}?", people[asked].name, with_article(people[told].job)),
        _ => format!("Does {} live in {}?", people[asked].name, people[told].town),
    };
    (format!("{passage}\n{question}"), if asked == told { "yes" } else { "no" }.to_string())
}

/// Who lives in the town that has this building?
pub(super) fn join(scene: &mut Scene) -> Example {
    let people = scene.people(2);
    let sights = scene.random.pick_distinct(&SIGHTS, 2);
    let lives = sentences(people.iter().map(|person| format!("{} lives in {}.", person.name, person.town)));
    let mut places: Vec<String> = people
        .iter()
        .zip(&sights)
        .map(|(person, sight)| format!("{} has {}.", person.town, with_article(sight)))
        .collect();
    scene.random.shuffle(&mut places);
    let asked = scene.random.below(2);
    let question = match scene.random.below(2) {
        0 => format!("Who lives in the town with the {}?", sights[asked]),
        _ => format!("Which person lives in the town with the {}?", sights[asked]),
    };
    (format!("{lives} {}\n{question}", places.join(" ")), people[asked].name.to_string())
}

/// The name in a message.
pub(super) fn extract_name(scene: &mut Scene) -> Example {
    let message = message(scene);
    let prompt = match scene.random.below(2) {
        0 => format!("{}\nWhich name is in the message?", message.text),
        _ => format!("Extract the name from this message.\n{}", message.text),
    };
    (prompt, message.name.to_string())
}

/// The date in a message.
pub(super) fn extract_date(scene: &mut Scene) -> Example {
    let message = message(scene);
    let prompt = match scene.random.below(2) {
        0 => format!("{}\nWhich date is in the message?", message.text),
        _ => format!("Extract the date from this message.\n{}", message.text),
    };
    (prompt, message.date)
}

/// The price in a message.
pub(super) fn extract_price(scene: &mut Scene) -> Example {
    let message = message(scene);
    let prompt = match scene.random.below(2) {
        0 => format!("{}\nWhich price is in the message?", message.text),
        _ => format!("Extract the price from this message.\n{}", message.text),
    };
    (prompt, message.price)
}
