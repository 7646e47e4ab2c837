//! Raw text about people, towns and things: entries, registers, neighbours.

use crate::world::passages::{homes, jobs_and_towns, sentences};
use crate::world::scene::Scene;
use crate::world::words::{DAYS, LIKES, MATERIALS, MONTHS, SIGHTS, SPOTS, capitalised, joined, with_article};

/// An encyclopaedic entry about a person.
pub(super) fn person_entry(scene: &mut Scene) -> String {
    let person = scene.person();
    let (name, he, his) = (person.name, person.pronoun(), person.possessive());
    let mut facts = [
        format!("{he} is {} years old.", person.age),
        format!("{he} has {}.", with_article(person.pet)),
        format!("{he} likes {}.", person.likes),
        format!("{} house is {}.", capitalised(his), person.colour),
    ];
    scene.random.shuffle(&mut facts);
    let (job, town) = (with_article(person.job), person.town);
    let opening = match scene.random.below(2) {
        0 => format!("{name} works as {job}. {he} lives in {town}."),
        _ => format!("{name} lives in {town}. {he} works as {job} at the {}.", person.workplace),
    };
    let closing = match scene.random.below(3) {
        0 => format!("In short, {name} is {job} from {town}."),
        1 => format!("{name} likes {}, and {his} {} does too.", person.likes, person.pet),
        _ => format!("So the home of {name} is in {town}, and the job of {name} is {}.", person.job),
    };
    format!("{name}\n{opening} {} {closing}", facts[..scene.random.between(2, 4)].join(" "))
}

/// An entry about a town.
pub(super) fn town_entry(scene: &mut Scene) -> String {
    let town = scene.town();
    let sights = scene.random.pick_distinct(&SIGHTS, 2);
    let people = scene.names(2);
    let day = scene.pick(&DAYS);
    let goods = scene.things(2);
    format!(
        "{town}\n{town} is a town with {} and {}. {} and {} live in {town}. On {day} there is a market. \
         People buy {}s and {}s there. The {} of {town} is old. The {} of {town} is new.",
        with_article(sights[0]),
        with_article(sights[1]),
        people[0],
        people[1],
        goods[0],
        goods[1],
        sights[0],
        sights[1],
    )
}

/// An entry about a thing and where it is kept.
pub(super) fn thing_entry(scene: &mut Scene) -> String {
    let things = scene.things(2);
    let materials = scene.random.pick_distinct(&MATERIALS, 2);
    let spots = scene.random.pick_distinct(&SPOTS, 2);
    let name = scene.name();
    format!(
        "The things of {name}\n{name} has {} of {} and {} of {}. The {} stands near the {}. The {} stands near \
         the {}. {name} takes the {} of {} from the {} and puts it near the {}. Now the {} is near the {}.",
        with_article(things[0]),
        materials[0],
        with_article(things[1]),
        materials[1],
        things[0],
        spots[0],
        things[1],
        spots[1],
        things[0],
        materials[0],
        spots[0],
        spots[1],
        things[0],
        spots[1],
    )
}

/// People with jobs and towns, told again from the other end.
pub(super) fn neighbours(scene: &mut Scene) -> String {
    let count = scene.random.between(2, 4);
    let mut people = scene.people(count);
    let passage = jobs_and_towns(scene, &people);
    scene.random.shuffle(&mut people);
    let retold = match scene.random.below(4) {
        0 => sentences(people.iter().map(|person| format!("The {} is {}.", person.job, person.name))),
        1 => sentences(
            people.iter().map(|person| format!("The home of {} is in {}.", person.name, person.town)),
        ),
        2 => sentences(people.iter().map(|person| format!("The job of {} is {}.", person.name, person.job))),
        _ => {
            sentences(people.iter().map(|person| format!("The one from {} is {}.", person.town, person.name)))
        }
    };
    let names: Vec<&str> = people.iter().map(|person| person.name).collect();
    match scene.random.below(2) {
        0 => format!("{passage}\n{retold}"),
        _ => format!("{passage}\n{retold}\n{}", names.join("\n")),
    }
}

/// People who present themselves, and the forms that a clerk fills in.
pub(super) fn register(scene: &mut Scene) -> String {
    let count = scene.random.between(1, 2);
    let people = scene.people(count);
    let day = scene.pick(&DAYS);
    let spoken = people
        .iter()
        .map(|person| {
            let (name, town, job) = (person.name, person.town, with_article(person.job));
            match scene.random.below(3) {
                0 => format!("\"My name is {name}. I live in {town} and I am {job}.\""),
                1 => format!("\"I am {job}. My name is {name} and my town is {town}.\""),
                _ => format!("\"I live in {town}. I am {job} and my name is {name}.\""),
            }
        })
        .collect::<Vec<_>>()
        .join("\n");
    let forms = people
        .iter()
        .map(|person| match scene.random.below(2) {
            0 => format!("name: {}; town: {}; job: {}", person.name, person.town, person.job),
            _ => format!("{} is {} from {}.", person.name, with_article(person.job), person.town),
        })
        .collect::<Vec<_>>()
        .join("\n");
    format!("The clerk heard this on {day}.\n{spoken}\nThe clerk noted:\n{forms}")
}

/// Houses and pets, told twice.
pub(super) fn houses(scene: &mut Scene) -> String {
    let count = scene.random.between(2, 3);
    let mut people = scene.people(count);
    let passage = homes(scene, &people);
    scene.random.shuffle(&mut people);
    let retold = match scene.random.below(3) {
        0 => sentences(
            people.iter().map(|person| format!("The {} house belongs to {}.", person.colour, person.name)),
        ),
        1 => sentences(people.iter().map(|person| format!("The {} belongs to {}.", person.pet, person.name))),
        _ => sentences(
            people
                .iter()
                .map(|person| format!("The colour of {}'s house is {}.", person.name, person.colour)),
        ),
    };
    format!("{passage}\n{retold}")
}

/// Who lives where, what stands where, and so who lives near what.
pub(super) fn landmarks(scene: &mut Scene) -> String {
    let people = scene.people(2);
    let sights = scene.random.pick_distinct(&SIGHTS, 2);
    let mut order = [0, 1];
    scene.random.shuffle(&mut order);
    let lives = sentences(people.iter().map(|person| format!("{} lives in {}.", person.name, person.town)));
    let stands = sentences(
        order.iter().map(|&index| format!("{} has {}.", people[index].town, with_article(sights[index]))),
    );
    scene.random.shuffle(&mut order);
    let so = sentences(
        order
            .iter()
            .map(|&index| format!("The person near the {} is {}.", sights[index], people[index].name)),
    );
    format!("{lives} {stands}\n{so}")
}

/// A list of guests with initials.
pub(super) fn meeting(scene: &mut Scene) -> String {
    let names = scene.names(4);
    let town = scene.town();
    let likes = scene.random.pick_distinct(&LIKES, 2);
    let month = scene.pick(&MONTHS);
    let letter = |name: &str| name.chars().next().map(String::from).unwrap_or_default();
    format!(
        "In {month} {} {} and {} {} met in {town}. They signed with {}. {}. and {}. {}.\n{} {} talked about {}. {} {} \
         talked about {}.",
        names[0],
        names[1],
        names[2],
        names[3],
        letter(names[0]),
        letter(names[1]),
        letter(names[2]),
        letter(names[3]),
        names[0],
        names[1],
        likes[0],
        names[2],
        names[3],
        likes[1],
    )
}

/// Rumours and their denials.
pub(super) fn denial(scene: &mut Scene) -> String {
    let people = scene.people(3);
    let (one, other, third) = (people[0], people[1], people[2]);
    let (job, wrong) = (with_article(one.job), with_article(other.job));
    format!(
        "{} is {wrong}. No, {} is not {wrong}. {} is {job}. The house of {} in {} is {}. No, the house of {} in {} is \
         not {}. {}",
        one.name,
        one.name,
        one.name,
        other.name,
        other.town,
        other.colour,
        other.name,
        other.town,
        other.colour,
        joined(&[
            format!("{} told it to {}", third.name, other.name),
            format!("{} told it to {}.", other.name, one.name)
        ]),
    )
}
