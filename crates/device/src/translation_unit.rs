//! One kernel instance as one flat source text.

use std::collections::HashSet;
use std::fmt::Write as _;

use omniflash_core::lower::FunctorSpec;

use crate::HEADERS;

/// A source file that is part of this library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// The name by which it is included.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// A kernel file and the choices that make it one kernel.
///
/// The kernel file includes `"instance.hpp"`, which no disk holds: in its place stand the user's functors, each in a
/// namespace `source0`, `source1`, ... of its own, and `namespace omniflash::instance` with the types and constants
/// chosen. [`source`](TranslationUnit::source) resolves all includes, so that the text needs no include path, and its
/// hash is a hash of everything that the kernel is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TranslationUnit {
    /// The kernel file.
    pub file: SourceFile,
    /// Files of the vendor that the kernel file may include.
    pub library: &'static [SourceFile],
    /// The symbol of the kernel.
    pub entry: &'static str,
    /// Sources of users' functors; the i-th is compiled inside `namespace omniflash::source{i}`.
    pub functors: Vec<String>,
    /// Names and C++ type expressions.
    pub types: Vec<(&'static str, String)>,
    /// Names and values, all `constexpr int`.
    pub constants: Vec<(&'static str, i64)>,
}

impl TranslationUnit {
    /// A kernel file without choices.
    pub fn new(file: SourceFile, library: &'static [SourceFile], entry: &'static str) -> Self {
        TranslationUnit {
            file,
            library,
            entry,
            functors: Vec::new(),
            types: Vec::new(),
            constants: Vec::new(),
        }
    }

    /// Chooses a type.
    pub fn with_type(mut self, name: &'static str, expression: impl Into<String>) -> Self {
        self.types.push((name, expression.into()));
        self
    }

    /// Chooses a number.
    pub fn with_constant(mut self, name: &'static str, value: impl Into<i64>) -> Self {
        self.constants.push((name, value.into()));
        self
    }

    /// Chooses mask and score modification.
    pub fn with_functors(mut self, functors: &FunctorSpec<'_>) -> Self {
        self.functors.clone_from(&functors.sources);
        self.with_type("MaskType", functors.mask_type.clone())
            .with_type("ScoreModType", functors.score_mod_type.clone())
    }

    /// The whole text. Errors of compilers name the file and line of the part they are in.
    ///
    /// # Panics
    /// When a file of the library includes one that is not there.
    pub fn source(&self) -> String {
        let mut text = String::new();
        let mut included = HashSet::new();
        self.append(&self.file, &mut included, &mut text);
        text
    }

    fn append(&self, file: &SourceFile, included: &mut HashSet<&'static str>, text: &mut String) {
        let _ = writeln!(text, "#line 1 \"{}\"", file.name);
        for (index, line) in file.text.lines().enumerate() {
            let trimmed = line.trim_start();
            if trimmed.starts_with("#pragma once") {
                text.push('\n');
            } else if let Some(name) = trimmed.strip_prefix("#include \"") {
                let name = name.trim_end().trim_end_matches('"');
                if name == "instance.hpp" {
                    text.push_str(&self.instance());
                } else if !included.contains(name) {
                    let header = self.find(name);
                    included.insert(header.name);
                    self.append(header, included, text);
                } else {
                    text.push('\n');
                    continue;
                }
                let _ = writeln!(text, "#line {} \"{}\"", index + 2, file.name);
            } else {
                text.push_str(line);
                text.push('\n');
            }
        }
    }

    fn find(&self, name: &str) -> &'static SourceFile {
        HEADERS
            .iter()
            .chain(self.library)
            .find(|file| file.name == name)
            .unwrap_or_else(|| panic!("{} includes {name}, which the library does not hold", self.file.name))
    }

    /// What stands in place of `instance.hpp`.
    fn instance(&self) -> String {
        let mut text = String::new();
        for (index, source) in self.functors.iter().enumerate() {
            let _ = writeln!(text, "namespace omniflash {{ namespace source{index} {{");
            let _ = writeln!(text, "#line 1 \"functor {index}\"\n{source}");
            let _ = writeln!(text, "}} }}  // namespace omniflash::source{index}");
        }
        let _ = writeln!(text, "#line 1 \"instance.hpp\"\nnamespace omniflash {{ namespace instance {{");
        for (name, expression) in &self.types {
            let _ = writeln!(text, "using {name} = {expression};");
        }
        for (name, value) in &self.constants {
            let _ = writeln!(text, "constexpr int {name} = {value};");
        }
        text.push_str("} }  // namespace omniflash::instance\n");
        text
    }
}
