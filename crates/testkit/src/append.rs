//! Appends of many forms on a backend, bit by bit beside the reference.

use half::{bf16, f16};
use omniflash_core::backend::run_kv_append;
use omniflash_core::{
    AppendAt, Backend, Element, KvAppend, KvCacheMut, NewKv, ReferenceBackend, Result, Stream, Tensor,
};

/// Where keys are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Room {
    /// A batch of sequences.
    Dense,
    /// Blocks by a lookup table.
    Continuous,
    /// Pages of so many keys by a page table.
    Paged(usize),
}

/// One append: three sequences with 4, 0 and 2 new rows.
#[derive(Clone, Copy, Debug)]
pub struct Append {
    /// Where keys are kept.
    pub room: Room,
    /// Whether new rows lie one after another.
    pub ragged: bool,
    /// Whether positions are those of the end, with the new rows.
    pub at_end: bool,
    /// Columns of keys and of values.
    pub dims: (usize, usize),
}

const ROWS: [usize; 3] = [4, 0, 2];
const BEFORE: [usize; 3] = [13, 40, 0];
const CAPACITY: usize = 48;
const HEADS: usize = 3;

/// All of them.
pub fn appends() -> Vec<Append> {
    let mut appends = Vec::new();
    for room in [Room::Dense, Room::Continuous, Room::Paged(1), Room::Paged(7), Room::Paged(16)] {
        for (ragged, at_end) in [(false, false), (true, false), (false, true), (true, true)] {
            for dims in [(64, 128), (6, 10), (5, 7)] {
                appends.push(Append { room, ragged, at_end, dims });
            }
        }
    }
    appends
}

/// Whether a backend leaves the bits that the reference leaves, in every dtype.
///
/// # Errors
/// Those of the backend.
pub fn agrees(backend: &dyn Backend, append: &Append) -> Result<bool> {
    let reference = ReferenceBackend::new();
    let (stream, host) = (backend.stream()?, Stream::host());
    let f32s = |x: f32| x;
    let f16s = f16::from_f32;
    Ok(caches(backend, append, &stream, f32s)? == caches(&reference, append, &host, f32s)?
        && caches(backend, append, &stream, f16s)? == caches(&reference, append, &host, f16s)?
        && caches(backend, append, &stream, bf16::from_f32)?
            == caches(&reference, append, &host, bf16::from_f32)?)
}

/// The bytes of both caches after an append; what is not written is NaN.
fn caches<T: Element>(
    backend: &dyn Backend,
    append: &Append,
    stream: &Stream,
    element: impl Fn(f32) -> T,
) -> Result<[Vec<u8>; 2]> {
    let total: usize = ROWS.iter().sum();
    let new = |dim: usize| -> Result<Tensor> {
        let mut data = Vec::new();
        for (b, &rows) in ROWS.iter().enumerate() {
            for i in 0..if append.ragged { rows } else { 4 } {
                let valid = i < rows;
                data.extend((0..HEADS * dim).map(|x| {
                    element(if valid { (1000 * b + 100 * i) as f32 + x as f32 * 0.5 } else { f32::NAN })
                }));
            }
        }
        let shape = if append.ragged { vec![total, HEADS, dim] } else { vec![3, 4, HEADS, dim] };
        Tensor::from_slice(backend, &data, &shape, stream)
    };
    let (blocks, per_block) = match append.room {
        Room::Dense => (3, CAPACITY),
        Room::Continuous => (5, CAPACITY),
        Room::Paged(size) => (3 * CAPACITY.div_ceil(size) + 2, size),
    };
    let pages = CAPACITY.div_ceil(per_block);
    let table: Vec<i32> = (0..3 * pages).map(|i| (blocks - 1 - i) as i32).collect();
    let table_shape: &[usize] = if matches!(append.room, Room::Paged(_)) { &[3, pages] } else { &[3] };
    let table = Tensor::from_slice(backend, &table, table_shape, stream)?;
    let offsets: Vec<i32> = (0..=3).map(|b| ROWS[..b].iter().sum::<usize>() as i32).collect();
    let offsets = Tensor::from_slice(backend, &offsets, &[4], stream)?;
    let lengths = Tensor::from_slice(backend, &ROWS.map(|rows| rows as i32), &[3], stream)?;
    let positions: Vec<i32> =
        (0..3).map(|b| (BEFORE[b] + if append.at_end { ROWS[b] } else { 0 }) as i32).collect();
    let positions = Tensor::from_slice(backend, &positions, &[3], stream)?;
    let (new_k, new_v) = (new(append.dims.0)?, new(append.dims.1)?);
    let cache = |dim: usize| {
        let data = vec![element(f32::NAN); blocks * per_block * HEADS * dim];
        Tensor::from_slice(backend, &data, &[blocks, per_block, HEADS, dim], stream)
    };
    let (mut cache_k, mut cache_v) = (cache(append.dims.0)?, cache(append.dims.1)?);
    let (k, v) = (cache_k.view_mut(), cache_v.view_mut());
    let room = match append.room {
        Room::Dense => KvCacheMut::Dense { k, v },
        Room::Continuous => KvCacheMut::Continuous { k, v, lookup_table: table.view() },
        Room::Paged(_) => KvCacheMut::Paged { k, v, page_table: table.view() },
    };
    let (k, v) = (new_k.view(), new_v.view());
    let new = if append.ragged {
        NewKv::Ragged { k, v, cu_seqlens: offsets.view(), max_seqlen: Some(4) }
    } else {
        NewKv::Padded { k, v, lengths: Some(lengths.view()) }
    };
    let at = if append.at_end { AppendAt::End(positions.view()) } else { AppendAt::Start(positions.view()) };
    let problem = KvAppend::new(new, room, at)?;
    run_kv_append(backend, &problem, stream)?;
    drop(problem);
    Ok([cache_k.to_memory(backend, stream)?, cache_v.to_memory(backend, stream)?])
}
