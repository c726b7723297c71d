//! The clean-up that captions went through before CLIP saw them (Radford et al. 2021, §2.4, and the published
//! tokenizer): Unicode repair, HTML entities, white space, lower case.
//!
//! The original repairs with the Python package `ftfy`. Its character-level repairs are here (ligatures, full-width
//! forms, curly quotes, control characters, terminal escapes, NFC); its guessing of wrongly decoded encodings
//! ("schÃ¶n") is not.

use tokenizers::{NormalizedString, Normalizer, normalizers};

/// Cleans a caption as the original does: the result is what is split into tokens.
///
/// ```
/// assert_eq!(dalle2_core::text::clean(" The  “Best”\n&amp; ﬁnest "), "the \"best\" & finest");
/// ```
pub fn clean(text: &str) -> String {
    // The repair resolves entities only where no tag suggests that the text really is HTML.
    let text = if text.contains('<') { text.to_string() } else { htmlize::unescape(text).into_owned() };
    let text = repair(&text);
    let once = htmlize::unescape(text.as_str());
    let twice = htmlize::unescape(once.as_ref());
    let mut collapsed = String::with_capacity(twice.len());
    for word in twice.split_whitespace() {
        if !collapsed.is_empty() {
            collapsed.push(' ');
        }
        collapsed.push_str(word);
    }
    collapsed.to_lowercase()
}

/// Replaces characters that are another character in disguise, drops invisible controls and composes (NFC).
fn repair(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' if chars.peek() == Some(&'[') => skip_terminal_escape(&mut chars),
            '\t' | '\n' | '\u{0c}' | '\r' => out.push(' '),
            '\0'..='\u{1f}' | '\u{7f}' | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}' => {}
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
    if out.is_ascii() { out } else { normalize(&normalizers::NFC, &out) }
}

/// Skips the rest of `ESC [ parameters letter`; the cursor stands on the bracket.
fn skip_terminal_escape(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    chars.next();
    while chars.next_if(|c| c.is_ascii_digit() || *c == ';').is_some() {}
    chars.next_if(char::is_ascii_alphabetic);
}

/// The compatibility form (NFKC) of one character.
fn compatible(c: char) -> String {
    normalize(&normalizers::NFKC, c.encode_utf8(&mut [0; 4]))
}

fn normalize(form: &impl Normalizer, text: &str) -> String {
    let mut normalized = NormalizedString::from(text);
    match form.normalize(&mut normalized) {
        Ok(()) => normalized.get().to_string(),
        Err(_) => text.to_string(), // these two forms are total: this does not happen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values were computed with the reference implementation's clean-up (ftfy 6.3 and `html`).
    #[test]
    fn matches_the_reference_clean_up() {
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
    fn is_stable() {
        let once = clean("  Ａ “Curly”\tline &amp;amp;amp; more ﬃ ");
        assert_eq!(clean(&once), once);
    }
}
