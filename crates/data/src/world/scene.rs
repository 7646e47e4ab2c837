//! A scene: one part of the world and a stream of chance, from which all texts draw their contents.

use super::names::{ONSETS, is_hers};
use super::random::{Random, fnv1a};
use super::words::{COLOURS, JOBS, LIKES, PETS, THINGS};
use super::{Part, World};

/// One combination in this many is held out in the families whose prompts contain no name.
const HELD_OUT_SHARE: u64 = 5;

/// The facts of one person. They hold within one text only: a reader must read, and cannot recall.
#[derive(Clone, Copy, Debug)]
pub(super) struct Person<'w> {
    pub name: &'w str,
    pub job: &'static str,
    pub workplace: &'static str,
    pub town: &'w str,
    pub pet: &'static str,
    pub colour: &'static str,
    pub likes: &'static str,
    pub age: usize,
}

impl Person<'_> {
    /// `She` or `He`.
    pub fn pronoun(&self) -> &'static str {
        if is_hers(self.name) { "She" } else { "He" }
    }

    /// `her` or `his`.
    pub fn possessive(&self) -> &'static str {
        if is_hers(self.name) { "her" } else { "his" }
    }
}

/// Draws the contents of one text after another for one part of the world.
pub(super) struct Scene<'w> {
    world: &'w World,
    part: Part,
    pub random: Random,
    /// Bit i is set if a name of the current text begins with the i-th letter.
    initials: u32,
}

impl<'w> Scene<'w> {
    pub fn new(world: &'w World, part: Part, purpose: &str) -> Self {
        let random = Random::new(world.seed, &format!("{part:?} {purpose}"));
        Self { world, part, random, initials: 0 }
    }

    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        self.random.pick(items)
    }

    /// Begins a new text. The names within one text begin with different letters, as in a good story: two
    /// names with the same first piece are what small models mix up.
    pub fn begin(&mut self) {
        self.initials = 0;
    }

    pub fn name(&mut self) -> &'w str {
        self.unlike_the_others(&self.world.names(self.part).people)
    }

    pub fn town(&mut self) -> &'w str {
        self.unlike_the_others(&self.world.names(self.part).towns)
    }

    fn unlike_the_others(&mut self, names: &'w [String]) -> &'w str {
        if self.initials.count_ones() as usize >= ONSETS.len() {
            self.initials = 0;
        }
        loop {
            let name = &names[self.random.below(names.len())];
            let initial = name.bytes().next().map_or(0, |letter| 1 << (letter % 32));
            if self.initials & initial == 0 {
                self.initials |= initial;
                return name;
            }
        }
    }

    /// Different names.
    pub fn names(&mut self, count: usize) -> Vec<&'w str> {
        distinct(count, || self.name())
    }

    /// Different towns.
    pub fn towns(&mut self, count: usize) -> Vec<&'w str> {
        distinct(count, || self.town())
    }

    /// People who differ in every fact except, perhaps, what they like.
    pub fn people(&mut self, count: usize) -> Vec<Person<'w>> {
        let names = self.names(count);
        let towns = self.towns(count);
        let jobs = self.random.pick_distinct(&JOBS, count);
        let pets = self.random.pick_distinct(&PETS, count);
        let colours = self.random.pick_distinct(&COLOURS, count);
        let likes = self.random.pick_distinct(&LIKES, count);
        let ages = distinct(count, || self.random.between(20, 79));
        (0..count)
            .map(|index| Person {
                name: names[index],
                job: jobs[index].0,
                workplace: jobs[index].1,
                town: towns[index],
                pet: pets[index].0,
                colour: colours[index],
                likes: likes[index],
                age: ages[index],
            })
            .collect()
    }

    pub fn person(&mut self) -> Person<'w> {
        self.people(1)[0]
    }

    /// Different things.
    pub fn things(&mut self, count: usize) -> Vec<&'static str> {
        self.random.pick_distinct(&THINGS, count)
    }

    /// Different items whose combination, whatever its order, belongs to this part. `purpose` keeps the
    /// divisions of different families apart.
    pub fn combination<T: Copy + Ord + std::fmt::Debug>(
        &mut self,
        purpose: &str,
        items: &[T],
        count: usize,
        fits: impl Fn(&[T]) -> bool,
    ) -> Vec<T> {
        loop {
            let chosen = self.random.pick_distinct(items, count);
            if fits(&chosen) && self.owns(purpose, &chosen) {
                return chosen;
            }
        }
    }

    /// Whether this combination, whatever its order, belongs to this part.
    pub fn owns<T: Ord + Copy + std::fmt::Debug>(&self, purpose: &str, chosen: &[T]) -> bool {
        let mut sorted = chosen.to_vec();
        sorted.sort_unstable();
        let key = format!("{purpose} {sorted:?}");
        // The low bits of FNV mix poorly over short keys; the high half is folded in.
        let hash = fnv1a(key.as_bytes(), self.world.seed);
        let held_out = (hash ^ (hash >> 32)).is_multiple_of(HELD_OUT_SHARE);
        held_out == (self.part == Part::HeldOut)
    }
}

fn distinct<T: PartialEq>(count: usize, mut draw: impl FnMut() -> T) -> Vec<T> {
    let mut drawn = Vec::with_capacity(count);
    while drawn.len() < count {
        let next = draw();
        if !drawn.contains(&next) {
            drawn.push(next);
        }
    }
    drawn
}
