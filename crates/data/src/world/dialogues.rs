//! Dialogues whose later turns cannot be answered without the earlier ones.
//!
//! Every dialogue ends with such a turn, in words that say nothing of the answer ("And the other one?"),
//! and names a person or a town of its part, so that the parts share no dialogue.

use super::passages::sentences;
use super::scene::Scene;
use super::words::{DAYS, LIKES, NUMBERS, PETS, capitalised, coins, joined, with_article};

/// Turns, user first, alternating, assistant last.
pub(super) type Turns = Vec<String>;

/// How one dialogue family makes a dialogue.
pub(super) struct DialogueFamily {
    pub name: &'static str,
    pub make: fn(&mut Scene) -> Turns,
}

const fn family(name: &'static str, make: fn(&mut Scene) -> Turns) -> DialogueFamily {
    DialogueFamily { name, make }
}

/// All dialogue families.
pub(super) const TABLE: [DialogueFamily; 13] = [
    family("recall-self", recall_self),
    family("recall-pet", recall_pet),
    family("recall-number", recall_number),
    family("other-price", other_price),
    family("pronoun", pronoun),
    family("next-person", next_person),
    family("correction", correction),
    family("basket", basket),
    family("undo", undo),
    family("choice", choice),
    family("say-again", say_again),
    family("count-on", count_on),
    family("running-total", running_total),
];

const fn names() -> [&'static str; TABLE.len()] {
    let mut names = [""; TABLE.len()];
    let mut index = 0;
    while index < TABLE.len() {
        names[index] = TABLE[index].name;
        index += 1;
    }
    names
}

/// The names of all dialogue families.
pub const DIALOGUE_FAMILIES: &[&str] = &names();

fn turns<const N: usize>(turns: [String; N]) -> Turns {
    turns.into()
}

/// A turn that changes the subject, with its answer.
fn aside(scene: &mut Scene) -> [String; 2] {
    let likes = scene.pick(&LIKES);
    [format!("I like {likes}."), format!("{} sounds good.", capitalised(likes))]
}

/// The user's name, town or job is told first and asked for later.
fn recall_self(scene: &mut Scene) -> Turns {
    let person = scene.person();
    let (name, town, job) = (person.name, person.town, with_article(person.job));
    let mut told = vec![
        match scene.random.below(2) {
            0 => format!("Hello, my name is {name}. I live in {town} and I am {job}."),
            _ => format!("Hello, I am {name}. I am {job} from {town}."),
        },
        format!("Hello {name}."),
    ];
    if scene.random.coin() {
        told.extend(aside(scene));
    }
    let mut facts = [
        ["What is my name?".to_string(), format!("Your name is {name}.")],
        ["Where do I live?".to_string(), format!("You live in {town}.")],
        ["What is my job?".to_string(), format!("You are {job}.")],
    ];
    scene.random.shuffle(&mut facts);
    let asked = scene.random.between(1, 2);
    told.extend(facts.into_iter().take(asked).flatten());
    told
}

/// Two pets have names.
fn recall_pet(scene: &mut Scene) -> Turns {
    let names = scene.names(2);
    let pets = scene.random.pick_distinct(&PETS, 2);
    let mut told = vec![
        format!("My {} is called {} and my {} is called {}.", pets[0].0, names[0], pets[1].0, names[1]),
        format!("You have {} and {}.", with_article(pets[0].0), with_article(pets[1].0)),
    ];
    if scene.random.coin() {
        told.extend(aside(scene));
    }
    let asked = scene.random.below(2);
    told.push(format!("What is my {} called?", pets[asked].0));
    told.push(format!("Your {} is called {}.", pets[asked].0, names[asked]));
    told
}

/// A number to keep in mind over another turn.
fn recall_number(scene: &mut Scene) -> Turns {
    let (name, number) = (scene.name(), NUMBERS[scene.random.between(1, 20)]);
    let mut told = vec![
        format!("This is {name}. Please remember the number {number}."),
        format!("I will remember it, {name}."),
    ];
    told.extend(aside(scene));
    told.push("Which number did I tell you?".to_string());
    told.push(format!("Your number is {number}."));
    told
}

/// Two prices: one is asked for, then the other.
fn other_price(scene: &mut Scene) -> Turns {
    let (name, things) = (scene.name(), scene.things(2));
    let amounts: Vec<usize> = (1..=20).collect();
    let amounts = scene.random.pick_distinct(&amounts, 2);
    let asked = scene.random.below(2);
    turns([
        format!(
            "In the shop of {name} the {} costs {} and the {} costs {}. Tell me about the {}.",
            things[0],
            coins(amounts[0]),
            things[1],
            coins(amounts[1]),
            things[asked]
        ),
        format!("The {} costs {}.", things[asked], coins(amounts[asked])),
        "And the other one?".to_string(),
        format!("The {} costs {}.", things[1 - asked], coins(amounts[1 - asked])),
    ])
}

/// A passage about two people, then questions that say only `she` or `he`.
fn pronoun(scene: &mut Scene) -> Turns {
    let people = scene.people(2);
    let passage = sentences(
        people
            .iter()
            .map(|person| format!("{} is {} from {}.", person.name, with_article(person.job), person.town)),
    );
    let asked = scene.pick(&people);
    let he = asked.pronoun().to_lowercase();
    let home =
        [format!("And where does {he} live?"), format!("{} lives in {}.", asked.pronoun(), asked.town)];
    let work = [format!("And what is {} job?", asked.possessive()), {
        format!("{} is {}.", asked.pronoun(), with_article(asked.job))
    }];
    let mut told =
        vec![format!("{passage} Let us talk about {}.", asked.name), format!("Good, about {}.", asked.name)];
    let mut questions = [home, work];
    scene.random.shuffle(&mut questions);
    let count = scene.random.between(1, 2);
    told.extend(questions.into_iter().take(count).flatten());
    told
}

/// A list of people is gone through one by one.
fn next_person(scene: &mut Scene) -> Turns {
    let people = scene.people(3);
    let listed = sentences(people.iter().map(|person| format!("{} likes {}.", person.name, person.likes)));
    let line = |index: usize| format!("{} likes {}.", people[index].name, people[index].likes);
    let mut told = vec![format!("{listed} Begin with the first person."), line(0)];
    told.extend(["And the next person?".to_string(), line(1)]);
    if scene.random.coin() {
        told.extend(["And the next person?".to_string(), line(2)]);
    }
    told
}

/// A booking whose day is corrected, and then asked for.
fn correction(scene: &mut Scene) -> Turns {
    let name = scene.name();
    let days = scene.random.pick_distinct(&DAYS, 2);
    let booked = scene.pick(&["table", "room", "boat", "ticket", "tent", "garden"]);
    let mut told = vec![
        format!("This is {name}. Please book a {booked} for {}.", days[0]),
        format!("{name} has a {booked} for {}.", days[0]),
        format!("No, I meant {}.", days[1]),
        format!("{name} has a {booked} for {}.", days[1]),
    ];
    if scene.random.coin() {
        told.extend(["Say my booking again.".to_string(), format!("{name} has a {booked} for {}.", days[1])]);
    }
    told
}

/// Things are put into a basket, then listed.
fn basket(scene: &mut Scene) -> Turns {
    let name = scene.name();
    let count = scene.random.between(2, 3);
    let things: Vec<String> = scene.things(count).into_iter().map(with_article).collect();
    let mut told =
        vec![format!("I am {name}. Put {} in my basket.", things[0]), format!("Now you have {}.", things[0])];
    for thing in &things[1..count - 1] {
        told.extend([format!("Add {thing}."), "It is in the basket.".to_string()]);
    }
    told.extend([format!("Add {}.", things[count - 1]), "It is in the basket.".to_string()]);
    told.extend(["What is in my basket now?".to_string(), format!("You have {}.", joined(&things))]);
    told
}

/// One of three things goes away.
fn undo(scene: &mut Scene) -> Turns {
    let name = scene.name();
    let mut things: Vec<String> = scene.things(3).into_iter().map(with_article).collect();
    let mut told = vec![
        format!("I am {name} and I have {}.", joined(&things)),
        format!("You have three things, {name}."),
    ];
    let lost = things.remove(scene.random.below(3));
    let lost = lost.split_once(' ').map_or(lost.as_str(), |(_, thing)| thing).to_string();
    told.extend([format!("I lost the {lost}."), "That is a pity.".to_string()]);
    told.extend(["What do I have now?".to_string(), format!("You have {}.", joined(&things))]);
    told
}

/// Two offers: the assistant takes one, then the other.
fn choice(scene: &mut Scene) -> Turns {
    let name = scene.name();
    let offers = scene.random.pick_distinct(&LIKES, 2);
    let first = scene.random.below(2);
    let order = ["first", "second"][first];
    turns([
        format!("{name} can have {} or {}. Take the {order} for {name}.", offers[0], offers[1]),
        format!("{name} takes {}.", offers[first]),
        "Now the other one instead.".to_string(),
        format!("{name} takes {}.", offers[1 - first]),
    ])
}

/// The last answer, word for word.
fn say_again(scene: &mut Scene) -> Turns {
    let person = scene.person();
    let answer = match scene.random.below(2) {
        0 => [
            format!("{} has {}. Tell me what {} has.", person.name, with_article(person.pet), person.name),
            format!("{} has {}.", person.name, with_article(person.pet)),
        ],
        _ => [
            format!("{} lives in {}. Tell me where {} lives.", person.name, person.town, person.name),
            format!("{} lives in {}.", person.name, person.town),
        ],
    };
    let again = scene.pick(&["Please say that again.", "I did not hear you."]);
    let repeated = answer[1].clone();
    let [asked, answered] = answer;
    turns([asked, answered, again.to_string(), repeated])
}

/// Counting, one number per turn.
fn count_on(scene: &mut Scene) -> Turns {
    let (name, start) = (scene.name(), scene.random.between(1, 16));
    let steps = scene.random.between(2, 4);
    let mut told = vec![
        format!("I am {name}. Count with me and begin at {}.", NUMBERS[start]),
        NUMBERS[start].to_string(),
    ];
    for step in 1..steps {
        told.extend(["Go on.".to_string(), NUMBERS[start + step].to_string()]);
    }
    told
}

/// What everything costs together, after each purchase.
fn running_total(scene: &mut Scene) -> Turns {
    let (name, things) = (scene.name(), scene.things(2));
    let (one, other) = (scene.random.between(1, 9), scene.random.between(1, 9));
    turns([
        format!("I am {name} and I buy {} for {}.", with_article(things[0]), coins(one)),
        format!("You pay {}.", coins(one)),
        format!("I also buy {} for {}.", with_article(things[1]), coins(other)),
        format!("You pay {}.", coins(one + other)),
    ])
}
