use std::cell::Cell;

use super::*;
use crate::config::{Algorithm, AttentionConfig};
use crate::error::Error;
use crate::layout::Layout;
use crate::score_mod::ScoreMod;
use proptest::prelude::*;

mod indices;
mod overlap;
mod refusals;

/// Tensors at addresses of their own that nothing ever reads: validation looks at sizes only.
struct Addresses {
    next: Cell<u64>,
}

impl Addresses {
    fn new() -> Self {
        Addresses { next: Cell::new(1 << 20) }
    }

    fn place(&self, dtype: DType, layout: Layout, device: DeviceId) -> TensorRef<'static> {
        let (low, high) = layout.span().unwrap_or((0, 0));
        let size = dtype.size() as u64;
        let address = self.next.get() + low.unsigned_abs() * size;
        self.next.set((address + (high as u64 + 1) * size).next_multiple_of(1 << 16));
        // SAFETY: the address is never read or written.
        unsafe { TensorRef::from_raw(address, dtype, layout, device) }
    }

    fn tensor(&self, dtype: DType, shape: &[usize]) -> TensorRef<'static> {
        self.place(dtype, Layout::contiguous(shape).unwrap(), DeviceId::Cpu)
    }
}

/// The same memory, to be written.
fn written(tensor: &TensorRef<'_>) -> TensorMut<'static> {
    // SAFETY: as in `Addresses::place`.
    unsafe { TensorMut::from_raw(tensor.address(), tensor.dtype(), tensor.layout().clone(), tensor.device()) }
}

/// A valid request, to be changed by a test: two sequences of 3 queries and 5 keys, 4 heads over 2, head_dim 8.
struct Request {
    query: Query<'static>,
    kv: KvCache<'static>,
    out: TensorRef<'static>,
    lse: Option<TensorRef<'static>>,
    options: AttentionOptions<'static>,
    at: Addresses,
}

impl Request {
    fn new() -> Self {
        let at = Addresses::new();
        Request {
            query: Query::padded(at.tensor(DType::F32, &[2, 3, 4, 8])),
            kv: KvCache::dense(at.tensor(DType::F32, &[2, 5, 2, 8]), at.tensor(DType::F32, &[2, 5, 2, 8])),
            out: at.tensor(DType::F32, &[2, 3, 4, 8]),
            lse: None,
            options: AttentionOptions::new(),
            at,
        }
    }

    /// The same sizes, keys in pages of 4.
    fn paged() -> Self {
        let mut request = Request::new();
        let at = &request.at;
        request.kv = KvCache::Paged {
            k: at.tensor(DType::F32, &[6, 4, 2, 8]),
            v: at.tensor(DType::F32, &[6, 4, 2, 8]),
            page_table: at.tensor(DType::I32, &[2, 2]),
            lengths: at.tensor(DType::I32, &[2]),
            max_seqlen: None,
        };
        request
    }

    /// The same sizes, ragged.
    fn ragged() -> Self {
        let mut request = Request::new();
        let at = &request.at;
        request.query = Query::ragged(at.tensor(DType::F32, &[6, 4, 8]), at.tensor(DType::I32, &[3]));
        request.kv = KvCache::Ragged {
            k: at.tensor(DType::F32, &[10, 2, 8]),
            v: at.tensor(DType::F32, &[10, 2, 8]),
            cu_seqlens: at.tensor(DType::I32, &[3]),
            max_seqlen: Some(5),
        };
        request.out = at.tensor(DType::F32, &[6, 4, 8]);
        request
    }

    fn with(mut self, change: impl FnOnce(&mut Request)) -> Self {
        change(&mut self);
        self
    }

    fn validate(&self) -> Result<ProblemShape> {
        let lse = self.lse.as_ref().map(written);
        AttentionProblem::new(self.query.clone(), self.kv.clone(), written(&self.out), lse, &self.options)
            .map(|problem| *problem.shape())
    }
}

#[test]
fn the_requests_that_tests_change_are_valid() {
    for request in [Request::new(), Request::paged(), Request::ragged()] {
        let shape = request.validate().unwrap();
        assert_eq!((shape.batch, shape.num_heads, shape.num_kv_heads, shape.group_size()), (2, 4, 2, 2));
        assert_eq!((shape.head_dim, shape.value_dim, shape.total_q), (8, 8, 6));
    }
    assert_eq!(Request::new().validate().unwrap().seqlen_k, 5);
    assert_eq!(Request::paged().validate().unwrap().seqlen_k, 8);
    let ragged = Request::ragged().validate().unwrap();
    assert_eq!((ragged.seqlen_q, ragged.seqlen_k), (6, 5), "the host knows a bound of the keys only");
}

#[test]
fn the_default_scale_is_one_over_the_root_of_head_dim() {
    let request = Request::new();
    let problem = AttentionProblem::new(
        request.query.clone(),
        request.kv.clone(),
        written(&request.out),
        None,
        &request.options,
    )
    .unwrap();
    assert_eq!(problem.softmax_scale(), 1.0 / 8f32.sqrt());
}

#[test]
fn the_output_shape_is_the_one_that_is_accepted() {
    for mut request in [Request::new(), Request::paged(), Request::ragged()] {
        let shape = AttentionProblem::output_shape(&request.query, &request.kv).unwrap();
        request.out = request.at.tensor(shape.dtype, &shape.out);
        request.lse = Some(request.at.tensor(DType::F32, &shape.lse));
        request.options.lse = true;
        request.validate().unwrap();
    }
}

#[test]
fn sizes_of_zero_are_valid() {
    for (batch, seqlen_q, seqlen_k, heads) in
        [(0, 3, 5, 4), (2, 0, 5, 4), (2, 3, 0, 4), (2, 3, 5, 0), (0, 0, 0, 0)]
    {
        let request = Request::new().with(|request| {
            let at = &request.at;
            let kv = [batch, seqlen_k, heads / 2, 8];
            request.query = Query::padded(at.tensor(DType::F32, &[batch, seqlen_q, heads, 8]));
            request.kv = KvCache::dense(at.tensor(DType::F32, &kv), at.tensor(DType::F32, &kv));
            request.out = at.tensor(DType::F32, &[batch, seqlen_q, heads, 8]);
        });
        let shape = request.validate().unwrap();
        assert_eq!(shape.is_empty(), batch * seqlen_q * heads == 0);
    }
}

#[test]
fn values_may_have_a_size_of_their_own() {
    let request = Request::new().with(|request| {
        let at = &request.at;
        request.kv =
            KvCache::dense(at.tensor(DType::F32, &[2, 5, 2, 8]), at.tensor(DType::F32, &[2, 5, 2, 24]));
        request.out = at.tensor(DType::F32, &[2, 3, 4, 24]);
    });
    assert_eq!(request.validate().unwrap().value_dim, 24);
}

#[test]
fn dense_masks_may_broadcast_and_bounds_may_be_exceeded() {
    let mask = |request: &mut Request, shape: &[usize]| {
        request.options.mask = Mask::Dense(request.at.tensor(DType::Bool, shape));
    };
    for shape in [&[2, 3, 5][..], &[1, 3, 5], &[2, 4, 3, 5], &[1, 1, 3, 5], &[2, 1, 3, 5]] {
        Request::new().with(|request| mask(request, shape)).validate().unwrap();
    }
    for shape in [&[2, 3, 8][..], &[1, 4, 3, 20]] {
        Request::paged().with(|request| mask(request, shape)).validate().unwrap();
    }
    for shape in [&[2, 6, 5][..], &[1, 4, 9, 20]] {
        Request::ragged().with(|request| mask(request, shape)).validate().unwrap();
    }
}

#[test]
fn huge_shapes_never_panic() {
    let at = Addresses::new();
    let q =
        at.place(DType::F32, Layout::new(&[1 << 30, 1 << 28, 2, 1], &[0, 0, 0, 1]).unwrap(), DeviceId::Cpu);
    let kv = || {
        at.place(DType::F32, Layout::new(&[1 << 30, 1 << 30, 1, 1], &[0, 0, 0, 1]).unwrap(), DeviceId::Cpu)
    };
    let request = Request { query: q.clone().into(), kv: (kv(), kv()).into(), out: q, ..Request::new() };
    assert!(
        matches!(request.validate(), Err(Error::Overlap { .. })),
        "an output of stride 0 has too few elements"
    );
    let pages = Request::paged().with(|request| {
        if let KvCache::Paged { k, v, page_table, .. } = &mut request.kv {
            let pool = Layout::new(&[1, 1 << 40, 2, 8], &[0, 0, 8, 1]).unwrap();
            (*k, *v) = (
                request.at.place(DType::F32, pool.clone(), DeviceId::Cpu),
                request.at.place(DType::F32, pool, DeviceId::Cpu),
            );
            let table = Layout::new(&[2, 1 << 40], &[0, 0]).unwrap();
            *page_table = request.at.place(DType::I32, table, DeviceId::Cpu);
        }
    });
    assert!(matches!(pages.validate(), Err(Error::Shape { argument, .. }) if argument == "page_table"));
}

proptest! {
    #[test]
    fn any_extents_give_an_answer(
        q in prop::collection::vec(0usize..4, 0..6),
        k in prop::collection::vec(0usize..4, 0..6),
        v in prop::collection::vec(0usize..4, 0..6),
        out in prop::collection::vec(0usize..4, 0..6),
        index in prop::collection::vec(0usize..4, 0..4),
        form in 0usize..4,
        ragged_q in any::<bool>(),
    ) {
        let at = Addresses::new();
        let float = |shape: &[usize]| at.tensor(DType::F32, shape);
        let integer = |shape: &[usize]| at.tensor(DType::U32, shape);
        let (k, v) = (float(&k), float(&v));
        let kv = match form {
            0 => KvCache::Dense { k, v, lengths: Some(integer(&index)) },
            1 => KvCache::Ragged { k, v, cu_seqlens: integer(&index), max_seqlen: None },
            2 => KvCache::Continuous {
                k, v, lookup_table: integer(&index), lengths: integer(&index), max_seqlen: Some(1),
            },
            _ => KvCache::Paged {
                k, v, page_table: integer(&index), lengths: integer(&index), max_seqlen: None,
            },
        };
        let query = if ragged_q { Query::ragged(float(&q), integer(&index)) } else { Query::padded(float(&q)) };
        let request = Request { query, kv, out: float(&out), ..Request::new() };
        if let Ok(shape) = request.validate() {
            prop_assert!(shape.head_dim > 0 && shape.value_dim > 0);
            prop_assert!(shape.num_heads % shape.num_kv_heads == 0);
        }
    }
}
