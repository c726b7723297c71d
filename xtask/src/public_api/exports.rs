//! The names that a crate exports, found by following `pub use` through its modules.

use std::collections::{BTreeMap, BTreeSet};

use syn::{Ident, ImplItem, Item, UseTree};

use super::crates::{Module, is_public};
use super::print;

/// Exported names by path, each with its declarations: the item and its public members.
#[derive(Debug, Default)]
pub struct Exports(BTreeMap<String, BTreeSet<String>>);

/// The modules of a crate from the root to one module.
type Scope<'a> = Vec<&'a Module>;

/// A crate under inspection.
struct Crate<'a> {
    root: &'a Module,
    /// Public inherent methods by the name of their type.
    methods: BTreeMap<String, BTreeSet<String>>,
}

impl Exports {
    /// Collects the exports of a crate.
    pub fn of(root: &Module) -> Self {
        let mut inspected = Crate { root, methods: BTreeMap::new() };
        inspected.collect_methods(root);
        let mut exports = Self::default();
        inspected.module(&vec![root], "", &mut exports);
        exports
    }

    /// Returns the number of exported names; members of types and traits do not count.
    pub fn names(&self) -> usize {
        self.0.len()
    }

    /// Returns one line per name and, indented, one line per member.
    pub fn listing(&self) -> String {
        let lines = self.0.iter().flat_map(|(path, members)| {
            std::iter::once(path.clone()).chain(members.iter().map(move |member| format!("    {path}: {member}")))
        });
        lines.map(|line| line + "\n").collect()
    }
}

impl<'a> Crate<'a> {
    fn collect_methods(&mut self, module: &Module) {
        for item in &module.items {
            let Item::Impl(item) = item else { continue };
            if item.trait_.is_some() {
                continue;
            }
            let methods = self.methods.entry(print::type_name(&item.self_ty)).or_default();
            for member in &item.items {
                match member {
                    ImplItem::Fn(method) if is_public(&method.vis) => methods.insert(print::tokens(&method.sig)),
                    ImplItem::Const(constant) if is_public(&constant.vis) => {
                        methods.insert(format!("const {}: {}", constant.ident, print::tokens(&constant.ty)))
                    }
                    _ => false,
                };
            }
        }
        module.children.values().for_each(|child| self.collect_methods(&child.module));
    }

    /// Adds what a module exports under `path`.
    fn module(&self, scope: &Scope<'a>, path: &str, exports: &mut Exports) {
        let Some(module) = scope.last() else { return };
        for item in &module.items {
            match item {
                Item::Use(item) if is_public(&item.vis) => {
                    self.reexport(scope, &item.tree, &mut Vec::new(), path, exports);
                }
                item => {
                    if let Some(name) = print::public_name(item) {
                        self.item(item, &join(path, &name), exports);
                    }
                }
            }
        }
        for (name, child) in &module.children {
            if child.is_public {
                let mut scope = scope.clone();
                scope.push(&child.module);
                self.module(&scope, &join(path, name), exports);
            }
        }
    }

    fn item(&self, item: &Item, path: &str, exports: &mut Exports) {
        let members = exports.0.entry(path.to_owned()).or_default();
        members.extend(print::members(item));
        let name = print::public_name(item).unwrap_or_default();
        members.extend(self.methods.get(&name).into_iter().flatten().cloned());
    }

    /// Adds the names of a `pub use` tree below `prefix`.
    fn reexport(&self, scope: &Scope<'a>, tree: &UseTree, prefix: &mut Vec<Ident>, path: &str, exports: &mut Exports) {
        match tree {
            UseTree::Path(tree) => {
                prefix.push(tree.ident.clone());
                self.reexport(scope, &tree.tree, prefix, path, exports);
                prefix.pop();
            }
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.reexport(scope, tree, prefix, path, exports));
            }
            UseTree::Name(tree) => self.name(scope, prefix, &tree.ident, &join(path, &tree.ident.to_string()), exports),
            UseTree::Rename(tree) => {
                self.name(scope, prefix, &tree.ident, &join(path, &tree.rename.to_string()), exports);
            }
            UseTree::Glob(_) => match self.find(scope, prefix) {
                Some(scope) => self.module(&scope, path, exports),
                None => {
                    exports.0.entry(join(path, &format!("{}::*", written(prefix)))).or_default();
                }
            },
        }
    }

    /// Adds one re-exported name: an item of this crate, a module of it, or a name of another crate.
    fn name(&self, scope: &Scope<'a>, prefix: &[Ident], name: &Ident, path: &str, exports: &mut Exports) {
        let Some(scope) = self.find(scope, prefix) else {
            let source = if prefix.is_empty() { name.to_string() } else { format!("{}::{name}", written(prefix)) };
            exports.0.entry(path.to_owned()).or_default().insert(format!("from {source}"));
            return;
        };
        let Some(module) = scope.last() else { return };
        if let Some(child) = module.children.get(&name.to_string()) {
            let mut inner = scope.clone();
            inner.push(&child.module);
            self.module(&inner, path, exports);
            return;
        }
        let text = name.to_string();
        if let Some(item) = module.items.iter().find(|item| print::name(item).as_deref() == Some(&text)) {
            self.item(item, path, exports);
            return;
        }
        self.reexported(&scope, &text, path, exports);
    }

    /// Adds a name that a module itself re-exports.
    fn reexported(&self, scope: &Scope<'a>, name: &str, path: &str, exports: &mut Exports) {
        let items = scope.last().map(|module| module.items.as_slice()).unwrap_or_default();
        let trees: Vec<&UseTree> =
            items.iter().filter_map(|item| if let Item::Use(item) = item { Some(&item.tree) } else { None }).collect();
        if let Some((prefix, ident)) = trees.iter().find_map(|tree| leaf(tree, &mut Vec::new(), name)) {
            self.name(scope, &prefix, &ident, path, exports);
            return;
        }
        for prefix in trees.iter().filter_map(|tree| glob(tree)) {
            let mut inner = Exports::default();
            if let Some(scope) = self.find(scope, &prefix) {
                self.module(&scope, "", &mut inner);
            }
            if let Some(members) = inner.0.remove(name) {
                exports.0.insert(path.to_owned(), members);
            }
        }
    }

    /// Returns the module of a path as it is written in `scope`, or nothing for a path into another crate.
    fn find(&self, scope: &Scope<'a>, path: &[Ident]) -> Option<Scope<'a>> {
        let mut scope = scope.clone();
        for (at, part) in path.iter().enumerate() {
            match part.to_string().as_str() {
                "crate" if at == 0 => scope = vec![self.root],
                "self" if at == 0 => {}
                "super" => {
                    scope.pop();
                }
                name => scope.push(&scope.last()?.children.get(name)?.module),
            }
        }
        // A single name without a path, `pub use serde;`, is another crate or an item of the module itself.
        (!path.is_empty()).then_some(scope)
    }
}

/// Returns the path and the original name that a `use` tree imports as `name`.
fn leaf(tree: &UseTree, prefix: &mut Vec<Ident>, name: &str) -> Option<(Vec<Ident>, Ident)> {
    match tree {
        UseTree::Path(tree) => {
            prefix.push(tree.ident.clone());
            let leaf = leaf(&tree.tree, prefix, name);
            prefix.pop();
            leaf
        }
        UseTree::Group(group) => group.items.iter().find_map(|tree| leaf(tree, prefix, name)),
        UseTree::Name(tree) if tree.ident == name => Some((prefix.clone(), tree.ident.clone())),
        UseTree::Rename(tree) if tree.rename == name => Some((prefix.clone(), tree.ident.clone())),
        _ => None,
    }
}

/// Returns the path of `use child::*`; imports from parents are no exports.
fn glob(tree: &UseTree) -> Option<Vec<Ident>> {
    match tree {
        UseTree::Glob(_) => Some(Vec::new()),
        UseTree::Path(tree) if tree.ident != "super" && tree.ident != "crate" => {
            let mut path = vec![tree.ident.clone()];
            path.extend(glob(&tree.tree)?);
            Some(path)
        }
        _ => None,
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}::{name}") }
}

fn written(path: &[Ident]) -> String {
    path.iter().map(ToString::to_string).collect::<Vec<_>>().join("::")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(files: &[(&str, &str)]) -> String {
        let dir = std::env::temp_dir().join(format!("xtask-public-api-{}-{}", std::process::id(), files[0].1.len()));
        for (name, text) in files {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let module = Module::read(&dir.join("lib.rs")).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
        Exports::of(&module).listing()
    }

    #[test]
    fn reexports_are_followed_to_their_items() {
        let lib = "mod a; pub mod b; pub use a::{A, run as start}; pub use other::Thing; pub use a::inner::*; fn private() {}";
        let a = "pub mod inner; pub struct A { pub x: u8, y: u8 } impl A { pub fn new(x: &str) -> Result<(), A> {} fn no() {} }
                 pub(crate) fn hidden() {} pub fn run() {} pub struct Unexported;";
        let inner = "pub enum E { One, Two(u8) } #[cfg(test)] pub fn only_in_tests() {}";
        let b = "pub use super::a::inner::E; pub trait T { fn f(&self); }";
        assert_eq!(
            listing(&[("lib.rs", lib), ("a.rs", a), ("a/inner.rs", inner), ("b/mod.rs", b)]),
            "A\n    A: fn new(x: &str) -> Result<(), A>\n    A: struct\n    A: x: u8\n\
             E\n    E: One\n    E: Two(u8)\n    E: enum\n\
             Thing\n    Thing: from other::Thing\n\
             b::E\n    b::E: One\n    b::E: Two(u8)\n    b::E: enum\n\
             b::T\n    b::T: fn f(&self)\n    b::T: trait\n\
             start\n    start: fn run()\n"
        );
    }
}
