//! The memory of a problem: NaN wherever nothing may look.

use omniflash_core::{Float, KvCache, Query, TensorRef};

use super::case::{Case, KvForm, QForm};

/// Numbers near a normal distribution, always the same.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1 << 24) as f32
    }
    fn normal(&mut self) -> f32 {
        (0..6).map(|_| self.uniform()).sum::<f32>() * 1.4 - 4.2
    }
}

/// The memory of a problem.
pub(super) struct Data<T> {
    pub(super) q: Vec<T>,
    pub(super) k: Vec<T>,
    pub(super) v: Vec<T>,
    pub(super) sinks: Vec<f32>,
    pub(super) q_lengths: Vec<i32>,
    pub(super) kv_lengths: Vec<u32>,
    pub(super) table: Vec<i32>,
    k_shape: Vec<usize>,
    max_pages: usize,
}

impl<T: Float> Data<T> {
    pub(super) fn new(case: &Case<'_, T>) -> Self {
        let mut random = Random(7);
        let lens = |most: usize, offset: usize| -> Vec<usize> {
            (0..case.batch).map(|b| if b == 1 { 0 } else { most - (b * offset) % (most + 1) }).collect()
        };
        let mut q_lens = vec![case.seqlen_q; case.batch];
        if case.q_form != QForm::Padded {
            q_lens = lens(case.seqlen_q, 9);
            q_lens[0] = case.seqlen_q.saturating_sub(3);
        }
        let mut kv_lens = vec![case.seqlen_k; case.batch];
        if case.kv_form != KvForm::Dense {
            kv_lens = lens(case.seqlen_k, 17);
            kv_lens[0] = case.seqlen_k.saturating_sub(1);
        }
        let offsets = |lens: &[usize]| -> Vec<usize> {
            std::iter::once(0)
                .chain(lens.iter().scan(0, |sum, len| {
                    *sum += len;
                    Some(*sum)
                }))
                .collect()
        };
        let (rows, q_lengths) = match case.q_form {
            QForm::Ragged => (q_lens.iter().sum::<usize>(), offsets(&q_lens)),
            _ => (case.batch * case.seqlen_q, q_lens.clone()),
        };
        let q = (0..rows * case.heads * case.head_dim).map(|_| T::from_f32(random.normal())).collect();

        // Slots for keys; all are NaN unless a sequence uses them.
        let page_size = if let KvForm::Paged(page_size) = case.kv_form { page_size } else { 1 };
        let max_pages = case.seqlen_k.div_ceil(page_size);
        let (blocks, per_block) = match case.kv_form {
            KvForm::Dense | KvForm::Lengths => (case.batch, case.seqlen_k),
            KvForm::Ragged => (1, kv_lens.iter().sum()),
            KvForm::Continuous => (case.batch + 2, case.seqlen_k),
            KvForm::Paged(page_size) => (case.batch * max_pages + 3, page_size),
        };
        let table: Vec<i32> = match case.kv_form {
            KvForm::Continuous => (0..case.batch)
                .map(|b| if kv_lens[b] == 0 { -7 } else { (case.batch + 1 - b) as i32 })
                .collect(),
            KvForm::Paged(page_size) => (0..case.batch * max_pages)
                .map(|i| {
                    let (b, page) = (i / max_pages, i % max_pages);
                    let used = page * page_size < kv_lens[b];
                    if used { ((i * 7 + 3) % (case.batch * max_pages + 3)) as i32 } else { i32::MAX }
                })
                .collect(),
            _ => Vec::new(),
        };
        let slots = blocks * per_block;
        let (kd, vd) = (case.kv_heads * case.head_dim, case.kv_heads * case.value_dim);
        let mut k = vec![T::from_f32(f32::NAN); slots * kd];
        let mut v = vec![T::from_f32(f32::NAN); slots * vd];
        let kv_offsets = offsets(&kv_lens);
        for b in 0..case.batch {
            for j in 0..kv_lens[b] {
                let slot = match case.kv_form {
                    KvForm::Dense | KvForm::Lengths => b * per_block + j,
                    KvForm::Ragged => kv_offsets[b] + j,
                    KvForm::Continuous => table[b] as usize * per_block + j,
                    KvForm::Paged(page_size) => {
                        table[b * max_pages + j / page_size] as usize * page_size + j % page_size
                    }
                };
                k[slot * kd..(slot + 1) * kd].fill_with(|| T::from_f32(random.normal()));
                v[slot * vd..(slot + 1) * vd].fill_with(|| T::from_f32(random.normal()));
                if case.bad_values && j % 29 == 20 {
                    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][j / 29 % 3];
                    v[slot * vd + j % vd] = T::from_f32(bad);
                }
            }
        }
        let mut k_shape = vec![blocks, per_block, case.kv_heads];
        let kv_lengths = match case.kv_form {
            KvForm::Ragged => {
                k_shape.remove(0);
                kv_offsets
            }
            _ => kv_lens,
        };
        Data {
            q,
            k,
            v,
            sinks: (0..case.heads).map(|h| h as f32 - 1.0).collect(),
            q_lengths: q_lengths.iter().map(|&n| n as i32).collect(),
            kv_lengths: kv_lengths.iter().map(|&n| n as u32).collect(),
            table,
            k_shape,
            max_pages,
        }
    }

    /// All of it.
    pub(super) fn bytes(&self) -> [&[u8]; 7] {
        [
            bytemuck::cast_slice(&self.q),
            bytemuck::cast_slice(&self.k),
            bytemuck::cast_slice(&self.v),
            bytemuck::cast_slice(&self.sinks),
            bytemuck::cast_slice(&self.q_lengths),
            bytemuck::cast_slice(&self.kv_lengths),
            bytemuck::cast_slice(&self.table),
        ]
    }

    pub(super) fn query(&self, case: &Case<'_, T>) -> Query<'_> {
        let tensor =
            |shape: &[usize]| TensorRef::from_slice(&self.q, shape).expect("the data has the case's shape");
        let lengths = TensorRef::from_slice(&self.q_lengths, &[self.q_lengths.len()])
            .expect("the data has the case's shape");
        let padded = [case.batch, case.seqlen_q, case.heads, case.head_dim];
        match case.q_form {
            QForm::Padded => Query::padded(tensor(&padded)),
            QForm::Lengths => Query::Padded { q: tensor(&padded), lengths: Some(lengths) },
            QForm::Ragged => {
                let rows = self.q.len() / (case.heads * case.head_dim);
                Query::Ragged {
                    q: tensor(&[rows, case.heads, case.head_dim]),
                    cu_seqlens: lengths,
                    max_seqlen: Some(case.seqlen_q),
                }
            }
        }
    }

    pub(super) fn kv(&self, case: &Case<'_, T>) -> KvCache<'_> {
        let shape = |dim: usize| [&self.k_shape[..], &[dim]].concat();
        let k = TensorRef::from_slice(&self.k, &shape(case.head_dim)).expect("the data has the case's shape");
        let v =
            TensorRef::from_slice(&self.v, &shape(case.value_dim)).expect("the data has the case's shape");
        let lengths = TensorRef::from_slice(&self.kv_lengths, &[self.kv_lengths.len()])
            .expect("the data has the case's shape");
        match case.kv_form {
            KvForm::Dense => KvCache::dense(k, v),
            KvForm::Lengths => KvCache::Dense { k, v, lengths: Some(lengths) },
            KvForm::Ragged => KvCache::Ragged { k, v, cu_seqlens: lengths, max_seqlen: Some(case.seqlen_k) },
            KvForm::Continuous => KvCache::Continuous {
                k,
                v,
                lookup_table: TensorRef::from_slice(&self.table, &[case.batch])
                    .expect("the data has the case's shape"),
                lengths,
                max_seqlen: None,
            },
            KvForm::Paged(_) => KvCache::Paged {
                k,
                v,
                page_table: TensorRef::from_slice(&self.table, &[case.batch, self.max_pages])
                    .expect("the data has the case's shape"),
                lengths,
                max_seqlen: Some(case.seqlen_k),
            },
        }
    }
}
