//! The checks behind [`AttentionProblem::check_indices`].

use super::AttentionProblem;
use crate::device::DeviceId;
use crate::error::{Error, Result};
use crate::kv_cache::{KvCache, Query};
use crate::mask::index_at;
use crate::tensor::TensorRef;

pub(super) fn check(problem: &AttentionProblem<'_>) -> Result<()> {
    let shape = problem.shape();
    if shape.device != DeviceId::Cpu {
        return Err(Error::Device {
            argument: "q".into(),
            found: shape.device.to_string(),
            expected: "cpu, where lengths and tables can be read".into(),
        });
    }
    match problem.query() {
        Query::Padded { lengths: Some(lengths), .. } => {
            check_lengths("q_lengths", lengths, shape.seqlen_q)?;
        }
        Query::Padded { lengths: None, .. } => {}
        Query::Ragged { cu_seqlens, .. } => {
            check_offsets("cu_seqlens_q", cu_seqlens, shape.total_q, shape.seqlen_q)?;
        }
    }
    match problem.kv() {
        KvCache::Dense { lengths: Some(lengths), .. } => check_lengths("kv_lengths", lengths, shape.seqlen_k),
        KvCache::Dense { lengths: None, .. } => Ok(()),
        KvCache::Ragged { k, cu_seqlens, .. } => {
            check_offsets("cu_seqlens_k", cu_seqlens, k.shape()[0], shape.seqlen_k)
        }
        KvCache::Continuous { k, lookup_table, lengths, .. } => {
            check_lengths("kv_lengths", lengths, shape.seqlen_k)?;
            for b in (0..shape.batch).filter(|&b| index_at(lengths, &[b]) > 0) {
                check_id(&format!("lookup_table[{b}]"), index_at(lookup_table, &[b]), k.shape()[0])?;
            }
            Ok(())
        }
        KvCache::Paged { k, page_table, lengths, .. } => {
            check_lengths("kv_lengths", lengths, shape.seqlen_k)?;
            for b in 0..shape.batch {
                let used = (index_at(lengths, &[b]) as usize).div_ceil(k.shape()[1].max(1));
                for i in 0..used {
                    let id = index_at(page_table, &[b, i]);
                    if !(0..k.shape()[0] as i64).contains(&id) {
                        check_id(&format!("page_table[{b}, {i}]"), id, k.shape()[0])?;
                    }
                }
            }
            Ok(())
        }
    }
}

fn check_lengths(name: &str, lengths: &TensorRef<'_>, most: usize) -> Result<()> {
    for b in 0..lengths.shape()[0] {
        let length = index_at(lengths, &[b]);
        if !(0..=most as i64).contains(&length) {
            return Err(Error::value(format!("{name}[{b}]"), length, format!("0 to {most}")));
        }
    }
    Ok(())
}

fn check_offsets(name: &str, offsets: &TensorRef<'_>, total: usize, most: usize) -> Result<()> {
    let mut previous = index_at(offsets, &[0]);
    if previous < 0 || previous > total as i64 {
        return Err(Error::value(format!("{name}[0]"), previous, format!("0 to {total}")));
    }
    for i in 1..offsets.shape()[0] {
        let offset = index_at(offsets, &[i]);
        let last = total.min(previous as usize + most) as i64;
        if offset < previous || offset > last {
            return Err(Error::value(format!("{name}[{i}]"), offset, format!("{previous} to {last}")));
        }
        previous = offset;
    }
    Ok(())
}

fn check_id(name: &str, id: i64, count: usize) -> Result<()> {
    if (0..count as i64).contains(&id) {
        return Ok(());
    }
    Err(Error::value(name, id, format!("an id below {count}")))
}
