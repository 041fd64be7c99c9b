//! What the sources say: sizes, names, headings, errors, attributes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{
    Attribute, Expr, ExprLit, GenericArgument, ImplItemFn, ItemEnum, ItemFn, ItemMod, Lit, Meta, PathArguments,
    ReturnType, Signature, TraitItemFn, Type, Visibility,
};

use crate::{CRATES, EXAMPLES, files, is_rust, named, none, read, root};

/// Production lines of a file, at most.
const FILE: usize = 400;

/// Lines of a function, at most.
const FUNCTION: usize = 70;

/// A name that says nothing about what is inside.
const BANNED_FILES: [&str; 12] = [
    "common",
    "util",
    "utils",
    "helper",
    "helpers",
    "misc",
    "type",
    "types",
    "core",
    "manager",
    "prelude",
    "modax-core",
];

/// Words of type names for which ARCHITECTURE.md has another one.
const BANNED_TYPES: [&str; 12] = [
    "Manager",
    "Helper",
    "Helpers",
    "Util",
    "Utils",
    "Watcher",
    "Master",
    "Slave",
    "Cookie",
    "ClusterInfo",
    "DedupCache",
    "Processor",
];

struct Source {
    path: PathBuf,
    file: syn::File,
}

/// Files that hold tests only.
fn is_test(path: &Path) -> bool {
    let name = named(path);
    name.contains("/tests/") || name.ends_with("/tests.rs") || name.ends_with("_tests.rs")
}

fn sources(folders: &[String]) -> Vec<Source> {
    let paths = folders.iter().flat_map(files).filter(|path| is_rust(path) && !is_test(path));
    let parse = |path: PathBuf| {
        let file = syn::parse_file(&read(&path)).unwrap_or_else(|error| panic!("{}: {error}", named(&path)));
        Source { path, file }
    };
    paths.map(parse).collect()
}

fn library_sources() -> Vec<Source> {
    sources(&CRATES.map(|name| format!("{name}/src")))
}

fn all_folders() -> Vec<String> {
    let crates = CRATES.iter().flat_map(|name| ["src", "examples", "benches"].map(|part| format!("{name}/{part}")));
    let examples = EXAMPLES.iter().flat_map(|name| ["src", "examples"].map(|part| format!("examples/{name}/{part}")));
    crates.chain(examples).collect()
}

/// A place as an editor understands it.
fn at(path: &Path, span: Span) -> String {
    format!("{}:{}", named(path), span.start().line)
}

fn docs(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(ExprLit { lit: Lit::Str(line), .. }) => Some(line.value()),
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn has(attributes: &[Attribute], name: &str, argument: &str) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::Path(path) => argument.is_empty() && path.is_ident(name),
        Meta::List(list) => list.path.is_ident(name) && list.tokens.to_string().contains(argument),
        Meta::NameValue(_) => false,
    })
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    has(attributes, "cfg", "test") || has(attributes, "test", "")
}

#[test]
fn no_file_is_too_long() {
    let paths = all_folders().into_iter().flat_map(files).filter(|path| is_rust(path) && !is_test(path));
    let long = paths.filter_map(|path| {
        let lines = production_lines(&read(&path));
        (lines > FILE).then(|| format!("{}: {lines} lines", named(&path)))
    });
    none(&format!("a file has at most {FILE} lines before its tests"), long);
}

fn production_lines(text: &str) -> usize {
    text.lines().take_while(|line| *line != "#[cfg(test)]").count()
}

/// Calls `check` with every function, production code only.
struct Functions<'a, F> {
    source: &'a Source,
    public_trait: bool,
    check: F,
}

struct Function<'a> {
    source: &'a Source,
    attributes: &'a [Attribute],
    signature: &'a Signature,
    is_public: bool,
    lines: usize,
}

impl<'a, F: FnMut(Function<'a>)> Functions<'a, F> {
    fn run(source: &'a Source, check: F) {
        Self { source, public_trait: false, check }.visit_file(&source.file);
    }

    fn found(&mut self, attributes: &'a [Attribute], signature: &'a Signature, is_public: bool, whole: Span) {
        let lines = whole.end().line - signature.span().start().line + 1;
        (self.check)(Function { source: self.source, attributes, signature, is_public, lines });
    }
}

impl<'a, F: FnMut(Function<'a>)> Visit<'a> for Functions<'a, F> {
    fn visit_item_mod(&mut self, module: &'a ItemMod) {
        if !is_for_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'a ItemFn) {
        if !is_for_tests(&function.attrs) {
            let is_public = matches!(function.vis, Visibility::Public(_));
            self.found(&function.attrs, &function.sig, is_public, function.span());
            visit::visit_item_fn(self, function);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'a ImplItemFn) {
        if !is_for_tests(&function.attrs) {
            let is_public = matches!(function.vis, Visibility::Public(_));
            self.found(&function.attrs, &function.sig, is_public, function.span());
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_trait(&mut self, item: &'a syn::ItemTrait) {
        self.public_trait = matches!(item.vis, Visibility::Public(_));
        visit::visit_item_trait(self, item);
        self.public_trait = false;
    }

    fn visit_trait_item_fn(&mut self, function: &'a TraitItemFn) {
        self.found(&function.attrs, &function.sig, self.public_trait, function.span());
        visit::visit_trait_item_fn(self, function);
    }
}

#[test]
fn no_function_is_too_long() {
    let mut offenders = Vec::new();
    for source in sources(&all_folders()) {
        Functions::run(&source, |function| {
            if function.lines > FUNCTION {
                let place = at(&function.source.path, function.signature.span());
                offenders.push(format!("{place}: {} has {} lines", function.signature.ident, function.lines));
            }
        });
    }
    none(&format!("a function has at most {FUNCTION} lines"), offenders);
}

#[test]
fn public_functions_say_how_they_fail_and_whether_they_can_be_cancelled() {
    let mut offenders = Vec::new();
    for source in library_sources() {
        Functions::run(&source, |function| {
            if !function.is_public || has(function.attributes, "doc", "hidden") {
                return;
            }
            let docs = docs(function.attributes);
            let place = at(&function.source.path, function.signature.span());
            let name = &function.signature.ident;
            if returns_result(&function.signature.output) && !docs.contains("# Errors") {
                offenders.push(format!("{place}: {name} returns a Result and has no `# Errors`"));
            }
            if function.signature.asyncness.is_some() && !docs.contains("# Cancel safety") {
                offenders.push(format!("{place}: {name} is async and has no `# Cancel safety`"));
            }
        });
    }
    none("public functions have `# Errors` where they can fail and `# Cancel safety` where they are async", offenders);
}

fn returns_result(output: &ReturnType) -> bool {
    let ReturnType::Type(_, returned) = output else { return false };
    let Type::Path(path) = &**returned else { return false };
    path.path.segments.last().is_some_and(|segment| segment.ident == "Result")
}

#[derive(Default)]
struct Enums<'a> {
    found: Vec<&'a ItemEnum>,
}

impl<'a> Visit<'a> for Enums<'a> {
    fn visit_item_mod(&mut self, module: &'a ItemMod) {
        if !is_for_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_enum(&mut self, item: &'a ItemEnum) {
        let name = item.ident.to_string();
        let may_grow = name.ends_with("Error") || name == "Event" || name == "Outcome";
        if may_grow && matches!(item.vis, Visibility::Public(_)) {
            self.found.push(item);
        }
    }
}

/// The errors of what waits for somebody else. One of a value or a configuration never goes away by itself.
fn errors_of_async_functions(source: &Source) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    Functions::run(source, |function| {
        if function.is_public
            && function.signature.asyncness.is_some()
            && returns_result(&function.signature.output)
            && let ReturnType::Type(_, returned) = &function.signature.output
            && let Type::Path(path) = &**returned
            && let Some(segment) = path.path.segments.last()
            && let PathArguments::AngleBracketed(arguments) = &segment.arguments
            && let Some(GenericArgument::Type(Type::Path(error))) = arguments.args.last()
        {
            found.extend(error.path.segments.last().map(|segment| segment.ident.to_string()));
        }
    });
    found
}

#[test]
fn errors_and_events_may_grow_and_errors_say_whether_to_try_again() {
    let mut offenders = Vec::new();
    for name in CRATES {
        let sources = sources(&[format!("{name}/src")]);
        let whole: String = sources.iter().map(|source| read(&source.path)).collect();
        let waited_for: BTreeSet<String> = sources.iter().flat_map(errors_of_async_functions).collect();
        for source in &sources {
            let mut enums = Enums::default();
            enums.visit_file(&source.file);
            for item in enums.found {
                let (name, place) = (item.ident.to_string(), at(&source.path, item.span()));
                if !has(&item.attrs, "non_exhaustive", "") {
                    offenders.push(format!("{place}: {name} is not #[non_exhaustive]"));
                }
                if waited_for.contains(&name) && !impl_has(&whole, &name, "fn is_transient") {
                    offenders.push(format!("{place}: {name} has no is_transient()"));
                }
            }
        }
    }
    none("public errors and events are #[non_exhaustive]; an error of an async function has is_transient()", offenders);
}

/// Whether some `impl name {` in `text` has `what`, by its text.
fn impl_has(text: &str, name: &str, what: &str) -> bool {
    let start = format!("\nimpl {name} {{");
    let blocks = text.split(&*start).skip(1);
    blocks.map(|block| block.split("\n}").next().unwrap_or_default()).any(|block| block.contains(what))
}

#[derive(Default)]
struct Settings<'a> {
    found: Vec<(&'a syn::Ident, String)>,
}

impl<'a> Visit<'a> for Settings<'a> {
    fn visit_item_struct(&mut self, item: &'a syn::ItemStruct) {
        let name = item.ident.to_string();
        if matches!(item.vis, Visibility::Public(_)) && ["Config", "Options"].iter().any(|end| name.ends_with(end)) {
            let public = item.fields.iter().filter(|field| matches!(field.vis, Visibility::Public(_)));
            self.found.extend(public.filter_map(|field| Some((field.ident.as_ref()?, docs(&field.attrs)))));
        }
    }

    fn visit_item_impl(&mut self, item: &'a syn::ItemImpl) {
        if item.trait_.is_some() {
            return;
        }
        let Type::Path(path) = &*item.self_ty else { return };
        let is_builder = path.path.segments.last().is_some_and(|it| it.ident.to_string().ends_with("Builder"));
        for function in
            item.items.iter().filter_map(|item| if let syn::ImplItem::Fn(it) = item { Some(it) } else { None })
        {
            let Some(syn::FnArg::Receiver(receiver)) = function.sig.inputs.first() else { continue };
            let takes_self = receiver.reference.is_none();
            // A step changes what it was given; what only takes a value and returns another one is no setting.
            let steps = receiver.mutability.is_some() && returns_self(&function.sig.output);
            let sets = takes_self && (steps || is_builder && function.sig.inputs.len() == 2);
            if sets && matches!(function.vis, Visibility::Public(_)) {
                self.found.push((&function.sig.ident, docs(&function.attrs)));
            }
        }
    }
}

/// By itself, or as what a `Result` holds.
fn returns_self(output: &ReturnType) -> bool {
    let ReturnType::Type(_, returned) = output else { return false };
    let Type::Path(path) = &**returned else { return false };
    let Some(segment) = path.path.segments.last() else { return false };
    let held = match &segment.arguments {
        PathArguments::AngleBracketed(arguments) if segment.ident == "Result" => arguments.args.first(),
        _ => None,
    };
    path.path.is_ident("Self")
        || matches!(held, Some(GenericArgument::Type(Type::Path(held))) if held.path.is_ident("Self"))
}

#[test]
fn every_setting_tells_its_default() {
    let mut offenders = Vec::new();
    for source in library_sources() {
        let mut settings = Settings::default();
        settings.visit_file(&source.file);
        for (name, docs) in settings.found {
            let words = ["default", "required", "without it", "none ", "off ", "more than once", "adds "];
            if !words.iter().any(|word| docs.to_lowercase().contains(word)) {
                offenders.push(format!("{}: {name}", at(&source.path, name.span())));
            }
        }
    }
    none("the docs of a setting tell its default, and better its reason too", offenders);
}

#[test]
fn no_file_or_folder_has_a_name_that_says_nothing() {
    let mut offenders = Vec::new();
    for path in files("").into_iter().filter(|path| is_rust(path) || path.ends_with("Cargo.toml")) {
        let name = named(&path);
        let parts = name.split('/').map(|part| part.trim_end_matches(".rs"));
        let banned: Vec<&str> = parts.filter(|part| BANNED_FILES.contains(part)).collect();
        if !banned.is_empty() {
            offenders.push(format!("{name}: {}", banned.join(", ")));
        }
    }
    none("a file is named for the noun it defines", offenders);
}

#[derive(Default)]
struct Names {
    found: Vec<(String, Span)>,
}

impl<'a> Visit<'a> for Names {
    fn visit_item_enum(&mut self, item: &'a ItemEnum) {
        self.found.push((item.ident.to_string(), item.ident.span()));
    }

    fn visit_item_struct(&mut self, item: &'a syn::ItemStruct) {
        self.found.push((item.ident.to_string(), item.ident.span()));
    }

    fn visit_item_trait(&mut self, item: &'a syn::ItemTrait) {
        self.found.push((item.ident.to_string(), item.ident.span()));
        visit::visit_item_trait(self, item);
    }

    fn visit_item_type(&mut self, item: &'a syn::ItemType) {
        self.found.push((item.ident.to_string(), item.ident.span()));
    }
}

#[test]
fn types_and_methods_use_the_words_of_the_architecture() {
    let mut offenders = Vec::new();
    for source in sources(&all_folders()) {
        let mut names = Names::default();
        names.visit_file(&source.file);
        for (name, span) in names.found {
            if words(&name).any(|word| BANNED_TYPES.contains(&word)) || BANNED_TYPES.contains(&&*name) {
                offenders.push(format!("{}: {name}", at(&source.path, span)));
            }
        }
        Functions::run(&source, |function| {
            let name = function.signature.ident.to_string();
            if function.is_public && (name.starts_with("get_") || name.starts_with("set_")) {
                offenders.push(format!("{}: {name}", at(&function.source.path, function.signature.span())));
            }
        });
    }
    none("names are those of ARCHITECTURE.md: no Manager, Helper, Master…, no get_ or set_", offenders);
}

/// The words of a name in camel case.
fn words(name: &str) -> impl Iterator<Item = &str> {
    let starts = name.char_indices().filter(|(_, letter)| letter.is_uppercase()).map(|(at, _)| at);
    let starts: Vec<usize> = starts.chain([name.len()]).collect();
    (1..starts.len()).map(move |next| &name[starts[next - 1]..starts[next]])
}

#[test]
fn every_library_denies_panics_and_what_only_a_driver_may_do() {
    let wanted = ["unwrap_used", "expect_used", "panic", "indexing_slicing", "disallowed_methods", "disallowed_types"];
    let mut offenders = Vec::new();
    for name in CRATES {
        let path = root().join(name).join("src/lib.rs");
        let file = syn::parse_file(&read(&path)).expect("lib.rs parses");
        for lint in wanted {
            if !has(&file.attrs, "cfg_attr", &format!("clippy :: {lint}")) {
                offenders.push(format!("{name}/src/lib.rs: clippy::{lint} is not denied"));
            }
        }
    }
    for source in library_sources() {
        let is_driver = named(&source.path).contains("/driver");
        let text = read(&source.path);
        let border = ["clippy::disallowed_methods", "clippy::disallowed_types"];
        let lifts =
            |line: &&str| line.contains("#[expect(") || line.contains("#![expect(") || line.contains("#[allow(");
        for line in text.lines().filter(lifts).filter(|line| border.iter().any(|lint| line.contains(lint))) {
            let of_driver = text.lines().skip_while(|other| *other != line).nth(1).unwrap_or_default();
            if !is_driver && !of_driver.contains("mod driver") {
                offenders.push(format!("{}: {}", named(&source.path), line.trim()));
            }
        }
    }
    none("clock, tasks and panics stay behind the border that clippy holds", offenders);
}

#[test]
fn an_exception_from_a_lint_has_a_reason() {
    let mut offenders = Vec::new();
    for path in files("").into_iter().filter(|path| is_rust(path)) {
        let text = read(&path);
        for marker in
            [concat!("#[", "allow("), concat!("#![", "allow("), concat!("#[", "expect("), concat!("#![", "expect(")]
        {
            for (start, _) in text.match_indices(marker) {
                let rest = &text[start..];
                let attribute = &rest[..rest.find(")]").unwrap_or(rest.len())];
                if !attribute.contains("reason") {
                    let line = text[..start].lines().count().max(1);
                    offenders.push(format!(
                        "{}:{line}: {}",
                        named(&path),
                        attribute.lines().next().unwrap_or_default()
                    ));
                }
            }
        }
    }
    none("#[expect] and #[allow] say why", offenders);
}

#[test]
fn the_meters_see_what_they_should() {
    let text = "pub async fn a() -> Result<(), E> {}\n#[cfg(test)]\nmod tests { pub async fn b() {} }\n";
    let source = Source { path: PathBuf::from("x.rs"), file: syn::parse_file(text).unwrap() };
    let mut seen = Vec::new();
    Functions::run(&source, |function| {
        seen.push((function.signature.ident.to_string(), function.lines, returns_result(&function.signature.output)));
    });
    assert_eq!(seen, [("a".to_owned(), 1, true)]);
    assert_eq!(production_lines(text), 1);
    assert_eq!(words("ClusterManager").collect::<Vec<_>>(), ["Cluster", "Manager"]);
    assert!(impl_has("\nimpl AError {\n    pub fn is_transient(&self) {}\n}\n", "AError", "fn is_transient"));
    assert!(!impl_has("\nimpl AError {\n}\nimpl B {\n    fn is_transient() {}\n}\n", "AError", "fn is_transient"));
}
