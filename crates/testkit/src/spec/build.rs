//! From a description to memory.

use omniflash_core::{DType, Layout, Mask};

use super::{Arrangement, Axes, Fill, Inputs, KeySpec, MaskSpec, ModSpec, QuerySpec, Sharing, Spec};
use crate::case::{Case, KvViews, MaskViews, QueryViews, RowIndex, ScoreModViews};
use crate::memory::{Memories, Poison, View};
use crate::random::Random;

/// Keeps an id far out of range for table entries and lengths that nothing may read.
const SENTINEL: i64 = -1;

pub(super) struct Builder<'s> {
    spec: &'s Spec,
    seed: String,
    memories: Memories,
    masks: usize,
    /// Whether q, k, v, masks and biases get their values.
    fills: bool,
}

impl<'s> Builder<'s> {
    pub(super) fn new(spec: &'s Spec) -> Self {
        let seed = spec.seed.clone().unwrap_or_else(|| spec.name.clone());
        Builder { spec, seed, memories: Memories::default(), masks: 0, fills: true }
    }

    pub(super) fn without_values(self) -> Self {
        Builder { fills: false, ..self }
    }

    pub(super) fn finish(mut self) -> Case {
        let spec = self.spec;
        let pool = Pool::new(spec, &self.seed);
        let q_begins = self.q_begins();
        let (q, k, v, out) = self.place(&pool);
        if self.fills {
            self.fill_queries(&q, &q_begins);
            self.fill_keys(&pool, &k, &v);
        }
        let (query, kv) = (self.query(q), self.kv(&pool, k, v));
        let lse = spec.lse.then(|| {
            let shape = match out.layout.shape() {
                [batch, rows, heads, _] => vec![*batch, *heads, *rows],
                shape => vec![shape[1], shape[0]],
            };
            self.memories.add_contiguous(DType::F32, &shape, Poison::Unwritten)
        });
        let mask = spec.mask.as_ref().map_or(MaskViews::Plain(Mask::None), |mask| self.mask(mask));
        let score_mods = spec.score_mods.iter().map(|score_mod| self.score_mod(score_mod)).collect();
        let sinks = spec.sinks.as_ref().map(|(dtype, values)| {
            let heads = (0..spec.num_heads).map(|head| values[head % values.len()]);
            self.floats(*dtype, heads)
        });
        let query_start = spec.query_start.as_ref().map(|starts| {
            let negative = starts.iter().any(|&start| start < 0);
            self.integers_of(if negative { DType::I32 } else { spec.index_dtype }, starts)
        });
        Case {
            name: spec.name.clone(),
            seed: self.seed,
            memories: self.memories,
            query,
            kv,
            out,
            lse,
            mask,
            score_mods,
            sinks,
            query_start,
            softmax_scale: spec.softmax_scale,
            config: spec.config,
            extreme: spec.extreme,
            q_lengths: spec.q_lengths(),
            q_begins,
        }
    }

    /// First row of each sequence in a ragged query.
    fn q_begins(&self) -> Vec<usize> {
        match &self.spec.query {
            QuerySpec::Padded { .. } => vec![0; self.spec.batch],
            QuerySpec::Ragged { lengths, lead, .. } => starts(lengths, *lead),
        }
    }

    /// Gives q, k, v and out their memory.
    fn place(&mut self, pool: &Pool) -> (View, View, View, View) {
        let spec = self.spec;
        let q_rows: Vec<usize> = match &spec.query {
            QuerySpec::Padded { seqlen, .. } => vec![spec.batch, *seqlen],
            QuerySpec::Ragged { lengths, lead, tail, .. } => {
                vec![lead + lengths.iter().sum::<usize>() + tail]
            }
        };
        let (heads, kv_heads) = (spec.num_heads, spec.num_kv_heads);
        if matches!(spec.sharing, Sharing::PackedQkv | Sharing::PackedQkvOut) {
            return self.place_packed(&q_rows);
        }
        let q = self.arranged(&q_rows, heads, spec.head_dim, spec.q_arrangement, Poison::Unread);
        let (k, v) = match spec.sharing {
            Sharing::Collection { layers, layer } => {
                let [pages, positions] = pool.rows[..] else { panic!("a collection is paged or continuous") };
                let shape = [pages, 2, layers, positions, kv_heads, spec.head_dim];
                let whole = self.memories.add_contiguous(spec.dtype, &shape, Poison::Unread);
                let part = |kind: usize| {
                    let (layout, first) = whole.layout.select(1, kind).expect("two kinds");
                    let (layout, second) = layout.select(1, layer).expect("a layer of the collection");
                    View { layout, offset: (first + second) as usize, ..whole.clone() }
                };
                (part(0), part(1))
            }
            _ => (
                self.arranged(&pool.rows, kv_heads, spec.head_dim, spec.k_arrangement, Poison::Unread),
                self.arranged(&pool.rows, kv_heads, spec.value_dim, spec.v_arrangement, Poison::Unread),
            ),
        };
        let out = self.arranged(&q_rows, heads, spec.value_dim, spec.out_arrangement, Poison::Unwritten);
        (q, k, v, out)
    }

    fn place_packed(&mut self, rows: &[usize]) -> (View, View, View, View) {
        let spec = self.spec;
        let (heads, kv_heads) = (spec.num_heads, spec.num_kv_heads);
        let with_out = spec.sharing == Sharing::PackedQkvOut;
        let total = heads + 2 * kv_heads + if with_out { heads } else { 0 };
        let shape: Vec<usize> = rows.iter().copied().chain([total, spec.head_dim]).collect();
        let whole = self.memories.add_contiguous(spec.dtype, &shape, Poison::Unread);
        let part = |begin: usize, count: usize| {
            let (layout, offset) =
                whole.layout.slice(rows.len(), begin, begin + count).expect("heads of the projection");
            View { layout, offset: offset as usize, ..whole.clone() }
        };
        let (q, k, v) = (part(0, heads), part(heads, kv_heads), part(heads + kv_heads, kv_heads));
        let out = if with_out {
            part(heads + 2 * kv_heads, heads)
        } else {
            self.arranged(rows, heads, spec.value_dim, spec.out_arrangement, Poison::Unwritten)
        };
        (q, k, v, out)
    }

    /// A tensor `[rows.., heads, dim]` in new memory.
    fn arranged(
        &mut self,
        rows: &[usize],
        heads: usize,
        dim: usize,
        arrangement: Arrangement,
        poison: Poison,
    ) -> View {
        let shape: Vec<usize> = rows.iter().copied().chain([heads, dim]).collect();
        let (head_axis, row_axis) = (shape.len() - 2, shape.len() - 3);
        let with = |axis: usize, extent: usize| {
            let mut shape = shape.clone();
            shape[axis] = extent;
            Layout::contiguous(&shape).expect("test shapes are small")
        };
        let plain = with(head_axis, heads);
        let mut elements = plain.num_elements();
        let (layout, offset) = match arrangement {
            Arrangement::Contiguous => (plain, 0),
            Arrangement::HeadsFirst => {
                let mut swapped = shape.clone();
                swapped.swap(head_axis, row_axis);
                let mut order: Vec<usize> = (0..shape.len()).collect();
                order.swap(head_axis, row_axis);
                let layout = Layout::contiguous(&swapped).and_then(|layout| layout.permute(&order));
                (layout.expect("test shapes are small"), 0)
            }
            Arrangement::Pitched(extra) => {
                let pitched = with(head_axis + 1, dim + extra);
                elements = pitched.num_elements();
                pitched.slice(head_axis + 1, 0, dim).expect("inside")
            }
            Arrangement::SlicedHeads => {
                let more = with(head_axis, heads + 3);
                elements = more.num_elements();
                more.slice(head_axis, 1, heads + 1).expect("inside")
            }
            Arrangement::Reversed => {
                let mut strides = plain.strides().to_vec();
                strides[row_axis] = -strides[row_axis];
                let offset = -strides[row_axis] * (shape[row_axis].max(1) as i64 - 1);
                (Layout::new(&shape, &strides).expect("as large as the plain one"), offset)
            }
            Arrangement::ExpandedHeads => {
                let one = with(head_axis, 1);
                elements = one.num_elements();
                (one.expand(head_axis, heads).expect("one head"), 0)
            }
            Arrangement::ExpandedBatch => {
                let one = with(0, 1);
                elements = one.num_elements();
                (one.expand(0, shape[0]).expect("one sequence"), 0)
            }
        };
        let memory = self.memories.add(self.spec.dtype, elements, poison);
        View { memory, dtype: self.spec.dtype, layout, offset: offset as usize }
    }

    fn fill_queries(&mut self, q: &View, q_begins: &[usize]) {
        let spec = self.spec;
        let mut random = Random::new(&self.seed, "q");
        let factor = if let Inputs::Scaled(factor) = spec.inputs { factor } else { 1.0 };
        for (b, length) in spec.q_lengths().into_iter().enumerate() {
            for row in 0..length {
                let at = match spec.query {
                    QuerySpec::Padded { .. } => RowIndex::Padded { batch: b, row },
                    QuerySpec::Ragged { .. } => RowIndex::Ragged { token: q_begins[b] + row },
                };
                for head in 0..spec.num_heads {
                    let value = |normal| if spec.inputs == Inputs::EqualKeys { 0.25 } else { normal };
                    let vector = (0..spec.head_dim).map(|_| value(random.normal() * factor));
                    self.memories.set_vector(q, &at.out(head, 0), vector);
                }
            }
        }
    }

    fn fill_keys(&mut self, pool: &Pool, k: &View, v: &View) {
        let spec = self.spec;
        let (mut keys, mut values) = (Random::new(&self.seed, "k"), Random::new(&self.seed, "v"));
        for (b, length) in spec.kv_lengths().into_iter().enumerate() {
            for j in 0..length {
                let poke = spec.pokes.iter().find(|poke| (poke.batch, poke.key) == (b, j));
                let mut index = pool.index(b, j);
                let rank = index.len();
                index.extend([0, 0]);
                for head in 0..spec.num_kv_heads {
                    index[rank] = head;
                    let (poked_k, poked_v) = (poke.and_then(|poke| poke.k), poke.and_then(|poke| poke.v));
                    let value = |normal| if spec.inputs == Inputs::EqualKeys { 0.5 } else { normal };
                    let key = (0..spec.head_dim).map(|_| value(keys.normal()));
                    self.memories.set_vector(k, &index, key.map(|value| poked_k.unwrap_or(value)));
                    let vector = (0..spec.value_dim).map(|_| values.normal());
                    self.memories.set_vector(v, &index, vector.map(|value| poked_v.unwrap_or(value)));
                }
            }
        }
    }

    fn query(&mut self, q: View) -> QueryViews {
        match &self.spec.query {
            QuerySpec::Padded { lengths, .. } => {
                QueryViews::Padded { q, lengths: lengths.as_ref().map(|lengths| self.sizes(lengths)) }
            }
            QuerySpec::Ragged { lengths, lead, bounded, .. } => QueryViews::Ragged {
                q,
                cu_seqlens: self.offsets(lengths, *lead),
                max_seqlen: bounded.then(|| longest(lengths)),
            },
        }
    }

    fn kv(&mut self, pool: &Pool, k: View, v: View) -> KvViews {
        match &self.spec.keys {
            KeySpec::Dense { lengths, .. } => {
                KvViews::Dense { k, v, lengths: lengths.as_ref().map(|lengths| self.sizes(lengths)) }
            }
            KeySpec::Ragged { lengths, lead, bounded, .. } => KvViews::Ragged {
                k,
                v,
                cu_seqlens: self.offsets(lengths, *lead),
                max_seqlen: bounded.then(|| longest(lengths)),
            },
            KeySpec::Continuous { lengths, .. } => KvViews::Continuous {
                k,
                v,
                lookup_table: {
                    let blocks: Vec<i64> = pool.table.iter().map(|row| row[0]).collect();
                    self.integers(&blocks)
                },
                lengths: self.sizes(lengths),
                max_seqlen: Some(longest(lengths)),
            },
            KeySpec::Paged { lengths, .. } => {
                let (batch, columns) = (self.spec.batch, pool.table.first().map_or(1, Vec::len));
                let dtype = self.spec.index_dtype;
                let table = self.memories.add_contiguous(dtype, &[batch, columns], Poison::Unread);
                for (b, row) in pool.table.iter().enumerate() {
                    for (i, &id) in row.iter().enumerate() {
                        self.memories.set_integer(&table, &[b, i], id);
                    }
                }
                KvViews::Paged {
                    k,
                    v,
                    page_table: table,
                    lengths: self.sizes(lengths),
                    max_seqlen: Some(longest(lengths)),
                }
            }
        }
    }

    fn mask(&mut self, mask: &MaskSpec) -> MaskViews {
        match mask {
            MaskSpec::Plain(plain) => MaskViews::Plain(plain.clone()),
            MaskSpec::PrefixLm(lengths) => MaskViews::PrefixLm(self.sizes(lengths)),
            MaskSpec::Document(documents) => MaskViews::Document(self.documents(documents)),
            MaskSpec::Dense { dtype, axes, fill } => {
                let rows = (!axes.rows).then(|| self.dense_rows());
                MaskViews::Dense(self.dense(*dtype, *axes, *fill, true), rows)
            }
            MaskSpec::And(a, b) => MaskViews::And(Box::new(self.mask(a)), Box::new(self.mask(b))),
            MaskSpec::Or(a, b) => MaskViews::Or(Box::new(self.mask(a)), Box::new(self.mask(b))),
            MaskSpec::Not(mask) => MaskViews::Not(Box::new(self.mask(mask))),
        }
    }

    fn score_mod(&mut self, score_mod: &ModSpec) -> ScoreModViews {
        match score_mod {
            ModSpec::Plain(plain) => ScoreModViews::Plain(plain.clone()),
            ModSpec::Alibi(dtype) => {
                let slopes = (0..self.spec.num_heads).map(|head| 0.5 / (head + 1) as f32);
                ScoreModViews::Alibi(self.floats(*dtype, slopes))
            }
            ModSpec::Bias { dtype, axes, fill } => {
                ScoreModViews::Bias(self.dense(*dtype, *axes, *fill, false))
            }
        }
    }

    /// A `[batch, (heads,) rows, keys]` tensor; what no valid pair meets stays poison.
    fn dense(&mut self, dtype: DType, axes: Axes, fill: Fill, hides: bool) -> View {
        let spec = self.spec;
        self.masks += 1;
        let mut random = Random::new(&self.seed, &format!("dense {}", self.masks));
        let (rows, columns) = (self.dense_rows(), self.dense_columns());
        let pick = |full: bool, extent: usize| if full { extent } else { 1 };
        let mut shape = vec![pick(axes.batch, spec.batch)];
        shape.extend(axes.heads.map(|full| pick(full, spec.num_heads)));
        shape.extend([pick(axes.rows, rows), columns]);
        let view = self.memories.add_contiguous(dtype, &shape, Poison::Unread);
        if !self.fills {
            return view;
        }
        let (q_lengths, kv_lengths) = (spec.q_lengths(), spec.kv_lengths());
        for b in 0..shape[0] {
            // A broadcast axis serves every sequence: it is valid as far as the longest needs it.
            let q_length = if axes.batch { q_lengths[b] } else { longest(&q_lengths) };
            let kv_length = if axes.batch { kv_lengths[b] } else { longest(&kv_lengths) };
            for head in 0..axes.heads.map_or(1, |full| pick(full, spec.num_heads)) {
                for row in 0..pick(axes.rows, q_length) {
                    let values = (0..kv_length).map(|key| match fill {
                        Fill::Of(function) => function(b, head, row, key),
                        Fill::Random if hides && random.chance(0.3) => f32::NEG_INFINITY,
                        Fill::Random => random.normal(),
                    });
                    let values = values.map(|value| match dtype {
                        DType::Bool => f32::from(u8::from(value != f32::NEG_INFINITY)),
                        _ => value,
                    });
                    let mut index = vec![b];
                    index.extend(axes.heads.map(|_| head));
                    index.extend([row, 0]);
                    self.memories.set_vector(&view, &index, values);
                }
            }
        }
        view
    }

    /// Rows of a dense mask: exact for padded queries, a bound for ragged ones.
    fn dense_rows(&self) -> usize {
        match &self.spec.query {
            QuerySpec::Padded { seqlen, .. } => *seqlen,
            QuerySpec::Ragged { lengths, bounded: true, .. } => longest(lengths) + 1,
            QuerySpec::Ragged { lengths, lead, tail, .. } => lead + lengths.iter().sum::<usize>() + tail,
        }
    }

    /// Columns of a dense mask: exact for dense keys, a bound for the others.
    fn dense_columns(&self) -> usize {
        match &self.spec.keys {
            KeySpec::Dense { seqlen, .. } => *seqlen,
            KeySpec::Ragged { lengths, lead, tail, bounded: false } => {
                lead + lengths.iter().sum::<usize>() + tail
            }
            _ => longest(&self.spec.kv_lengths()) + 3,
        }
    }

    fn documents(&mut self, documents: &[Vec<usize>]) -> View {
        let columns = self.dense_columns();
        let dtype = self.spec.index_dtype;
        let view = self.memories.add_contiguous(dtype, &[documents.len(), columns], Poison::Unread);
        let kv_lengths = self.spec.kv_lengths();
        for (b, lengths) in documents.iter().enumerate() {
            let valid = if documents.len() == 1 { longest(&kv_lengths) } else { kv_lengths[b] };
            let mut ids = lengths.iter().enumerate().flat_map(|(id, &n)| std::iter::repeat_n(id as i64, n));
            for position in 0..valid {
                let id = ids.next().unwrap_or(lengths.len() as i64);
                self.memories.set_integer(&view, &[b, position], id);
            }
        }
        view
    }

    fn sizes(&mut self, sizes: &[usize]) -> View {
        let values: Vec<i64> = sizes.iter().map(|&size| size as i64).collect();
        self.integers(&values)
    }

    fn offsets(&mut self, lengths: &[usize], lead: usize) -> View {
        let mut offsets = starts(lengths, lead);
        offsets.push(lead + lengths.iter().sum::<usize>());
        self.sizes(&offsets)
    }

    /// Negative ids become `u32::MAX` and the like in an unsigned tensor: as far out of range as they were.
    fn integers(&mut self, values: &[i64]) -> View {
        self.integers_of(self.spec.index_dtype, values)
    }

    fn integers_of(&mut self, dtype: DType, values: &[i64]) -> View {
        let view = self.memories.add_contiguous(dtype, &[values.len()], Poison::Unread);
        for (i, &value) in values.iter().enumerate() {
            self.memories.set_integer(&view, &[i], value);
        }
        view
    }

    fn floats(&mut self, dtype: DType, values: impl ExactSizeIterator<Item = f32>) -> View {
        let view = self.memories.add_contiguous(dtype, &[values.len()], Poison::Unread);
        for (i, value) in values.enumerate() {
            self.memories.set(&view, &[i], value);
        }
        view
    }
}

/// Where the keys of each sequence are: the leading axes of k and v, and the table of blocks or pages.
struct Pool {
    rows: Vec<usize>,
    table: Vec<Vec<i64>>,
    begins: Vec<usize>,
    page_size: usize,
    kind: PoolKind,
}

#[derive(Clone, Copy, PartialEq)]
enum PoolKind {
    Dense,
    Ragged,
    Table,
}

impl Pool {
    fn new(spec: &Spec, seed: &str) -> Self {
        let mut random = Random::new(seed, "table");
        let plain = |rows: Vec<usize>, kind: PoolKind, begins: Vec<usize>| Pool {
            rows,
            table: Vec::new(),
            begins,
            page_size: 1,
            kind,
        };
        match &spec.keys {
            KeySpec::Dense { seqlen, .. } => {
                plain(vec![spec.batch, *seqlen], PoolKind::Dense, vec![0; spec.batch])
            }
            KeySpec::Ragged { lengths, lead, tail, .. } => {
                let total = lead + lengths.iter().sum::<usize>() + tail;
                plain(vec![total], PoolKind::Ragged, starts(lengths, *lead))
            }
            KeySpec::Continuous { capacity, lengths } => Pool::paged(*capacity, lengths, 1, 0, &mut random),
            KeySpec::Paged { page_size, lengths, shared_pages } => {
                let columns = longest(lengths).div_ceil(*page_size) + 1;
                Pool::paged(*page_size, lengths, columns, *shared_pages, &mut random)
            }
        }
    }

    fn paged(
        page_size: usize,
        lengths: &[usize],
        columns: usize,
        shared: usize,
        random: &mut Random,
    ) -> Self {
        let used: Vec<usize> = lengths.iter().map(|length| length.div_ceil(page_size)).collect();
        let pages = used.iter().sum::<usize>() + 3;
        let mut ids: Vec<i64> = (0..pages as i64).collect();
        random.shuffle(&mut ids);
        let mut free = ids.into_iter();
        let mut table: Vec<Vec<i64>> = Vec::with_capacity(lengths.len());
        let mut prefix: Vec<i64> = Vec::new();
        for &count in &used {
            let mut row = vec![SENTINEL; columns];
            for (i, entry) in row.iter_mut().enumerate().take(count) {
                *entry = match prefix.get(i) {
                    Some(&id) => id,
                    None => free.next().expect("as many pages as entries"),
                };
                if i < shared && i == prefix.len() {
                    prefix.push(*entry);
                }
            }
            table.push(row);
        }
        Pool { rows: vec![pages, page_size], table, begins: Vec::new(), page_size, kind: PoolKind::Table }
    }

    /// Leading indices of key `j` of sequence `b`.
    fn index(&self, b: usize, j: usize) -> Vec<usize> {
        match self.kind {
            PoolKind::Dense => vec![b, j],
            PoolKind::Ragged => vec![self.begins[b] + j],
            PoolKind::Table => {
                vec![self.table[b][j / self.page_size] as usize, j % self.page_size]
            }
        }
    }
}

fn starts(lengths: &[usize], lead: usize) -> Vec<usize> {
    lengths
        .iter()
        .scan(lead, |next, length| {
            let start = *next;
            *next += length;
            Some(start)
        })
        .collect()
}

fn longest(lengths: &[usize]) -> usize {
    lengths.iter().copied().max().unwrap_or(0)
}
