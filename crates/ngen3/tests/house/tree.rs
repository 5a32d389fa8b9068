//! The modules of a crate: for each its file, the names it defines and imports, and the paths in its code. Tests are
//! excluded.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::ext::IdentExt;
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, Meta, Token, UseTree, Visibility};

/// Modules reachable from `lib.rs` or `main.rs`; the root comes first.
pub struct Tree {
    pub modules: Vec<Module>,
}

/// A module, inline or in its own file.
#[derive(Default)]
pub struct Module {
    /// File relative to the crate's `src`, with `/` between folders.
    pub file: String,
    pub parent: Option<usize>,
    pub children: Vec<(String, usize)>,
    /// Names of the items defined here: functions, types, traits, constants, macros.
    pub items: BTreeSet<String>,
    pub imports: Vec<Import>,
    pub mentions: Vec<Mention>,
    /// Names of local variables.
    pub locals: BTreeSet<String>,
}

/// One name of a `use`.
pub struct Import {
    /// The name in this module; none for `*`.
    pub name: Option<String>,
    pub mention: Mention,
    /// The name is visible elsewhere: `pub use`, `pub(crate) use`, …
    pub exported: bool,
}

/// A path as the code writes it.
pub struct Mention {
    pub path: Vec<String>,
    pub line: usize,
}

impl Tree {
    /// Reads the modules, starting at `src/root`.
    ///
    /// # Errors
    /// Names the file that is missing or is not Rust.
    pub fn read(src: &Path, root: &str) -> Result<Self, String> {
        let mut reader = Reader { src, modules: vec![Module::default()], module: 0, folder: src.into() };
        reader.file(&src.join(root))?;
        Ok(Self { modules: reader.modules })
    }
}

/// Walks the syntax of a module, and of those inside it.
struct Reader<'a> {
    src: &'a Path,
    modules: Vec<Module>,
    /// Index of the module being read.
    module: usize,
    /// Folder of its children's files.
    folder: PathBuf,
}

impl Reader<'_> {
    /// Reads a file as the current module.
    fn file(&mut self, path: &Path) -> Result<(), String> {
        let bad = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = fs::read_to_string(path).map_err(|error| bad(&error))?;
        let syntax = syn::parse_file(&text).map_err(|error| bad(&error))?;
        let name = path.strip_prefix(self.src).unwrap_or(path);
        let parts: Vec<_> = name.iter().map(|part| part.to_string_lossy()).collect();
        self.current().file = parts.join("/");
        if !for_tests(&syntax.attrs) {
            self.items(&syntax.items)?;
        }
        Ok(())
    }

    /// Reads items, and the files of the modules they declare.
    fn items(&mut self, items: &[Item]) -> Result<(), String> {
        for item in items {
            match item {
                Item::Mod(module) if !for_tests(&module.attrs) => self.child(module)?,
                Item::Mod(_) => (),
                item => self.visit_item(item),
            }
        }
        Ok(())
    }

    fn child(&mut self, module: &syn::ItemMod) -> Result<(), String> {
        let name = module.ident.unraw().to_string();
        let (parent, folder, index) = (self.module, self.folder.clone(), self.modules.len());
        let file = self.current().file.clone();
        self.current().children.push((name.clone(), index));
        self.modules.push(Module { file: file.clone(), parent: Some(parent), ..Module::default() });
        self.module = index;
        self.folder = folder.join(&name);
        match &module.content {
            Some((_, items)) => self.items(items)?,
            None => {
                let named =
                    self.src.join(&file).parent().zip(path_attribute(&module.attrs)).map(|(at, to)| at.join(to));
                let path = match named {
                    Some(path) => {
                        self.folder = path.parent().unwrap_or(self.src).into();
                        path
                    }
                    None => [self.folder.with_extension("rs"), self.folder.join("mod.rs")]
                        .into_iter()
                        .find(|path| path.is_file())
                        .ok_or_else(|| format!("{file}: no file for `mod {name}`"))?,
                };
                self.file(&path)?;
            }
        }
        (self.module, self.folder) = (parent, folder);
        Ok(())
    }

    fn current(&mut self) -> &mut Module {
        &mut self.modules[self.module]
    }

    fn mention(&mut self, path: Vec<String>, line: usize) {
        self.current().mentions.push(Mention { path, line });
    }

    /// Flattens a `use` into its names.
    fn import(&mut self, tree: &UseTree, path: &mut Vec<String>, exported: bool) {
        let depth = path.len();
        let (ident, name) = match tree {
            UseTree::Group(group) => return group.items.iter().for_each(|tree| self.import(tree, path, exported)),
            UseTree::Path(rest) => {
                path.push(rest.ident.unraw().to_string());
                self.import(&rest.tree, path, exported);
                return path.truncate(depth);
            }
            UseTree::Glob(glob) => {
                let mention = Mention { path: path.clone(), line: glob.star_token.spans[0].start().line };
                return self.current().imports.push(Import { name: None, mention, exported });
            }
            UseTree::Name(name) => (&name.ident, None),
            UseTree::Rename(rename) => (&rename.ident, Some(rename.rename.to_string())),
        };
        // `a::{self}` is `a`.
        if ident != "self" {
            path.push(ident.unraw().to_string());
        }
        let mention = Mention { path: path.clone(), line: ident.span().start().line };
        let name = name.or_else(|| path.last().cloned());
        self.current().imports.push(Import { name, mention, exported });
        path.truncate(depth);
    }

    /// Finds paths in the tokens of a macro or an attribute. A single name counts if it looks like a type or a constant.
    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let is = |at: Option<usize>, mark: char| matches!(at.and_then(|at| tokens.get(at)), Some(TokenTree::Punct(punct)) if punct.as_char() == mark);
        let colons = |at: usize| is(Some(at), ':') && is(Some(at + 1), ':');
        let mut at = 0;
        while at < tokens.len() {
            let start = at;
            at += 1;
            let first = match &tokens[start] {
                TokenTree::Group(group) => {
                    self.tokens(group.stream());
                    continue;
                }
                TokenTree::Ident(ident) => ident,
                _ => continue,
            };
            let mut path = vec![first.unraw().to_string()];
            while let (true, Some(TokenTree::Ident(ident))) = (colons(at), tokens.get(at + 2)) {
                path.push(ident.unraw().to_string());
                at += 3;
            }
            let before = start.checked_sub(1);
            let field = is(before, '.') && !is(start.checked_sub(2), '.');
            let part = is(before, ':') && is(start.checked_sub(2), ':');
            let variable = is(before, '$') && first != "crate";
            if !(field || part || variable || is(before, '\'')) && (path.len() > 1 || is_upper(first)) {
                self.mention(path, first.span().start().line);
            }
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let (attributes, name) = head(item);
        if for_tests(attributes) {
            return;
        }
        if let Some(name) = name {
            self.current().items.insert(name.unraw().to_string());
        }
        visit::visit_item(self, item);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !for_tests(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if item.leading_colon.is_none() {
            let exported = !matches!(item.vis, Visibility::Inherited);
            self.import(&item.tree, &mut Vec::new(), exported);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if let (None, Some(first)) = (&path.leading_colon, path.segments.first()) {
            let names = path.segments.iter().map(|segment| segment.ident.unraw().to_string()).collect();
            self.mention(names, first.ident.span().start().line);
        }
        visit::visit_path(self, path);
    }

    fn visit_pat_ident(&mut self, pattern: &'ast syn::PatIdent) {
        let name = pattern.ident.unraw().to_string();
        if is_upper(&pattern.ident) {
            self.mention(vec![name], pattern.ident.span().start().line);
        } else {
            self.current().locals.insert(name);
        }
        visit::visit_pat_ident(self, pattern);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.tokens(call.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone());
        }
    }

    // `pub(in crate::a)` sets visibility and uses no items.
    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {}
}

/// Attributes of an item, and the name it defines.
fn head(item: &Item) -> (&[Attribute], Option<&Ident>) {
    match item {
        Item::Const(item) => (&item.attrs, Some(&item.ident)),
        Item::Enum(item) => (&item.attrs, Some(&item.ident)),
        Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
        Item::Macro(item) => (&item.attrs, item.ident.as_ref()),
        Item::Static(item) => (&item.attrs, Some(&item.ident)),
        Item::Struct(item) => (&item.attrs, Some(&item.ident)),
        Item::Trait(item) => (&item.attrs, Some(&item.ident)),
        Item::TraitAlias(item) => (&item.attrs, Some(&item.ident)),
        Item::Type(item) => (&item.attrs, Some(&item.ident)),
        Item::Union(item) => (&item.attrs, Some(&item.ident)),
        Item::Impl(item) => (&item.attrs, None),
        Item::Mod(item) => (&item.attrs, None),
        Item::Use(item) => (&item.attrs, None),
        _ => (&[], None),
    }
}

/// Returns whether an item is compiled only for tests: `#[test]`, `#[cfg(test)]`, `#[cfg(all(test, …))]`.
fn for_tests(attributes: &[Attribute]) -> bool {
    fn needs_test(condition: &Meta) -> bool {
        let parts = |list: &syn::MetaList| {
            list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).unwrap_or_default()
        };
        match condition {
            Meta::Path(path) => path.is_ident("test"),
            Meta::List(list) if list.path.is_ident("all") => parts(list).iter().any(needs_test),
            Meta::List(list) if list.path.is_ident("any") => parts(list).iter().all(needs_test),
            _ => false,
        }
    }
    attributes.iter().any(|attribute| {
        let path = attribute.path();
        path.is_ident("test") || path.is_ident("cfg") && attribute.parse_args().is_ok_and(|meta| needs_test(&meta))
    })
}

/// File named by `#[path = "…"]`.
fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.path().is_ident("path"))?;
    match &attribute.meta.require_name_value().ok()?.value {
        syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(path), .. }) => Some(path.value()),
        _ => None,
    }
}

fn is_upper(name: &Ident) -> bool {
    name.unraw().to_string().starts_with(char::is_uppercase)
}
