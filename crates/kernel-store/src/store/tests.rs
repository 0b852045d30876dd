//! No GPU and no compiler: a compiler that reverses its source, and can be told to fail.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::time::Duration;

use super::*;
use crate::{ListedSource, SourceList};

/// Writes a line to a file for each compilation, so that those of other processes are counted too.
#[derive(Clone, Debug)]
struct Reverser {
    log: PathBuf,
    version: Result<String, String>,
    failure: Option<CompileError>,
    delay: Duration,
}

impl Reverser {
    fn new(directory: &Path) -> Self {
        Reverser {
            log: directory.join("compilations"),
            version: Ok("1.0".into()),
            failure: None,
            delay: Duration::ZERO,
        }
    }

    fn compilations(&self) -> usize {
        fs::read_to_string(&self.log).unwrap_or_default().lines().count()
    }
}

impl Compiler for Reverser {
    fn name(&self) -> &str {
        "reverser"
    }

    fn version(&self) -> Result<String, String> {
        self.version.clone()
    }

    fn compile(&self, source: &KernelSource<'_>) -> Result<Vec<u8>, CompileError> {
        let mut log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        log.write_all(b"one\n").unwrap();
        std::thread::sleep(self.delay);
        match &self.failure {
            Some(failure) => Err(failure.clone()),
            None => Ok(source.source.bytes().rev().collect()),
        }
    }
}

const SOURCE: KernelSource<'_> = KernelSource {
    id: "fwd-sm_90-bf16-d64",
    arch: "sm_90",
    functor: "Causal",
    source: "kernel",
    options: &["-O3"],
    prebuilt_tags: &[],
};
const IMAGE: &[u8] = b"lenrek";

fn store(directory: &Path, compiler: &Reverser) -> KernelStore {
    KernelStore::new(StoreOptions {
        cache: Some(DiskCache::new(directory.join("cache"))),
        compilers: vec![Box::new(compiler.clone())],
        advice: "install a reverser".into(),
        ..StoreOptions::default()
    })
}

/// The one file in the cache.
fn cached_file(directory: &Path) -> PathBuf {
    let entries = DiskCache::new(directory.join("cache")).entries().unwrap();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries[0].path.clone()
}

#[test]
fn a_kernel_is_compiled_once_then_remembered_then_cached() {
    let directory = tempfile::tempdir().unwrap();
    let compiler = Reverser::new(directory.path());
    let first = store(directory.path(), &compiler);
    assert!(matches!(first.kernel(&SOURCE).unwrap().origin, Origin::Compiled { .. }));
    assert_eq!(&*first.kernel(&SOURCE).unwrap().image, IMAGE);
    let second = store(directory.path(), &compiler).kernel(&SOURCE).unwrap();
    assert!(matches!(second.origin, Origin::Cache(_)), "{second:?}");
    assert_eq!(&*second.image, IMAGE);
    assert_eq!(compiler.compilations(), 1);
}

#[test]
fn what_plans_will_need_is_compiled_ahead_but_for_what_is_there_or_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let list = SourceList::default();
    let planning =
        KernelStore::new(StoreOptions { compilers: vec![Box::new(list.clone())], ..StoreOptions::default() });
    let other = KernelSource { source: "other", ..SOURCE };
    for source in [SOURCE, other, SOURCE] {
        planning.kernel(&source).unwrap();
    }
    let listed = list.take();
    let sources: Vec<KernelSource<'_>> = listed.iter().map(ListedSource::as_source).collect();
    assert_eq!(sources.iter().map(KernelSource::key).collect::<Vec<_>>(), [SOURCE.key(), other.key()]);
    assert!(list.take().is_empty());

    let compiler = Reverser::new(directory.path());
    store(directory.path(), &compiler).kernel(&SOURCE).unwrap();
    let prepared = store(directory.path(), &compiler);
    assert_eq!(prepared.prepare(&sources), 1);
    assert_eq!(prepared.prepare(&sources), 0);
    assert_eq!(compiler.compilations(), 2);
    assert!(matches!(prepared.kernel(&other).unwrap().origin, Origin::Compiled { .. }));
    assert!(matches!(store(directory.path(), &compiler).kernel(&other).unwrap().origin, Origin::Cache(_)));

    let wrong = CompileError::Source { code: 1, log: "no".into() };
    let failing = Reverser { failure: Some(wrong), ..Reverser::new(directory.path()) };
    let third = KernelSource { source: "third", ..SOURCE };
    let store = store(directory.path(), &failing);
    assert_eq!(store.prepare(&[third]), 0);
    assert!(store.kernel(&third).unwrap_err().to_string().contains("no"));
}

#[test]
fn another_compiler_version_compiles_again() {
    let directory = tempfile::tempdir().unwrap();
    let old = Reverser::new(directory.path());
    let new = Reverser { version: Ok("2.0".into()), ..old.clone() };
    store(directory.path(), &old).kernel(&SOURCE).unwrap();
    store(directory.path(), &new).kernel(&SOURCE).unwrap();
    assert_eq!(new.compilations(), 2);
    assert_eq!(DiskCache::new(directory.path().join("cache")).entries().unwrap().len(), 2);
}

#[test]
fn without_any_compiler_the_cache_still_answers() {
    let directory = tempfile::tempdir().unwrap();
    let compiler = Reverser::new(directory.path());
    store(directory.path(), &compiler).kernel(&SOURCE).unwrap();
    let absent = Reverser { version: Err("not installed".into()), ..compiler };
    assert_eq!(&*store(directory.path(), &absent).kernel(&SOURCE).unwrap().image, IMAGE);
    let other = KernelSource { source: "other", ..SOURCE };
    assert!(store(directory.path(), &absent).kernel(&other).is_err());
}

#[test]
fn the_directory_comes_before_embedded_kernels_and_both_before_compilers() {
    let directory = tempfile::tempdir().unwrap();
    let compiler = Reverser::new(directory.path());
    let options = |kernels: Option<&Path>| StoreOptions {
        directory: kernels.map(PathBuf::from),
        embedded: &[("any-name-sm_90-tag90.cubin", b"embedded")],
        compilers: vec![Box::new(compiler.clone())],
        ..StoreOptions::default()
    };
    let tags = ["tag90", "tag89"].map(String::from);
    let source = KernelSource { prebuilt_tags: &tags, ..SOURCE };
    let embedded = KernelStore::new(options(None)).kernel(&source).unwrap();
    assert_eq!((&*embedded.image, embedded.origin), (&b"embedded"[..], Origin::Embedded));
    let find = |source| KernelStore::new(options(Some(directory.path()))).kernel(source).unwrap();
    fs::create_dir(directory.path().join("sm_89")).unwrap();
    fs::write(directory.path().join("sm_89/an-older-kernel-tag89.cubin"), b"older").unwrap();
    assert_eq!(&*find(&source).image, b"older", "a second tag in the directory comes before the program");
    fs::write(directory.path().join("the-kernel-tag90.cubin"), b"prebuilt").unwrap();
    assert_eq!(&*find(&source).image, b"prebuilt");
    let other = ["another".to_owned()];
    let compiled = find(&KernelSource { prebuilt_tags: &other, ..SOURCE });
    assert!(matches!(compiled.origin, Origin::Compiled { .. }));
}

#[test]
fn a_prebuilt_kernel_of_another_source_or_architecture_has_another_tag() {
    use crate::kernel::{prebuilt_name, prebuilt_tag, tag_of};
    let tag = prebuilt_tag("sm_90", "source");
    assert_ne!(tag, prebuilt_tag("sm_90", "source "));
    assert_ne!(tag, prebuilt_tag("sm_80", "source"));
    assert_eq!(tag_of(&prebuilt_name("fwd-bf16", "sm_90", "source", "cubin")), Some(tag.as_str()));
}

#[test]
fn damaged_cache_files_are_rebuilt() {
    let directory = tempfile::tempdir().unwrap();
    let compiler = Reverser::new(directory.path());
    store(directory.path(), &compiler).kernel(&SOURCE).unwrap();
    let path = cached_file(directory.path());
    let good = fs::read(&path).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 0x80;
    for (number, damaged) in [&good[..good.len() - 1], &flipped, b"", b"garbage"].into_iter().enumerate() {
        fs::write(&path, damaged).unwrap();
        let kernel = store(directory.path(), &compiler).kernel(&SOURCE).unwrap();
        assert_eq!(&*kernel.image, IMAGE);
        assert_eq!(compiler.compilations(), 2 + number);
        assert_eq!(fs::read(&path).unwrap(), good, "the file is whole again");
    }
}

#[test]
fn a_cache_that_cannot_be_written_costs_only_time() {
    let directory = tempfile::tempdir().unwrap();
    let compiler = Reverser::new(directory.path());
    // A file where the directory should be: no permission bits that a privileged user would pass.
    fs::write(directory.path().join("cache"), b"").unwrap();
    let store = store(directory.path(), &compiler);
    for _ in 0..2 {
        assert_eq!(&*store.kernel(&SOURCE).unwrap().image, IMAGE);
    }
    assert_eq!(compiler.compilations(), 1, "memory remembers");
}

#[test]
fn a_refused_source_gives_the_compilers_log() {
    let directory = tempfile::tempdir().unwrap();
    let failure = CompileError::Source { code: 6, log: "kernel(3): error: no such member".into() };
    let compiler = Reverser { failure: Some(failure), ..Reverser::new(directory.path()) };
    let error = store(directory.path(), &compiler).kernel(&SOURCE).unwrap_err();
    assert!(
        matches!(&error, Error::Driver { code: 6, text, api } if text.contains("no such member")
            && api == "reverser compiling fwd-sm_90-bf16-d64"),
        "{error}"
    );
}

#[test]
fn an_unusable_compiler_yields_to_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let good = Reverser::new(directory.path());
    let broken = Reverser { failure: Some(CompileError::Unusable("no disk".into())), ..good.clone() };
    let store = KernelStore::new(StoreOptions {
        compilers: vec![Box::new(broken), Box::new(good)],
        ..StoreOptions::default()
    });
    assert_eq!(&*store.kernel(&SOURCE).unwrap().image, IMAGE);
}

#[test]
fn no_kernel_says_what_was_tried_and_what_helps() {
    let directory = tempfile::tempdir().unwrap();
    let absent =
        Reverser { version: Err("libreverse.so not found".into()), ..Reverser::new(directory.path()) };
    let error = store(directory.path(), &absent).kernel(&SOURCE).unwrap_err();
    let Error::NoKernel { arch, id, hint } = &error else { panic!("{error}") };
    assert_eq!((arch.as_str(), id.as_str()), ("sm_90", SOURCE.id));
    for part in ["OMNIFLASH_KERNELS is not set", "reverser: libreverse.so not found", "install a reverser"] {
        assert!(hint.contains(part), "{hint}");
    }
}

#[test]
fn threads_that_want_one_kernel_share_one_compilation() {
    let directory = tempfile::tempdir().unwrap();
    let compiler = Reverser { delay: Duration::from_millis(50), ..Reverser::new(directory.path()) };
    let (store, barrier) = (store(directory.path(), &compiler), Barrier::new(8));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                barrier.wait();
                assert_eq!(&*store.kernel(&SOURCE).unwrap().image, IMAGE);
            });
        }
    });
    assert_eq!(compiler.compilations(), 1);
}

#[test]
fn threads_that_wait_for_a_failure_share_it() {
    let directory = tempfile::tempdir().unwrap();
    let compiler = Reverser {
        delay: Duration::from_millis(300),
        failure: Some(CompileError::Source { code: 1, log: "no".into() }),
        ..Reverser::new(directory.path())
    };
    let (store, barrier) = (store(directory.path(), &compiler), Barrier::new(4));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                assert!(store.kernel(&SOURCE).is_err());
            });
        }
    });
    assert_eq!(compiler.compilations(), 1);
    assert!(store.kernel(&SOURCE).is_err());
    assert_eq!(compiler.compilations(), 2, "a later caller tries anew");
}

const WORKER: &str = "OMNIFLASH_TEST_WORKER_DIRECTORY";

#[test]
fn processes_that_want_one_cold_kernel_share_one_compilation() {
    if let Some(directory) = std::env::var_os(WORKER) {
        let directory = PathBuf::from(directory);
        let compiler = Reverser { delay: Duration::from_millis(200), ..Reverser::new(&directory) };
        assert_eq!(&*store(&directory, &compiler).kernel(&SOURCE).unwrap().image, IMAGE);
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let name = "store::tests::processes_that_want_one_cold_kernel_share_one_compilation";
    let workers: Vec<_> = (0..4)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name])
                .env(WORKER, directory.path())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut worker in workers {
        assert!(worker.wait().unwrap().success());
    }
    assert_eq!(Reverser::new(directory.path()).compilations(), 1);
}

#[test]
fn a_cache_lists_and_clears_its_kernels() {
    let directory = tempfile::tempdir().unwrap();
    let compiler = Reverser::new(directory.path());
    let cache = DiskCache::new(directory.path().join("cache"));
    assert!(cache.entries().unwrap().is_empty(), "a cache that does not exist is empty");
    store(directory.path(), &compiler).kernel(&SOURCE).unwrap();
    let entries = cache.entries().unwrap();
    assert_eq!((entries[0].id.as_str(), entries[0].bytes), (SOURCE.id, IMAGE.len()));
    assert_eq!(entries[0].compiler, "reverser 1.0");
    fs::write(cache.directory().join("damaged.kernel"), b"").unwrap();
    assert_eq!(cache.clear().unwrap(), 2);
    assert!(cache.entries().unwrap().is_empty());
}
