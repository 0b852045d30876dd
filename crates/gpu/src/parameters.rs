//! From a problem to the struct that its kernels are given: addresses, strides and tags; nothing is read.

use omniflash_core::{AttentionProblem, DType, KvCache, Query, TensorRef};
use omniflash_device::parameters::{
    AttentionParameters, DeviceAddress, Indices, KeyForm, LseForm, QueryForm, Rows, SinkForm, StartForm,
    Table, VerifyParameters,
};

/// How a launch is cut into blocks, as the plan chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Query heads whose rows a tile interleaves.
    pub heads_per_tile: usize,
    /// Tiles of rows of the longest sequence.
    pub num_row_tiles: u32,
    /// Pairs of sequence and head tile whose longest tiles start together.
    pub section: usize,
    /// Blocks that the keys of a row are split among.
    pub num_partitions: usize,
    /// Blocks that share all keys; 0 where every item has its partitions.
    pub num_workers: u32,
    /// Sequences with fewer query rows are another launch's.
    pub least_q_len: u32,
}

impl Cut {
    /// Sets what the cut decides, and what follows from it.
    pub fn apply(&self, parameters: &mut AttentionParameters) {
        parameters.heads_per_tile = self.heads_per_tile as u32;
        parameters.num_row_tiles = self.num_row_tiles;
        parameters.section = self.section as u32;
        parameters.num_partitions = self.num_partitions as u32;
        parameters.num_workers = self.num_workers;
        parameters.least_q_len = self.least_q_len;
        *parameters = parameters.derived();
    }
}

/// The parameters of a problem; the workspace's addresses are still to be set.
pub fn attention(problem: &AttentionProblem<'_>, cut: &Cut) -> AttentionParameters {
    let shape = problem.shape();
    let (q_form, q_lengths) = query_lengths(problem.query());
    let (k_form, k_lengths) = key_lengths(problem.kv());
    let (block_table, page_size) = block_table(problem.kv());
    let out = problem.out().as_view();
    let lse = problem.lse().map(|lse| lse.as_view());
    let mut parameters = AttentionParameters {
        q: rows(problem.query().tensor()),
        k: rows(problem.kv().k()),
        v: rows(problem.kv().v()),
        out: rows(out),
        lse: lse.map(lse_rows).unwrap_or_default(),
        total_q: shape.total_q as i64,
        query_lengths: q_lengths.map(indices).unwrap_or_default(),
        key_lengths: k_lengths.map(indices).unwrap_or_default(),
        query_start: problem.query_start().map(indices).unwrap_or_default(),
        block_table,
        sinks: problem.sinks().map(indices).unwrap_or_default(),
        query_form: q_form.into(),
        key_form: k_form.into(),
        start_form: if problem.query_start().is_some() { StartForm::Given } else { StartForm::BottomRight }
            .into(),
        sink_form: sink_form(problem.sinks()).into(),
        lse_form: if lse.is_some() { LseForm::Written } else { LseForm::Absent }.into(),
        batch: shape.batch as u32,
        num_heads: shape.num_heads as u32,
        group_size: shape.group_size() as u32,
        head_dim: shape.head_dim as u32,
        value_dim: shape.value_dim as u32,
        seqlen_q: shape.seqlen_q as u32,
        seqlen_k: shape.seqlen_k as u32,
        page_size,
        softmax_scale: problem.softmax_scale(),
        ..AttentionParameters::default()
    };
    cut.apply(&mut parameters);
    parameters
}

/// The parameters of the check of a problem's tables; `None` when it has none.
pub fn verify(problem: &AttentionProblem<'_>, report: u64) -> Option<VerifyParameters> {
    let kv = problem.kv();
    if !matches!(kv, KvCache::Continuous { .. } | KvCache::Paged { .. }) {
        return None;
    }
    let (form, lengths) = key_lengths(kv);
    let (block_table, page_size) = block_table(kv);
    Some(VerifyParameters {
        block_table,
        key_lengths: lengths.map(indices).unwrap_or_default(),
        report: DeviceAddress(report),
        key_form: form.into(),
        batch: problem.shape().batch as u32,
        seqlen_k: problem.shape().seqlen_k as u32,
        page_size,
        num_blocks: kv.k().shape()[0] as u32,
        reserved: 0,
    })
}

/// Whether every row of q, k, v and out begins at a multiple of 16 bytes and has a multiple of 16 bytes, so that it
/// can be moved 16 bytes at a time.
pub fn is_aligned(problem: &AttentionProblem<'_>) -> bool {
    let out = problem.out().as_view();
    [problem.query().tensor(), problem.kv().k(), problem.kv().v(), out]
        .into_iter()
        .all(|tensor| is_multiple_of(tensor, 16))
}

/// Whether every vector of a tensor begins at a multiple of so many bytes and has a multiple of so many bytes.
pub(crate) fn is_multiple_of(tensor: &TensorRef<'_>, bytes: usize) -> bool {
    let size = tensor.dtype().size() as i64;
    let (shape, strides) = (tensor.shape(), tensor.strides());
    let last = shape.len() - 1;
    // The stride of an axis of extent 1 is never walked.
    let steps = shape[..last].iter().zip(strides).filter(|(extent, _)| **extent > 1);
    tensor.address().is_multiple_of(bytes as u64)
        && shape[last] as i64 * size % bytes as i64 == 0
        && steps.into_iter().all(|(_, stride)| stride * size % bytes as i64 == 0)
}

/// `[batch, rows, heads, dim]`, or `[rows, heads, dim]` of ragged tensors.
fn rows(tensor: &TensorRef<'_>) -> Rows {
    let data = DeviceAddress(tensor.address());
    match *tensor.strides() {
        [batch_stride, row_stride, head_stride, _] => Rows { data, batch_stride, row_stride, head_stride },
        [row_stride, head_stride, _] => Rows { data, batch_stride: 0, row_stride, head_stride },
        _ => unreachable!("a problem's rows have rank 3 or 4"),
    }
}

/// `[batch, heads, rows]`, or `[heads, rows]` of ragged tensors.
fn lse_rows(tensor: &TensorRef<'_>) -> Rows {
    let data = DeviceAddress(tensor.address());
    match *tensor.strides() {
        [batch_stride, head_stride, row_stride] => Rows { data, batch_stride, row_stride, head_stride },
        [head_stride, row_stride] => Rows { data, batch_stride: 0, row_stride, head_stride },
        _ => unreachable!("a problem's lse has rank 2 or 3"),
    }
}

pub(crate) fn indices(tensor: &TensorRef<'_>) -> Indices {
    Indices { data: DeviceAddress(tensor.address()), stride: tensor.strides()[0] }
}

fn query_lengths<'t, 'a>(query: &'t Query<'a>) -> (QueryForm, Option<&'t TensorRef<'a>>) {
    match query {
        Query::Padded { lengths: Some(lengths), .. } => (QueryForm::PaddedLengths, Some(lengths)),
        Query::Ragged { cu_seqlens, .. } => (QueryForm::Ragged, Some(cu_seqlens)),
        _ => (QueryForm::Padded, None),
    }
}

fn key_lengths<'t, 'a>(kv: &'t KvCache<'a>) -> (KeyForm, Option<&'t TensorRef<'a>>) {
    match kv {
        KvCache::Dense { lengths: Some(lengths), .. } => (KeyForm::DenseLengths, Some(lengths)),
        KvCache::Ragged { cu_seqlens, .. } => (KeyForm::Ragged, Some(cu_seqlens)),
        KvCache::Continuous { lengths, .. } => (KeyForm::Continuous, Some(lengths)),
        KvCache::Paged { lengths, .. } => (KeyForm::Paged, Some(lengths)),
        _ => (KeyForm::Dense, None),
    }
}

/// The table of blocks or pages, and the keys of one.
fn block_table(kv: &KvCache<'_>) -> (Table, u32) {
    match kv {
        KvCache::Continuous { k, lookup_table, .. } => (table(lookup_table), k.shape()[1] as u32),
        KvCache::Paged { k, page_table, .. } => (table(page_table), k.shape()[1] as u32),
        _ => (Table::default(), 0),
    }
}

/// `[batch, pages]`, or `[batch]` of caches without pages.
pub(crate) fn table(tensor: &TensorRef<'_>) -> Table {
    let (data, strides) = (DeviceAddress(tensor.address()), tensor.strides());
    Table { data, row_stride: strides[0], column_stride: strides.get(1).copied().unwrap_or(0) }
}

fn sink_form(sinks: Option<&TensorRef<'_>>) -> SinkForm {
    match sinks.map(TensorRef::dtype) {
        None => SinkForm::Absent,
        Some(DType::F16) => SinkForm::F16,
        Some(DType::BF16) => SinkForm::BF16,
        Some(_) => SinkForm::F32,
    }
}
