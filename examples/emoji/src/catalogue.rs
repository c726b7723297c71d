//! Every emoji with a graphic: its name as a caption, its place in the grid of people, its split.

use emojis::Group;
use twemoji_assets::svg::SvgTwemojiAsset;

use crate::people::{self, PeopleCell};

/// Whether training may use an emoji.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Split {
    /// For training.
    Seen,
    /// A composition of known parts that training never sees: for evaluation.
    HeldOut,
}

/// One emoji.
#[derive(Debug, Clone)]
pub struct Emoji {
    /// The characters, fully qualified.
    pub glyph: &'static str,
    /// The English name as a caption: "red apple", "man firefighter: dark skin tone". Unique in the catalogue.
    pub name: String,
    /// The Unicode group.
    pub group: Group,
    /// Its cell when it is a person of a template that comes in genders and skin tones.
    pub people: Option<PeopleCell>,
    /// Whether training may use it.
    pub split: Split,
    svg: &'static str,
}

impl Emoji {
    /// The graphic.
    pub fn svg(&self) -> &'static str {
        self.svg
    }
}

/// All emoji of Twemoji, in the order of the Unicode list, each directly followed by its skin tones.
pub fn catalogue() -> Vec<Emoji> {
    let mut emoji = Vec::new();
    let mut toned = Vec::new();
    for base in emojis::iter() {
        match base.skin_tones() {
            Some(tones) => emoji.extend(tones.filter_map(emoji_with_graphic)),
            None => emoji.extend(emoji_with_graphic(base)),
        }
        toned.resize(emoji.len(), base.skin_tone().is_some());
    }
    let names: Vec<&str> = emoji.iter().map(|emoji| emoji.name.as_str()).collect();
    let cells = people::cells(&names, &toned);
    for (emoji, cell) in emoji.iter_mut().zip(cells) {
        emoji.people = cell;
        emoji.split = if cell.is_some_and(|cell| cell.is_held_out()) { Split::HeldOut } else { Split::Seen };
    }
    emoji
}

/// `None` for the few emoji of the newest Unicode version without a graphic.
fn emoji_with_graphic(emoji: &'static emojis::Emoji) -> Option<Emoji> {
    // Twemoji leaves the variation selector out of most of its file names.
    let asset = SvgTwemojiAsset::from_emoji(emoji.as_str())
        .or_else(|| SvgTwemojiAsset::from_emoji(&emoji.as_str().replace('\u{fe0f}', "")))?;
    Some(Emoji {
        glyph: emoji.as_str(),
        name: natural_name(emoji.name()),
        group: emoji.group(),
        people: None,
        split: Split::Seen,
        svg: asset.data.0,
    })
}

/// The Unicode name as a person would type it: "flag: Peru" becomes "flag of Peru", quotation marks become plain.
fn natural_name(name: &str) -> String {
    let name = name.replace(['’', '‘'], "'").replace(['“', '”'], "\"");
    if let Some(country) = name.strip_prefix("flag: ") {
        format!("flag of {country}")
    } else if let Some(key) = name.strip_prefix("keycap: ") {
        format!("keycap {key}")
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn the_catalogue_has_all_emoji_under_unique_names() {
        let all = catalogue();
        assert_eq!(all.len(), 3944);
        assert_eq!(all.iter().map(|e| &e.name).collect::<BTreeSet<_>>().len(), all.len());
        assert_eq!(all.iter().map(|e| e.glyph).collect::<BTreeSet<_>>().len(), all.len());
        assert!(all.iter().all(|e| e.svg().starts_with("<svg")));
    }

    #[test]
    fn names_read_like_prompts() {
        let all = catalogue();
        let name = |glyph: &str| all.iter().find(|e| e.glyph == glyph).map(|e| e.name.as_str());
        assert_eq!(name("🍎"), Some("red apple"));
        assert_eq!(name("❤️"), Some("red heart"));
        assert_eq!(name("👨🏿‍🚒"), Some("man firefighter: dark skin tone"));
        assert_eq!(name("🇵🇪"), Some("flag of Peru"));
        assert_eq!(name("7️⃣"), Some("keycap 7"));
        assert_eq!(name("🕛"), Some("twelve o'clock"));
    }

    #[test]
    fn no_held_out_picture_is_seen_under_another_name() {
        let all = catalogue();
        let seen: BTreeMap<&str, &str> =
            all.iter().filter(|e| e.split == Split::Seen).map(|e| (e.svg(), e.name.as_str())).collect();
        for emoji in all.iter().filter(|e| e.split == Split::HeldOut) {
            assert_eq!(seen.get(emoji.svg()), None, "{} is seen in training", emoji.name);
        }
    }
}
