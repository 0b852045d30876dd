//! The device's masks and score modifications as host C++, against the ones in Rust: one generated file holds many
//! trees, a C++ compiler makes it a library, and every answer is compared.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // all of it is test code

use std::ffi::c_void;
use std::fmt::Write as _;
use std::process::Command;

use half::bf16;
use omniflash_core::lower::{FunctorSpec, MaskPacking, MaskTable, TableExtent};
use omniflash_core::{DType, Mask, ScoreIndex, ScoreMod, TensorRef, Tile, TileStatus};
use omniflash_device::HEADERS;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestRunner};

const BATCH: usize = 2;
const HEADS: usize = 6;
const ROWS: i64 = 70;
const KEYS: i64 = 140;
/// Position of row 0.
const START: i64 = KEYS - ROWS - 5;

/// The tensors that trees refer to.
struct Tensors {
    prefix: [u32; BATCH],
    ids: Vec<i32>,
    runs: Vec<i32>,
    bools: Vec<u8>,
    floats: Vec<f32>,
    blocks: Vec<f32>,
    slopes: [bf16; HEADS],
}

impl Tensors {
    fn new() -> Self {
        let scores = (BATCH as i64 * ROWS * KEYS) as usize;
        Tensors {
            prefix: [33, 0],
            ids: (0..BATCH as i32 * KEYS as i32).map(|i| i * i % 7).collect(),
            runs: (0..BATCH as i32 * KEYS as i32).map(|i| 5 - i / 60).collect(),
            bools: (0..scores).map(|i| u8::from(i * 31 % 11 > 4)).collect(),
            floats: (0..scores)
                .map(|i| if i % 13 == 0 { f32::NEG_INFINITY } else { (i % 17) as f32 })
                .collect(),
            blocks: (0..scores as i64)
                .map(|i| match (i / KEYS % ROWS / 64, i % KEYS / 64) {
                    (0, 0) => f32::NEG_INFINITY,
                    (0, 1) | (1, 0) => 0.0,
                    _ => (i % 5) as f32,
                })
                .collect(),
            slopes: std::array::from_fn(|h| bf16::from_f32(0.5 / (h + 1) as f32)),
        }
    }
}

/// A tensor of values whose blocks hide, do nothing, or add.
fn blocks(tensors: &'static Tensors) -> TensorRef<'static> {
    TensorRef::from_slice(&tensors.blocks, &[BATCH, ROWS as usize, KEYS as usize]).unwrap()
}

fn leaf(tensors: &'static Tensors) -> impl Strategy<Value = Mask<'static>> {
    let (rows, keys) = (ROWS as usize, KEYS as usize);
    prop_oneof![
        Just(Mask::None),
        Just(Mask::Causal),
        (0usize..60, 0usize..60).prop_map(|(left, right)| Mask::SlidingWindow { left, right }),
        (0usize..60).prop_map(|left| Mask::SlidingWindow { left, right: usize::MAX }),
        (1usize..50).prop_map(|size| Mask::Chunked { size }),
        (1usize..50).prop_map(|size| Mask::ChunkedCausal { size }),
        Just(Mask::PrefixLm { prefix_len: TensorRef::from_slice(&tensors.prefix, &[BATCH]).unwrap() }),
        Just(Mask::Document { ids: TensorRef::from_slice(&tensors.ids, &[BATCH, keys]).unwrap() }),
        Just(Mask::Document { ids: TensorRef::from_slice(&tensors.runs, &[BATCH, keys]).unwrap() }),
        Just(Mask::Dense(TensorRef::from_slice(&tensors.bools, &[BATCH, rows, keys]).unwrap())),
        Just(Mask::from_fn(|b, h, q, k| (q * 7 + k * 3 + (b + h / 3) as i64) % 5 != 0)),
    ]
}

fn tree(tensors: &'static Tensors) -> impl Strategy<Value = Mask<'static>> {
    leaf(tensors).prop_recursive(3, 10, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.and(b)),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.or(b)),
            inner.prop_map(|mask| !mask),
        ]
    })
}

fn score_mods(tensors: &'static Tensors) -> Vec<ScoreMod<'static>> {
    let (rows, keys) = (ROWS as usize, KEYS as usize);
    let slopes = TensorRef::from_slice(&tensors.slopes, &[HEADS]).unwrap();
    let finite: &'static [f32] =
        (0..BATCH * rows * keys).map(|i| (i % 19) as f32 - 9.0).collect::<Vec<_>>().leak();
    let bias = TensorRef::from_slice(finite, &[BATCH, 1, rows, keys]).unwrap();
    let row_bias = TensorRef::from_slice(&finite[..keys], &[1, 1, 1, keys]).unwrap();
    vec![
        ScoreMod::Identity,
        ScoreMod::Softcap { cap: 5.0 },
        ScoreMod::Alibi { slopes: None },
        ScoreMod::Alibi { slopes: Some(slopes) },
        ScoreMod::Bias(bias.clone()),
        ScoreMod::Softcap { cap: 2.0 }.then(ScoreMod::Alibi { slopes: None }).then(ScoreMod::Bias(row_bias)),
        ScoreMod::Bias(bias).then(ScoreMod::Softcap { cap: 3.0 }),
    ]
}

/// A pair of functors in both languages.
struct Pair {
    mask: Mask<'static>,
    score_mod: ScoreMod<'static>,
    parameters: Vec<u128>,
    bytes: usize,
    /// Keeps the words that the parameters point to.
    _tables: Vec<Vec<u32>>,
    _packed: Vec<Vec<u64>>,
    cpp_type: String,
}

impl Pair {
    fn new(mask: Mask<'static>, score_mod: ScoreMod<'static>) -> Self {
        Self::with(mask, score_mod, false)
    }

    /// Mask tensors packed.
    fn packed(mask: Mask<'static>) -> Self {
        Self::with(mask, ScoreMod::Identity, true)
    }

    fn with(mask: Mask<'static>, score_mod: ScoreMod<'static>, packs: bool) -> Self {
        let packing = |tensor: &TensorRef<'_>| packs.then(|| packing(tensor));
        let mut spec = FunctorSpec::with_packing(&mask, &score_mod, HEADS, "test", &packing).unwrap();
        let mut packed = Vec::new();
        for slot in 0..spec.packed.len() {
            let words = packed_form(spec.packed[slot].tensor, &spec.packed[slot].packing);
            spec.set_packed(slot, words.as_ptr().expose_provenance() as u64);
            packed.push(words);
        }
        let extent =
            TableExtent { batch: BATCH, heads: HEADS, q_begin: START, q_end: START + ROWS, k_end: KEYS };
        let mut tables = Vec::new();
        for slot in 0..spec.tables.len() {
            let table = MaskTable::build(spec.tables[slot].function, &extent);
            let words = table.data();
            spec.set_table(slot, &table, words.as_ptr().expose_provenance() as u64);
            tables.push(words);
        }
        let parameters = spec
            .parameters
            .chunks(16)
            .map(|chunk| u128::from_ne_bytes(chunk.try_into().expect("leaves are whole units of 16 bytes")))
            .collect();
        let cpp_type = format!("Functors<{}, {}>", spec.mask_type, spec.score_mod_type);
        let bytes = spec.parameters.len();
        drop(spec);
        Pair { mask, score_mod, parameters, bytes, _tables: tables, _packed: packed, cpp_type }
    }
}

/// The sizes of a packed `[batch, rows, keys]` tensor, or of packed `[batch, columns]` ids.
fn packing(tensor: &TensorRef<'_>) -> MaskPacking {
    if tensor.shape().len() == 2 {
        let (rows, keys) = (ROWS as usize, KEYS as usize);
        return MaskPacking { sequences: BATCH, batches: BATCH, heads: 1, rows, keys, has_bits: false };
    }
    let [batches, rows, keys] = tensor.shape().try_into().unwrap();
    let has_bits = tensor.dtype() == DType::Bool;
    MaskPacking { sequences: BATCH, batches, heads: 1, rows, keys, has_bits }
}

/// What the packing kernel writes, by the definition; u64 for the alignment of its pairs of words.
fn packed_form(tensor: &TensorRef<'_>, sizes: &MaskPacking) -> Vec<u64> {
    let is_of_ids = tensor.shape().len() == 2;
    let mask = if is_of_ids { Mask::Document { ids: tensor.clone() } } else { Mask::Dense(tensor.clone()) };
    let mut memory = vec![0u64; sizes.bytes().div_ceil(8)];
    let words: &mut [u32] = bytemuck::cast_slice_mut(&mut memory);
    for batch in 0..sizes.batches {
        for (row, k) in (0..sizes.rows).flat_map(|row| (0..sizes.keys).map(move |k| (row, k))) {
            let at = ScoreIndex { batch, head: 0, row, q: START + row as i64, k: k as i64 };
            let shown = mask.visible(&at);
            let changed = !shown || mask.additive(&at) != 0.0;
            let block = (batch * sizes.row_blocks() + row / 64) * sizes.spans() + k / 2048;
            words[2 * block] |= u32::from(shown) << (k / 64 % 32);
            words[2 * block + 1] |= u32::from(changed) << (k / 64 % 32);
            if sizes.has_bits {
                let bits = sizes.bits_offset() / 4 + (batch * sizes.rows + row) * sizes.row_words();
                words[bits + k / 32] |= u32::from(shown) << (k % 32);
            }
        }
    }
    for sequence in 0..sizes.sequences {
        words[sizes.starts_offset() / 4 + sequence] = START as u32;
    }
    memory
}

/// What C++ answers; the layout is that of `Answers` in the generated file.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Answers {
    size: i32,
    keep: i32,
    bit: i32,
    in_interval: i32,
    status: i32,
    begin: i32,
    end: i32,
    added: f32,
    applied: f32,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Question {
    batch: i32,
    head: i32,
    row: i32,
    q: i32,
    k: i32,
    q_begin: i32,
    q_end: i32,
    k_begin: i32,
    k_end: i32,
    score: f32,
}

type Ask = unsafe extern "C" fn(i32, *const c_void, *const Question, *mut Answers);

fn generated(pairs: &[Pair]) -> String {
    let mut text = String::from("#include \"omniflash/masks.hpp\"\n#include \"omniflash/score_mods.hpp\"\n");
    text.push_str(
        "namespace omniflash {
struct Question { ScoreIndex at; int q_begin, q_end, k_begin, k_end; float score; };
struct Answers { int size, keep, bit, in_interval, status, begin, end; float added, applied; };
template <class F> void answer(const void* parameters, const Question& question, Answers& answers) {
  const F& f = *static_cast<const F*>(parameters);
  const ScoreIndex& at = question.at;
  answers.size = sizeof(F);
  answers.keep = f.mask.keep(at);
  answers.bit = -1;
  if constexpr (has_bits<decltype(f.mask)>) {
    ScoreIndex word = at;
    word.k = at.k / 32 * 32;
    answers.bit = f.mask.bits(word) >> at.k % 32 & 1;
  }
  answers.in_interval = -1;
  if constexpr (is_interval<decltype(f.mask)>) {
    // Counted from any key, here the fifth.
    answers.in_interval = SeenInterval<decltype(f.mask)>(f.mask, at, 5, KEYS).contains(at.k - 5);
  }
  answers.status = static_cast<int>(status_of(f.mask, TileRect{at.batch, at.head, question.q_begin, question.q_end,
                                                              question.k_begin, question.k_end}));
  KeyRange keys{0, KEYS};
  shrink_range(f.mask, RowRange{at.batch, at.head, question.q_begin, question.q_end}, keys);
  answers.begin = keys.begin;
  answers.end = keys.end;
  answers.added = added_by(f.mask, at);
  answers.applied = f.score_mod.apply(question.score, at);
}
}
using namespace omniflash;
static_assert(is_interval<NoMask> && is_interval<And<Chunked, Causal>> && !is_interval<Or<Chunked, Causal>>);
static_assert(!is_interval<And<Causal, Document>> && !is_interval<Not<Causal>>);
extern \"C\" void ask(int pair, const void* parameters, const Question* question, Answers* answers) {
  switch (pair) {
"
        .replace("KEYS", &KEYS.to_string())
        .as_str(),
    );
    for (i, pair) in pairs.iter().enumerate() {
        let _ = writeln!(
            text,
            "    case {i}: {{ using F = {}; static_assert(sizeof(F) == {}); answer<F>(parameters, *question, *answers); break; }}",
            pair.cpp_type, pair.bytes
        );
    }
    text.push_str("  }\n}\n");
    text
}

fn compile(text: &str) -> (tempfile::TempDir, libloading::Library) {
    let directory = tempfile::tempdir().unwrap();
    for header in HEADERS {
        let path = directory.path().join(header.name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, header.text).unwrap();
    }
    let (source, output) = (directory.path().join("functors.cpp"), directory.path().join("functors.so"));
    std::fs::write(&source, text).unwrap();
    let compiled = Command::new(std::env::var("CXX").unwrap_or("c++".into()))
        .args([
            "-std=c++20",
            "-O1",
            "-Wall",
            "-Werror",
            "-Wno-comment",
            "-Wno-unknown-pragmas",
            "-fPIC",
            "-shared",
            "-ffp-contract=off",
            "-I",
        ])
        .arg(directory.path())
        .arg("-o")
        .args([&output, &source])
        .output()
        .expect("a C++ compiler is on PATH");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    // SAFETY: the library has no initialisers.
    let library = unsafe { libloading::Library::new(&output) }.unwrap();
    (directory, library)
}

#[test]
fn the_functors_of_both_languages_agree() {
    let tensors: &'static Tensors = Box::leak(Box::new(Tensors::new()));
    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let mut pairs: Vec<Pair> = (0..60)
        .map(|_| tree(tensors).new_tree(&mut runner).unwrap().current())
        .enumerate()
        .map(|(i, mask)| Pair::with(mask, ScoreMod::Identity, i % 2 == 0))
        .collect();
    let floats = TensorRef::from_slice(&tensors.floats, &[BATCH, ROWS as usize, KEYS as usize]).unwrap();
    pairs.push(Pair::new(Mask::Dense(floats.clone()), ScoreMod::Identity));
    pairs.push(Pair::packed(Mask::Dense(blocks(tensors))));
    pairs.push(Pair::packed(Mask::Causal.and(Mask::Dense(blocks(tensors))).and(Mask::Dense(floats.clone()))));
    pairs.push(Pair::new(Mask::Causal.and(Mask::Dense(floats)), ScoreMod::Identity));
    pairs.extend(score_mods(tensors).into_iter().map(|score_mod| Pair::new(Mask::Causal, score_mod)));
    let runs = TensorRef::from_slice(&tensors.runs, &[BATCH, KEYS as usize]).unwrap();
    pairs.push(Pair::packed(Mask::Document { ids: runs.clone() }));
    pairs.push(Pair::new(Mask::Document { ids: runs }, ScoreMod::Identity));
    let mut statuses_of_runs = [0; 3];
    let (_directory, library) = compile(&generated(&pairs));
    // SAFETY: the generated function has this type.
    let ask: libloading::Symbol<'_, Ask> = unsafe { library.get(b"ask") }.unwrap();

    let question =
        (0..BATCH, 0..HEADS, (0..ROWS, 0..KEYS), (0..ROWS, 1..ROWS), (0..KEYS, 1..KEYS), -8.0f32..8.0);
    for _ in 0..400 {
        let (batch, head, (row, k), (first_row, rows), (k_begin, keys), score) =
            question.new_tree(&mut runner).unwrap().current();
        let asked = Question {
            batch: batch as i32,
            head: head as i32,
            row: row as i32,
            q: (START + row) as i32,
            k: k as i32,
            q_begin: (START + first_row) as i32,
            q_end: (START + (first_row + rows).min(ROWS)) as i32,
            k_begin: k_begin as i32,
            k_end: (k_begin + keys).min(KEYS) as i32,
            score,
        };
        for (i, pair) in pairs.iter().enumerate() {
            let mut answers = Answers::default();
            // SAFETY: the parameters are those of functor i, aligned to 16 bytes; the tensors they name live on.
            unsafe { ask(i as i32, pair.parameters.as_ptr().cast(), &asked, &mut answers) };
            compare(pair, &asked, &answers);
            if i + 1 == pairs.len() {
                statuses_of_runs[answers.status as usize] += 1;
            }
        }
    }
    assert!(
        statuses_of_runs.iter().all(|count| *count > 5),
        "whole documents are known: {statuses_of_runs:?}"
    );
}

fn compare(pair: &Pair, asked: &Question, answers: &Answers) {
    let context = || format!("{} {} {asked:?} {answers:?}", pair.mask, pair.score_mod);
    let (batch, head) = (asked.batch as usize, asked.head as usize);
    let at = ScoreIndex { batch, head, row: asked.row as usize, q: asked.q.into(), k: asked.k.into() };
    let visible = pair.mask.visible(&at);
    let additive = pair.mask.additive(&at);
    assert_eq!(answers.keep != 0 && answers.added != f32::NEG_INFINITY, visible, "{}", context());
    if visible {
        assert_eq!(answers.added, additive, "{}", context());
    }
    assert!(answers.bit == -1 || answers.bit == answers.keep, "{}", context());
    assert!(answers.in_interval == -1 || answers.in_interval == answers.keep, "{}", context());

    // Statuses and ranges, against every pair of the tile and of its rows.
    let sees =
        |q: i64, k: i64| pair.mask.visible(&ScoreIndex { batch, head, row: (q - START) as usize, q, k });
    let queries = || i64::from(asked.q_begin)..i64::from(asked.q_end);
    let tile = Tile {
        batch,
        head,
        q_begin: asked.q_begin.into(),
        q_end: asked.q_end.into(),
        k_begin: asked.k_begin.into(),
        k_end: asked.k_end.into(),
    };
    let mut all = queries().flat_map(|q| (tile.k_begin..tile.k_end).map(move |k| (q, k)));
    match answers.status {
        0 => assert!(!all.any(|(q, k)| sees(q, k)), "not skipped: {}", context()),
        1 => {
            let is_free = |q: i64, k: i64| {
                let row = (q - START) as usize;
                sees(q, k) && pair.mask.additive(&ScoreIndex { batch, head, row, q, k }) == 0.0
            };
            assert!(all.all(|(q, k)| is_free(q, k)), "not full: {}", context());
        }
        _ => {
            let host = pair.mask.tile_status(&tile);
            let known = matches!(host, TileStatus::Skip | TileStatus::Full);
            assert!(!known, "the host knows {host:?}: {}", context());
        }
    }
    let outside = (0..KEYS).filter(|k| *k < answers.begin.into() || *k >= answers.end.into());
    for k in outside {
        assert!(!queries().any(|q| sees(q, k)), "key {k} is outside of the range: {}", context());
    }

    let expected = pair.score_mod.apply(asked.score, &at, HEADS);
    assert!(
        (answers.applied - expected).abs() <= 1e-5 * expected.abs().max(1.0),
        "{expected}: {}",
        context()
    );
}
