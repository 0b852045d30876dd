//! Several sources in one start of clang.
//!
//! clang is a driver that starts a compiler and a linker for each source, and each start takes as long as a small kernel
//! does. Asked with `-###`, the driver prints what it would start: the compiler is then started once for all sources, and the linker
//! for each object.

use std::path::Path;
use std::process::Command;
use std::{fs, io};

use omniflash_kernel_store::KernelSource;

/// As many sources as share a start: what the compiler holds of one it does not give back before its end.
pub(super) const MOST: usize = 16;

const SOURCE: &str = "kernel.hip";
const IMAGE: &str = "kernel.out";

/// The images of sources that are compiled with the same arguments; none of a source that is wrong and of those behind
/// it.
///
/// # Errors
/// Those of files and processes.
pub(super) fn compile(steps: &Steps, sources: &[KernelSource<'_>]) -> io::Result<Vec<Option<Vec<u8>>>> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let names: Vec<String> = (0..sources.len()).map(|at| format!("kernel-{at}")).collect();
    for (name, source) in names.iter().zip(sources) {
        fs::write(folder.join(format!("{name}.hip")), source.source)?;
    }
    let [program, arguments @ ..] = &steps.compile[..] else { return Ok(vec![None; sources.len()]) };
    // How it ended is not looked at: the objects show how far it came.
    Command::new(program)
        .current_dir(folder)
        .args(arguments)
        .args(names.iter().map(|name| format!("{name}.hip")))
        .output()?;
    names.iter().map(|name| steps.link(folder, name)).collect()
}

/// The two commands that a driver starts for a source.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Steps {
    /// The compiler with its options, but for the names of files.
    compile: Vec<String>,
    link: Vec<String>,
    /// What the object is called in `link`.
    object: String,
}

impl Steps {
    /// What a driver would start for a source with these arguments; `None` where it works in another way.
    ///
    /// # Errors
    /// Those of files and processes.
    pub(super) fn of(driver: &Path, arguments: &[String]) -> io::Result<Option<Self>> {
        let folder = tempfile::tempdir()?;
        // The driver says nothing of files that are not there.
        fs::write(folder.path().join(SOURCE), "")?;
        let asked = Command::new(driver)
            .current_dir(folder.path())
            .args(arguments)
            .args(["-###", "-o", IMAGE, SOURCE])
            .output()?;
        let printed = String::from_utf8_lossy(&asked.stderr);
        let steps = Steps::parse(&printed);
        if steps.is_none() {
            tracing::debug!(%printed, "the driver would start something else than a compiler and a linker");
        }
        Ok(steps)
    }

    /// What `-###` prints: each command on a line, every word in quotes.
    fn parse(printed: &str) -> Option<Self> {
        let mut commands = printed.lines().filter(|line| line.starts_with(" \"")).map(words);
        let (Some(mut compile), Some(link), None) = (commands.next(), commands.next(), commands.next())
        else {
            return None;
        };
        if compile.get(1)? != "-cc1" || compile.pop()? != SOURCE {
            return None;
        }
        let at = compile.iter().position(|word| word == "-o")?;
        let object = compile.drain(at..at + 2).nth(1)?;
        let is_complete = [IMAGE, &object].iter().all(|name| link.iter().any(|word| word == name));
        is_complete.then_some(Steps { compile, link, object })
    }

    /// The image of an object, if there is that object.
    fn link(&self, folder: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
        let (object, image) = (format!("{name}.o"), format!("{name}.out"));
        if !folder.join(&object).exists() {
            return Ok(None);
        }
        let mut words = self.link.iter().map(|word| match word {
            word if *word == self.object => &object,
            word if word == IMAGE => &image,
            word => word,
        });
        let Some(program) = words.next() else { return Ok(None) };
        let linked = Command::new(program).current_dir(folder).args(words).output()?;
        if linked.status.success() { fs::read(folder.join(image)).map(Some) } else { Ok(None) }
    }
}

/// The quoted words of a line.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (letter, &mut word) {
            ('"', None) => word = Some(String::new()),
            ('"', Some(_)) => words.extend(word.take()),
            ('\\', Some(word)) => word.extend(letters.next()),
            (letter, Some(word)) => word.push(letter),
            (_, None) => {}
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_of_a_driver_are_read_with_their_quotes() {
        let printed = "clang version 22\n \"/a b/clang\" \"-cc1\" \"-D\" \"X=\\\"1\\\"\" \"-o\" \"/tmp/k-1.o\" \"-x\" \"hip\" \"kernel.hip\"\n \
            \"/a b/lld\" \"-o\" \"kernel.out\" \"/tmp/k-1.o\"\n";
        let steps = Steps::parse(printed).unwrap();
        assert_eq!(steps.compile, ["/a b/clang", "-cc1", "-D", "X=\"1\"", "-x", "hip"]);
        assert_eq!((steps.link.len(), steps.object.as_str()), (4, "/tmp/k-1.o"));
        let bundled = format!("{printed} \"/a b/clang-offload-bundler\" \"kernel.out\"\n");
        assert_eq!(Steps::parse(&bundled), None);
        assert_eq!(Steps::parse("clang: error: no such file"), None);
    }
}
