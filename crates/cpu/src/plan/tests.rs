use omniflash_core::{AttentionOptions, DType, DeviceId, KvCache, Layout, Query, TensorMut, TensorRef};

use super::*;

/// A problem's sizes: heads, key heads, queries, keys, dimension.
type Size = (usize, usize, usize, usize, usize);

fn plan_of(dtype: DType, size: Size, options: AttentionOptions<'_>, isa: Isa) -> Result<String> {
    let (heads, kv_heads, seqlen_q, seqlen_k, dim) = size;
    // A plan reads no tensor: their memory may be shared, but outputs not.
    let tensor = |rows: usize, heads: usize| {
        let layout = Layout::new(&[1, rows, heads, dim], &[0, 0, 0, 1]).unwrap();
        let words = vec![0u32; dim].leak();
        // SAFETY: all elements of the layout are in the leaked words.
        unsafe {
            TensorRef::from_raw(words.as_ptr().expose_provenance() as u64, dtype, layout, DeviceId::Cpu)
        }
    };
    let out = vec![0u32; seqlen_q * heads * dim].leak();
    let layout = Layout::contiguous(&[1, seqlen_q, heads, dim]).unwrap();
    // SAFETY: the words are leaked, and nothing else uses them.
    let out =
        unsafe { TensorMut::from_raw(out.as_ptr().expose_provenance() as u64, dtype, layout, DeviceId::Cpu) };
    let problem = AttentionProblem::new(
        Query::padded(tensor(seqlen_q, heads)),
        KvCache::dense(tensor(seqlen_k, kv_heads), tensor(seqlen_k, kv_heads)),
        out,
        None,
        &options,
    )?;
    plan(&problem, isa, 2).map(|plan| plan.to_string())
}

fn config(config: AttentionConfig) -> AttentionOptions<'static> {
    AttentionOptions::new().config(config)
}

#[test]
fn plans_of_common_shapes_stay_as_they_are() {
    if !Isa::Avx512Bf16.is_available() {
        println!("skipped: the shapes of plans are recorded for avx512-bf16");
        return;
    }
    let causal = || AttentionOptions::new().mask(Mask::Causal);
    let plans = [
        plan_of(DType::F32, (8, 8, 512, 512, 64), AttentionOptions::new(), Isa::Avx512),
        plan_of(DType::F32, (16, 16, 2048, 2048, 128), causal(), Isa::Avx512),
        plan_of(DType::BF16, (32, 8, 2048, 2048, 128), causal(), Isa::Avx512Bf16),
        plan_of(DType::F16, (4, 1, 128, 32768, 128), causal(), Isa::Avx2),
        plan_of(DType::F32, (1, 1, 100, 100, 1024), AttentionOptions::new(), Isa::Avx512),
        plan_of(DType::F32, (8, 8, 512, 512, 64), AttentionOptions::new(), Isa::Scalar),
    ];
    insta::assert_snapshot!(plans.map(|plan| plan.unwrap()).join("\n"));
}

#[test]
fn impossible_sizes_list_what_is_possible() {
    let size = (4, 4, 256, 256, 64);
    for wrong in [
        AttentionConfig { block_m: Some(10), ..Default::default() },
        AttentionConfig { block_n: Some(64), ..Default::default() },
    ] {
        let error = plan_of(DType::F32, size, config(wrong), Isa::Scalar).unwrap_err();
        assert!(matches!(error, Error::Value { .. }), "{error}");
        assert!(error.to_string().contains("one of"), "{error}");
    }
    let right = AttentionConfig { block_m: Some(16), block_n: Some(24), ..Default::default() };
    let plan = plan_of(DType::F32, size, config(right), Isa::Scalar).unwrap();
    assert!(plan.contains("tile 16x24"), "{plan}");
}

#[test]
fn fields_of_a_gpu_are_unsupported_and_name_what_works() {
    let fields = [
        AttentionConfig { algorithm: Algorithm::Flash3, ..Default::default() },
        AttentionConfig { block_k: Some(32), ..Default::default() },
        AttentionConfig { warp_m: Some(16), ..Default::default() },
        AttentionConfig { warp_n: Some(16), ..Default::default() },
        AttentionConfig { num_pipeline_stages: Some(2), ..Default::default() },
        AttentionConfig { k_group_size: Some(2), ..Default::default() },
        AttentionConfig { swizzle: Some(Swizzle::B128), ..Default::default() },
        AttentionConfig { split_within_block: Some(true), ..Default::default() },
    ];
    for field in fields {
        let error = plan_of(DType::F32, (1, 1, 64, 64, 64), config(field), Isa::Scalar).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
    let harmless = AttentionConfig {
        num_pipeline_stages: Some(1),
        swizzle: Some(Swizzle::None),
        split_within_block: Some(false),
        ..Default::default()
    };
    assert!(plan_of(DType::F32, (1, 1, 64, 64, 64), config(harmless), Isa::Scalar).is_ok());
}

#[test]
fn few_strips_against_many_keys_are_split_whatever_the_threads() {
    assert_eq!(pieces(4, 32768), 16);
    assert_eq!(pieces(4, 4000), 3);
    assert_eq!(pieces(64, 1 << 20), 1);
    assert_eq!(pieces(0, 1 << 20), 1);
    assert_eq!(pieces(1, 512), 1);
}

#[test]
fn a_worker_needs_at_most_a_mebibyte_up_to_dimension_1024() {
    for isa in Isa::available() {
        for dim in [8, 64, 128, 256, 512, 1024] {
            let plan = plan_of(DType::F32, (4, 4, 4096, 4096, dim), AttentionOptions::new(), isa).unwrap();
            let bytes: usize = plan
                .split("shared ")
                .nth(1)
                .and_then(|rest| rest.split(' ').next())
                .unwrap()
                .parse()
                .unwrap();
            assert!(bytes <= 1 << 20, "{plan}");
        }
    }
}

#[test]
#[cfg(feature = "amx-emulation")]
fn matrices_multiply_bf16_only_in_blocks_of_128_keys() {
    let isa = Isa::AmxBf16Emulated;
    if !isa.is_available() {
        println!("skipped: the emulation needs avx512-bf16");
        return;
    }
    let plan_of = |dtype| plan_of(dtype, (16, 16, 2048, 2048, 128), AttentionOptions::new(), isa).unwrap();
    let plan = plan_of(DType::BF16);
    assert!(plan.contains("tile 1024x128") && plan.contains("in matrices"), "{plan}");
    let plan = plan_of(DType::F16);
    assert!(plan.contains("x96") && !plan.contains("in matrices"), "{plan}");
}
