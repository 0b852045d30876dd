//! Random cases for property tests: valid ones over every axis, and ones with a fault in them.

use omniflash_core::{AttentionConfig, DType, Layout, Mask, ScoreMod};
use proptest::prelude::*;

use crate::case::{Case, KvViews, MaskViews, QueryViews, ScoreModViews};
use crate::memory::View;
use crate::spec::{Arrangement, Axes, Fill, KeySpec, MaskSpec, ModSpec, QuerySpec, Spec};

/// Head sizes to draw from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dims {
    /// Multiples of 8, which every backend takes.
    MultiplesOf8,
    /// Any size, as host backends take.
    Any,
}

/// Small valid cases over every axis: types, groups, sizes, forms of queries and keys, masks, score modifications,
/// sinks, positions and strides.
pub fn valid(dims: Dims) -> impl Strategy<Value = Spec> {
    let lengths = prop::collection::vec((0usize..20, 0usize..40), 0..4);
    (lengths, sizes(dims), forms(), any::<u64>(), any::<bool>()).prop_flat_map(
        |(lengths, sizes, forms, seed, lse)| {
            let (q_lengths, kv_lengths): (Vec<usize>, Vec<usize>) = lengths.into_iter().unzip();
            let batch = q_lengths.len();
            let (dtype, index_dtype, num_kv_heads, group, head_dim, value_dim) = sizes;
            let mut spec = Spec::new(format!("generated/{seed:016x}"))
                .dtype(dtype)
                .index_dtype(index_dtype)
                .heads(num_kv_heads * group, num_kv_heads)
                .dims(head_dim, value_dim)
                .lse(lse);
            spec.batch = batch;
            spec.query = query(forms.0, &q_lengths);
            spec.keys = keys(forms.1, &kv_lengths);
            let arrange = (arrangement(true), arrangement(true), arrangement(false));
            let decorations = (mask(batch, dtype), score_mods(dtype), sinks(dtype), starts(batch));
            (Just(spec), arrange, decorations).prop_map(|(spec, arrange, decorations)| {
                let (mask, score_mods, sinks, query_start) = decorations;
                let expanded = |arrangement: Arrangement, kv: bool| match (arrangement, &spec.keys) {
                    // Sequences that share memory would share NaN beyond the shorter length.
                    (Arrangement::ExpandedBatch, KeySpec::Dense { lengths: None, .. }) if kv => arrangement,
                    (Arrangement::ExpandedBatch, _) => Arrangement::Contiguous,
                    _ => arrangement,
                };
                let q_arrangement = expanded(arrange.0, false);
                let kv_arrangement = expanded(arrange.1, true);
                let mut spec =
                    spec.arrange_q(q_arrangement).arrange_kv(kv_arrangement).arrange_out(arrange.2);
                spec.mask = mask;
                spec.score_mods = score_mods;
                spec.sinks = sinks;
                spec.query_start = query_start;
                spec
            })
        },
    )
}

/// Type, index type, key heads, group size, head_dim, value_dim.
fn sizes(dims: Dims) -> impl Strategy<Value = (DType, DType, usize, usize, usize, usize)> {
    let dim = move || match dims {
        Dims::MultiplesOf8 => (1usize..7).prop_map(|eighths| eighths * 8).boxed(),
        Dims::Any => (1usize..50).boxed(),
    };
    (
        prop::sample::select(vec![DType::F32, DType::F16, DType::BF16]),
        prop::sample::select(vec![DType::I32, DType::U32]),
        1usize..4,
        1usize..4,
        dim(),
        dim(),
    )
}

/// Forms of queries and keys, with their sizes.
fn forms() -> impl Strategy<Value = ((usize, usize), (usize, usize))> {
    ((0usize..3, 0usize..4), (0usize..5, 1usize..20))
}

fn query((form, extra): (usize, usize), lengths: &[usize]) -> QuerySpec {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    match form {
        0 => QuerySpec::Padded { seqlen: longest, lengths: None },
        1 => QuerySpec::Padded { seqlen: longest + extra, lengths: Some(lengths.to_vec()) },
        _ => QuerySpec::Ragged { lengths: lengths.to_vec(), lead: extra, tail: 2, bounded: extra % 2 == 0 },
    }
}

fn keys((form, size): (usize, usize), lengths: &[usize]) -> KeySpec {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let lengths = lengths.to_vec();
    match form {
        0 => KeySpec::Dense { seqlen: longest, lengths: None },
        1 => KeySpec::Dense { seqlen: longest + size, lengths: Some(lengths) },
        2 => KeySpec::Ragged { lengths, lead: size, tail: 3, bounded: size % 2 == 0 },
        3 => KeySpec::Continuous { capacity: longest + size, lengths },
        _ => KeySpec::Paged { page_size: size, lengths, shared_pages: size % 3 },
    }
}

fn arrangement(read: bool) -> impl Strategy<Value = Arrangement> {
    let mut all = vec![
        Arrangement::Contiguous,
        Arrangement::HeadsFirst,
        Arrangement::Pitched(8),
        Arrangement::Pitched(1),
        Arrangement::SlicedHeads,
        Arrangement::Reversed,
    ];
    if read {
        all.extend([Arrangement::ExpandedHeads, Arrangement::ExpandedBatch]);
    }
    prop::sample::select(all)
}

fn axes() -> impl Strategy<Value = Axes> {
    (any::<bool>(), any::<Option<bool>>()).prop_map(|(batch, heads)| Axes { batch, heads, rows: true })
}

fn mask(batch: usize, dtype: DType) -> impl Strategy<Value = Option<MaskSpec>> {
    let plain = prop_oneof![
        Just(Mask::None),
        Just(Mask::Causal),
        (0usize..30, 0usize..30).prop_map(|(left, right)| Mask::SlidingWindow { left, right }),
        (1usize..20).prop_map(|size| Mask::Chunked { size }),
        (1usize..20).prop_map(|size| Mask::ChunkedCausal { size }),
        Just(Mask::from_fn(|b, h, q, k| (q + 2 * k + (b + h) as i64) % 5 != 0)),
    ];
    let bools = axes().prop_map(|axes| MaskSpec::Dense { dtype: DType::Bool, axes, fill: Fill::Random });
    let leaf = prop_oneof![
        4 => plain.prop_map(MaskSpec::Plain),
        1 => prop::collection::vec(0usize..50, batch).prop_map(MaskSpec::PrefixLm),
        1 => prop::collection::vec(prop::collection::vec(0usize..20, 0..4), batch).prop_map(MaskSpec::Document),
        1 => bools,
    ];
    let tree = leaf.prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.and(b)),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.or(b)),
            inner.prop_map(MaskSpec::negated),
        ]
    });
    let float = prop::sample::select(vec![DType::F32, dtype]);
    let added =
        (float, axes()).prop_map(|(dtype, axes)| MaskSpec::Dense { dtype, axes, fill: Fill::Random }).boxed();
    prop_oneof![
        2 => Just(None),
        4 => tree.clone().prop_map(Some),
        1 => added.clone().prop_map(Some),
        1 => (tree, added).prop_map(|(tree, added)| Some(tree.and(added))),
    ]
}

fn score_mods(dtype: DType) -> impl Strategy<Value = Vec<ModSpec>> {
    let bias = (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(move |(batch, heads, rows)| {
        ModSpec::Bias { dtype, axes: Axes { batch, heads: Some(heads), rows }, fill: Fill::Random }
    });
    let one = prop_oneof![
        (1u8..50).prop_map(|cap| ScoreMod::Softcap { cap: f32::from(cap) / 4.0 }.into()),
        Just(ScoreMod::Alibi { slopes: None }.into()),
        Just(ModSpec::Alibi(DType::F32)),
        bias,
        Just(ScoreMod::from_fn(|s, _, h, q, k| s * 0.75 + (h as i64 + q - k) as f32 / 64.0).into()),
    ];
    prop::collection::vec(one, 0..3)
}

fn sinks(dtype: DType) -> impl Strategy<Value = Option<(DType, Vec<f32>)>> {
    prop::option::weighted(
        0.3,
        (prop::sample::select(vec![DType::F32, dtype]), prop::collection::vec(-2.0f32..4.0, 1..5)),
    )
}

fn starts(batch: usize) -> impl Strategy<Value = Option<Vec<i64>>> {
    prop::option::weighted(0.2, prop::collection::vec(-20i64..60, batch))
}

/// A fault in a request.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// One extent of a tensor is another; the memory stays large enough.
    Extent {
        /// Which tensor, counted round.
        tensor: usize,
        /// Which axis, counted round.
        axis: usize,
        /// The new extent.
        extent: usize,
    },
    /// A stride is another, as far as the memory reaches.
    Stride {
        /// Which tensor, counted round.
        tensor: usize,
        /// Which axis, counted round.
        axis: usize,
        /// The new stride.
        stride: i64,
    },
    /// A tensor has another type.
    Type {
        /// Which tensor, counted round.
        tensor: usize,
        /// The type.
        dtype: DType,
    },
    /// A tensor has an axis more or less.
    Rank {
        /// Which tensor, counted round.
        tensor: usize,
        /// Whether it gains an axis.
        more: bool,
    },
    /// A length, offset, id or table entry is another.
    Entry {
        /// Which tensor, counted round.
        tensor: usize,
        /// Which entry, counted round.
        entry: usize,
        /// The new value.
        value: i64,
    },
    /// Two tensors lie in the same memory.
    Shared {
        /// Which tensor, counted round.
        tensor: usize,
        /// Whose memory it takes.
        with: usize,
    },
    /// The scale is not a number.
    Scale,
    /// A cap of 0.
    Softcap,
    /// Chunks of 0.
    Chunk,
    /// Zero partitions.
    Partitions,
}

/// Faults of every kind.
pub fn fault() -> impl Strategy<Value = Fault> {
    let dtypes = vec![DType::F32, DType::F16, DType::BF16, DType::Bool, DType::I32, DType::U32];
    let tensor = || 0usize..32;
    let values = prop_oneof![
        -3i64..50,
        prop::sample::select(vec![i64::from(i32::MIN), i64::from(i32::MAX), i64::from(u32::MAX), 1 << 20]),
    ];
    prop_oneof![
        4 => (tensor(), 0usize..6, 0usize..50)
            .prop_map(|(tensor, axis, extent)| Fault::Extent { tensor, axis, extent }),
        2 => (tensor(), 0usize..6, -9i64..100)
            .prop_map(|(tensor, axis, stride)| Fault::Stride { tensor, axis, stride }),
        2 => (tensor(), prop::sample::select(dtypes)).prop_map(|(tensor, dtype)| Fault::Type { tensor, dtype }),
        1 => (tensor(), any::<bool>()).prop_map(|(tensor, more)| Fault::Rank { tensor, more }),
        4 => (tensor(), 0usize..64, values).prop_map(|(tensor, entry, value)| Fault::Entry { tensor, entry, value }),
        1 => (tensor(), tensor()).prop_map(|(tensor, with)| Fault::Shared { tensor, with }),
        1 => prop::sample::select(vec![Fault::Scale, Fault::Softcap, Fault::Chunk, Fault::Partitions]),
    ]
}

impl Fault {
    /// Puts the fault into a case; says whether the case has a place for it.
    pub fn inject(self, case: &mut Case) -> bool {
        match self {
            Fault::Extent { tensor, axis, extent } => case.change_layout(tensor, |layout| {
                let (mut shape, mut strides) = (layout.shape().to_vec(), layout.strides().to_vec());
                let axis = axis % shape.len();
                if extent > shape[axis] {
                    // Without memory for more, the axis repeats what it has.
                    strides[axis] = 0;
                }
                shape[axis] = extent;
                Layout::new(&shape, &strides).ok()
            }),
            Fault::Stride { tensor, axis, stride } => case.change_layout(tensor, |layout| {
                let mut strides = layout.strides().to_vec();
                let axis = axis % strides.len();
                strides[axis] = stride;
                Layout::new(layout.shape(), &strides).ok()
            }),
            Fault::Rank { tensor, more } => case.change_layout(tensor, |layout| {
                let (mut shape, mut strides) = (layout.shape().to_vec(), layout.strides().to_vec());
                if more {
                    shape.insert(0, 1);
                    strides.insert(0, 0);
                } else {
                    shape.remove(0);
                    strides.remove(0);
                }
                Layout::new(&shape, &strides).ok()
            }),
            Fault::Type { tensor, dtype } => {
                let mut views = case.views_mut();
                let count = views.len();
                views[tensor % count].dtype = dtype;
                true
            }
            Fault::Entry { tensor, entry, value } => case.change_entry(tensor, entry, value),
            Fault::Shared { tensor, with } => {
                let mut views = case.views_mut();
                let count = views.len();
                let memory = views[with % count].memory;
                views[tensor % count].memory = memory;
                true
            }
            Fault::Scale => {
                case.softmax_scale = Some(f32::NAN);
                true
            }
            Fault::Softcap => {
                case.score_mods.push(ScoreModViews::Plain(ScoreMod::Softcap { cap: 0.0 }));
                true
            }
            Fault::Chunk => {
                case.mask = MaskViews::Plain(Mask::Chunked { size: 0 });
                true
            }
            Fault::Partitions => {
                case.config = AttentionConfig { num_partitions: Some(0), ..case.config };
                true
            }
        }
    }
}

impl Case {
    /// Every tensor of the case.
    pub fn views_mut(&mut self) -> Vec<&mut View> {
        let mut views = vec![&mut self.out];
        match &mut self.query {
            QueryViews::Padded { q, lengths } => {
                views.push(q);
                views.extend(lengths);
            }
            QueryViews::Ragged { q, cu_seqlens, .. } => views.extend([q, cu_seqlens]),
        }
        match &mut self.kv {
            KvViews::Dense { k, v, lengths } => {
                views.extend([k, v]);
                views.extend(lengths);
            }
            KvViews::Ragged { k, v, cu_seqlens, .. } => views.extend([k, v, cu_seqlens]),
            KvViews::Continuous { k, v, lookup_table, lengths, .. } => {
                views.extend([k, v, lookup_table, lengths]);
            }
            KvViews::Paged { k, v, page_table, lengths, .. } => views.extend([k, v, page_table, lengths]),
        }
        views.extend(&mut self.lse);
        views.extend(&mut self.sinks);
        views.extend(&mut self.query_start);
        mask_views(&mut self.mask, &mut views);
        for score_mod in &mut self.score_mods {
            if let ScoreModViews::Alibi(view) | ScoreModViews::Bias(view) = score_mod {
                views.push(view);
            }
        }
        views
    }

    fn change_layout(&mut self, tensor: usize, change: impl FnOnce(&Layout) -> Option<Layout>) -> bool {
        let mut views = self.views_mut();
        let count = views.len();
        let view = &mut *views[tensor % count];
        if view.layout.rank() == 0 {
            return false;
        }
        match change(&view.layout) {
            Some(layout) => {
                view.layout = layout;
                true
            }
            None => false,
        }
    }

    fn change_entry(&mut self, tensor: usize, entry: usize, value: i64) -> bool {
        let integers: Vec<View> = self
            .views_mut()
            .into_iter()
            .filter(|view| view.dtype.is_index() && !view.layout.is_empty())
            .map(|view| view.clone())
            .collect();
        if integers.is_empty() {
            return false;
        }
        let view = &integers[tensor % integers.len()];
        // Another fault may have moved the view out of its memory.
        let inside = view.bytes_needed().is_ok_and(|bytes| bytes <= self.memories.bytes(view.memory).len());
        if !inside {
            return false;
        }
        let mut rest = entry % view.layout.num_elements();
        let mut index = vec![0; view.layout.rank()];
        for (at, &extent) in index.iter_mut().zip(view.layout.shape()).rev() {
            *at = rest % extent;
            rest /= extent;
        }
        self.memories.set_integer(view, &index, value);
        true
    }
}

fn mask_views<'c>(mask: &'c mut MaskViews, views: &mut Vec<&'c mut View>) {
    match mask {
        MaskViews::Plain(_) => {}
        MaskViews::PrefixLm(view) | MaskViews::Document(view) | MaskViews::Dense(view, _) => views.push(view),
        MaskViews::And(a, b) | MaskViews::Or(a, b) => {
            mask_views(a, views);
            mask_views(b, views);
        }
        MaskViews::Not(mask) => mask_views(mask, views),
    }
}
