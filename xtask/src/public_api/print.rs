//! Items as lines of a listing.

use quote::ToTokens;
use syn::{Fields, Item, TraitItem, Type, Visibility};

use super::crates::is_public;

/// Returns source text for a piece of syntax, spaced as rustfmt does it.
pub fn tokens(syntax: &impl ToTokens) -> String {
    let mut text = syntax.to_token_stream().to_string();
    for (from, to) in [
        (" :: ", "::"),
        (":: ", "::"),
        (" < ", "<"),
        (" >", ">"),
        ("& ", "&"),
        (" ,", ","),
        (" ( ", "("),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        (" [ ", " ["),
        ("[ ", "["),
        (" ]", "]"),
        (" ;", ";"),
        (" :", ":"),
        (" ?", "?"),
        ("# [", "#["),
        ("< ", "<"),
        ("->(", "-> ("),
        (",(", ", ("),
        (":(", ": ("),
        (":: (", "::("),
        (",)", ")"),
    ] {
        text = text.replace(from, to);
    }
    text
}

/// Returns the last part of a type's path, without its arguments.
pub fn type_name(of: &Type) -> String {
    match of {
        Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default(),
        _ => String::new(),
    }
}

/// Returns an item's name, if it has one.
pub fn name(item: &Item) -> Option<String> {
    named(item).map(|(name, _)| name)
}

/// Returns the name of a `pub` item.
pub fn public_name(item: &Item) -> Option<String> {
    named(item).filter(|(_, visibility)| visibility.is_none_or(is_public)).map(|(name, _)| name)
}

/// Name and visibility; exported macros have none.
fn named(item: &Item) -> Option<(String, Option<&Visibility>)> {
    let (ident, visibility) = match item {
        Item::Const(item) => (&item.ident, &item.vis),
        Item::Enum(item) => (&item.ident, &item.vis),
        Item::Fn(item) => (&item.sig.ident, &item.vis),
        Item::Static(item) => (&item.ident, &item.vis),
        Item::Struct(item) => (&item.ident, &item.vis),
        Item::Trait(item) => (&item.ident, &item.vis),
        Item::Type(item) => (&item.ident, &item.vis),
        Item::Macro(item) => {
            let is_exported = item.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export"));
            return item.ident.as_ref().filter(|_| is_exported).map(|ident| (ident.to_string(), None));
        }
        _ => return None,
    };
    Some((ident.to_string(), Some(visibility)))
}

/// Returns the kind of an item and its public fields, variants or trait items.
pub fn members(item: &Item) -> Vec<String> {
    match item {
        Item::Const(item) => vec![format!("const: {}", tokens(&item.ty))],
        Item::Static(item) => vec![format!("static: {}", tokens(&item.ty))],
        Item::Fn(item) => vec![tokens(&item.sig)],
        Item::Type(item) => vec![format!("type = {}", tokens(&item.ty))],
        Item::Macro(_) => vec!["macro".into()],
        Item::Struct(item) => {
            let mut lines = vec![format!("struct{}", tokens(&item.generics))];
            lines.extend(fields(&item.fields, is_public));
            lines
        }
        Item::Enum(item) => {
            let mut lines = vec![format!("enum{}", tokens(&item.generics))];
            lines.extend(item.variants.iter().map(|variant| {
                let inside = fields(&variant.fields, |_| true).join(", ");
                match variant.fields {
                    Fields::Named(_) => format!("{} {{ {inside} }}", variant.ident),
                    Fields::Unnamed(_) => format!("{}({inside})", variant.ident),
                    Fields::Unit => variant.ident.to_string(),
                }
            }));
            lines
        }
        Item::Trait(item) => {
            let mut lines = vec![format!("trait{}", tokens(&item.generics))];
            lines.extend(item.items.iter().filter_map(|item| match item {
                TraitItem::Fn(item) => {
                    let provided = if item.default.is_some() { " { … }" } else { "" };
                    Some(format!("{}{provided}", tokens(&item.sig)))
                }
                TraitItem::Type(item) => Some(format!("type {}", item.ident)),
                TraitItem::Const(item) => Some(format!("const {}: {}", item.ident, tokens(&item.ty))),
                _ => None,
            }));
            lines
        }
        _ => Vec::new(),
    }
}

fn fields(fields: &Fields, is_listed: impl Fn(&Visibility) -> bool) -> Vec<String> {
    let listed = fields.iter().filter(|field| is_listed(&field.vis));
    let line = |field: &syn::Field| match &field.ident {
        Some(ident) => format!("{ident}: {}", tokens(&field.ty)),
        None => tokens(&field.ty),
    };
    listed.map(line).collect()
}
