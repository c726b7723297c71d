//! HTML entities as Python's `html.unescape` and `ftfy` resolve them.

use super::clean::windows_1252;

/// Maximum length of a complete entity's name for `ftfy`.
const MAX_NAME: usize = 24;
/// Maximum length of a name for `html.unescape`.
const MAX_PREFIXED_NAME: usize = 32;

/// Resolves entities like `html.unescape`: also those without a semicolon, once.
pub(super) fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        rest = if let Some((resolved, length)) = numeric(after) {
            out.extend(resolved);
            &after[length..]
        } else {
            let length = name_length(after);
            out.push_str(&htmlize::unescape(&rest[at..at + 1 + length]));
            &after[length..]
        };
    }
    out.push_str(rest);
    out
}

/// Resolves entities with a semicolon like `ftfy`, until none is left: also names in capitals (`&EACUTE;`).
pub(super) fn unescape_complete(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        // An ampersand may start another entity together with the text behind it.
        let mut resolved = "&".to_string();
        while resolved == "&"
            && let Some((next, length)) = complete(rest)
        {
            resolved = next;
            rest = &rest[length..];
        }
        out.push_str(&resolved);
    }
    out.push_str(rest);
    out
}

/// Resolves the complete entity at the start of `text`, the text behind an ampersand, and returns its length.
fn complete(text: &str) -> Option<(String, usize)> {
    let body = text.strip_prefix('#').unwrap_or(text);
    let length = body.bytes().take(MAX_NAME + 1).take_while(u8::is_ascii_alphanumeric).count();
    if !(1..=MAX_NAME).contains(&length) || body.as_bytes().get(length) != Some(&b';') {
        return None;
    }
    let length = length + 1 + (text.len() - body.len());
    if text.starts_with('#') {
        let (resolved, used) = numeric(text)?;
        let resolved: String = resolved.into_iter().collect();
        return (used == length && resolved != ";").then_some((resolved, length));
    }
    let entity = format!("&{}", &text[..length]);
    let named = |entity: &str| {
        let resolved = htmlize::unescape(entity).into_owned();
        (entity == "&semi;" || !resolved.ends_with(';')).then_some(resolved)
    };
    if let Some(resolved) = named(&entity) {
        return Some((resolved, length));
    }
    let is_upper = !entity.bytes().any(|b| b.is_ascii_lowercase());
    if !is_upper || htmlize::unescape(&entity) != entity {
        return None;
    }
    named(&entity.to_ascii_lowercase()).map(|resolved| (resolved.to_uppercase(), length))
}

/// Resolves the numeric reference at the start of `text`, the text behind an ampersand, and returns its length with the
/// semicolon, if there is one. Invalid code points resolve to nothing.
fn numeric(text: &str) -> Option<(Option<char>, usize)> {
    let body = text.strip_prefix('#')?;
    let (digits, radix) = match body.strip_prefix(['x', 'X']) {
        Some(digits) => (digits, 16),
        None => (body, 10),
    };
    let count = digits.bytes().take_while(|b| char::from(*b).is_digit(radix)).count();
    if count == 0 {
        return None;
    }
    let has_semicolon = digits.as_bytes().get(count) == Some(&b';');
    let length = text.len() - digits.len() + count + usize::from(has_semicolon);
    let resolved = match u32::from_str_radix(&digits[..count], radix) {
        Ok(code @ 0x80..=0x9f) => char::from_u32(code).map(windows_1252),
        Ok(0x0d) => Some('\r'),
        Ok(0x1..=0x8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef) => None,
        Ok(code) if code <= 0x10_ffff && code & 0xfffe == 0xfffe => None,
        Ok(code) if code != 0 => Some(char::from_u32(code).unwrap_or('\u{fffd}')),
        _ => Some('\u{fffd}'),
    };
    Some((resolved, length))
}

/// Returns the length of the name at the start of `text`, with its semicolon.
fn name_length(text: &str) -> usize {
    let stops = |c: char| matches!(c, '\t' | '\n' | '\u{0c}' | ' ' | '<' | '&' | '#' | ';');
    let length: usize = text.chars().take(MAX_PREFIXED_NAME).take_while(|c| !stops(*c)).map(char::len_utf8).sum();
    length + usize::from(length > 0 && text[length..].starts_with(';'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numeric_references_follow_python() {
        for (raw, expected) in [
            ("&#x41;&#65;&#65", "AAA"),
            ("&#128;&#x81;&#0;&#xD800;&#1114112;", "€\u{81}\u{fffd}\u{fffd}\u{fffd}"),
            ("&#1;&#xFFFE;&#x1FFFF;&#11;x", "x"),
            ("&#99999999999999999999;", "\u{fffd}"),
            ("&#;&#x;&#xg;", "&#;&#x;&#xg;"),
        ] {
            assert_eq!(unescape(raw), expected, "{raw:?}");
        }
    }

    #[test]
    fn complete_entities_follow_ftfy() {
        for (raw, expected) in [
            ("&EACUTE;&SZLIG;&amp;amp;lt;", "ÉSS<"),
            ("&LTCC; &notit; &copy 1", "&LTCC; &notit; &copy 1"),
            ("&#59; &semi; &#12a;", "&#59; ; &#12a;"),
        ] {
            assert_eq!(unescape_complete(raw), expected, "{raw:?}");
        }
    }
}
