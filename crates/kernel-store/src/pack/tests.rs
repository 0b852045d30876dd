use super::*;
use crate::kernel::{KernelSource, Origin, prebuilt_name, prebuilt_tag};
use crate::store::{KernelStore, StoreOptions};

const ARCH: &str = "sm_90a";

/// A folder with two kernels as a build leaves them, and what a build leaves beside them.
fn built() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (id, image) in [("fwd-bf16-d128", "first image"), ("combine-bf16", "the second")] {
        fs::write(folder.path().join(prebuilt_name(id, ARCH, id, "cubin")), image).unwrap();
    }
    fs::write(folder.path().join("fwd.cu"), "source").unwrap();
    folder
}

fn packed(folder: &tempfile::TempDir) -> KernelPack {
    KernelPack::write(folder.path(), ARCH, &folder.path().join("a.kernels")).unwrap()
}

/// A store without compilers that looks in these places.
fn store(directory: Option<&Path>, cache: Option<&Path>) -> KernelStore {
    KernelStore::new(StoreOptions {
        directory: directory.map(PathBuf::from),
        cache: cache.map(DiskCache::new),
        ..StoreOptions::default()
    })
}

/// Asks for the kernel of a source text.
fn ask(store: &KernelStore, text: &str) -> omniflash_core::Result<crate::Kernel> {
    let tags = [prebuilt_tag(ARCH, text)];
    let (functor, options) = ("", &[][..]);
    store.kernel(&KernelSource { id: "k", arch: ARCH, functor, source: text, options, prebuilt_tags: &tags })
}

#[test]
fn a_pack_says_what_it_holds_and_gives_every_image_back() {
    let folder = built();
    let pack = packed(&folder);
    assert_eq!((pack.arch(), pack.version(), pack.len()), (ARCH, VERSION, 2));
    assert_eq!(pack.bytes(), "first image".len() + "the second".len());
    pack.verify().unwrap();
    assert_eq!(pack.image(&prebuilt_tag(ARCH, "fwd-bf16-d128")).unwrap().unwrap(), b"first image");
    assert_eq!(pack.image("none").unwrap(), None);
}

#[test]
fn the_same_kernels_give_the_same_bytes() {
    let folder = built();
    let first = fs::read(packed(&folder).path()).unwrap();
    assert_eq!(first, fs::read(packed(&folder).path()).unwrap());
}

#[test]
fn a_store_finds_packed_kernels_wherever_the_pack_is() {
    let folder = built();
    let pack = packed(&folder);
    let places = tempfile::tempdir().unwrap();
    let cache = places.path().join("cache");
    let installed = pack.install(&DiskCache::new(&cache)).unwrap();
    fs::create_dir(places.path().join("sm")).unwrap();
    fs::copy(pack.path(), places.path().join("sm/any name.kernels")).unwrap();
    let stores = [
        (store(Some(pack.path()), None), pack.path()),
        (store(Some(places.path()), None), &places.path().join("sm/any name.kernels")),
        (store(None, Some(&cache)), &installed),
    ];
    for (store, origin) in stores {
        let kernel = ask(&store, "combine-bf16").unwrap();
        assert_eq!((&*kernel.image, kernel.origin), (&b"the second"[..], Origin::Prebuilt(origin.into())));
        // Another text, as another version of the kernel would have.
        assert!(ask(&store, "combine-bf16, changed").is_err());
    }
}

#[test]
fn any_changed_or_missing_byte_is_found() {
    let folder = built();
    let pack = packed(&folder);
    let (bytes, path) = (fs::read(pack.path()).unwrap(), folder.path().join("b.kernels"));
    let usable = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        KernelPack::open(&path).and_then(|pack| pack.verify())
    };
    usable(&bytes).unwrap();
    for i in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[i] ^= 1;
        assert!(usable(&changed).is_err(), "byte {i} changed");
        assert!(usable(&bytes[..i]).is_err(), "cut after {i} bytes");
    }
    assert!(matches!(usable(&[&bytes[..], b"x"].concat()), Err(PackError::Damaged { .. })));
    assert!(matches!(usable(b"PK"), Err(PackError::NotAPack { .. })));
}

#[test]
fn a_damaged_image_is_not_installed_and_not_loaded() {
    let folder = built();
    let pack = packed(&folder);
    let mut bytes = fs::read(pack.path()).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(pack.path(), bytes).unwrap();
    let cache = folder.path().join("cache");
    let error = pack.install(&DiskCache::new(&cache)).unwrap_err();
    assert!(error.to_string().contains("damaged: the hash of fwd-bf16-d128-sm_90a-"), "{error}");
    assert!(!cache.exists());
    let store = store(Some(pack.path()), None);
    assert!(ask(&store, "combine-bf16").is_ok(), "the others are as they were");
    assert!(ask(&store, "fwd-bf16-d128").is_err());
}

#[test]
fn another_version_is_refused_by_name_and_told_where_a_kernel_is_missing() {
    let folder = built();
    let path = packed(&folder).path().to_owned();
    let text = fs::read_to_string(&path).unwrap();
    let (_, rest) = text.split_once('\n').unwrap();
    let (_, rest) = rest.split_once('\n').unwrap();
    let (manifest, images) = rest.split_once("\n\n").unwrap();
    let manifest = format!("{}\n", manifest.replace(VERSION, "0.0.9"));
    fs::write(&path, format!("{MAGIC}\n{}\n{manifest}\n{images}", hash_line(&manifest))).unwrap();
    let pack = KernelPack::open(&path).unwrap();
    let error = pack.install(&DiskCache::new(folder.path())).unwrap_err();
    assert!(matches!(&error, PackError::Version { found, .. } if found == "0.0.9"), "{error}");
    let hint = ask(&store(Some(&path), None), "combine-bf16").unwrap_err().to_string();
    assert!(hint.contains("is of omniflash 0.0.9"), "{hint}");
}

#[test]
fn kernels_of_two_architectures_are_not_packed_together() {
    let folder = built();
    let other = folder.path().join(prebuilt_name("fwd", "sm_80", "text", "cubin"));
    fs::write(&other, "image").unwrap();
    match KernelPack::write(folder.path(), ARCH, &folder.path().join("a.kernels")) {
        Err(PackError::Arch { path, found, expected }) => {
            assert_eq!((path, found.as_str(), expected.as_str()), (other, "sm_80", ARCH));
        }
        other => panic!("{other:?}"),
    }
    let empty = tempfile::tempdir().unwrap();
    let written = KernelPack::write(empty.path(), ARCH, &empty.path().join("a.kernels"));
    assert!(matches!(written, Err(PackError::Empty { .. })));
}
