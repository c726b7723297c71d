//! Wordings of a caption, and scenes that agree with them.

use dalle2_core::ConfigError;
use rand::{Rng, RngExt};

use crate::{Background, Position, Scene};

/// Side of an emoji that has a position, as a part of the image.
const PLACED: f64 = 0.625;
/// Side of an emoji in the middle of a coloured image, so that the colour shows.
const ON_COLOUR: f64 = 0.75;
/// Side of an emoji that the caption calls small.
const SMALL: f64 = 0.375;

/// How often captions say more than the name. Each value is a probability; the default varies the wording alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CaptionOptions {
    /// "… on a green background"; the emoji is then 3/4 of the image.
    pub backgrounds: f64,
    /// "… in the top left corner"; the emoji is then 5/8 of the image.
    pub placement: f64,
    /// "a small …": 3/8 of the image.
    pub scale: f64,
    /// "a red apple", "an emoji of a red apple" in place of "red apple".
    pub wording: f64,
}

impl Default for CaptionOptions {
    fn default() -> Self {
        Self { wording: 0.5, ..Self::NAMES }
    }
}

impl CaptionOptions {
    /// Captions are the names and images are white behind the emoji.
    pub const NAMES: Self = Self { backgrounds: 0.0, placement: 0.0, scale: 0.0, wording: 0.0 };

    /// Refuses values that are no probability.
    ///
    /// # Errors
    /// Names the field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let fields = [
            ("backgrounds", self.backgrounds),
            ("placement", self.placement),
            ("scale", self.scale),
            ("wording", self.wording),
        ];
        match fields.iter().find(|(_, value)| !(0.0..=1.0).contains(value)) {
            Some((field, value)) => Err(ConfigError::new(*field, value, "a probability from 0 to 1")),
            None => Ok(()),
        }
    }

    /// Samples a caption for `name` and the scene it describes.
    ///
    /// Names with a colon ("man firefighter: dark skin tone") stay as they are, with the plain scene. Every call takes
    /// the same number of values from `rng`.
    pub(crate) fn sample(&self, name: &str, rng: &mut impl Rng) -> (String, Scene) {
        let named = |probability: f64, count: usize, rng: &mut dyn Rng| {
            let (chosen, which) = (rng.random::<f64>() < probability, rng.random_range(0..count));
            chosen.then_some(which)
        };
        let wording = named(self.wording, 2, rng);
        let background = named(self.backgrounds, Background::NAMED.len(), rng).map(|i| Background::NAMED[i]);
        let position = named(self.placement, Position::NAMED.len(), rng).map(|i| Position::NAMED[i]);
        let small = named(self.scale, 1, rng).is_some();
        if name.contains(':') {
            return (name.to_owned(), Scene::PLAIN);
        }

        let mut caption = if small { format!("small {name}") } else { name.to_owned() };
        caption = match wording {
            None => caption,
            Some(0) => with_article(&caption),
            Some(_) => format!("an emoji of {}", with_article(&caption)),
        };
        if let Some(position) = position {
            caption = format!("{caption} {}", position.phrase());
        }
        if let Some(background) = background {
            caption = format!("{caption} on {} background", with_article(background.name));
        }
        let scale = match (small, position, background) {
            (true, _, _) => SMALL,
            (false, Some(_), _) => PLACED,
            (false, None, Some(_)) => ON_COLOUR,
            (false, None, None) => 1.0,
        };
        let scene = Scene {
            background: background.unwrap_or(Background::WHITE),
            position: position.unwrap_or(Position::Center),
            scale,
        };
        (caption, scene)
    }
}

/// "a red apple", "an hourglass", "a unicorn"; plurals and substances ("grapes", "cooked rice") take none.
pub fn with_article(name: &str) -> String {
    if takes_no_article(name) {
        return name.to_owned();
    }
    let word = name.split([' ', '-']).next().unwrap_or(name).to_lowercase();
    let article = if starts_with_vowel_sound(&word) { "an" } else { "a" };
    format!("{article} {name}")
}

fn starts_with_vowel_sound(word: &str) -> bool {
    const CONSONANT_SOUND: [&str; 5] = ["uni", "euro", "ewe", "one", "use"];
    const VOWEL_SOUND: [&str; 5] = ["hour", "honest", "8", "11", "18"];
    if word.len() == 1 {
        return "aefhilmnorsx8".contains(word); // spelled out: an x-ray
    }
    VOWEL_SOUND.iter().any(|start| word.starts_with(start))
        || (word.starts_with(['a', 'e', 'i', 'o', 'u']) && !CONSONANT_SOUND.iter().any(|start| word.starts_with(start)))
}

fn takes_no_article(name: &str) -> bool {
    /// The noun of a substance, a game, a state or a proper name: the last word, or all of it.
    #[rustfmt::skip]
    const UNCOUNTABLE: [&str; 46] = [
        "bread", "bacon", "rice", "garlic", "butter", "salt", "food", "broccoli", "popcorn", "spaghetti",
        "sushi", "ice", "mate", "sake", "custard", "oden", "fondue", "coral", "wood", "soap",
        "fire", "fog", "foggy", "thread", "yarn", "luggage", "dna", "water", "money", "high voltage",
        "tennis", "badminton", "baseball", "bowling", "lacrosse", "ping pong", "hockey", "mount fuji", "camping", "cooking",
        "star-struck", "locked", "unlocked", "infinity", "construction", "nail polish",
    ];
    #[rustfmt::skip]
    const SINGULAR_IN_S: [&str; 11] = [
        "bus", "trolleybus", "minibus", "cactus", "octopus", "hibiscus", "lotus", "rhinoceros", "hippopotamus",
        "abacus", "Ophiuchus",
    ];
    const PLURAL: [&str; 3] = ["people", "men", "women"];
    /// The thing itself ends where one of these begins.
    #[rustfmt::skip]
    const JOINTS: [&str; 16] = [
        " with ", " without ", " of ", " in ", " on ", " at ", " behind ", " over ", " and ", " tilted ", " showing ",
        " savoring ", " holding ", " lifting ", " wrestling", " hugging",
    ];
    let end = JOINTS.iter().filter_map(|joint| name.find(joint)).min().unwrap_or(name.len());
    let head = &name[..end];
    let last = head.rsplit([' ', '-']).next().unwrap_or(head);
    let plural = (last.ends_with('s') && last.len() > 2 && !last.ends_with("ss") && !SINGULAR_IN_S.contains(&last))
        || PLURAL.contains(&last);
    plural || UNCOUNTABLE.iter().any(|word| *word == last || *word == head)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn articles() {
        for (name, expected) in [
            ("red apple", "a red apple"),
            ("orange heart", "an orange heart"),
            ("unicorn", "a unicorn"),
            ("umbrella", "an umbrella"),
            ("one-piece swimsuit", "a one-piece swimsuit"),
            ("hourglass done", "an hourglass done"),
            ("x-ray", "an x-ray"),
            ("grapes", "grapes"),
            ("cooked rice", "cooked rice"),
            ("men wrestling", "men wrestling"),
            ("rhinoceros", "a rhinoceros"),
            ("ewe", "a ewe"),
            ("globe showing Americas", "a globe showing Americas"),
            ("person lifting weights", "a person lifting weights"),
            ("locked", "locked"),
            ("bus", "a bus"),
            ("wine glass", "a wine glass"),
            ("face with tears of joy", "a face with tears of joy"),
            ("smiling face with sunglasses", "a smiling face with sunglasses"),
            ("glass of milk", "a glass of milk"),
            ("flag of Peru", "a flag of Peru"),
        ] {
            assert_eq!(with_article(name), expected);
        }
    }

    fn samples(options: CaptionOptions, name: &str) -> Vec<(String, Scene)> {
        (0..2000).map(|seed| options.sample(name, &mut ChaCha8Rng::seed_from_u64(seed))).collect()
    }

    #[test]
    fn half_of_the_default_captions_are_the_plain_name() {
        let captions = samples(CaptionOptions::default(), "red apple");
        let plain = captions.iter().filter(|(caption, _)| caption == "red apple").count();
        assert!((900..1100).contains(&plain), "{plain} of 2000");
        let kinds: BTreeSet<&str> = captions.iter().map(|(caption, _)| caption.as_str()).collect();
        assert_eq!(kinds, BTreeSet::from(["red apple", "a red apple", "an emoji of a red apple"]));
        assert!(captions.iter().all(|(_, scene)| *scene == Scene::PLAIN));
    }

    #[test]
    fn caption_and_scene_agree() {
        let options = CaptionOptions { backgrounds: 0.5, placement: 0.5, scale: 0.5, wording: 0.5 };
        let mut combinations = BTreeSet::new();
        for (caption, scene) in samples(options, "anchor") {
            let white = scene.background == Background::WHITE;
            assert_eq!(!white, caption.contains(&format!("{} background", scene.background.name)), "{caption}");
            assert!(caption.contains(scene.position.phrase()), "{caption}");
            let small = caption.contains("small anchor");
            assert_eq!(small, scene.scale == SMALL, "{caption}");
            assert_eq!(scene.scale == 1.0, !small && white && scene.position == Position::Center, "{caption}");
            combinations.insert((white, scene.position == Position::Center, small));
        }
        assert_eq!(combinations.len(), 8, "all combinations occur");
    }

    #[test]
    fn everything_at_once_is_a_sentence() {
        let options = CaptionOptions { backgrounds: 1.0, placement: 1.0, scale: 1.0, wording: 1.0 };
        let captions: Vec<String> = samples(options, "anchor").into_iter().map(|(caption, _)| caption).collect();
        assert!(captions.iter().any(|c| c == "a small anchor in the top left corner on an orange background"));
        assert!(captions.iter().any(|c| c == "an emoji of a small anchor at the bottom on a green background"));
    }

    #[test]
    fn compositions_stay_as_they_are() {
        let options = CaptionOptions { backgrounds: 1.0, placement: 1.0, scale: 1.0, wording: 1.0 };
        let name = "man firefighter: dark skin tone";
        assert!(samples(options, name).iter().all(|(c, scene)| c == name && *scene == Scene::PLAIN));
    }

    #[test]
    fn probabilities_are_checked() {
        assert!(CaptionOptions::default().validate().is_ok());
        let error = CaptionOptions { placement: 1.5, ..CaptionOptions::NAMES }.validate().unwrap_err();
        assert_eq!(error.field, "placement");
        assert!(CaptionOptions { scale: f64::NAN, ..CaptionOptions::NAMES }.validate().is_err());
    }
}
