//! Appends against a plain loop over the same memory, with NaN wherever nothing may be read or written.

use half::bf16;

use super::*;
use crate::backend::run_kv_append;
use crate::device::Stream;
use crate::layout::Layout;
use crate::reference::ReferenceBackend;

const HEADS: usize = 2;
const DIM: usize = 3;
const VALUE_DIM: usize = 5;

#[derive(Clone, Copy, Debug)]
enum Form {
    Dense,
    Continuous,
    Paged(usize),
}

/// A batch of three sequences: rows to append, and the lengths before.
struct Batch {
    rows: [usize; 3],
    before: [usize; 3],
}

const BATCH: Batch = Batch { rows: [4, 0, 1], before: [5, 11, 0] };
const CAPACITY: usize = 12;

/// Appends with the reference and returns the caches.
fn append(form: Form, ragged: bool, at_end: bool) -> Result<[Vec<f32>; 2]> {
    let rows = BATCH.rows;
    let total: usize = rows.iter().sum();
    let count = if ragged { total } else { 3 * 4 };
    // Padded rows that are not valid are NaN.
    let new = |dim: usize, salt: f32| -> Vec<f32> {
        let mut data = vec![f32::NAN; count * HEADS * dim];
        for b in 0..3 {
            for i in 0..rows[b] {
                let row = if ragged { rows[..b].iter().sum::<usize>() + i } else { 4 * b + i };
                for x in 0..HEADS * dim {
                    data[row * HEADS * dim + x] = value(b, i, x, salt);
                }
            }
        }
        data
    };
    let (new_k, new_v) = (new(DIM, 0.25), new(VALUE_DIM, 0.5));
    let offsets: Vec<i32> = (0..=3).map(|b| rows[..b].iter().sum::<usize>() as i32).collect();
    let lengths: Vec<u32> = rows.iter().map(|&n| n as u32).collect();
    let tensor = |data, dim| {
        let shape = if ragged { vec![total, HEADS, dim] } else { vec![3, 4, HEADS, dim] };
        TensorRef::from_slice(data, &shape).unwrap()
    };
    let (k, v) = (tensor(&new_k[..], DIM), tensor(&new_v[..], VALUE_DIM));
    let new = if ragged {
        NewKv::Ragged { k, v, cu_seqlens: TensorRef::from_slice(&offsets, &[4])?, max_seqlen: None }
    } else {
        NewKv::Padded { k, v, lengths: Some(TensorRef::from_slice(&lengths, &[3])?) }
    };
    let (blocks, per_block) = pool(form);
    let mut caches = [DIM, VALUE_DIM].map(|dim| vec![f32::NAN; blocks * per_block * HEADS * dim]);
    let [cache_k, cache_v] = &mut caches;
    let k = TensorMut::from_slice(cache_k, &[blocks, per_block, HEADS, DIM])?;
    let v = TensorMut::from_slice(cache_v, &[blocks, per_block, HEADS, VALUE_DIM])?;
    let table = table(form);
    let cache = match form {
        Form::Dense => KvCacheMut::Dense { k, v },
        Form::Continuous => {
            KvCacheMut::Continuous { k, v, lookup_table: TensorRef::from_slice(&table, &[3])? }
        }
        Form::Paged(_) => {
            let page_table = TensorRef::from_slice(&table, &[3, table.len() / 3])?;
            KvCacheMut::Paged { k, v, page_table }
        }
    };
    let positions: Vec<i32> =
        (0..3).map(|b| (BATCH.before[b] + if at_end { rows[b] } else { 0 }) as i32).collect();
    let positions = TensorRef::from_slice(&positions, &[3])?;
    let at = if at_end { AppendAt::End(positions) } else { AppendAt::Start(positions) };
    run_kv_append(&ReferenceBackend::new(), &KvAppend::new(new, cache, at)?, &Stream::host())?;
    Ok(caches)
}

fn value(b: usize, i: usize, x: usize, salt: f32) -> f32 {
    (100 * b + 10 * i + x) as f32 + salt
}

fn pool(form: Form) -> (usize, usize) {
    match form {
        Form::Dense => (3, CAPACITY),
        Form::Continuous => (5, CAPACITY),
        Form::Paged(size) => (3 * CAPACITY.div_ceil(size) + 2, size),
    }
}

/// Blocks out of order; entries of positions that are not written are no ids.
fn table(form: Form) -> Vec<i32> {
    match form {
        Form::Dense => Vec::new(),
        Form::Continuous => vec![3, -1, 1],
        Form::Paged(size) => {
            let pages = CAPACITY.div_ceil(size);
            (0..3 * pages)
                .map(|i| {
                    let (b, page) = (i / pages, i % pages);
                    let written = BATCH.before[b]..BATCH.before[b] + BATCH.rows[b];
                    let used = written.into_iter().any(|position| position / size == page);
                    if used { (3 * pages + 1 - i) as i32 } else { i32::MAX }
                })
                .collect()
        }
    }
}

#[test]
fn rows_land_at_their_positions_and_nothing_else_changes() {
    for form in [Form::Dense, Form::Continuous, Form::Paged(1), Form::Paged(5), Form::Paged(16)] {
        for (ragged, at_end) in [(false, false), (false, true), (true, false), (true, true)] {
            let found = append(form, ragged, at_end).unwrap();
            let (blocks, per_block) = pool(form);
            let table = table(form);
            for (found, dim, salt) in [(&found[0], DIM, 0.25), (&found[1], VALUE_DIM, 0.5)] {
                let mut expected = vec![f32::NAN; blocks * per_block * HEADS * dim];
                for b in 0..3 {
                    for i in 0..BATCH.rows[b] {
                        let position = BATCH.before[b] + i;
                        let slot = match form {
                            Form::Dense => b * CAPACITY + position,
                            Form::Continuous => table[b] as usize * CAPACITY + position,
                            Form::Paged(size) => {
                                let page = table[b * (table.len() / 3) + position / size] as usize;
                                page * size + position % size
                            }
                        };
                        for x in 0..HEADS * dim {
                            expected[slot * HEADS * dim + x] = value(b, i, x, salt);
                        }
                    }
                }
                let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(found), bits(&expected), "{form:?}, ragged {ragged}, at end {at_end}");
            }
        }
    }
}

#[test]
fn any_strides_and_sixteen_bits() {
    let new: Vec<bf16> = (0..2 * 2 * 4).map(|i| bf16::from_f32(i as f32)).collect();
    // [batch 1, rows 2, heads 2, dim 4], heads outermost in memory.
    let layout = Layout::bhsd(1, 2, 2, 4).unwrap();
    let k = TensorRef::with_layout(&new, layout, 0).unwrap();
    let mut pools = [vec![bf16::NAN; 6 * 2 * 4], vec![bf16::NAN; 6 * 2 * 4]];
    let [pool_k, pool_v] = &mut pools;
    let cache = |pool| TensorMut::with_layout(pool, Layout::bhsd(1, 6, 2, 4).unwrap(), 0).unwrap();
    let cache = KvCacheMut::Dense { k: cache(pool_k), v: cache(pool_v) };
    let starts = [3i32];
    let at = AppendAt::Start(TensorRef::from_slice(&starts, &[1]).unwrap());
    let append = KvAppend::new(NewKv::padded(k.clone(), k), cache, at).unwrap();
    run_kv_append(&ReferenceBackend::new(), &append, &Stream::host()).unwrap();
    drop(append);
    for pool in &pools {
        for (i, found) in pool.iter().enumerate() {
            let (head, row, x) = (i / 24, i / 4 % 6, i % 4);
            if (3..5).contains(&row) {
                assert_eq!(found.to_f32(), (head * 8 + (row - 3) * 4 + x) as f32);
            } else {
                assert!(found.is_nan());
            }
        }
    }
}

#[test]
fn positions_and_ids_out_of_range_are_named_before_anything_is_written() {
    let new = [1.0f32; 2 * 2 * 4];
    let new = || TensorRef::from_slice(&new, &[2, 2, 1, 4]).unwrap();
    let attempt = |positions: [i32; 2], end: bool, table: [i32; 4], lengths: [i32; 2]| {
        let mut pools = [[f32::NAN; 4 * 3 * 4]; 2];
        let [k, v] = &mut pools;
        let shape = [4, 3, 1, 4];
        let cache = KvCacheMut::Paged {
            k: TensorMut::from_slice(k, &shape).unwrap(),
            v: TensorMut::from_slice(v, &shape).unwrap(),
            page_table: TensorRef::from_slice(&table, &[2, 2]).unwrap(),
        };
        let positions = TensorRef::from_slice(&positions, &[2]).unwrap();
        let at = if end { AppendAt::End(positions) } else { AppendAt::Start(positions) };
        let lengths = Some(TensorRef::from_slice(&lengths, &[2]).unwrap());
        let new = NewKv::Padded { k: new(), v: new(), lengths };
        let append = KvAppend::new(new, cache, at).unwrap();
        let result = run_kv_append(&ReferenceBackend::new(), &append, &Stream::host());
        drop(append);
        let untouched = pools.iter().flatten().all(|x| x.is_nan());
        assert_eq!(result.is_err(), untouched);
        result.map_err(|error| error.to_string())
    };
    let good = [0, 1, 2, 3];
    assert_eq!(attempt([0, 4], false, good, [2, 2]), Ok(()));
    let errors = [
        attempt([0, 5], false, good, [2, 2]),
        attempt([-1, 0], false, good, [2, 2]),
        attempt([2, 1], true, good, [2, 2]),
        attempt([0, 2], false, [0, 9, 1, -3], [2, 2]),
        attempt([0, 0], false, good, [2, 3]),
    ];
    insta::assert_snapshot!(errors.map(|error| error.unwrap_err()).join("\n"));
}

#[test]
fn tensors_that_do_not_fit_are_refused_with_the_argument() {
    let data = [0.0f32; 64];
    let indices = [0i32; 4];
    let new = |shape: &[usize]| TensorRef::from_slice(&data[..shape.iter().product()], shape).unwrap();
    let at = |n: usize| AppendAt::Start(TensorRef::from_slice(&indices[..n], &[n]).unwrap());
    let dense = |k: &[usize], v: &[usize]| KvCacheMut::Dense {
        k: TensorMut::from_slice(vec![0.0f32; k.iter().product()].leak(), k).unwrap(),
        v: TensorMut::from_slice(vec![0.0f32; v.iter().product()].leak(), v).unwrap(),
    };
    let (rows, cache) = ([2, 1, 2, 4], [2, 8, 2, 4]);
    let padded = || NewKv::padded(new(&rows), new(&rows));
    let mut shared = vec![0.0f32; 128];
    let address = shared.as_mut_ptr().expose_provenance() as u64;
    let raw = |shape: &[usize]| {
        let layout = Layout::contiguous(shape).unwrap();
        // SAFETY: never read or written.
        unsafe { TensorMut::from_raw(address, DType::F32, layout, DeviceId::Cpu) }
    };
    let elsewhere = {
        let layout = Layout::contiguous(&cache).unwrap();
        // SAFETY: never read or written.
        unsafe { TensorMut::from_raw(1 << 20, DType::F32, layout, DeviceId::Cuda(0)) }
    };
    let attempts = [
        KvAppend::new(padded(), dense(&[2, 8, 2, 5], &cache), at(2)),
        KvAppend::new(padded(), dense(&cache, &[2, 8, 2, 5]), at(2)),
        KvAppend::new(padded(), dense(&[3, 8, 2, 4], &[3, 8, 2, 4]), at(2)),
        KvAppend::new(padded(), dense(&cache, &cache), at(3)),
        KvAppend::new(NewKv::padded(new(&rows), new(&[2, 1, 1, 4])), dense(&cache, &cache), at(2)),
        KvAppend::new(padded(), KvCacheMut::Dense { k: raw(&cache), v: raw(&cache) }, at(2)),
        KvAppend::new(padded(), KvCacheMut::Dense { k: elsewhere, v: raw(&cache) }, at(2)),
        KvAppend::new(
            NewKv::padded(
                TensorRef::from_slice(&[bf16::ZERO; 16], &rows).unwrap(),
                TensorRef::from_slice(&[bf16::ZERO; 16], &rows).unwrap(),
            ),
            dense(&cache, &cache),
            at(2),
        ),
    ];
    let errors: Vec<String> = attempts.into_iter().map(|result| result.unwrap_err().to_string()).collect();
    insta::assert_snapshot!(errors.join("\n"));
}
