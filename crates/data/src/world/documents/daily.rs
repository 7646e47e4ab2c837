//! Raw text from daily life: shops, trains, letters, talks and short stories.

use crate::world::passages::{message, prices, remark, sentences, timetable};
use crate::world::scene::Scene;
use crate::world::words::{ACTIONS, DAYS, SPOTS, capitalised, coins, with_article};

/// Prices, told again in another order, and one purchase.
pub(super) fn price_list(scene: &mut Scene) -> String {
    let count = scene.random.between(2, 5);
    let mut shop = prices(scene, count);
    scene.random.shuffle(&mut shop.items);
    let retold = sentences(
        shop.items
            .iter()
            .take(3)
            .map(|(thing, amount)| format!("The price of the {thing} is {}.", coins(*amount))),
    );
    let (thing, amount) = scene.pick(&shop.items);
    let name = scene.name();
    format!("{}\n{retold} {name} buys the {thing} and pays {}.", shop.passage, coins(amount))
}

/// Two prices compared.
pub(super) fn bargain(scene: &mut Scene) -> String {
    let shop = prices(scene, 2);
    let (one, other) = (shop.items[0], shop.items[1]);
    let (dear, cheap) = if one.1 > other.1 { (one, other) } else { (other, one) };
    let name = scene.name();
    let judged = match scene.random.below(3) {
        0 => format!("The {} costs more than the {}. The {} costs less.", dear.0, cheap.0, cheap.0),
        1 => format!("The {} is cheaper. The {} is more expensive.", cheap.0, dear.0),
        _ => format!("More expensive: the {}\nCheaper: the {}", dear.0, cheap.0),
    };
    format!(
        "{}\n{judged}\n{} is more than {}. {name} takes the {}.",
        shop.passage,
        capitalised(&coins(dear.1)),
        coins(cheap.1),
        cheap.0
    )
}

/// A timetable and the travellers who use it.
pub(super) fn station(scene: &mut Scene) -> String {
    let count = scene.random.between(2, 4);
    let table = timetable(scene, count);
    let mut trains = table.trains.clone();
    scene.random.shuffle(&mut trains);
    let travellers = scene.names(2);
    let retold =
        sentences(trains.iter().zip(travellers).map(|((town, time), name)| match scene.random.below(2) {
            0 => format!("{name} takes the train to {town} at {time}."),
            _ => format!("At {time} {name} leaves {} for {town}.", table.from),
        }));
    format!("{}\n{retold}", table.passage)
}

/// A week, day by day, looked back on.
pub(super) fn diary(scene: &mut Scene) -> String {
    let name = scene.name();
    let first = scene.random.below(DAYS.len());
    let (first, second) = (DAYS[first], DAYS[(first + 1) % DAYS.len()]);
    let actions = scene.random.pick_distinct(&ACTIONS, 2);
    let places = [scene.pick(&actions[0].3), scene.pick(&actions[1].3)];
    format!(
        "On {first} {name} {} {}. The next day is {second}. On {second} {name} {} {}.\nPlan of {name}\n{first}: {} \
         {}\n{second}: {} {}",
        actions[0].1, places[0], actions[1].1, places[1], actions[0].0, places[0], actions[1].0, places[1],
    )
}

/// A message to a shop, and what the shop notes down from it.
pub(super) fn letter(scene: &mut Scene) -> String {
    let message = message(scene);
    let mut notes = [
        format!("name: {}", message.name),
        format!("date: {}", message.date),
        format!("price: {}", message.price),
        format!("town: {}", message.town),
    ];
    scene.random.shuffle(&mut notes);
    let noted = match scene.random.below(3) {
        0 => notes.join("\n"),
        1 => format!("The message is from {}. The date is {}.", message.name, message.date),
        _ => format!(
            "{}\n{}\n{} wants {} for {}.",
            message.name,
            message.date,
            message.name,
            with_article(message.thing),
            message.price
        ),
    };
    format!("{}\nThe shop noted this.\n{noted}", message.text)
}

/// Something said or written, and read or told again word for word.
pub(super) fn sign(scene: &mut Scene) -> String {
    let names = scene.names(2);
    let (one, other) = (names[0], names[1]);
    let (said, more) = (remark(scene), remark(scene));
    match scene.random.below(3) {
        0 => format!(
            "{one} said: \"{said}.\" {other} did not hear it. So {one} said it again: \"{said}.\" Then {other} said: \
             \"{more}.\""
        ),
        1 => format!(
            "There was a note on the door of {one}. It said: \"{said}.\" {other} read it. Then {other} read it \
             again.\n{said}.\nThat was all."
        ),
        _ => format!(
            "{one} said: \"{said}.\" Then {other} went home. {more}.\nAt home {other} told what {one} said.\n{said}."
        ),
    }
}

/// A short story in which the same people and things come back.
pub(super) fn story(scene: &mut Scene) -> String {
    let people = scene.people(2);
    let (one, other) = (people[0], people[1]);
    let things = scene.things(2);
    let spots = scene.random.pick_distinct(&SPOTS, 2);
    let (first, second) = (things[0], things[1]);
    match scene.random.below(3) {
        0 => format!(
            "{} lost {}. {} looked near the {}. The {first} was not there. Then {} looked near the {}. There it \
             was. {} took the {first} home to {}.",
            one.name,
            with_article(first),
            one.pronoun(),
            spots[0],
            one.name,
            spots[1],
            one.name,
            one.town
        ),
        1 => format!(
            "{} the {} met {} the {}. {} had {} and {} had {}. They changed. Now {} has the {second} and {} has the \
             {first}.",
            one.name,
            one.job,
            other.name,
            other.job,
            one.name,
            with_article(first),
            other.name,
            with_article(second),
            one.name,
            other.name
        ),
        _ => format!(
            "{} came to {} to see {}. {} gave {} {}. {} gave {} {}. In the evening {} went back to {} with the \
             {second}, and the {first} stayed with {}.",
            one.name,
            other.town,
            other.name,
            one.name,
            other.name,
            with_article(first),
            other.name,
            one.name,
            with_article(second),
            one.name,
            one.town,
            other.name
        ),
    }
}

/// Lines of a talk, and what was learned from it.
pub(super) fn script(scene: &mut Scene) -> String {
    let people = scene.people(2);
    let (one, other) = (people[0], people[1]);
    format!(
        "{}: I like {}.\n{}: I like {}.\n{}: I come from {}.\n{}: My home is in {}.\nSo {} likes {} and {} likes {}. {} \
         comes from {}.",
        one.name,
        one.likes,
        other.name,
        other.likes,
        one.name,
        one.town,
        other.name,
        other.town,
        one.name,
        one.likes,
        other.name,
        other.likes,
        one.name,
        one.town,
    )
}
