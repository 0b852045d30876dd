//! F3: tensors as they lie in other programs' memory. Gaps hold NaN before and after the run.

use omniflash_core::{DType, Mask};

use crate::spec::{Arrangement, Sharing, Spec};

const ARRANGEMENTS: [(&str, Arrangement); 5] = [
    ("bhsd", Arrangement::HeadsFirst),
    ("pitch", Arrangement::Pitched(8)),
    ("odd_pitch", Arrangement::Pitched(3)),
    ("sliced_heads", Arrangement::SlicedHeads),
    ("reversed", Arrangement::Reversed),
];
const DTYPES: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

pub(super) fn cases() -> Vec<Spec> {
    let mut cases = Vec::new();
    for (name, arrangement) in ARRANGEMENTS {
        for (i, dtype) in DTYPES.into_iter().enumerate() {
            let dim = [64, 128, 40][i];
            let named = |tensor: &str| base(&format!("{name}_{tensor}_{dtype}"), dtype, dim);
            cases.push(named("q").arrange_q(arrangement));
            cases.push(named("kv").arrange_kv(arrangement));
            cases.push(named("out").arrange_out(arrangement));
            cases.push(named("all").arrange_q(arrangement).arrange_kv(arrangement).arrange_out(arrangement));
        }
    }
    for dtype in DTYPES {
        let named = |name: &str| base(&format!("{name}_{dtype}"), dtype, 64);
        cases.push(named("mixed").arrange_q(Arrangement::HeadsFirst).arrange_out(Arrangement::Pitched(16)));
        cases.push(named("expanded_kv_heads").heads(4, 4).arrange_kv(Arrangement::ExpandedHeads));
        cases.push(named("expanded_kv_batch").arrange_kv(Arrangement::ExpandedBatch));
        cases.push(named("expanded_q_heads").arrange_q(Arrangement::ExpandedHeads));
        cases.push(named("packed_qkv").dense(2, 45, 45).sharing(Sharing::PackedQkv));
        cases.push(named("packed_qkv_out").dense(2, 45, 45).sharing(Sharing::PackedQkvOut));
        cases.push(
            named("ragged_bhsd")
                .q_ragged(&[5, 0, 30])
                .k_ragged(&[40, 7, 33])
                .arrange_q(Arrangement::HeadsFirst)
                .arrange_kv(Arrangement::HeadsFirst)
                .arrange_out(Arrangement::HeadsFirst),
        );
        cases.push(
            named("ragged_pitch")
                .q_ragged(&[5, 0, 30])
                .k_ragged(&[40, 7, 33])
                .arrange_q(Arrangement::Pitched(8))
                .arrange_kv(Arrangement::SlicedHeads)
                .arrange_out(Arrangement::Pitched(8)),
        );
        cases.push(
            named("ragged_packed").q_ragged(&[5, 17, 30]).k_ragged_like_q().sharing(Sharing::PackedQkvOut),
        );
        cases
            .push(named("paged_bhsd").q_dense(2, 3).paged(16, &[40, 70]).arrange_kv(Arrangement::HeadsFirst));
        cases.push(
            named("paged_pitch").q_dense(2, 3).paged(16, &[40, 70]).arrange_kv(Arrangement::Pitched(8)),
        );
        cases.push(
            named("paged_collection")
                .q_dense(2, 3)
                .paged(16, &[40, 70])
                .sharing(Sharing::Collection { layers: 3, layer: 1 }),
        );
        cases.push(
            named("continuous_collection")
                .q_dense(2, 3)
                .continuous(80, &[40, 70])
                .sharing(Sharing::Collection { layers: 2, layer: 0 }),
        );
    }
    // Decoding takes other kernels.
    for (name, arrangement) in ARRANGEMENTS {
        cases.push(
            base(&format!("decode_{name}"), DType::BF16, 128)
                .dense(2, 1, 300)
                .arrange_q(arrangement)
                .arrange_kv(arrangement)
                .arrange_out(arrangement),
        );
    }
    cases
}

fn base(name: &str, dtype: DType, dim: usize) -> Spec {
    Spec::new(format!("f3/{name}")).dtype(dtype).heads(4, 2).dim(dim).dense(2, 37, 61).mask(Mask::Causal)
}
