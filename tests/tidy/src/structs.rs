//! The structs of a crate: how many fields each has, which of them other modules see, and whether it has
//! methods that change it. What tests have is left out.

use syn::visit::Visit;
use syn::{Attribute, Fields, ImplItem, Item, ItemImpl, ItemMod, ItemStruct, ReceiverKind, Type, Visibility};

use crate::Source;

/// One struct with named fields.
#[derive(Debug, Eq, PartialEq)]
pub struct Struct {
    /// The file that it is in.
    pub path: String,
    /// Its name.
    pub name: String,
    /// Number of fields.
    pub fields: usize,
    /// Fields that are visible outside of its module.
    pub open: Vec<String>,
    /// Methods that change it, its own and those of traits.
    pub changed_by: Vec<String>,
}

/// All structs of the crate whose files are below `src`, a folder that ends in a slash.
#[must_use]
pub fn structs(sources: &[Source], src: &str) -> Vec<Struct> {
    let mut found = Found::default();
    for source in sources.iter().filter(|source| source.path.starts_with(src) && !source.path.ends_with("tests.rs")) {
        let Ok(file) = syn::parse_file(&source.text) else { continue };
        if !tests_only(&file.attrs) {
            found.path.clone_from(&source.path);
            found.visit_file(&file);
        }
    }
    let Found { mut structs, changes, .. } = found;
    for (path, name, method) in changes {
        // A name that two modules have is meant by the one that the methods stand beside.
        let near = structs.iter().any(|one| one.name == name && one.path == path);
        for one in structs.iter_mut().filter(|one| one.name == name && (!near || one.path == path)) {
            one.changed_by.push(method.clone());
        }
    }
    structs
}

#[derive(Default)]
struct Found {
    path: String,
    structs: Vec<Struct>,
    /// (file, struct, method).
    changes: Vec<(String, String, String)>,
}

/// `#[cfg(test)]`, or anything like it.
fn tests_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string().starts_with("test"))
    })
}

impl<'ast> Visit<'ast> for Found {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes: &[Attribute] = match item {
            Item::Impl(item) => &item.attrs,
            Item::Mod(ItemMod { attrs, .. }) => attrs,
            Item::Struct(item) => &item.attrs,
            _ => &[],
        };
        if !tests_only(attributes) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_item_struct(&mut self, item: &'ast ItemStruct) {
        let Fields::Named(fields) = &item.fields else { return };
        let open = fields.named.iter().filter(|field| !matches!(field.vis, Visibility::Inherited));
        self.structs.push(Struct {
            path: self.path.clone(),
            name: item.ident.to_string(),
            fields: fields.named.len(),
            open: open.filter_map(|field| field.ident.as_ref().map(ToString::to_string)).collect(),
            changed_by: vec![],
        });
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        let Type::Path(this) = &*item.self_ty else { return };
        let Some(name) = this.path.segments.last().map(|segment| segment.ident.to_string()) else { return };
        for item in &item.items {
            if let ImplItem::Fn(method) = item
                && method.sig.receiver().is_some_and(|this| matches!(this.kind, ReceiverKind::Reference(.., Some(_))))
            {
                self.changes.push((self.path.clone(), name.clone(), method.sig.ident.to_string()));
            }
        }
    }
}
