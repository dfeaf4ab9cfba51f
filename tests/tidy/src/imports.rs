//! Which file of a crate uses what of which other one, and the circles in that.
//!
//! A file is a module; what a path begins with (`crate`, `super`, `self`, or a child module) says which one is meant. Passing on
//! (`pub use`) is no use, nor is what tests do. The root of a crate only names its parts: no edge leads to it or from it.

use std::collections::{BTreeMap, BTreeSet};

use syn::visit::Visit;
use syn::{Attribute, Item, ItemMod, ItemUse, UseTree, Visibility};

use crate::Source;

/// A module by the names on the way to it from the root of its crate.
pub type Module = Vec<String>;

/// Who uses whom.
pub type Imports = BTreeMap<Module, BTreeSet<Module>>;

/// What the files below `src`, a folder that ends in a slash, use of each other.
#[must_use]
pub fn imports(sources: &[Source], src: &str) -> Imports {
    let files: BTreeMap<Module, &Source> =
        sources.iter().filter_map(|source| Some((module_of(source.path.strip_prefix(src)?)?, source))).collect();
    let mut imports = Imports::new();
    for (module, source) in files.iter().filter(|(module, _)| !module.is_empty()) {
        let Ok(file) = syn::parse_file(&source.text) else { continue };
        if tests_only(&file.attrs) {
            continue;
        }
        let mut uses = Uses { module, files: &files, inner: 0, found: BTreeSet::new() };
        uses.visit_file(&file);
        imports.insert(module.clone(), uses.found);
    }
    imports
}

/// The circles: each is a set of modules that all reach each other.
#[must_use]
pub fn circles(imports: &Imports) -> Vec<BTreeSet<Module>> {
    let reached: BTreeMap<&Module, BTreeSet<&Module>> =
        imports.keys().map(|module| (module, reachable(imports, module))).collect();
    let mut circles: Vec<BTreeSet<Module>> = Vec::new();
    for (module, all) in &reached {
        let circle: BTreeSet<Module> =
            all.iter().filter(|other| reached[*other].contains(module)).map(|other| (*other).clone()).collect();
        if circle.len() > 1 && !circles.contains(&circle) {
            circles.push(circle);
        }
    }
    circles
}

fn reachable<'a>(imports: &'a Imports, from: &Module) -> BTreeSet<&'a Module> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&Module> = imports[from].iter().collect();
    while let Some(module) = open.pop() {
        let Some((module, uses)) = imports.get_key_value(module) else { continue };
        if found.insert(module) {
            open.extend(uses);
        }
    }
    found
}

/// The module that a file is; `None`: tests, which are a file of their own in a folder of their module.
fn module_of(path: &str) -> Option<Module> {
    let mut names: Module = path.strip_suffix(".rs")?.split('/').map(str::to_owned).collect();
    let last = names.pop()?;
    match last.as_str() {
        "tests" => return None,
        "mod" => {}
        "lib" | "main" if names.is_empty() => {}
        _ => names.push(last),
    }
    Some(names)
}

/// `#[cfg(test)]`, or anything like it.
fn tests_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string().starts_with("test"))
    })
}

struct Uses<'a> {
    module: &'a Module,
    files: &'a BTreeMap<Module, &'a Source>,
    /// How deep this is in modules within the file.
    inner: usize,
    found: BTreeSet<Module>,
}

impl Uses<'_> {
    /// A path, by its names.
    fn path(&mut self, names: &[String]) {
        let Some((first, rest)) = names.split_first() else { return };
        let (mut target, mut rest) = match first.as_str() {
            "crate" => (Vec::new(), rest),
            "self" if self.inner == 0 => (self.module.clone(), rest),
            "super" => (self.module.clone(), names),
            _ => {
                let child = [self.module.as_slice(), std::slice::from_ref(first)].concat();
                if self.inner > 0 || !self.files.contains_key(&child) {
                    return;
                }
                (child, rest)
            }
        };
        let mut up = 0;
        while let Some((_, further)) = rest.split_first().filter(|(name, _)| *name == "super") {
            rest = further;
            up += 1;
        }
        for _ in self.inner..up.max(self.inner) {
            target.pop();
        }
        for name in rest {
            target.push(name.clone());
            if !self.files.contains_key(&target) {
                target.pop();
                break;
            }
        }
        if !target.is_empty() && target != *self.module {
            self.found.insert(target);
        }
    }

    fn tree(&mut self, tree: &UseTree, before: &mut Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.tree(&path.tree, before);
                before.pop();
            }
            UseTree::Name(name) => self.path(&[before.as_slice(), &[name.ident.to_string()]].concat()),
            UseTree::Rename(name) => self.path(&[before.as_slice(), &[name.ident.to_string()]].concat()),
            UseTree::Glob(_) => self.path(before),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, before)),
        }
    }
}

impl<'ast> Visit<'ast> for Uses<'_> {
    fn visit_visibility(&mut self, _: &'ast Visibility) {
        // `pub(super)` says who may use an item; the file uses nothing by it.
    }

    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => return syn::visit::visit_item(self, item),
        };
        if !tests_only(attributes) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        self.inner += 1;
        syn::visit::visit_item_mod(self, module);
        self.inner -= 1;
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if matches!(item.vis, Visibility::Inherited) {
            self.tree(&item.tree, &mut Vec::new());
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.path(&names);
        syn::visit::visit_path(self, path);
    }
}
