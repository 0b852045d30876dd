use super::*;

/// Runs a generic check on every instruction set of this processor, whatever environment says.
fn on_all<K: Kernel<Output = ()> + Copy>(kernel: K) {
    for isa in Isa::available() {
        dispatch(isa, kernel);
    }
}

fn lanes<S: Simd>(simd: S, a: S::Vector) -> Vec<f32> {
    let mut values = vec![0.0; S::LANES];
    // SAFETY: LANES elements.
    unsafe { simd.store(values.as_mut_ptr(), a) };
    values
}

fn vector<S: Simd>(simd: S, values: &[f32]) -> S::Vector {
    assert_eq!(values.len(), S::LANES);
    // SAFETY: LANES elements.
    unsafe { simd.load(values.as_ptr()) }
}

fn ramp<S: Simd>(simd: S, f: impl Fn(usize) -> f32) -> S::Vector {
    vector(simd, &(0..S::LANES).map(f).collect::<Vec<_>>())
}

macro_rules! check {
    ($test:ident, |$simd:ident: $s:ident| $body:block) => {
        #[test]
        fn $test() {
            #[derive(Clone, Copy)]
            struct Check;
            impl Kernel for Check {
                type Output = ();
                fn run<$s: Simd>(self, $simd: $s) $body
            }
            on_all(Check);
        }
    };
}

check!(arithmetic_is_lane_by_lane, |simd: S| {
    let (a, b) = (ramp(simd, |i| i as f32 - 3.5), ramp(simd, |i| 2.0 - (i as f32) * 0.25));
    let c = simd.splat(0.5);
    let results = [simd.add(a, b), simd.sub(a, b), simd.mul(a, b), simd.div(a, b), simd.fma(a, b, c)];
    let results = results.map(|result| lanes(simd, result));
    let (minimum, maximum) = (lanes(simd, simd.min(a, b)), lanes(simd, simd.max(a, b)));
    let (a, b) = (lanes(simd, a), lanes(simd, b));
    for i in 0..S::LANES {
        let (a, b) = (a[i], b[i]);
        let expected = [a + b, a - b, a * b, a / b, a * b + 0.5];
        for (result, expected) in results.iter().zip(expected) {
            assert_eq!(result[i], expected, "lane {i} of {} lanes", S::LANES);
        }
        assert_eq!((minimum[i], maximum[i]), (a.min(b), a.max(b)));
    }
});

check!(rounding_goes_to_the_nearest_even_whole_number, |simd: S| {
    for (value, expected) in [(0.5, 0.0), (1.5, 2.0), (-2.5, -2.0), (-126.4, -126.0), (0.49, 0.0)] {
        assert_eq!(lanes(simd, simd.round(simd.splat(value)))[0], expected);
    }
});

check!(exp2_is_exact_to_an_ulp_or_so, |simd: S| {
    let mut worst = 0.0f64;
    for step in 0..40_000 {
        let t = -125.9 + step as f32 * 0.0063;
        let found = lanes(simd, simd.exp2(simd.splat(t)));
        worst = worst.max((f64::from(found[0]) / f64::from(t).exp2() - 1.0).abs());
    }
    assert!(worst < 1.2e-7 * if S::LANES == 4 { 2.0 } else { 1.0 }, "{worst:e} with {} lanes", S::LANES);
    let mut coarse = 0.0f64;
    for step in 0..4000 {
        let t = -20.0 + step as f32 * 0.005;
        let found = lanes(simd, simd.exp2_coarse(simd.splat(t)));
        coarse = coarse.max((f64::from(found[0]) / f64::from(t).exp2() - 1.0).abs());
    }
    assert!(coarse < 4e-6, "{coarse:e}");
});

check!(exp2_knows_its_ends, |simd: S| {
    let at = |t: f32| lanes(simd, simd.exp2(simd.splat(t)))[0];
    assert_eq!(at(0.0), 1.0);
    assert_eq!(at(-0.0), 1.0);
    assert_eq!(at(f32::NEG_INFINITY), 0.0);
    assert_eq!(at(-1e30), 0.0);
    assert_eq!(at(-1000.0), 0.0);
    for t in [-126.4, -126.5, -127.0, -130.2, -149.5, -160.0] {
        assert!((0.0..1.2e-38).contains(&at(t)), "{t}: {:e}", at(t));
    }
    assert_eq!(at(10.0), 1024.0);
    assert!(at(f32::NAN).is_nan());
    assert!(lanes(simd, simd.exp2_coarse(simd.splat(f32::NAN)))[0].is_nan());
    assert_eq!(lanes(simd, simd.exp2_coarse(simd.splat(f32::NEG_INFINITY)))[0], 0.0);
});

check!(tanh_is_exact_to_a_few_ulps_everywhere, |simd: S| {
    let mut worst = 0.0f64;
    for step in 1..60_000 {
        let x = 1e-6 * 1.000_3f64.powi(step) as f32;
        for x in [x, -x] {
            let found = f64::from(lanes(simd, simd.tanh(simd.splat(x)))[0]);
            worst = worst.max((found / f64::from(x).tanh() - 1.0).abs());
        }
    }
    assert!(worst < 3e-7, "{worst:e}");
    for (x, expected) in [(0.0, 0.0), (f32::INFINITY, 1.0), (f32::NEG_INFINITY, -1.0)] {
        assert_eq!(lanes(simd, simd.tanh(simd.splat(x)))[0], expected);
    }
    assert!(lanes(simd, simd.tanh(simd.splat(f32::NAN)))[0].is_nan());
});

check!(comparisons_and_selections_agree, |simd: S| {
    let (a, b) = (ramp(simd, |i| (i % 3) as f32), simd.splat(1.0));
    let pick = |lanes_of: S::Lanes| lanes(simd, simd.select(lanes_of, simd.splat(7.0), simd.splat(-7.0)));
    for i in 0..S::LANES {
        let at = (i % 3) as f32;
        assert_eq!(pick(simd.less(a, b))[i] == 7.0, at < 1.0);
        assert_eq!(pick(simd.less_equal(a, b))[i] == 7.0, at <= 1.0);
        assert_eq!(pick(simd.both(simd.less_equal(a, b), simd.less_equal(b, a)))[i] == 7.0, at == 1.0);
        assert_eq!(pick(simd.lanes_from_bits(0xf0f0_f0f0_f0f0_a5a5))[i] == 7.0, 0xa5a5 >> i & 1 == 1);
    }
    assert!(!simd.any(simd.less(simd.splat(f32::NAN), b)) && !simd.any(simd.lanes_from_bits(0)));
    assert!(simd.any(simd.lanes_from_bits(1 << (S::LANES - 1))));
});

check!(reductions_see_every_lane, |simd: S| {
    for i in 0..S::LANES {
        let a = ramp(simd, |lane| if lane == i { 5.0 } else { -1.0 });
        assert_eq!(simd.largest(a), 5.0);
        assert_eq!(simd.sum(a), 6.0 - S::LANES as f32);
    }
});

check!(a_transposition_turns_rows_to_columns, |simd: S| {
    let mut block = simd.block();
    for (i, row) in block.as_mut().iter_mut().enumerate() {
        *row = ramp(simd, |j| (100 * i + j) as f32);
    }
    simd.transpose(&mut block);
    for (i, row) in block.as_ref().iter().enumerate() {
        let expected: Vec<f32> = (0..S::LANES).map(|j| (100 * j + i) as f32).collect();
        assert_eq!(lanes(simd, *row), expected);
    }
});

check!(halves_widen_exactly, |simd: S| {
    for start in (0..=u16::MAX).step_by(S::LANES) {
        let bits: Vec<u16> = (0..S::LANES as u16).map(|i| start + i).collect();
        // SAFETY: LANES elements of 16 bits.
        let (halves, brains) =
            unsafe { (simd.load_f16(bits.as_ptr().cast()), simd.load_bf16(bits.as_ptr().cast())) };
        let (halves, brains) = (lanes(simd, halves), lanes(simd, brains));
        for (i, &bits) in bits.iter().enumerate() {
            let (half, brain) = (f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32());
            assert!(halves[i] == half || half.is_nan() && halves[i].is_nan(), "{bits:#x}");
            assert!(brains[i] == brain || brain.is_nan() && brains[i].is_nan(), "{bits:#x}");
        }
    }
});

check!(halves_narrow_to_the_nearest_even, |simd: S| {
    let mut bits = 0x1234_5678u32;
    for _ in 0..50_000 {
        let values: Vec<f32> = (0..S::LANES)
            .map(|_| {
                bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Half of them lie exactly between two bf16.
                f32::from_bits(if bits & 0x100 == 0 { bits } else { bits & 0xffff_8000 })
            })
            .collect();
        let a = vector(simd, &values);
        let (mut halves, mut brains) = (vec![f16::ZERO; S::LANES], vec![bf16::ZERO; S::LANES]);
        // SAFETY: LANES elements each.
        unsafe {
            simd.store_f16(halves.as_mut_ptr(), a);
            simd.store_bf16(brains.as_mut_ptr(), a);
        }
        for (i, &value) in values.iter().enumerate() {
            if value.is_nan() {
                assert!(halves[i].is_nan() && brains[i].is_nan());
                continue;
            }
            assert_eq!(halves[i].to_bits(), f16::from_f32(value).to_bits(), "{value:e}");
            assert_eq!(brains[i].to_bits(), bf16::from_f32(value).to_bits(), "{value:e}");
        }
    }
});

check!(sums_of_a_block_come_in_the_order_of_its_vectors, |simd: S| {
    let mut block = simd.block();
    for (i, vector) in block.as_mut().iter_mut().enumerate() {
        *vector = ramp(simd, |lane| (100 * i + lane) as f32);
    }
    let sums = lanes(simd, simd.sums(&block));
    for (i, sum) in sums.iter().enumerate() {
        assert_eq!(*sum, (S::LANES * 100 * i + S::LANES * (S::LANES - 1) / 2) as f32, "vector {i}");
    }
});

check!(a_load_of_the_first_elements_reads_no_further, |simd: S| {
    for count in 0..=S::LANES {
        let floats: Vec<f32> = (0..count).map(|i| i as f32 + 1.0).collect();
        let halves: Vec<f16> = floats.iter().map(|&x| f16::from_f32(x)).collect();
        let brains: Vec<bf16> = floats.iter().map(|&x| bf16::from_f32(x)).collect();
        // SAFETY: `count` elements.
        let loaded = unsafe {
            [
                simd.load_first(floats.as_ptr(), count),
                simd.load_first_f16(halves.as_ptr(), count),
                simd.load_first_bf16(brains.as_ptr(), count),
            ]
        };
        let expected: Vec<f32> =
            (0..S::LANES).map(|i| if i < count { i as f32 + 1.0 } else { 0.0 }).collect();
        for vector in loaded {
            assert_eq!(lanes(simd, vector), expected);
        }
    }
});

#[test]
#[cfg(target_arch = "x86_64")]
fn powers_from_the_floor_are_near_enough_for_bf16() {
    if !Isa::Avx512Bf16.is_available() {
        println!("skipped: no avx512-bf16");
        return;
    }
    // SAFETY: the instructions were found.
    let simd = unsafe { Avx512::<true>::new() };
    let of = |t: f32| lanes(simd, simd.exp2_from_floor(simd.splat(t)))[3];
    for i in -125_000..=8_000 {
        let t = i as f32 * 1.000_37e-3;
        let (found, expected) = (f64::from(of(t)), f64::from(t).exp2());
        assert!((found - expected).abs() <= 4e-6 * expected, "2^{t} is {found:e}, not {expected:e}");
    }
    for whole in -149..=127 {
        assert_eq!(f64::from(of(whole as f32)), f64::from(whole).exp2());
    }
    assert_eq!((of(-151.0), of(f32::MIN), of(f32::NEG_INFINITY)), (0.0, 0.0, 0.0));
    assert!(of(f32::NAN).is_nan());
}
