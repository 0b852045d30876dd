//! Outputs that share memory with inputs or with themselves.

use std::collections::HashSet;

use super::validate::overlaps;
use super::*;

const BASE: u64 = 1 << 20;

/// A tensor of f32 that starts `element` elements after a common base.
fn at(element: i64, layout: &Layout) -> TensorRef<'static> {
    let address = BASE.checked_add_signed(4 * element).unwrap();
    // SAFETY: never read.
    unsafe { TensorRef::from_raw(address, DType::F32, layout.clone(), DeviceId::Cpu) }
}

/// All elements of a layout, counted from the base; with repetitions.
fn elements(start: i64, layout: &Layout) -> Vec<i64> {
    let mut offsets = vec![start];
    for (&extent, &stride) in layout.shape().iter().zip(layout.strides()) {
        offsets =
            offsets.iter().flat_map(|offset| (0..extent as i64).map(move |i| offset + i * stride)).collect();
    }
    offsets
}

/// Layouts of rank 1 to 3, most of them with nested strides and gaps, some wild.
fn layout() -> impl Strategy<Value = Layout> {
    let nested = prop::collection::vec((1usize..4, 1i64..4, any::<bool>()), 1..4).prop_map(|axes| {
        let (mut shape, mut strides, mut reach) = (Vec::new(), Vec::new(), 1i64);
        for (extent, factor, reversed) in axes {
            strides.insert(0, if reversed && factor == 3 { -reach * factor } else { reach * factor });
            shape.insert(0, extent);
            reach *= factor * extent as i64;
        }
        Layout::new(&shape, &strides).unwrap()
    });
    let wild = prop::collection::vec((0usize..4, -6i64..7), 1..4).prop_map(|axes| {
        let (shape, strides): (Vec<usize>, Vec<i64>) = axes.into_iter().unzip();
        Layout::new(&shape, &strides).unwrap()
    });
    prop_oneof![3 => nested, 1 => wild]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn tensors_said_to_be_apart_share_no_element(a in layout(), b in layout(), start in -40i64..40) {
        let apart = !overlaps(&at(0, &a), &at(start, &b));
        let of_a: HashSet<i64> = elements(0, &a).into_iter().collect();
        let share = elements(start, &b).iter().any(|element| of_a.contains(element));
        prop_assert!(!(apart && share), "{:?} and {:?} from {}", a, b, start);
        prop_assert_eq!(apart, !overlaps(&at(start, &b), &at(0, &a)), "the order of the two does not matter");
    }

    #[test]
    fn a_layout_said_not_to_overlap_itself_does_not(layout in layout()) {
        let all = elements(0, &layout);
        let distinct: HashSet<i64> = all.iter().copied().collect();
        if !layout.may_overlap_itself() {
            prop_assert_eq!(all.len(), distinct.len(), "{:?}", layout);
        }
    }

    #[test]
    fn columns_beside_each_other_are_apart(
        batch in 1usize..3, rows in 1usize..4, heads in 1usize..4, dim in 1usize..5, gap in 0usize..3,
    ) {
        let width = 2 * heads * dim + gap;
        let strides = [(rows * width) as i64, width as i64, dim as i64, 1];
        let part = Layout::new(&[batch, rows, heads, dim], &strides).unwrap();
        let second = (heads * dim + gap) as i64;
        prop_assert!(!overlaps(&at(0, &part), &at(second, &part)));
        prop_assert!(overlaps(&at(0, &part), &at((heads * dim - 1) as i64, &part)));
    }
}

fn refused(request: Request, expected: (&str, &str)) {
    match request.validate() {
        Err(Error::Overlap { argument, with }) => assert_eq!((argument.as_str(), with.as_str()), expected),
        answer => panic!("{expected:?}: {answer:?}"),
    }
}

#[test]
fn an_output_on_top_of_an_input_is_refused() {
    refused(Request::new().with(|r| r.out = r.query.tensor().clone()), ("out", "q"));
    let over_keys = |r: &mut Request| r.out = at_address(r.kv.k(), 40, &[2, 3, 4, 8]);
    refused(Request::new().with(over_keys), ("out", "k"));
    refused(Request::new().with(|r| r.out = at_address(r.kv.v(), 0, &[2, 3, 4, 8])), ("out", "v"));
    let lse_over = |r: &mut Request, with: TensorRef<'static>| {
        r.lse = Some(at_address(&with, 0, &[2, 4, 3]));
        r.options.lse = true;
    };
    refused(Request::new().with(|r| lse_over(r, r.query.tensor().clone())), ("lse", "q"));
    refused(Request::new().with(|r| lse_over(r, r.out.clone())), ("lse", "out"));
}

#[test]
fn an_output_on_top_of_a_mask_a_table_or_a_length_is_refused() {
    type Read = fn(&mut Request) -> TensorRef<'static>;
    let cases: Vec<(&str, Read)> = vec![
        ("mask", |r| {
            let mask = r.at.tensor(DType::F32, &[2, 3, 5]);
            r.options.mask = Mask::Causal.and(Mask::Dense(mask.clone()));
            mask
        }),
        ("bias", |r| {
            let bias = r.at.tensor(DType::F32, &[2, 4, 3, 5]);
            r.options.score_mod = ScoreMod::Bias(bias.clone());
            bias
        }),
        ("sinks", |r| {
            let sinks = r.at.tensor(DType::F32, &[4]);
            r.options.sinks = Some(sinks.clone());
            sinks
        }),
        ("query_start", |r| {
            let start = r.at.tensor(DType::I32, &[2]);
            r.options.query_start = Some(start.clone());
            start
        }),
        ("q_lengths", |r| {
            let lengths = r.at.tensor(DType::I32, &[2]);
            r.query = Query::Padded { q: r.query.tensor().clone(), lengths: Some(lengths.clone()) };
            lengths
        }),
        ("kv_lengths", |r| {
            let lengths = r.at.tensor(DType::I32, &[2]);
            let (k, v) = (r.kv.k().clone(), r.kv.v().clone());
            r.kv = KvCache::Dense { k, v, lengths: Some(lengths.clone()) };
            lengths
        }),
        ("page_table", |r| {
            *r = Request::paged();
            let KvCache::Paged { page_table, .. } = &r.kv else { unreachable!() };
            page_table.clone()
        }),
        ("cu_seqlens_q", |r| {
            *r = Request::ragged();
            let Query::Ragged { cu_seqlens, .. } = &r.query else { unreachable!() };
            cu_seqlens.clone()
        }),
    ];
    for (name, read) in cases {
        let mut request = Request::new();
        let tensor = read(&mut request);
        let shape = request.out.shape().to_vec();
        request.out = at_address(&tensor, 0, &shape);
        refused(request, ("out", name));
    }
}

#[test]
fn an_output_that_overlaps_itself_is_refused() {
    let expanded = Layout::new(&[2, 3, 4, 8], &[96, 32, 0, 1]).unwrap();
    refused(
        Request::new().with(|r| r.out = r.at.place(DType::F32, expanded, DeviceId::Cpu)),
        ("out", "itself"),
    );
}

#[test]
fn parts_of_one_projection_are_accepted() {
    let request = Request::new().with(|r| {
        // [batch, 3, q heads 4 + k heads 2 + v heads 2 + out heads 4, 8]
        let whole = r.at.tensor(DType::F32, &[2, 3, 12, 8]);
        let part = |begin: usize, end: usize| whole.slice(2, begin, end).unwrap();
        r.query = Query::padded(part(0, 4));
        r.kv = KvCache::dense(part(4, 6), part(6, 8));
        r.out = part(8, 12);
    });
    request.validate().unwrap();
}

/// A contiguous tensor over the memory of another, from one of its bytes on.
fn at_address(tensor: &TensorRef<'_>, bytes: u64, shape: &[usize]) -> TensorRef<'static> {
    let layout = Layout::contiguous(shape).unwrap();
    // SAFETY: never read.
    unsafe { TensorRef::from_raw(tensor.address() + bytes, DType::F32, layout, DeviceId::Cpu) }
}
