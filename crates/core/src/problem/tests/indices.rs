//! Lengths, offsets and ids, which are read where the data lies.

use super::*;

/// A problem over real memory: 2 sequences of up to 3 queries, keys in 4 pages of 4 or the like.
struct Lengths<'a> {
    q_lengths: Option<&'a [i32]>,
    kv: KvForm<'a>,
}

enum KvForm<'a> {
    Padded(&'a [i32]),
    Ragged { q: &'a [i32], k: &'a [i32], max_seqlen: Option<usize> },
    Continuous { table: &'a [i32], lengths: &'a [i32], max_seqlen: Option<usize> },
    Paged { table: &'a [i32], lengths: &'a [i32] },
}

impl Lengths<'_> {
    fn check(&self) -> Result<()> {
        let (q, pool) = ([0.0f32; 6], [0.0f32; 16]);
        let mut out = [0.0f32; 6];
        let integers = |values: &'_ [i32], shape: &[usize]| {
            TensorRef::from_slice(values, shape).map(|t| {
                // SAFETY: the values outlive the check.
                unsafe { TensorRef::from_raw(t.address(), t.dtype(), t.layout().clone(), t.device()) }
            })
        };
        let pages = || TensorRef::from_slice(&pool, &[4, 4, 1, 1]);
        let mut query = Query::Padded {
            q: TensorRef::from_slice(&q, &[2, 3, 1, 1])?,
            lengths: self.q_lengths.map(|lengths| integers(lengths, &[2])).transpose()?,
        };
        let mut out_shape = vec![2, 3, 1, 1];
        let kv = match self.kv {
            KvForm::Padded(lengths) => {
                let dense = TensorRef::from_slice(&pool, &[2, 8, 1, 1])?;
                KvCache::Dense { k: dense.clone(), v: dense, lengths: Some(integers(lengths, &[2])?) }
            }
            KvForm::Ragged { q: q_offsets, k, max_seqlen } => {
                let rows = TensorRef::from_slice(&pool, &[16, 1, 1])?;
                query = Query::ragged(TensorRef::from_slice(&q, &[6, 1, 1])?, integers(q_offsets, &[3])?);
                out_shape = vec![6, 1, 1];
                KvCache::Ragged { k: rows.clone(), v: rows, cu_seqlens: integers(k, &[3])?, max_seqlen }
            }
            KvForm::Continuous { table, lengths, max_seqlen } => KvCache::Continuous {
                k: pages()?,
                v: pages()?,
                lookup_table: integers(table, &[2])?,
                lengths: integers(lengths, &[2])?,
                max_seqlen,
            },
            KvForm::Paged { table, lengths } => KvCache::Paged {
                k: pages()?,
                v: pages()?,
                page_table: integers(table, &[2, 2])?,
                lengths: integers(lengths, &[2])?,
                max_seqlen: None,
            },
        };
        let out = TensorMut::from_slice(&mut out, &out_shape)?;
        let problem = AttentionProblem::new(query, kv, out, None, &AttentionOptions::new())?;
        verify_page_table(&problem)
    }
}

fn of(kv: KvForm<'_>) -> Lengths<'_> {
    Lengths { q_lengths: None, kv }
}

#[test]
fn valid_lengths_offsets_and_ids_are_accepted() {
    Lengths { q_lengths: Some(&[0, 3]), kv: KvForm::Padded(&[8, 0]) }.check().unwrap();
    of(KvForm::Ragged { q: &[0, 0, 6], k: &[3, 9, 16], max_seqlen: None }).check().unwrap();
    of(KvForm::Ragged { q: &[2, 2, 2], k: &[0, 0, 0], max_seqlen: Some(0) }).check().unwrap();
    of(KvForm::Continuous { table: &[3, 3], lengths: &[4, 1], max_seqlen: None }).check().unwrap();
    of(KvForm::Paged { table: &[3, 0, 3, 1], lengths: &[8, 5] }).check().unwrap();
}

#[test]
fn entries_past_a_length_are_never_looked_at() {
    of(KvForm::Continuous { table: &[-1, 99], lengths: &[0, 0], max_seqlen: None }).check().unwrap();
    of(KvForm::Paged { table: &[2, -1, i32::MIN, i32::MAX], lengths: &[4, 0] }).check().unwrap();
}

#[test]
fn entries_out_of_range_are_named() {
    let mistakes: Vec<(&str, Lengths<'_>)> = vec![
        ("q_lengths beyond", Lengths { q_lengths: Some(&[3, 4]), kv: KvForm::Padded(&[8, 8]) }),
        ("q_lengths negative", Lengths { q_lengths: Some(&[-1, 3]), kv: KvForm::Padded(&[8, 8]) }),
        ("kv_lengths beyond", of(KvForm::Padded(&[8, 9]))),
        ("kv_lengths negative", of(KvForm::Padded(&[i32::MIN, 0]))),
        ("offsets start below", of(KvForm::Ragged { q: &[-1, 0, 6], k: &[0, 4, 8], max_seqlen: None })),
        ("offsets start above", of(KvForm::Ragged { q: &[7, 7, 7], k: &[0, 4, 8], max_seqlen: None })),
        ("offsets fall", of(KvForm::Ragged { q: &[0, 4, 3], k: &[0, 4, 8], max_seqlen: None })),
        ("offsets leave", of(KvForm::Ragged { q: &[0, 4, 6], k: &[0, 4, 17], max_seqlen: None })),
        ("longer than promised", of(KvForm::Ragged { q: &[0, 4, 6], k: &[0, 4, 12], max_seqlen: Some(7) })),
        ("block negative", of(KvForm::Continuous { table: &[0, -2], lengths: &[1, 1], max_seqlen: None })),
        ("block beyond", of(KvForm::Continuous { table: &[4, 0], lengths: &[1, 1], max_seqlen: None })),
        (
            "length beyond block",
            of(KvForm::Continuous { table: &[0, 1], lengths: &[4, 5], max_seqlen: None }),
        ),
        (
            "length beyond promise",
            of(KvForm::Continuous { table: &[0, 1], lengths: &[4, 3], max_seqlen: Some(3) }),
        ),
        ("page beyond", of(KvForm::Paged { table: &[0, 1, 2, 4], lengths: &[8, 5] })),
        ("page negative", of(KvForm::Paged { table: &[0, -1, 2, 3], lengths: &[5, 5] })),
        ("length beyond pages", of(KvForm::Paged { table: &[0, 1, 2, 3], lengths: &[9, 1] })),
    ];
    let messages: String = mistakes
        .into_iter()
        .map(|(name, lengths)| format!("{name}: {}\n", lengths.check().expect_err(name)))
        .collect();
    insta::assert_snapshot!(messages);
}

#[test]
fn memory_of_a_device_is_not_read() {
    let at = Addresses::new();
    let tensor =
        |shape: &[usize]| at.place(DType::F16, Layout::contiguous(shape).unwrap(), DeviceId::Cuda(0));
    let kv = KvCache::dense(tensor(&[1, 4, 1, 8]), tensor(&[1, 4, 1, 8]));
    let out = written(&tensor(&[1, 2, 1, 8]));
    let problem =
        AttentionProblem::new(tensor(&[1, 2, 1, 8]).into(), kv, out, None, &AttentionOptions::new()).unwrap();
    let error = problem.check_indices().unwrap_err();
    assert_eq!(error.to_string(), "q is on cuda:0, expected cpu, where lengths and tables can be read");
}

proptest! {
    #[test]
    fn any_entries_give_an_answer_that_says_whether_they_are_in_range(
        table in prop::array::uniform4(-2i32..6),
        lengths in prop::array::uniform2(-2i32..11),
    ) {
        let in_range = lengths.iter().all(|length| (0..=8).contains(length)) && (0..2).all(|b| {
            let used = (lengths[b].max(0) as usize).div_ceil(4).min(2);
            table[2 * b..2 * b + used].iter().all(|page| (0..4).contains(page))
        });
        let checked = of(KvForm::Paged { table: &table, lengths: &lengths }).check();
        prop_assert_eq!(checked.is_ok(), in_range, "{:?}", checked);
    }
}
