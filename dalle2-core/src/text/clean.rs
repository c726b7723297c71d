//! The clean-up of captions before tokenisation, as in OpenAI's CLIP (Radford et al. 2021, §2.4, and the published
//! tokenizer): character repairs of the Python package `ftfy`, `html.unescape` twice, white space, lower case.
//!
//! One departure: `ftfy` also guesses wrongly decoded encodings ("schÃ¶n"), which this module does not.

use tokenizers::{NormalizedString, Normalizer, normalizers};

use super::entities::{unescape, unescape_complete};

/// Maximum number of passes of the repairs. Real texts are stable after two or three.
const MAX_PASSES: usize = 16;

/// Cleans a caption like OpenAI's tokenizer. Line breaks of any kind count as spaces.
///
/// ```
/// assert_eq!(dalle2_core::text::clean(" The  “Best”\n&amp; ﬁnest "), "the \"best\" & finest");
/// ```
pub fn clean(text: &str) -> String {
    let text = unescape(&unescape(&repair(text)));
    let mut collapsed = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !collapsed.is_empty() {
            collapsed.push(' ');
        }
        collapsed.push_str(word);
    }
    collapsed.to_lowercase()
}

/// Repairs a text line by line. A `<` switches the resolution of entities off from its line on, since it suggests HTML.
fn repair(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut has_tags = false;
    for line in text.split_inclusive('\n') {
        has_tags |= line.contains('<');
        out.push_str(&repair_line(line, has_tags));
    }
    out
}

/// Applies the repairs to a line until it does not change.
fn repair_line(line: &str, has_tags: bool) -> String {
    let mut line = line.to_string();
    for _ in 0..MAX_PASSES {
        let resolved = if has_tags { line.clone() } else { unescape_complete(&line) };
        let repaired = repair_characters(&resolved);
        if repaired == line {
            break;
        }
        line = repaired;
    }
    line
}

/// Replaces compatibility characters, removes terminal escapes and invisible controls, and composes (NFC).
fn repair_characters(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = match c {
            '\u{1b}' => terminal_escape(after).unwrap_or(after),
            _ => {
                repair_character(c, &mut out);
                after
            }
        };
    }
    if out.is_ascii() { out } else { normalize(&normalizers::NFC, &out) }
}

fn repair_character(c: char, out: &mut String) {
    match c {
        '\t' | '\u{0c}' | '\r' | '\u{2028}' | '\u{2029}' => out.push(' '),
        '\n' => out.push('\n'),
        '\0'..='\u{1f}' | '\u{7f}' | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}' => {}
        '\u{80}'..='\u{9f}' => out.push(windows_1252(c)),
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => out.push('\''),
        '\u{201c}'..='\u{201f}' => out.push('"'),
        '\u{149}' => out.push_str("'n"),
        // Latin ligatures and digraphs, and the half-width and full-width forms.
        '\u{132}'
        | '\u{133}'
        | '\u{1c4}'..='\u{1cc}'
        | '\u{1f1}'..='\u{1f3}'
        | '\u{fb00}'..='\u{fb04}'
        | '\u{fb06}' => out.push_str(&compatible(c)),
        '\u{fb05}' => out.push_str("\u{17f}t"),
        '\u{3000}' | '\u{ff01}'..='\u{ffef}' => out.push_str(&compatible(c)),
        c => out.push(c),
    }
}

/// Returns the text after `[ parameters letter`; `None` if the sequence is incomplete.
fn terminal_escape(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix('[')?.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
    parameters.strip_prefix(|c: char| c.is_ascii_alphabetic())
}

/// Reads a C1 control character as a byte of Windows-1252; undefined bytes do not change.
pub(super) fn windows_1252(c: char) -> char {
    const TABLE: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘',
        '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
    ];
    (c as usize).checked_sub(0x80).and_then(|at| TABLE.get(at)).copied().unwrap_or(c)
}

/// Returns the compatibility form (NFKC) of a character.
fn compatible(c: char) -> String {
    normalize(&normalizers::NFKC, c.encode_utf8(&mut [0; 4]))
}

fn normalize(form: &impl Normalizer, text: &str) -> String {
    let mut normalized = NormalizedString::from(text);
    match form.normalize(&mut normalized) {
        Ok(()) => normalized.get().to_string(),
        Err(_) => text.to_string(), // not reachable: both forms accept every text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values were computed with the reference implementation's clean-up (ftfy 6.3 and `html`).
    #[test]
    fn equals_the_reference_clean_up() {
        for (raw, expected) in [
            ("It’s the “best”", "it's the \"best\""),
            ("R&amp;amp;D &lt;3", "r&d <3"),
            ("ΟΔΟΣ ΣΟΦΟΣ", "οδος σοφος"),
            ("A\u{3000}ＦＵＬＬ\u{3000}ｗｉｄｔｈ", "a full width"),
            ("ﬁne ﬂower ŉ", "fine flower 'n"),
            ("a\0b\u{7}c\u{1b}[31mred\u{1b}[0m", "abcred"),
            ("cafe\u{301}", "caf\u{e9}"),
            ("&copy 2024 &ampx &#169; &#x41;", "© 2024 &x © a"),
            ("x\u{feff}y\u{ad}z", "xy\u{ad}z"),
            ("İstanbul ẞ", "i\u{307}stanbul ß"),
            ("\u{2c8}\u{2bc}x", "\u{2c8}'x"),
            ("&notit; &rsquo; <b>&rsquo;</b>", "¬it; ’ <b>’</b>"),
            ("ǆ Ǆ ĳ ſt", "dž dž ij ſt"),
            ("ﬅ ﬆ", "ſt st"),
            ("&rsquo;", "'"),
            ("&#150; &#0; &#xD800; &bogus; &amp", "– \u{fffd} \u{fffd} &bogus; &"),
            ("naïve &nbsp; x\u{2028}line", "naïve x line"),
            (" \t\r\n ", ""),
            ("", ""),
        ] {
            assert_eq!(clean(raw), expected, "{raw:?}");
        }
    }

    #[test]
    fn the_result_is_stable() {
        let once = clean("  Ａ “Curly”\tline &amp;amp;amp; more ﬃ ");
        assert_eq!(clean(&once), once);
    }

    #[test]
    fn deeply_nested_entities_take_linear_time() {
        assert_eq!(clean(&format!("&{}lt;", "amp;".repeat(250_000))), "<");
        assert_eq!(clean(&format!("&{}lt;", "#38;".repeat(250_000))), "<");
    }
}
