//! The world's vocabulary: small closed sets, so that a tiny model meets every word often.

/// Number words; the index is the number.
pub(super) const NUMBERS: [&str; 21] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
];

pub(super) const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

pub(super) const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

pub(super) const COLOURS: [&str; 9] =
    ["red", "blue", "green", "yellow", "white", "black", "brown", "grey", "pink"];

/// A job and the place where it is done.
pub(super) const JOBS: [(&str, &str); 20] = [
    ("baker", "bakery"),
    ("teacher", "school"),
    ("doctor", "hospital"),
    ("farmer", "farm"),
    ("pilot", "airport"),
    ("sailor", "harbour"),
    ("judge", "court"),
    ("clerk", "office"),
    ("actor", "theatre"),
    ("miller", "mill"),
    ("gardener", "park"),
    ("banker", "bank"),
    ("painter", "studio"),
    ("miner", "mine"),
    ("cook", "restaurant"),
    ("monk", "abbey"),
    ("guard", "castle"),
    ("librarian", "library"),
    ("tailor", "workshop"),
    ("waiter", "cafe"),
];

/// Buildings and sights that a town may have.
pub(super) const SIGHTS: [&str; 14] = [
    "mill", "castle", "harbour", "library", "theatre", "abbey", "bridge", "tower", "museum", "park", "zoo",
    "market", "lake", "garden",
];

/// What people like.
pub(super) const LIKES: [&str; 14] = [
    "tea", "music", "chess", "honey", "snow", "bread", "books", "flowers", "cheese", "soup", "rain", "films",
    "cake", "football",
];

/// Animals kept as pets, with the sound they make.
pub(super) const PETS: [(&str, &str); 12] = [
    ("dog", "bark"),
    ("cat", "meow"),
    ("cow", "moo"),
    ("horse", "neigh"),
    ("duck", "quack"),
    ("pig", "grunt"),
    ("owl", "hoot"),
    ("frog", "croak"),
    ("snake", "hiss"),
    ("hen", "cluck"),
    ("donkey", "bray"),
    ("mouse", "squeak"),
];

/// Things that are bought, carried, listed and sorted. All have a regular plural in -s.
pub(super) const THINGS: [&str; 52] = [
    "apron", "bag", "ball", "basket", "bell", "book", "bowl", "candle", "carpet", "chair", "clock", "coat",
    "cup", "desk", "drum", "envelope", "fan", "fork", "guitar", "hammer", "hat", "iron", "jar", "jug",
    "kettle", "key", "kite", "ladder", "lamp", "map", "mirror", "nail", "needle", "oven", "pan", "pen",
    "plate", "quilt", "ring", "rope", "rug", "shirt", "spoon", "stamp", "table", "tent", "towel", "umbrella",
    "vase", "wagon", "yoyo", "zip",
];

/// Where a thing is kept.
pub(super) const SPOTS: [&str; 8] = ["table", "shelf", "box", "drawer", "cellar", "attic", "hall", "shed"];

/// What a thing is made of.
pub(super) const MATERIALS: [&str; 8] =
    ["wood", "glass", "iron", "paper", "stone", "silver", "clay", "leather"];

/// Kinds of things; a word belongs to one kind only.
pub(super) const KINDS: [(&str, [&str; 8]); 8] = [
    ("animal", ["dog", "cat", "cow", "horse", "duck", "pig", "owl", "frog"]),
    ("fruit", ["apple", "banana", "cherry", "lemon", "plum", "pear", "grape", "melon"]),
    ("tool", ["hammer", "saw", "drill", "rake", "spade", "axe", "wrench", "chisel"]),
    ("drink", ["tea", "milk", "coffee", "juice", "water", "wine", "beer", "cocoa"]),
    ("vehicle", ["car", "bus", "train", "boat", "bicycle", "lorry", "tram", "plane"]),
    ("garment", ["coat", "shirt", "hat", "sock", "skirt", "scarf", "jacket", "glove"]),
    ("metal", ["gold", "silver", "copper", "iron", "tin", "lead", "zinc", "steel"]),
    ("vegetable", ["carrot", "onion", "potato", "cabbage", "pea", "bean", "leek", "radish"]),
];

/// Pairs of opposites; no word stands in two pairs.
pub(super) const OPPOSITES: [(&str, &str); 40] = [
    ("hot", "cold"),
    ("big", "small"),
    ("fast", "slow"),
    ("high", "low"),
    ("early", "late"),
    ("wet", "dry"),
    ("full", "empty"),
    ("open", "closed"),
    ("clean", "dirty"),
    ("happy", "sad"),
    ("rich", "poor"),
    ("strong", "weak"),
    ("loud", "quiet"),
    ("hard", "soft"),
    ("dark", "bright"),
    ("near", "far"),
    ("thick", "thin"),
    ("deep", "shallow"),
    ("sweet", "sour"),
    ("young", "old"),
    ("cheap", "expensive"),
    ("true", "false"),
    ("left", "right"),
    ("up", "down"),
    ("day", "night"),
    ("black", "white"),
    ("first", "last"),
    ("buy", "sell"),
    ("give", "take"),
    ("push", "pull"),
    ("love", "hate"),
    ("start", "stop"),
    ("laugh", "cry"),
    ("inside", "outside"),
    ("above", "below"),
    ("before", "after"),
    ("always", "never"),
    ("wide", "narrow"),
    ("summer", "winter"),
    ("friend", "enemy"),
];

/// Nouns whose plural is not the singular and -s.
pub(super) const IRREGULAR_PLURALS: [(&str, &str); 16] = [
    ("child", "children"),
    ("foot", "feet"),
    ("mouse", "mice"),
    ("tooth", "teeth"),
    ("man", "men"),
    ("woman", "women"),
    ("leaf", "leaves"),
    ("knife", "knives"),
    ("wolf", "wolves"),
    ("baby", "babies"),
    ("city", "cities"),
    ("story", "stories"),
    ("dish", "dishes"),
    ("glass", "glasses"),
    ("brush", "brushes"),
    ("goose", "geese"),
];

/// An action: `(I …, she …, yesterday she …, what or where)`.
pub(super) const ACTIONS: [(&str, &str, &str, [&str; 3]); 26] = [
    ("walk", "walks", "walked", ["to the market", "to the river", "to the school"]),
    ("run", "runs", "ran", ["to the station", "to the gate", "to the river"]),
    ("buy", "buys", "bought", ["a lamp", "a coat", "some bread"]),
    ("sell", "sells", "sold", ["a boat", "a clock", "some cheese"]),
    ("write", "writes", "wrote", ["a letter", "a book", "a song"]),
    ("eat", "eats", "ate", ["an apple", "a plum", "some cake"]),
    ("drink", "drinks", "drank", ["milk", "coffee", "cold water"]),
    ("see", "sees", "saw", ["a boat", "a horse", "the moon"]),
    ("find", "finds", "found", ["a coin", "a key", "a ring"]),
    ("lose", "loses", "lost", ["a glove", "a coin", "a ball"]),
    ("sing", "sings", "sang", ["a song", "in the garden", "at the theatre"]),
    ("open", "opens", "opened", ["the door", "the box", "the window"]),
    ("close", "closes", "closed", ["the door", "the gate", "the shop"]),
    ("paint", "paints", "painted", ["the wall", "the boat", "a picture"]),
    ("carry", "carries", "carried", ["a box", "a basket", "a ladder"]),
    ("wash", "washes", "washed", ["the car", "a shirt", "the dishes"]),
    ("make", "makes", "made", ["a cake", "a kite", "some soup"]),
    ("take", "takes", "took", ["the bus", "a picture", "the train"]),
    ("swim", "swims", "swam", ["in the lake", "in the river", "in the sea"]),
    ("sleep", "sleeps", "slept", ["in the garden", "on the train", "in a tent"]),
    ("wait", "waits", "waited", ["at the station", "at the gate", "in the park"]),
    ("cook", "cooks", "cooked", ["some soup", "a fish", "some rice"]),
    ("clean", "cleans", "cleaned", ["the room", "the oven", "the window"]),
    ("plant", "plants", "planted", ["a tree", "a rose", "some beans"]),
    ("visit", "visits", "visited", ["the castle", "the museum", "a friend"]),
    ("ride", "rides", "rode", ["a horse", "a bicycle", "to the farm"]),
];

/// What reviews are about.
pub(super) const VENUES: [&str; 8] =
    ["hotel", "cafe", "shop", "theatre", "museum", "market", "zoo", "restaurant"];
pub(super) const ASPECTS: [&str; 8] =
    ["room", "food", "staff", "service", "music", "garden", "tour", "building"];
pub(super) const PRAISE: [&str; 8] =
    ["lovely", "great", "wonderful", "excellent", "perfect", "pleasant", "charming", "splendid"];
pub(super) const BLAME: [&str; 8] =
    ["awful", "terrible", "horrible", "dreadful", "boring", "poor", "ugly", "nasty"];

/// Topics with sentences that belong to them.
pub(super) const TOPICS: [(&str, [&str; 6]); 6] = [
    (
        "sport",
        [
            "The team won the match.",
            "The players run after the ball.",
            "The race starts at noon.",
            "The goal came very late.",
            "The coach trains the team.",
            "The players lost the game.",
        ],
    ),
    (
        "food",
        [
            "The soup needs more salt.",
            "Fresh bread comes from the oven.",
            "The cheese tastes of nuts.",
            "Dinner is rice and beans.",
            "The cake needs two eggs.",
            "We cook fish for lunch.",
        ],
    ),
    (
        "weather",
        [
            "It rains all morning.",
            "The wind is strong today.",
            "Snow falls on the hills.",
            "The sky is grey and cloudy.",
            "A storm comes from the sea.",
            "The sun shines all afternoon.",
        ],
    ),
    (
        "money",
        [
            "The bank lends ten coins.",
            "The rent must be paid.",
            "The price of gold goes up.",
            "We save a coin every week.",
            "The tax is too high.",
            "The loan is paid back.",
        ],
    ),
    (
        "travel",
        [
            "The train leaves the station.",
            "The ship sails to the island.",
            "We pack our bags for the trip.",
            "The road goes over the mountain.",
            "The ticket is for two days.",
            "The plane lands at the airport.",
        ],
    ),
    (
        "health",
        [
            "The doctor looks at my throat.",
            "I have a bad headache.",
            "The nurse gives me a pill.",
            "My leg hurts after the fall.",
            "The fever is gone now.",
            "The tooth still hurts.",
        ],
    ),
];

pub(super) const URGENT: [&str; 8] = [
    "The kitchen is on fire.",
    "Water runs through the roof.",
    "A child is lost.",
    "The bridge is falling down.",
    "A man is hurt and needs help.",
    "The gas pipe leaks.",
    "Thieves are in the shop.",
    "The boat is sinking.",
];
pub(super) const PATIENT: [&str; 8] = [
    "The garden club meets next month.",
    "We have new chairs in the hall.",
    "The shop has a new sign.",
    "I finished the book you gave me.",
    "The flowers look nice this year.",
    "The choir will sing in spring.",
    "We may paint the fence in summer.",
    "The old map is back on the wall.",
];

/// `a` or `an` and the word.
pub(super) fn with_article(word: &str) -> String {
    let article = if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {word}")
}

/// `red`, `red and blue`, `red, blue and green`.
pub(super) fn joined<S: AsRef<str>>(words: &[S]) -> String {
    match words {
        [] => String::new(),
        [only] => only.as_ref().to_string(),
        [first @ .., last] => {
            let first: Vec<&str> = first.iter().map(AsRef::as_ref).collect();
            format!("{} and {}", first.join(", "), last.as_ref())
        }
    }
}

/// The sentence with its first letter as a capital.
pub(super) fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The price in words: `one coin`, `five coins`.
pub(super) fn coins(amount: usize) -> String {
    if amount == 1 { "one coin".to_string() } else { format!("{} coins", NUMBERS[amount]) }
}
