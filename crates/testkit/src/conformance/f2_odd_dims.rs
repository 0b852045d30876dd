//! F2: head_dim and value_dim that no tile is made for.
//!
//! Every backend takes multiples of 8 up to 256; host backends take any size (`any` in the name).

use omniflash_core::{DType, Mask};

use crate::spec::Spec;

pub(super) fn cases() -> Vec<Spec> {
    let dtypes = [DType::F32, DType::BF16, DType::F16];
    let mut cases = Vec::new();
    for (i, dim) in
        [8, 16, 24, 40, 48, 72, 88, 104, 112, 120, 136, 160, 200, 224, 248].into_iter().enumerate()
    {
        cases.push(case("f2/dim", dim, dim, dtypes[i % 3]));
        cases.push(case("f2/dim", dim, dim, dtypes[(i + 1) % 3]));
    }
    for (i, (dim, value_dim)) in
        [(192, 128), (64, 256), (128, 64), (40, 24), (8, 256), (256, 8), (72, 80)].into_iter().enumerate()
    {
        cases.push(case("f2/dims", dim, value_dim, dtypes[i % 3]));
        cases.push(case("f2/dims", dim, value_dim, dtypes[(i + 1) % 3]));
    }
    for (i, (dim, value_dim)) in [
        (1, 1),
        (2, 2),
        (7, 7),
        (21, 21),
        (59, 59),
        (63, 63),
        (111, 111),
        (127, 127),
        (203, 203),
        (300, 300),
        (384, 384),
        (576, 512),
        (5, 3),
        (16, 1),
        (1, 33),
    ]
    .into_iter()
    .enumerate()
    {
        cases.push(case("f2/any", dim, value_dim, dtypes[i % 3]));
        cases.push(case("f2/any", dim, value_dim, dtypes[(i + 1) % 3]));
    }
    cases
}

fn case(group: &str, head_dim: usize, value_dim: usize, dtype: DType) -> Spec {
    Spec::new(format!("{group}={head_dim}_{value_dim}_{dtype}"))
        .dtype(dtype)
        .heads(4, 2)
        .dims(head_dim, value_dim)
        .dense(1, 33, 77)
        .mask(Mask::Causal)
}
