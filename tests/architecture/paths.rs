//! Reads the paths that each source file names.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    Attribute, File, ItemMod, ItemUse, Macro, UseTree,
    visit::{self, Visit},
};

/// A source file, without its tests.
#[derive(Debug)]
pub struct Module {
    /// The name of the file, for messages.
    pub file: String,
    /// The path of the module, as in `crate::store::sqlite`. The crate `verification` counts as a
    /// part of this crate: its modules are in `crate::verification`.
    pub path: String,
    /// The paths that the file names. Those of this crate begin with `crate`.
    pub uses: BTreeSet<String>,
}

impl Module {
    pub fn read(file: &str, path: &str, code: &str) -> Self {
        let parsed: File = syn::parse_str(code).unwrap_or_else(|error| panic!("{file}: {error}"));
        let mut reader = Reader { module: path, uses: BTreeSet::new() };
        reader.visit_file(&parsed);
        Self { file: file.to_owned(), path: path.to_owned(), uses: reader.uses }
    }

    /// Returns the part that the file belongs to, or `None` for the roots of the library and the
    /// program.
    pub fn part(&self) -> Option<&str> {
        self.path.split("::").nth(1)
    }
}

/// The path that stands for the crate `verification`.
const VERIFICATION: &str = "crate::verification";

struct Reader<'a> {
    module: &'a str,
    uses: BTreeSet<String>,
}

impl Reader<'_> {
    /// Adds a path. A path that begins with `self` or `super`, or with the name of the crate
    /// `verification`, is changed to begin with `crate`.
    fn add(&mut self, segments: &[String]) {
        let is_verification = self.module.starts_with(VERIFICATION);
        let mut from: Vec<&str> = match segments.first().map(String::as_str) {
            Some("self" | "super") => self.module.split("::").collect(),
            Some("crate") if is_verification => VERIFICATION.split("::").collect(),
            Some("crate") => vec!["crate"],
            Some("countersign_verification") => VERIFICATION.split("::").collect(),
            _ => vec![],
        };
        for segment in segments {
            match segment.as_str() {
                "self" | "crate" | "countersign_verification" => {}
                "super" => drop(from.pop()),
                name => from.push(name),
            }
        }
        self.uses.insert(from.join("::"));
    }

    fn add_tree(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: &dyn ToString| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.add_tree(&path.tree, &with(&path.ident)),
            UseTree::Name(name) if name.ident == "self" => self.add(before),
            UseTree::Name(name) => self.add(&with(&name.ident)),
            UseTree::Rename(rename) => self.add(&with(&rename.ident)),
            UseTree::Glob(_) => self.add(before),
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.add_tree(tree, before))
            }
        }
    }

    /// Adds the paths in the input of a macro, which `syn` does not parse.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = vec![];
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) if colons == 2 && !path.is_empty() => {
                    path.push(ident.to_string());
                    colons = 0;
                }
                other => {
                    self.add_unless_single(&path);
                    path = match &other {
                        TokenTree::Ident(ident) => vec![ident.to_string()],
                        _ => vec![],
                    };
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.add_tokens(group.stream());
                    }
                }
            }
        }
        self.add_unless_single(&path);
    }

    fn add_unless_single(&mut self, path: &[String]) {
        if path.len() > 1 {
            self.add(path);
        }
    }
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if !is_for_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_use(&mut self, import: &'ast ItemUse) {
        self.add_tree(&import.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add_unless_single(&segments);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.add_tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }
}

/// Returns all Rust files in a folder and in the folders below it.
pub fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Returns the files below a folder that no module of it declares, and that are no root of a crate.
pub fn undeclared(folder: &Path) -> Vec<PathBuf> {
    let files = sources(folder);
    let mut declared = BTreeSet::new();
    for file in &files {
        let parsed = syn::parse_file(&fs::read_to_string(file).unwrap()).unwrap();
        Declarations { file, declared: &mut declared }.visit_file(&parsed);
    }
    let is_root = |file: &Path| ["lib.rs", "main.rs"].iter().any(|name| file.ends_with(name));
    files.into_iter().filter(|file| !is_root(file) && !declared.contains(file)).collect()
}

/// Collects the files of the modules that a file declares.
struct Declarations<'a> {
    file: &'a Path,
    declared: &'a mut BTreeSet<PathBuf>,
}

impl<'ast> Visit<'ast> for Declarations<'_> {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        let folder = self.file.parent().unwrap();
        let stem = self.file.file_stem().unwrap();
        let own = match stem.to_str() {
            Some("lib" | "main" | "mod") => folder.to_owned(),
            _ => folder.join(stem),
        };
        match path_attribute(&module.attrs) {
            Some(path) => self.declared.extend([folder.join(path)]),
            None => self.declared.extend([
                own.join(format!("{}.rs", module.ident)),
                own.join(module.ident.to_string()).join("mod.rs"),
            ]),
        }
        visit::visit_item_mod(self, module);
    }
}

/// Returns the value of `#[path = "…"]`.
fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find(|attribute| attribute.path().is_ident("path")).and_then(|attribute| {
        match &attribute.meta.require_name_value().ok()?.value {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value()),
            _ => None,
        }
    })
}

/// Reads all source files of the service and of the crate `verification`, except those of tests.
pub fn modules() -> Vec<Module> {
    [("src", "crate"), ("verification/src", VERIFICATION)]
        .into_iter()
        .flat_map(|(folder, root)| modules_in(folder, root))
        .collect()
}

fn modules_in(folder: &str, root: &str) -> Vec<Module> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let is_code = |path: &PathBuf| !path.file_stem().unwrap().to_string_lossy().contains("tests");
    sources(&folder)
        .into_iter()
        .filter(is_code)
        .map(|path| {
            let file = path.strip_prefix(&folder).unwrap().to_string_lossy().into_owned();
            let name = file.trim_end_matches(".rs").trim_end_matches("/mod");
            let module = match name {
                "lib" | "main" => root.to_owned(),
                name => format!("{root}::{}", name.replace('/', "::")),
            };
            Module::read(&file, &module, &fs::read_to_string(&path).unwrap())
        })
        .collect()
}
