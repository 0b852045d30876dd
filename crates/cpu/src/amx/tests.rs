use half::bf16;

use super::*;

/// Whole numbers that bf16 holds, and whose sums f32 holds.
fn number(row: usize, column: usize) -> bf16 {
    bf16::from_f32(((row * 37 + column * 11) % 23) as f32 - 11.0)
}

/// Rows of pairs as a left operand has them, `stride` words apart.
fn left(stride: usize) -> Vec<f32> {
    let mut words = vec![f32::NAN; TILE * stride];
    for row in 0..TILE {
        for pair in 0..TILE {
            words[row * stride + pair] = word(number(row, 2 * pair), number(row, 2 * pair + 1));
        }
    }
    words
}

/// The numbers of rows 40 to 72, in pairs of rows as a right operand has them.
fn right(stride: usize) -> Vec<f32> {
    let mut words = vec![f32::NAN; TILE * stride];
    for pair in 0..TILE {
        for column in 0..TILE {
            words[pair * stride + column] =
                word(number(40 + 2 * pair, column), number(41 + 2 * pair, column));
        }
    }
    words
}

fn word(low: bf16, high: bf16) -> f32 {
    f32::from_bits(u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16)
}

/// Multiplies by tiles and by hand.
fn check<U: TileUnit>() {
    let (a, b) = (left(16), right(20));
    let mut sums = vec![7.0f32; TILE * 24];
    // SAFETY: the caller has found the instructions; all rows are in the vectors.
    unsafe {
        let mut unit = U::new();
        unit.load::<1>(a.as_ptr(), 16);
        unit.load::<6>(b.as_ptr(), 20);
        unit.load::<4>(sums.as_ptr(), 24);
        unit.multiply::<4, 1, 6>();
        unit.zero::<5>();
        unit.multiply::<5, 1, 6>();
        unit.multiply::<4, 1, 6>();
        unit.store::<4>(sums.as_mut_ptr(), 24);
        for row in 0..TILE {
            for column in 0..24 {
                let product = |i: usize| number(row, i).to_f32() * number(40 + i, column).to_f32();
                let expected =
                    if column < TILE { 7.0 + 2.0 * (0..32).map(product).sum::<f32>() } else { 7.0 };
                assert_eq!(sums[row * 24 + column], expected, "row {row}, column {column}");
            }
        }
        unit.store::<5>(sums.as_mut_ptr(), 24);
        let product = |i: usize| number(3, i).to_f32() * number(40 + i, 9).to_f32();
        assert_eq!(sums[3 * 24 + 9], (0..32).map(product).sum::<f32>());
    }
}

#[test]
fn a_product_of_tiles_is_the_sum_of_products() {
    #[cfg(feature = "amx-emulation")]
    check::<Emulation>();
    match absence() {
        None => check::<Hardware>(),
        Some(why) => println!("skipped: {why}"),
    }
}

#[test]
fn tiles_within_tiles_leave_the_outer_ones_configured() {
    if let Some(why) = absence() {
        println!("skipped: {why}");
        return;
    }
    let mut sums = [1.0f32; TILE_WORDS];
    // SAFETY: the instructions are there; a tile has as many words.
    unsafe {
        let mut outer = Hardware::new();
        drop(Hardware::new());
        outer.zero::<0>();
        outer.store::<0>(sums.as_mut_ptr(), TILE);
    }
    assert_eq!(sums, [0.0; TILE_WORDS]);
}
