//! A crate's source as a tree of modules.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use syn::{Attribute, Item, Visibility};

/// A module with its items and child modules. Items for tests and hidden items are left out.
#[derive(Default)]
pub struct Module {
    pub items: Vec<Item>,
    pub children: BTreeMap<String, Child>,
}

/// A child module and whether it is `pub`.
pub struct Child {
    pub is_public: bool,
    pub module: Module,
}

impl Module {
    /// Reads a crate from its root file.
    pub fn read(root: &Path) -> Result<Self> {
        let dir = root.parent().with_context(|| format!("{}: not a file in a folder", root.display()))?;
        Self::file(root, dir)
    }

    /// Reads a file whose child modules are files in `dir`.
    fn file(path: &Path, dir: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file = syn::parse_file(&text).with_context(|| format!("cannot parse {}", path.display()))?;
        Self::items(file.items, dir)
    }

    fn items(items: Vec<Item>, dir: &Path) -> Result<Self> {
        let mut module = Self::default();
        for item in items {
            if attributes(&item).iter().any(is_excluded) {
                continue;
            }
            let Item::Mod(child) = item else {
                module.items.push(item);
                continue;
            };
            let name = child.ident.to_string();
            let below = dir.join(&name);
            let content = match child.content {
                Some((_, items)) => Self::items(items, &below)?,
                None => Self::file(&source(&child.attrs, dir, &name)?, &below)?,
            };
            let is_public = is_public(&child.vis);
            module.children.insert(name, Child { is_public, module: content });
        }
        Ok(module)
    }
}

/// Returns the file of `mod name;` in a module whose children are in `dir`.
fn source(attributes: &[Attribute], dir: &Path, name: &str) -> Result<PathBuf> {
    if attributes.iter().any(|attribute| attribute.path().is_ident("path")) {
        bail!("mod {name} in {}: `#[path]` is not supported", dir.display());
    }
    let candidates = [dir.join(format!("{name}.rs")), dir.join(name).join("mod.rs")];
    let path = candidates.iter().find(|path| path.is_file());
    path.cloned().with_context(|| format!("mod {name}: neither of {candidates:?} exists"))
}

/// Whether an item is for tests, hidden from the documentation, or the replacement of a feature that is off.
fn is_excluded(attribute: &Attribute) -> bool {
    let text = super::print::tokens(attribute);
    ["#[cfg(test)]", "#[cfg(doctest)]", "#[doc(hidden)]"].contains(&text.as_str()) || text.starts_with("#[cfg(not(")
}

/// Whether an item is visible outside of its crate, if its module is.
pub fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Returns an item's attributes.
pub fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
