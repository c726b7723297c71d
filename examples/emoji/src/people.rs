//! People emoji as a grid of template × gender × skin tone, and which cells of the grid training never sees.
//!
//! A *template* is what remains of a name without its gender and tone: " firefighter" of "man firefighter: dark skin
//! tone", ": red hair" of "woman: dark skin tone, red hair", and the empty one of plain "man" and "woman". It counts
//! when both a man and a woman exist, each in all six tones. Role names without a gender ("firefighter") are emoji of
//! their own outside the grid; "person walking" is inside it.
//!
//! A cell is held out when `tone = (template + 2·gender) mod 6`: each template loses one tone for each gender, and a
//! different one. So every pair of a held-out triple is seen in training, and the model has to put known parts together.

use std::collections::{BTreeMap, BTreeSet};

/// The skin tones by index; the first is the yellow that Unicode calls no tone.
pub const TONES: [&str; 6] = [
    "no skin tone",
    "light skin tone",
    "medium-light skin tone",
    "medium skin tone",
    "medium-dark skin tone",
    "dark skin tone",
];

/// The genders that names distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Gender {
    /// "person …"
    Person,
    /// "man …"
    Man,
    /// "woman …"
    Woman,
}

impl Gender {
    const ALL: [(Self, &'static str); 3] = [(Self::Person, "person"), (Self::Man, "man"), (Self::Woman, "woman")];
}

/// Where a people emoji sits in the grid of compositions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeopleCell {
    /// Role, activity or hair: position among all templates, sorted by name.
    pub template_index: usize,
    /// 0 person, 1 man, 2 woman.
    pub gender_index: usize,
    /// Index into [`TONES`].
    pub tone_index: usize,
}

impl PeopleCell {
    /// Whether training must not see this composition.
    pub fn is_held_out(&self) -> bool {
        self.tone_index == (self.template_index + 2 * self.gender_index) % TONES.len()
    }
}

/// A name taken apart: what `man firefighter: dark skin tone` says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Person {
    /// The rest of the name with its separator: `" firefighter"`, `": red hair"`, `""`.
    pub template: String,
    pub gender: Gender,
    /// Index into [`TONES`].
    pub tone: usize,
}

impl Person {
    /// Takes a name apart; `None` when it does not start with a gender or has two skin tones.
    pub fn parse(name: &str) -> Option<Self> {
        let (head, details) = name.split_once(": ").unwrap_or((name, ""));
        let (tones, others): (Vec<&str>, Vec<&str>) =
            details.split(", ").filter(|d| !d.is_empty()).partition(|d| d.ends_with("skin tone"));
        let tone = match tones.as_slice() {
            [] => 0,
            [one] => TONES.iter().position(|t| t == one)?,
            _ => return None,
        };
        let (gender, rest) = Gender::ALL.iter().find_map(|(gender, word)| {
            let rest = head.strip_prefix(word)?;
            (rest.is_empty() || rest.starts_with(' ')).then_some((*gender, rest))
        })?;
        let mut template = rest.to_owned();
        if !others.is_empty() {
            template.push_str(": ");
            template.push_str(&others.join(", "));
        }
        Some(Self { template, gender, tone })
    }
}

/// The cell of each of `names`, `None` for those outside the grid. `toned[i]`: whether item `i` comes in skin tones.
pub(crate) fn cells(names: &[&str], toned: &[bool]) -> Vec<Option<PeopleCell>> {
    let people: Vec<Option<Person>> =
        names.iter().zip(toned).map(|(name, toned)| toned.then(|| Person::parse(name)).flatten()).collect();

    let mut grid: BTreeMap<&str, BTreeMap<Gender, BTreeSet<usize>>> = BTreeMap::new();
    for Person { template, gender, tone } in people.iter().flatten() {
        grid.entry(template).or_default().entry(*gender).or_default().insert(*tone);
    }
    let complete = |tones: Option<&BTreeSet<usize>>| tones.is_some_and(|tones| tones.len() == TONES.len());
    grid.retain(|_, genders| [Gender::Man, Gender::Woman].iter().all(|gender| complete(genders.get(gender))));
    let template_index: BTreeMap<&str, usize> = grid.keys().enumerate().map(|(i, template)| (*template, i)).collect();

    people
        .iter()
        .map(|person| {
            let Person { template, gender, tone } = person.as_ref()?;
            let template_index = *template_index.get(template.as_str())?;
            complete(grid.get(template.as_str())?.get(gender)).then_some(PeopleCell {
                template_index,
                gender_index: *gender as usize,
                tone_index: *tone,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_pairs_are_seen;
    use crate::{Split, catalogue};

    fn person(template: &str, gender: Gender, tone: usize) -> Option<Person> {
        Some(Person { template: template.to_owned(), gender, tone })
    }

    #[test]
    fn names_are_taken_apart() {
        assert_eq!(Person::parse("man firefighter: dark skin tone"), person(" firefighter", Gender::Man, 5));
        assert_eq!(Person::parse("woman: light skin tone, red hair"), person(": red hair", Gender::Woman, 1));
        assert_eq!(Person::parse("person: curly hair"), person(": curly hair", Gender::Person, 0));
        assert_eq!(Person::parse("woman"), person("", Gender::Woman, 0));
        assert_eq!(Person::parse("mango"), None);
        assert_eq!(Person::parse("firefighter: dark skin tone"), None);
        assert_eq!(Person::parse("man and woman: dark skin tone, light skin tone"), None);
    }

    fn grid() -> Vec<(PeopleCell, Split)> {
        catalogue().iter().filter_map(|emoji| Some((emoji.people?, emoji.split))).collect()
    }

    #[test]
    fn the_grid_has_1224_cells_of_77_templates_and_204_are_held_out() {
        let grid = grid();
        assert_eq!(grid.len(), 1224);
        assert_eq!(grid.iter().map(|(cell, _)| *cell).collect::<BTreeSet<_>>().len(), 1224);
        assert_eq!(grid.iter().map(|(cell, _)| cell.template_index).collect::<BTreeSet<_>>().len(), 77);
        assert_eq!(grid.iter().filter(|(_, split)| *split == Split::HeldOut).count(), 204);
    }

    #[test]
    fn every_pair_of_a_held_out_triple_is_seen() {
        assert_pairs_are_seen(&grid());
    }
}
