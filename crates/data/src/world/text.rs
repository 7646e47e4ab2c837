//! Raw text: short documents about people, towns, trade and school.
//!
//! A document tells its facts and then tells them again in other words, in a list, in a quotation or
//! from the other end ("The baker is …"). That is how the base model learns from text alone to look
//! something up and to copy it. Questions and instructions never occur.

use super::lessons;
use super::passages::{homes, jobs_and_towns, message, prices, remark, sentences, timetable};
use super::scene::Scene;
use super::words::{
    ACTIONS, DAYS, LIKES, MATERIALS, MONTHS, SIGHTS, SPOTS, capitalised, coins, joined, with_article,
};

type Make = fn(&mut Scene) -> String;

/// All kinds of documents with their shares.
const KINDS_OF_DOCUMENTS: [(usize, Make); 32] = [
    (4, person_entry),
    (2, town_entry),
    (2, thing_entry),
    (5, neighbours),
    (4, register),
    (3, houses),
    (4, price_list),
    (3, bargain),
    (4, station),
    (2, diary),
    (5, letter),
    (3, sign),
    (3, story),
    (2, script),
    (3, landmarks),
    (2, meeting),
    (2, denial),
    (2, lessons::opposites),
    (2, lessons::plurals),
    (2, lessons::kinds),
    (2, lessons::strangers),
    (3, lessons::sums),
    (2, lessons::shopping),
    (2, lessons::number_order),
    (2, lessons::alphabet),
    (2, lessons::counting),
    (1, lessons::calendar),
    (2, lessons::past),
    (2, lessons::echo),
    (1, lessons::work_and_sounds),
    (2, lessons::opinions),
    (2, lessons::post),
];

/// One document.
pub(super) fn document(scene: &mut Scene) -> String {
    let total: usize = KINDS_OF_DOCUMENTS.iter().map(|(share, _)| share).sum();
    let mut ticket = scene.random.below(total);
    for (share, make) in KINDS_OF_DOCUMENTS {
        if ticket < share {
            return make(scene);
        }
        ticket -= share;
    }
    person_entry(scene)
}

/// An encyclopaedic entry about a person.
fn person_entry(scene: &mut Scene) -> String {
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
fn town_entry(scene: &mut Scene) -> String {
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
fn thing_entry(scene: &mut Scene) -> String {
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
fn neighbours(scene: &mut Scene) -> String {
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
fn register(scene: &mut Scene) -> String {
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
fn houses(scene: &mut Scene) -> String {
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

/// Prices, told again in another order, and one purchase.
fn price_list(scene: &mut Scene) -> String {
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
fn bargain(scene: &mut Scene) -> String {
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
fn station(scene: &mut Scene) -> String {
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
fn diary(scene: &mut Scene) -> String {
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
fn letter(scene: &mut Scene) -> String {
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
fn sign(scene: &mut Scene) -> String {
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
fn story(scene: &mut Scene) -> String {
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
fn script(scene: &mut Scene) -> String {
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

/// Who lives where, what stands where, and so who lives near what.
fn landmarks(scene: &mut Scene) -> String {
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
fn meeting(scene: &mut Scene) -> String {
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
fn denial(scene: &mut Scene) -> String {
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
