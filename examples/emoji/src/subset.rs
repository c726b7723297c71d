//! Which emoji a training run uses.
//!
//! Small models learn a few hundred things well rather than four thousand badly, so the list is picked by eye: things
//! that everyone recognises and that stay apart at 32 px. No flags, clocks, signs, letters or keycaps, and no two that
//! look nearly alike (a test measures it).

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

use dalle2_core::{ConfigError, Error, Result};
use serde::{Deserialize, Serialize};

use crate::people::Person;
use crate::{Emoji, Split};

/// A choice among the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subset {
    /// A few dozen, for a first run of minutes.
    Tiny,
    /// The concepts of the bundled model: a few hundred objects, and people by role or hair, gender and skin tone.
    Small,
    /// Everything.
    Full,
}

impl Subset {
    /// The emoji of this choice that belong to `split`, as positions in `catalogue`, in its order.
    ///
    /// # Errors
    /// When the catalogue lacks an emoji that the list names.
    pub fn select(self, catalogue: &[Emoji], split: Split) -> Result<Vec<usize>> {
        let listed = match self {
            Self::Tiny => named(catalogue, &[TINY])?,
            Self::Small => {
                let mut listed = named(catalogue, &SMALL)?;
                listed.extend((0..catalogue.len()).filter(|&i| is_small_person(&catalogue[i])));
                listed
            }
            Self::Full => (0..catalogue.len()).collect(),
        };
        Ok((0..catalogue.len()).filter(|i| listed.contains(i) && catalogue[*i].split == split).collect())
    }

    const ALL: [(Self, &'static str); 3] = [(Self::Tiny, "tiny"), (Self::Small, "small"), (Self::Full, "full")];
}

impl fmt::Display for Subset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(subset, _)| subset == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl FromStr for Subset {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let subset = Self::ALL.iter().find(|(_, name)| *name == text).map(|(subset, _)| *subset);
        subset.ok_or_else(|| ConfigError::new("subset", text, "`tiny`, `small` or `full`"))
    }
}

fn named(catalogue: &[Emoji], lists: &[&[&str]]) -> Result<HashSet<usize>> {
    let position: HashMap<&str, usize> = catalogue.iter().enumerate().map(|(i, e)| (e.name.as_str(), i)).collect();
    let find = |name: &&str| {
        position.get(name).copied().ok_or_else(|| Error::Input(format!("no emoji of the catalogue is called `{name}`")))
    };
    lists.iter().copied().flatten().map(find).collect()
}

fn is_small_person(emoji: &Emoji) -> bool {
    emoji.people.is_some()
        && Person::parse(&emoji.name).is_some_and(|person| SMALL_PEOPLE.contains(&person.template.as_str()))
}

#[rustfmt::skip]
const TINY: &[&str] = &[
    "red apple", "banana", "strawberry", "watermelon", "carrot", "pineapple", "eggplant", "hamburger", "pizza", "doughnut",
    "fox", "lion", "panda", "penguin", "frog", "spouting whale", "octopus", "butterfly", "lady beetle", "pig face",
    "tiger face", "koala", "owl", "turtle", "rose", "sunflower", "cactus", "palm tree", "maple leaf", "mushroom",
    "red heart", "blue heart", "star", "sun", "rainbow", "snowman", "fire", "rocket", "automobile", "sailboat",
    "soccer ball", "basketball", "balloon", "guitar", "crown", "gem stone", "smiling face with sunglasses", "ghost",
];

/// Everything of the small set but people.
const SMALL: [&[&str]; 8] = [ANIMALS, PLANTS, FOOD, TRAVEL, SKY, ACTIVITIES, OBJECTS, FACES_AND_HEARTS];

#[rustfmt::skip]
const ANIMALS: &[&str] = &[
    "monkey face", "monkey", "gorilla", "orangutan", "dog face", "dog", "poodle", "wolf", "fox", "raccoon",
    "cat face", "cat", "black cat", "lion", "tiger face", "leopard", "horse face", "horse", "unicorn", "zebra",
    "deer", "bison", "cow face", "cow", "pig face", "pig", "ram", "camel", "giraffe", "elephant",
    "mammoth", "rhinoceros", "mouse face", "rat", "hamster", "rabbit face", "chipmunk", "hedgehog", "bat", "bear",
    "polar bear", "koala", "panda", "sloth", "skunk", "kangaroo", "turkey", "rooster", "hatching chick", "baby chick",
    "bird", "penguin", "dove", "eagle", "duck", "swan", "owl", "flamingo", "peacock", "parrot",
    "frog", "crocodile", "turtle", "lizard", "snake", "dragon", "sauropod", "T-Rex", "spouting whale", "dolphin",
    "orca", "fish", "tropical fish", "shark", "octopus", "spiral shell", "jellyfish", "crab", "shrimp", "snail",
    "butterfly", "ant", "honeybee", "beetle", "lady beetle", "spider",
];

#[rustfmt::skip]
const PLANTS: &[&str] = &[
    "bouquet", "cherry blossom", "lotus", "rose", "hibiscus", "sunflower", "tulip", "seedling", "potted plant", "evergreen tree",
    "deciduous tree", "palm tree", "cactus", "four leaf clover", "maple leaf", "mushroom",
];

#[rustfmt::skip]
const FOOD: &[&str] = &[
    "grapes", "watermelon", "tangerine", "lemon", "banana", "pineapple", "mango", "red apple", "green apple", "pear",
    "peach", "cherries", "strawberry", "blueberries", "kiwi fruit", "tomato", "coconut", "avocado", "eggplant", "carrot",
    "ear of corn", "hot pepper", "bell pepper", "cucumber", "broccoli", "onion", "bread", "croissant", "pretzel", "pancakes",
    "cheese wedge", "poultry leg", "bacon", "hamburger", "french fries", "pizza", "hot dog", "sandwich", "taco", "egg",
    "cooking", "green salad", "popcorn", "rice ball", "spaghetti", "sushi", "fried shrimp", "soft ice cream", "ice cream", "doughnut",
    "cookie", "birthday cake", "cupcake", "chocolate bar", "candy", "lollipop", "honey pot", "hot beverage", "teapot", "wine glass",
    "tropical drink", "beer mug", "bubble tea",
];

#[rustfmt::skip]
const TRAVEL: &[&str] = &[
    "globe showing Americas", "compass", "volcano", "mount fuji", "desert island", "house", "castle", "Tokyo tower", "church", "tent",
    "ferris wheel", "circus tent", "locomotive", "bullet train", "bus", "ambulance", "fire engine", "police car", "taxi", "automobile",
    "tractor", "racing car", "motorcycle", "motor scooter", "bicycle", "skateboard", "roller skate", "vertical traffic light", "anchor", "ring buoy",
    "sailboat", "ship", "airplane", "parachute", "helicopter", "rocket", "flying saucer", "alarm clock",
];

#[rustfmt::skip]
const SKY: &[&str] = &[
    "full moon", "crescent moon", "sun", "ringed planet", "star", "cloud", "sun behind cloud", "cloud with rain", "tornado", "cyclone",
    "rainbow", "umbrella", "high voltage", "snowflake", "snowman", "comet", "fire", "droplet", "water wave",
];

#[rustfmt::skip]
const ACTIVITIES: &[&str] = &[
    "jack-o-lantern", "Christmas tree", "balloon", "party popper", "ribbon", "wrapped gift", "trophy", "sports medal", "soccer ball", "baseball",
    "basketball", "american football", "tennis", "bowling", "ping pong", "boxing glove", "bullseye", "kite", "pool 8 ball", "crystal ball",
    "video game", "game die", "puzzle piece", "teddy bear", "artist palette", "yarn",
];

#[rustfmt::skip]
const OBJECTS: &[&str] = &[
    "sunglasses", "t-shirt", "jeans", "scarf", "dress", "handbag", "backpack", "running shoe", "high-heeled shoe", "crown",
    "top hat", "graduation cap", "billed cap", "lipstick", "ring", "gem stone", "megaphone", "bell", "musical note", "headphone",
    "saxophone", "accordion", "guitar", "violin", "drum", "mobile phone", "telephone", "laptop", "television", "camera",
    "magnifying glass tilted left", "candle", "light bulb", "red paper lantern", "closed book", "green book", "money bag", "envelope", "package", "pencil",
    "scissors", "locked", "key", "hammer", "crossed swords", "bomb", "shield", "gear", "magnet", "microscope",
    "pill", "door", "bathtub", "shopping cart",
];

#[rustfmt::skip]
const FACES_AND_HEARTS: &[&str] = &[
    "grinning face", "face with tears of joy", "smiling face with halo", "smiling face with heart-eyes", "star-struck", "face with tongue", "thinking face", "sleeping face", "face with medical mask", "nauseated face",
    "hot face", "cold face", "cowboy hat face", "partying face", "smiling face with sunglasses", "loudly crying face", "face screaming in fear", "enraged face", "smiling face with horns", "skull",
    "pile of poo", "clown face", "ghost", "alien", "robot", "red heart", "orange heart", "yellow heart", "green heart", "blue heart",
    "purple heart", "black heart", "broken heart", "heart with arrow",
];

/// Templates of people (see [`Person`]) that are distinguishable at 32 px, as are their skin tones: a mage's face is
/// mostly beard and hat.
#[rustfmt::skip]
const SMALL_PEOPLE: [&str; 16] = [
    " firefighter", " astronaut", " farmer", " cook", " police officer", " health worker", " mechanic", " artist",
    " student", " construction worker", " fairy", " superhero", " technologist",
    ": red hair", ": curly hair", ": white hair",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_pairs_are_seen, store};
    use crate::{NearestIndex, catalogue};

    fn select(subset: Subset, split: Split) -> Vec<usize> {
        subset.select(&catalogue(), split).unwrap()
    }

    #[test]
    fn the_subsets_have_the_documented_sizes() {
        assert_eq!(select(Subset::Tiny, Split::Seen).len(), 48);
        assert_eq!(select(Subset::Tiny, Split::HeldOut).len(), 0);
        assert_eq!(select(Subset::Small, Split::Seen).len(), 336 + 175);
        assert_eq!(select(Subset::Small, Split::HeldOut).len(), 35);
        assert_eq!(select(Subset::Full, Split::Seen).len(), 3944 - 204);
        assert_eq!(select(Subset::Full, Split::HeldOut).len(), 204);
    }

    #[test]
    fn tiny_is_part_of_small() {
        let small = select(Subset::Small, Split::Seen);
        assert!(select(Subset::Tiny, Split::Seen).iter().all(|i| small.contains(i)));
        assert!(TINY.contains(&"red apple"));
    }

    #[test]
    fn no_name_is_listed_twice() {
        let names: Vec<&str> = SMALL.iter().copied().flatten().copied().collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
    }

    #[test]
    fn the_people_of_small_are_whole_grids_with_every_pair_seen() {
        let catalogue = catalogue();
        let grid: Vec<_> = [Split::Seen, Split::HeldOut]
            .into_iter()
            .flat_map(|split| select(Subset::Small, split))
            .filter_map(|i| Some((catalogue[i].people?, catalogue[i].split)))
            .collect();
        assert_eq!(grid.len(), 13 * 2 * 6 + 3 * 3 * 6, "13 roles of two genders, 3 kinds of hair of three");
        assert_pairs_are_seen(&grid);
    }

    #[test]
    fn nothing_in_small_looks_nearly_like_another() {
        let store = store();
        let index = NearestIndex::new(&store).unwrap();
        let things: Vec<usize> =
            select(Subset::Small, Split::Seen).into_iter().filter(|&i| store.catalogue()[i].people.is_none()).collect();
        let names: Vec<_> = index
            .near_duplicates(&things, 0.01)
            .into_iter()
            .map(|(a, b, d)| (&store.catalogue()[a].name, &store.catalogue()[b].name, d))
            .collect();
        assert!(names.is_empty(), "{names:?}");
    }

    #[test]
    fn a_name_that_the_catalogue_lacks_is_reported() {
        let error = named(&catalogue(), &[&["red apple", "purple cow"]]).unwrap_err();
        assert!(error.to_string().contains("purple cow"));
    }

    #[test]
    fn names_of_subsets_are_parsed() {
        for (subset, name) in Subset::ALL {
            assert_eq!(name.parse(), Ok(subset));
            assert_eq!(subset.to_string(), name);
            assert_eq!(serde_json::to_string(&subset).unwrap(), format!("\"{name}\""));
        }
        assert!("huge".parse::<Subset>().unwrap_err().to_string().contains("`tiny`, `small` or `full`"));
    }
}
