//! The checks behind [`AttentionProblem::new`].

use super::{AttentionProblem, ProblemShape};
use crate::device::DeviceId;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kv_cache::{KvCache, Query};
use crate::options::AttentionOptions;
use crate::tensor::{TensorMut, TensorRef};

/// Reads the sizes off the tensors and checks those that sizes depend on.
pub(super) fn shape_of(query: &Query<'_>, kv: &KvCache<'_>) -> Result<ProblemShape> {
    let q = query.tensor();
    let (batch_q, seqlen_q, total_q, num_heads, head_dim, ragged_q) = match query {
        Query::Padded { q, .. } => {
            let [batch, seqlen, heads, dim] = extents(q, "q", "[batch, seqlen_q, num_heads, head_dim]")?;
            (batch, seqlen, batch * seqlen, heads, dim, false)
        }
        Query::Ragged { q, cu_seqlens, max_seqlen } => {
            let [total, heads, dim] = extents(q, "q", "[total_q, num_heads, head_dim]")?;
            let batch = offsets_batch(cu_seqlens, "cu_seqlens_q")?;
            (batch, max_seqlen.unwrap_or(total).min(total), total, heads, dim, true)
        }
    };
    let (batch_k, seqlen_k, num_kv_heads) = keys_shape(kv)?;
    let value_dim = values_shape(kv)?;
    let key_dim = *kv.k().shape().last().expect("k has rank 3 or 4");

    if batch_k != batch_q {
        let says_batch = match kv {
            KvCache::Dense { .. } => "k",
            KvCache::Ragged { .. } => "cu_seqlens_k",
            KvCache::Continuous { .. } => "lookup_table",
            KvCache::Paged { .. } => "page_table",
        };
        return Err(Error::shape(says_batch, format!("batch {batch_k}, expected q's {batch_q}")));
    }
    if key_dim != head_dim {
        return Err(Error::shape("k", format!("head_dim {key_dim}, expected q's {head_dim}")));
    }
    if head_dim == 0 {
        return Err(Error::shape("q", "head_dim 0, expected at least 1"));
    }
    if value_dim == 0 {
        return Err(Error::shape("v", "value_dim 0, expected at least 1"));
    }
    if num_heads > 0 && (num_kv_heads == 0 || num_heads % num_kv_heads != 0) {
        return Err(Error::shape(
            "k",
            format!("{num_kv_heads} heads, expected a divisor of q's {num_heads} heads"),
        ));
    }
    if !q.dtype().is_float() {
        return Err(Error::dtype("q", q.dtype(), "f32, f16 or bf16"));
    }
    for (name, tensor) in [("k", kv.k()), ("v", kv.v())] {
        if tensor.dtype() != q.dtype() {
            return Err(Error::dtype(name, tensor.dtype(), format!("{} as q", q.dtype())));
        }
    }
    Ok(ProblemShape {
        batch: batch_q,
        num_heads,
        num_kv_heads: num_kv_heads.max(1),
        head_dim,
        value_dim,
        seqlen_q,
        seqlen_k,
        total_q,
        dtype: q.dtype(),
        device: q.device(),
        kv_kind: kv.kind(),
        ragged_q,
    })
}

/// Batch, the most keys of a sequence, and heads.
fn keys_shape(kv: &KvCache<'_>) -> Result<(usize, usize, usize)> {
    let bounded = |capacity: usize, max_seqlen: &Option<usize>| max_seqlen.unwrap_or(capacity).min(capacity);
    Ok(match kv {
        KvCache::Dense { k, .. } => {
            let [batch, seqlen, heads, _] = extents(k, "k", "[batch, seqlen_k, num_kv_heads, head_dim]")?;
            (batch, seqlen, heads)
        }
        KvCache::Ragged { k, cu_seqlens, max_seqlen, .. } => {
            let [total, heads, _] = extents(k, "k", "[total_k, num_kv_heads, head_dim]")?;
            (offsets_batch(cu_seqlens, "cu_seqlens_k")?, bounded(total, max_seqlen), heads)
        }
        KvCache::Continuous { k, lookup_table, max_seqlen, .. } => {
            let [_, capacity, heads, _] =
                extents(k, "k", "[num_blocks, max_seq_len, num_kv_heads, head_dim]")?;
            let [batch] = extents(lookup_table, "lookup_table", "[batch]")?;
            (batch, bounded(capacity, max_seqlen), heads)
        }
        KvCache::Paged { k, page_table, max_seqlen, .. } => {
            let [_, page_size, heads, _] = extents(k, "k", "[num_pages, page_size, num_kv_heads, head_dim]")?;
            let [batch, max_pages] = extents(page_table, "page_table", "[batch, max_pages]")?;
            if page_size == 0 && max_pages > 0 {
                return Err(Error::shape("k", "page_size 0, expected at least 1"));
            }
            let capacity = max_pages
                .checked_mul(page_size)
                .ok_or_else(|| Error::shape("page_table", "max_pages * page_size overflows"))?;
            (batch, bounded(capacity, max_seqlen), heads)
        }
    })
}

/// Checks that v is shaped as k and returns its last extent.
fn values_shape(kv: &KvCache<'_>) -> Result<usize> {
    let (k, v) = (kv.k().shape(), kv.v().shape());
    if v.len() != k.len() || v[..v.len() - 1] != k[..k.len() - 1] {
        let expected: Vec<String> = k[..k.len() - 1].iter().map(usize::to_string).collect();
        return Err(Error::shape(
            "v",
            format!("shape {v:?}, expected [{}, value_dim] as k", expected.join(", ")),
        ));
    }
    Ok(v[v.len() - 1])
}

/// The largest magnitude of a factor of dot products. Backends compute in f32, where scores of more than about 1e9 have no
/// exact differences any more and those of 3e38 no value: weights would come out wrong, or NaN.
const MOST_SOFTMAX_SCALE: f32 = 1e6;

/// Everything else.
pub(super) fn check(problem: &AttentionProblem<'_>, options: &AttentionOptions<'_>) -> Result<()> {
    let shape = problem.shape();
    // Written so that NaN fails.
    let is_small = problem.softmax_scale.abs() <= MOST_SOFTMAX_SCALE;
    if !is_small {
        let expected = format!("a finite number of magnitude {MOST_SOFTMAX_SCALE} or less");
        return Err(Error::value("softmax_scale", problem.softmax_scale, expected));
    }
    problem.config.check()?;
    problem.mask.check_parameters()?;
    problem.score_mod.check_parameters()?;
    for (name, tensor) in [("q", problem.query.tensor()), ("k", problem.kv.k()), ("v", problem.kv.v())] {
        check_rows(name, tensor, shape.device)?;
    }
    check_index_tensors(problem)?;
    if let Some(sinks) = &problem.sinks {
        check_float_tensor("sinks", sinks, &[shape.num_heads], shape.device)?;
    }
    let mut outcome = Ok(());
    problem.mask.visit_tensors(&mut |name, tensor| {
        if outcome.is_ok() {
            outcome = check_functor_tensor(problem, name, tensor);
        }
    });
    problem.score_mod.visit_tensors(&mut |name, tensor| {
        if outcome.is_ok() {
            outcome = check_functor_tensor(problem, name, tensor);
        }
    });
    outcome?;
    check_outputs(problem, options)
}

fn check_index_tensors(problem: &AttentionProblem<'_>) -> Result<()> {
    let (batch, device) = (problem.shape.batch, problem.shape.device);
    match &problem.query {
        Query::Padded { lengths, .. } => {
            if let Some(lengths) = lengths {
                check_index_tensor("q_lengths", lengths, &[batch], device)?;
            }
        }
        Query::Ragged { cu_seqlens, .. } => {
            check_index_tensor("cu_seqlens_q", cu_seqlens, &[batch + 1], device)?;
        }
    }
    match &problem.kv {
        KvCache::Dense { lengths, .. } => {
            if let Some(lengths) = lengths {
                check_index_tensor("kv_lengths", lengths, &[batch], device)?;
            }
        }
        KvCache::Ragged { cu_seqlens, .. } => {
            check_index_tensor("cu_seqlens_k", cu_seqlens, &[batch + 1], device)?;
        }
        KvCache::Continuous { lookup_table, lengths, .. } => {
            check_index_tensor("lookup_table", lookup_table, &[batch], device)?;
            check_index_tensor("kv_lengths", lengths, &[batch], device)?;
        }
        KvCache::Paged { page_table, lengths, .. } => {
            check_index_tensor("page_table", page_table, &[batch, page_table.shape()[1]], device)?;
            check_index_tensor("kv_lengths", lengths, &[batch], device)?;
        }
    }
    if let Some(start) = &problem.query_start {
        check_index_tensor("query_start", start, &[batch], device)?;
    }
    Ok(())
}

/// Checks a tensor of a mask or a score modification by its name.
fn check_functor_tensor(problem: &AttentionProblem<'_>, name: &str, tensor: &TensorRef<'_>) -> Result<()> {
    let shape = &problem.shape;
    match name {
        "prefix_len" => check_index_tensor(name, tensor, &[shape.batch], shape.device),
        "document_ids" => {
            let [batch, columns] = extents(tensor, name, "[batch, seqlen_k]")?;
            if columns < shape.seqlen_k || (batch != shape.batch && batch != 1) {
                return Err(Error::shape(
                    name,
                    format!(
                        "shape {:?}, expected [{} or 1, at least {}]",
                        tensor.shape(),
                        shape.batch,
                        shape.seqlen_k
                    ),
                ));
            }
            check_index_tensor(name, tensor, &[batch, columns], shape.device)
        }
        "alibi_slopes" => check_float_tensor(name, tensor, &[shape.num_heads], shape.device),
        _ => check_dense(problem, name, tensor),
    }
}

/// Checks a `[batch, (heads,) seqlen_q, seqlen_k]` tensor.
///
/// Where the host knows the lengths exactly the last two extents must match; where it knows a bound they must cover it.
fn check_dense(problem: &AttentionProblem<'_>, name: &str, tensor: &TensorRef<'_>) -> Result<()> {
    let shape = &problem.shape;
    let extents = tensor.shape();
    let rank_is_right = extents.len() == 4 || (extents.len() == 3 && name == "mask");
    let exact_q = !shape.ragged_q;
    let exact_k = matches!(problem.kv, KvCache::Dense { .. });
    let fits = |extent: usize, size: usize, exact: bool| if exact { extent == size } else { extent >= size };
    let fitting = rank_is_right && {
        let (rows, columns) = (extents[extents.len() - 2], extents[extents.len() - 1]);
        let rows_fit = fits(rows, shape.seqlen_q, exact_q) || (name == "bias" && rows == 1);
        let heads_fit = extents.len() == 3 || extents[1] == 1 || extents[1] == shape.num_heads;
        let batch_fits = extents[0] == 1 || extents[0] == shape.batch;
        batch_fits && heads_fit && rows_fit && fits(columns, shape.seqlen_k, exact_k)
    };
    if !fitting {
        let at_least =
            |exact: bool, size: usize| if exact { size.to_string() } else { format!("{size} or more") };
        return Err(Error::shape(
            name,
            format!(
                "shape {extents:?}, expected [{} or 1, {}{}{}, {}]",
                shape.batch,
                if name == "mask" && extents.len() == 3 {
                    String::new()
                } else {
                    format!("{} or 1, ", shape.num_heads)
                },
                at_least(exact_q, shape.seqlen_q),
                if name == "bias" { " or 1" } else { "" },
                at_least(exact_k, shape.seqlen_k),
            ),
        ));
    }
    let dtype_is_right = tensor.dtype().is_float() || (name == "mask" && tensor.dtype() == DType::Bool);
    if !dtype_is_right {
        let expected = if name == "mask" { "bool, f32, f16 or bf16" } else { "f32, f16 or bf16" };
        return Err(Error::dtype(name, tensor.dtype(), expected));
    }
    check_memory(name, tensor, shape.device)
}

fn check_outputs(problem: &AttentionProblem<'_>, options: &AttentionOptions<'_>) -> Result<()> {
    let shape = &problem.shape;
    let expected = shape.out_extents();
    if *problem.out.shape() != *expected {
        return Err(Error::shape("out", format!("shape {:?}, expected {:?}", problem.out.shape(), expected)));
    }
    if problem.out.dtype() != shape.dtype {
        return Err(Error::dtype("out", problem.out.dtype(), format!("{} as q", shape.dtype)));
    }
    check_rows("out", problem.out.as_view(), shape.device)?;
    check_written("out", &problem.out, problem)?;
    match (&problem.lse, options.lse) {
        (None, true) => return Err(Error::shape("lse", "asked for, but no tensor to write it to")),
        (Some(_), false) => return Err(Error::shape("lse", "a tensor was given, but lse is not asked for")),
        (None, false) => {}
        (Some(lse), true) => {
            let expected = shape.lse_extents();
            if *lse.shape() != *expected {
                return Err(Error::shape("lse", format!("shape {:?}, expected {:?}", lse.shape(), expected)));
            }
            if lse.dtype() != DType::F32 {
                return Err(Error::dtype("lse", lse.dtype(), "f32"));
            }
            check_memory("lse", lse.as_view(), shape.device)?;
            check_written("lse", lse, problem)?;
            if overlaps(lse.as_view(), problem.out.as_view()) {
                return Err(Error::Overlap { argument: "lse".into(), with: "out".into() });
            }
        }
    }
    Ok(())
}

/// A written tensor overlaps neither itself nor what is read.
fn check_written(name: &str, written: &TensorMut<'_>, problem: &AttentionProblem<'_>) -> Result<()> {
    let overlap = |with: &str| Err(Error::Overlap { argument: name.into(), with: with.into() });
    if written.layout().may_overlap_itself() {
        return overlap("itself");
    }
    let mut met = None;
    visit_read(problem, &mut |with, read| {
        if met.is_none() && overlaps(written.as_view(), read) {
            met = Some(with);
        }
    });
    met.map_or(Ok(()), overlap)
}

/// Calls `visit` with each tensor that a launch reads and its name in the API.
fn visit_read(problem: &AttentionProblem<'_>, visit: &mut dyn FnMut(&'static str, &TensorRef<'_>)) {
    visit("q", problem.query.tensor());
    visit("k", problem.kv.k());
    visit("v", problem.kv.v());
    match &problem.query {
        Query::Padded { lengths: Some(lengths), .. } => visit("q_lengths", lengths),
        Query::Padded { lengths: None, .. } => {}
        Query::Ragged { cu_seqlens, .. } => visit("cu_seqlens_q", cu_seqlens),
    }
    match &problem.kv {
        KvCache::Dense { lengths: Some(lengths), .. } => visit("kv_lengths", lengths),
        KvCache::Dense { lengths: None, .. } => {}
        KvCache::Ragged { cu_seqlens, .. } => visit("cu_seqlens_k", cu_seqlens),
        KvCache::Continuous { lookup_table, lengths, .. } => {
            visit("lookup_table", lookup_table);
            visit("kv_lengths", lengths);
        }
        KvCache::Paged { page_table, lengths, .. } => {
            visit("page_table", page_table);
            visit("kv_lengths", lengths);
        }
    }
    if let Some(sinks) = &problem.sinks {
        visit("sinks", sinks);
    }
    if let Some(start) = &problem.query_start {
        visit("query_start", start);
    }
    problem.mask.visit_tensors(&mut |name, tensor| visit(name, tensor));
    problem.score_mod.visit_tensors(&mut |name, tensor| visit(name, tensor));
}

/// Whether two tensors may share memory: their byte ranges meet, and they are not columns of one matrix that lie
/// beside each other.
pub(crate) fn overlaps(a: &TensorRef<'_>, b: &TensorRef<'_>) -> bool {
    let (Some(range_a), Some(range_b)) = (byte_range(a), byte_range(b)) else {
        return false;
    };
    if a.device() != b.device() || range_a.1 <= range_b.0 || range_b.1 <= range_a.0 {
        return false;
    }
    !interleaved(a, range_a.0, b, range_b.0)
}

fn byte_range(tensor: &TensorRef<'_>) -> Option<(i128, i128)> {
    let (low, high) = tensor.layout().span()?;
    let size = tensor.dtype().size() as i128;
    let base = tensor.as_ptr().addr() as i128;
    Some((base + i128::from(low) * size, base + (i128::from(high) + 1) * size))
}

/// Whether both are made of rows with one common pitch, and within a pitch their rows do not meet.
fn interleaved(a: &TensorRef<'_>, start_a: i128, b: &TensorRef<'_>, start_b: i128) -> bool {
    let Some(pitch) = row_pitch(a).filter(|&pitch| row_pitch(b) == Some(pitch)) else {
        return false;
    };
    let (width_a, width_b) = (row_width(a, pitch), row_width(b, pitch));
    let gap = (start_b - start_a).rem_euclid(pitch);
    gap >= width_a && gap + width_b <= pitch
}

/// The smallest stride in bytes, of an axis longer than 1, that all larger strides are multiples of and that is
/// wider than the axes below it: the distance between rows.
fn row_pitch(tensor: &TensorRef<'_>) -> Option<i128> {
    let size = tensor.dtype().size() as i128;
    let mut axes: Vec<(i128, i128)> = tensor
        .shape()
        .iter()
        .zip(tensor.strides())
        .filter(|(extent, _)| **extent > 1)
        .map(|(&extent, &stride)| (i128::from(stride) * size, extent as i128))
        .collect();
    axes.sort_unstable();
    let mut width = size;
    for (stride, extent) in &axes {
        if *stride < width {
            return None;
        }
        if *stride > width {
            let multiples =
                axes.iter().filter(|(other, _)| other >= stride).all(|(other, _)| other % stride == 0);
            return multiples.then_some(*stride);
        }
        width = stride * extent;
    }
    None
}

fn row_width(tensor: &TensorRef<'_>, pitch: i128) -> i128 {
    let size = tensor.dtype().size() as i128;
    let below = tensor
        .shape()
        .iter()
        .zip(tensor.strides())
        .filter(|(extent, stride)| **extent > 1 && i128::from(**stride) * size < pitch)
        .map(|(&extent, &stride)| i128::from(stride) * size * (extent as i128 - 1));
    below.sum::<i128>() + size
}

/// q, k, v and out: a dense last axis, on the right device, aligned.
pub(crate) fn check_rows(name: &str, tensor: &TensorRef<'_>, device: DeviceId) -> Result<()> {
    if !tensor.layout().has_unit_last_stride() {
        return Err(Error::shape(
            name,
            format!(
                "last stride {}, expected 1: vectors must be dense",
                tensor.strides().last().copied().unwrap_or(0)
            ),
        ));
    }
    check_memory(name, tensor, device)
}

fn check_memory(name: &str, tensor: &TensorRef<'_>, device: DeviceId) -> Result<()> {
    if tensor.device() != device {
        return Err(Error::Device {
            argument: name.into(),
            found: tensor.device().to_string(),
            expected: format!("{device} as q"),
        });
    }
    if !tensor.layout().is_empty() && !tensor.as_ptr().addr().is_multiple_of(tensor.dtype().size()) {
        return Err(Error::value(
            name,
            format!("at address {:#x}", tensor.as_ptr().addr()),
            format!("an address that is a multiple of {}", tensor.dtype().size()),
        ));
    }
    if !tensor.layout().is_empty() && tensor.as_ptr().is_null() {
        return Err(Error::value(name, "at a null address", "the address of its elements"));
    }
    Ok(())
}

pub(crate) fn check_index_tensor(
    name: &str,
    tensor: &TensorRef<'_>,
    shape: &[usize],
    device: DeviceId,
) -> Result<()> {
    if tensor.shape() != shape {
        return Err(Error::shape(name, format!("shape {:?}, expected {shape:?}", tensor.shape())));
    }
    if !tensor.dtype().is_index() {
        return Err(Error::dtype(name, tensor.dtype(), "i32 or u32"));
    }
    check_memory(name, tensor, device)
}

fn check_float_tensor(name: &str, tensor: &TensorRef<'_>, shape: &[usize], device: DeviceId) -> Result<()> {
    if tensor.shape() != shape {
        return Err(Error::shape(name, format!("shape {:?}, expected {shape:?}", tensor.shape())));
    }
    if !tensor.dtype().is_float() {
        return Err(Error::dtype(name, tensor.dtype(), "f32, f16 or bf16"));
    }
    check_memory(name, tensor, device)
}

/// The number of sequences that offsets `[batch + 1]` describe.
pub(crate) fn offsets_batch(cu_seqlens: &TensorRef<'_>, name: &str) -> Result<usize> {
    let [count] = extents(cu_seqlens, name, "[batch + 1]")?;
    count.checked_sub(1).ok_or_else(|| Error::shape(name, "shape [0], expected [batch + 1]"))
}

pub(crate) fn extents<const RANK: usize>(
    tensor: &TensorRef<'_>,
    name: &str,
    expected: &str,
) -> Result<[usize; RANK]> {
    tensor.shape().try_into().map_err(|_| {
        Error::shape(
            name,
            format!("shape {:?} of rank {}, expected {expected}", tensor.shape(), tensor.shape().len()),
        )
    })
}
