//! Short passages that carry the facts: the raw text retells them, the prompts ask about them.

use super::scene::{Person, Scene};
use super::words::{MONTHS, NUMBERS, SPOTS, capitalised, coins, with_article};

/// One sentence for each person that names the person, the job and the town.
pub(super) fn jobs_and_towns(scene: &mut Scene, people: &[Person]) -> String {
    let style = scene.random.below(3);
    sentences(people.iter().map(|person| {
        let (name, job, town) = (person.name, with_article(person.job), person.town);
        match style {
            0 => format!("{name} is {job} and lives in {town}."),
            1 => format!("{name} lives in {town} and works as {job}."),
            _ => format!("{name} is {job} from {town}."),
        }
    }))
}

/// One sentence for each person that names the person, the pet and the colour of the house.
pub(super) fn homes(scene: &mut Scene, people: &[Person]) -> String {
    let style = scene.random.below(2);
    sentences(people.iter().map(|person| {
        let (name, pet, colour) = (person.name, with_article(person.pet), person.colour);
        match style {
            0 => format!("{name} has {pet} and a {colour} house."),
            _ => format!("The house of {name} is {colour}, and {name} has {pet}."),
        }
    }))
}

/// Things of one shop with their prices, all different, and the passage that tells them.
pub(super) struct Prices {
    pub items: Vec<(&'static str, usize)>,
    pub passage: String,
}

/// The prices of `count` things in somebody's shop.
pub(super) fn prices(scene: &mut Scene, count: usize) -> Prices {
    let things = scene.things(count);
    let amounts: Vec<usize> = (1..=20).collect();
    let amounts = scene.random.pick_distinct(&amounts, count);
    let items: Vec<(&str, usize)> = things.into_iter().zip(amounts).collect();
    let (name, town) = (scene.name(), scene.town());
    let told: String = match scene.random.below(3) {
        0 => sentences(items.iter().map(|(thing, amount)| format!("The {thing} costs {}.", coins(*amount)))),
        1 => sentences(
            items
                .iter()
                .map(|(thing, amount)| format!("{} costs {}.", capitalised_article(thing), coins(*amount))),
        ),
        _ => items
            .iter()
            .map(|(thing, amount)| format!("{thing}: {}", coins(*amount)))
            .collect::<Vec<_>>()
            .join("\n"),
    };
    let opening = match scene.random.below(2) {
        0 => format!("{name} has a shop in {town}."),
        _ => format!("This is the shop of {name} in {town}."),
    };
    Prices { items, passage: format!("{opening}\n{told}") }
}

fn capitalised_article(thing: &str) -> String {
    capitalised(&with_article(thing))
}

/// Trains with their times, all different, and the passage that tells them.
pub(super) struct Timetable<'w> {
    pub from: &'w str,
    pub trains: Vec<(&'w str, String)>,
    pub passage: String,
}

/// The trains that leave one town.
pub(super) fn timetable<'w>(scene: &mut Scene<'w>, count: usize) -> Timetable<'w> {
    let mut towns = scene.towns(count + 1);
    let from = towns.remove(0);
    let hours: Vec<usize> = (5..=12).collect();
    let mut hours = scene.random.pick_distinct(&hours, count);
    hours.sort_unstable();
    let trains: Vec<(&str, String)> = towns
        .into_iter()
        .zip(hours)
        .map(|(town, hour)| (town, format!("{hour}:{}5", scene.random.below(6))))
        .collect();
    let listed = scene.random.coin();
    let told = if listed {
        trains.iter().map(|(town, time)| format!("{town}: {time}")).collect::<Vec<_>>().join("\n")
    } else {
        sentences(trains.iter().map(|(town, time)| format!("The train to {town} leaves at {time}.")))
    };
    Timetable { from, trains, passage: format!("Trains from {from}\n{told}") }
}

/// A short message to a shop with one name, one date and one price in it.
pub(super) struct Message<'w> {
    pub name: &'w str,
    pub town: &'w str,
    pub thing: &'static str,
    pub date: String,
    pub price: String,
    pub text: String,
}

/// Somebody orders something.
pub(super) fn message<'w>(scene: &mut Scene<'w>) -> Message<'w> {
    let (name, town, thing) = (scene.name(), scene.town(), scene.things(1)[0]);
    let date = format!("{} {}", scene.random.between(1, 28), scene.pick(&MONTHS));
    let price = coins(scene.random.between(1, 20));
    let wanted = with_article(thing);
    let mut parts = [
        match scene.random.below(2) {
            0 => format!("My name is {name}."),
            _ => format!("I am {name}."),
        },
        format!("I live in {town}."),
        match scene.random.below(2) {
            0 => format!("I will come on {date}."),
            _ => format!("I need it on {date}."),
        },
        match scene.random.below(2) {
            0 => format!("I can pay {price}."),
            _ => format!("I have {price}."),
        },
    ];
    let last = parts.len() - scene.random.below(2);
    scene.random.shuffle(&mut parts[..last]);
    let greeting = scene.pick(&["Hello,", "Dear shop,", "Good day,"]);
    let text = format!("{greeting} I want to buy {wanted}. {}", parts.join(" "));
    Message { name, town, thing, date, price, text }
}

/// Where something lies: `The cup is in the drawer`, without the full stop.
pub(super) fn remark(scene: &mut Scene) -> String {
    let (thing, spot) = (scene.things(1)[0], scene.pick(&SPOTS));
    let count = NUMBERS[scene.random.between(2, 9)];
    match scene.random.below(3) {
        0 => format!("The {thing} is near the {spot}"),
        1 => format!("There are {count} {thing}s near the {spot}"),
        _ => format!("I left my {thing} near the {spot}"),
    }
}

/// Joins sentences with spaces.
pub(super) fn sentences(all: impl Iterator<Item = String>) -> String {
    all.collect::<Vec<_>>().join(" ")
}
