//! Shared by several tests.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use crate::{EmojiStore, PeopleCell, Split};

static STORE: LazyLock<Arc<EmojiStore>> =
    LazyLock::new(|| Arc::new(EmojiStore::in_memory(&[32, 64]).expect("the catalogue renders")));

/// The catalogue at 32 and 64 px.
pub(crate) fn store() -> Arc<EmojiStore> {
    STORE.clone()
}

/// Fails unless every pair of a held-out triple occurs in a seen one.
pub(crate) fn assert_pairs_are_seen(grid: &[(PeopleCell, Split)]) {
    let pairs = |c: &PeopleCell| {
        [
            ("template, gender", c.template_index, c.gender_index),
            ("template, tone", c.template_index, c.tone_index),
            ("gender, tone", c.gender_index, c.tone_index),
        ]
    };
    let seen: BTreeSet<_> =
        grid.iter().filter(|(_, split)| *split == Split::Seen).flat_map(|(cell, _)| pairs(cell)).collect();
    for (cell, _) in grid.iter().filter(|(_, split)| *split == Split::HeldOut) {
        for pair in pairs(cell) {
            assert!(seen.contains(&pair), "{pair:?} of {cell:?} never occurs in training");
        }
    }
}
