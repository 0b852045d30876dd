//! The checks behind [`KvAppend::new`](super::KvAppend::new).

use super::{AppendAt, KvAppendShape, KvCacheMut, NewKv};
use crate::error::{Error, Result};
use crate::problem::validate::{check_index_tensor, check_rows, extents, offsets_batch, overlaps};
use crate::tensor::TensorRef;

pub(super) fn check(new: &NewKv<'_>, cache: &KvCacheMut<'_>, at: &AppendAt<'_>) -> Result<KvAppendShape> {
    let shape = shape_of(new, cache)?;
    let device = shape.device;
    let (cache_k, cache_v) = (cache.k().as_view(), cache.v().as_view());
    for (name, tensor) in [("new_k", new.k()), ("new_v", new.v()), ("k", cache_k), ("v", cache_v)] {
        if !tensor.dtype().is_float() {
            return Err(Error::dtype(name, tensor.dtype(), "f32, f16 or bf16"));
        }
        if tensor.dtype() != shape.dtype {
            return Err(Error::dtype(name, tensor.dtype(), format!("{} as new_k", shape.dtype)));
        }
        check_rows(name, tensor, device)?;
    }
    let mut read = vec![("new_k", new.k()), ("new_v", new.v()), (at.name(), at.positions())];
    check_index_tensor(at.name(), at.positions(), &[shape.batch], device)?;
    match new {
        NewKv::Padded { lengths: Some(lengths), .. } => {
            check_index_tensor("new_lengths", lengths, &[shape.batch], device)?;
            read.push(("new_lengths", lengths));
        }
        NewKv::Padded { lengths: None, .. } => {}
        NewKv::Ragged { cu_seqlens, .. } => {
            check_index_tensor("cu_seqlens_new", cu_seqlens, &[shape.batch + 1], device)?;
            read.push(("cu_seqlens_new", cu_seqlens));
        }
    }
    if let Some((name, table)) = cache.table() {
        let extents = match cache {
            KvCacheMut::Paged { .. } => vec![shape.batch, table.shape()[1]],
            _ => vec![shape.batch],
        };
        check_index_tensor(name, table, &extents, device)?;
        read.push((name, table));
    }
    for (name, written) in [("k", &cache_k), ("v", &cache_v)] {
        let overlap = |with: &str| Error::Overlap { argument: name.into(), with: with.into() };
        if written.layout().may_overlap_itself() {
            return Err(overlap("itself"));
        }
        if let Some((with, _)) = read.iter().find(|(_, tensor)| overlaps(written, tensor)) {
            return Err(overlap(with));
        }
    }
    if overlaps(cache_k, cache_v) {
        return Err(Error::Overlap { argument: "k".into(), with: "v".into() });
    }
    Ok(shape)
}

fn shape_of(new: &NewKv<'_>, cache: &KvCacheMut<'_>) -> Result<KvAppendShape> {
    let (batch, new_rows, num_kv_heads, head_dim) = match new {
        NewKv::Padded { k, .. } => {
            let [batch, rows, heads, dim] = extents(k, "new_k", "[batch, new_rows, num_kv_heads, head_dim]")?;
            (batch, rows, heads, dim)
        }
        NewKv::Ragged { k, cu_seqlens, max_seqlen, .. } => {
            let [total, heads, dim] = extents(k, "new_k", "[total_rows, num_kv_heads, head_dim]")?;
            let batch = offsets_batch(cu_seqlens, "cu_seqlens_new")?;
            (batch, max_seqlen.unwrap_or(total).min(total), heads, dim)
        }
    };
    let value_dim = values_dim("new_v", new.v(), new.k(), "new_k")?;
    let (cache_k, cache_v) = (cache.k().as_view(), cache.v().as_view());
    let [blocks, rows, heads, dim] = extents(cache_k, "k", "[blocks, rows, num_kv_heads, head_dim]")?;
    if (heads, dim) != (num_kv_heads, head_dim) {
        return Err(Error::shape(
            "k",
            format!("{heads} heads of {dim}, expected new_k's {num_kv_heads} of {head_dim}"),
        ));
    }
    let cache_value_dim = values_dim("v", cache_v, cache_k, "k")?;
    if cache_value_dim != value_dim {
        return Err(Error::shape("v", format!("value_dim {cache_value_dim}, expected new_v's {value_dim}")));
    }
    if head_dim == 0 || value_dim == 0 {
        return Err(Error::shape("new_k", "vectors without elements, expected at least 1"));
    }
    let (found_batch, says_batch, capacity) = match cache {
        KvCacheMut::Dense { .. } => (blocks, "k", rows),
        KvCacheMut::Continuous { lookup_table, .. } => {
            let [batch] = extents(lookup_table, "lookup_table", "[batch]")?;
            (batch, "lookup_table", rows)
        }
        KvCacheMut::Paged { page_table, .. } => {
            let [batch, max_pages] = extents(page_table, "page_table", "[batch, max_pages]")?;
            if rows == 0 && max_pages > 0 {
                return Err(Error::shape("k", "page_size 0, expected at least 1"));
            }
            let capacity = max_pages
                .checked_mul(rows)
                .ok_or_else(|| Error::shape("page_table", "max_pages * page_size overflows"))?;
            (batch, "page_table", capacity)
        }
    };
    if found_batch != batch {
        return Err(Error::shape(says_batch, format!("batch {found_batch}, expected new_k's {batch}")));
    }
    Ok(KvAppendShape {
        batch,
        num_kv_heads,
        head_dim,
        value_dim,
        new_rows,
        capacity,
        dtype: new.k().dtype(),
        device: new.k().device(),
    })
}

/// Checks that values are shaped as keys and returns their last extent.
fn values_dim(name: &str, v: &TensorRef<'_>, k: &TensorRef<'_>, as_name: &str) -> Result<usize> {
    let (found, expected) = (v.shape(), k.shape());
    let last = expected.len() - 1;
    if found.len() != expected.len() || found[..last] != expected[..last] {
        return Err(Error::shape(
            name,
            format!("shape {found:?}, expected {:?} and value_dim as {as_name}", &expected[..last]),
        ));
    }
    Ok(found[last])
}
