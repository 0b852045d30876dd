//! The Hopper family: when it computes a problem, in which tiles.

use omniflash_core::{AttentionConfig, Error, KvKind, ProblemShape, Result, Swizzle};
use omniflash_gpu::plan::{may_be_causal, typical_rows};
use omniflash_kernels_cuda::{HopperConfig, MAX_HOPPER_HEAD_DIM, WARP_ROWS};

use super::{Choice, KernelChoice, Request, beside_short, decode};

/// The one compute capability that has these instructions.
pub(super) const HOPPER: (u32, u32) = (9, 0);

/// Fewer rows than this leave more than half of a tile empty: smaller tiles are faster then.
const FEWEST_ROWS: usize = 65;

/// With fewer keys than this, splitting them is no alternative to leaving multiprocessors idle.
const FEWEST_SPLIT_KEYS: usize = 1024;

/// What the Hopper family asks of a problem beyond its sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HopperFit {
    /// Whether tensor maps can describe q, k, v and out.
    pub is_mappable: bool,
    /// Whether tensor maps can describe k and v for slices of the decode kernel.
    pub has_key_boxes: bool,
    /// Whether softmax_scale is positive: the largest score is then the largest product.
    pub has_positive_scale: bool,
    /// Whether every sequence has all the rows of a tensor of queries.
    pub has_all_rows: bool,
}

/// Sequences of a batch, as tiles are chosen for them: so many of so many rows.
#[derive(Clone, Copy)]
struct Sequences {
    number: usize,
    rows: usize,
}

impl Sequences {
    /// All of a batch.
    fn all(shape: &ProblemShape) -> Self {
        Sequences { number: shape.batch, rows: typical_rows(shape) }
    }

    /// The long ones of a batch that has short ones too, which another kernel computes.
    fn long(shape: &ProblemShape) -> Self {
        Sequences { number: shape.total_q.div_ceil(shape.seqlen_q.max(1)), rows: shape.seqlen_q }
    }
}

/// Chooses this family where it is the fastest, or says in a word why it is not.
pub(crate) fn prefer(request: &Request<'_>) -> Result<Choice, String> {
    if let Some((what, _)) = unsupported(request) {
        return Err(what);
    }
    let in_words = |error: Error| error.to_string();
    let short = decode::choose_short(request).map_err(in_words)?;
    let sequences =
        if short.is_some() { Sequences::long(request.shape) } else { Sequences::all(request.shape) };
    let choice = choose_for(request, sequences).map_err(in_words)?;
    if let KernelChoice::Hopper(tile) = choice.kernel
        && let Some(why) = better_elsewhere(request, sequences, &tile, choice.heads_per_tile)
    {
        return Err(why);
    }
    Ok(match short {
        Some((short, least_q_len)) => beside_short(choice, short, least_q_len),
        None => choice,
    })
}

/// Chooses this family.
///
/// # Errors
/// [`Error::Unsupported`] for what it cannot do, [`Error::Value`] for an impossible configuration.
pub(crate) fn choose(request: &Request<'_>) -> Result<Choice> {
    if let Some((what, why)) = unsupported(request) {
        return Err(Error::unsupported(
            request.backend,
            format!("algorithm flash3 with {what}"),
            why,
            "algorithm auto or flash2 works",
        ));
    }
    choose_for(request, Sequences::all(request.shape))
}

/// The tile for such sequences, and how blocks take them.
fn choose_for(request: &Request<'_>, sequences: Sequences) -> Result<Choice> {
    let mut tile = configured(request, default_tile(request, sequences))?;
    let rows = sequences.rows;
    let heads_per_tile = packed_heads(rows, request.shape.group_size(), tile.block_m);
    let num_tiles = num_tiles(request, sequences, &tile, heads_per_tile);
    tile.cluster = cluster(request, &tile, num_tiles);
    let packing = match heads_per_tile {
        1 => "one head a tile".into(),
        heads => format!("{heads} heads packed into a tile"),
    };
    let reason = format!(
        "tile {}x{} for {} rows, {packing}, {num_tiles} tiles taken by {} blocks{}",
        tile.block_m,
        tile.block_n,
        rows * heads_per_tile,
        tile.grid(num_tiles, request.facts.multiprocessors),
        if tile.cluster > 1 { ", in pairs" } else { "" },
    );
    Ok(Choice {
        kernel: KernelChoice::Hopper(tile),
        heads_per_tile,
        section: section(request, heads_per_tile),
        num_partitions: 1,
        workers: 0,
        least_q_len: 0,
        short: None,
        reason,
    })
}

/// What of a problem this family cannot do, and why.
fn unsupported(request: &Request<'_>) -> Option<(String, &'static str)> {
    let (shape, config) = (request.shape, request.config);
    let (major, minor) = request.facts.compute_capability;
    if (major, minor) != HOPPER {
        return Some((
            format!("compute capability {major}.{minor}"),
            "its instructions are those of compute capability 9.0 alone",
        ));
    }
    if !HopperConfig::has_dtype(shape.dtype) {
        return Some((format!("dtype {}", shape.dtype), "its products take 16-bit elements"));
    }
    if shape.head_dim.max(shape.value_dim) > MAX_HOPPER_HEAD_DIM {
        return Some((
            format!("head_dim {} and value_dim {}", shape.head_dim, shape.value_dim),
            "tiles of more than 256 columns do not fit",
        ));
    }
    if !request.hopper.is_mappable {
        return Some(match shape.kv_kind {
            KvKind::Paged => (
                "these pages, strides or addresses".into(),
                "tensor copies need pages of a multiple of 8 keys, and positive strides and addresses that are multiples of 16 \
                 bytes",
            ),
            _ => (
                "these strides or addresses".into(),
                "tensor copies need positive strides of rows and addresses that are multiples of 16 bytes, and sequences a \
                 whole number of rows apart",
            ),
        });
    }
    if !request.hopper.has_positive_scale {
        return Some((
            "a softmax_scale that is not positive".into(),
            "the largest score has to be the largest product",
        ));
    }
    if config.num_partitions.is_some_and(|number| number > 1) || config.split_within_block == Some(true) {
        return Some(("split keys".into(), "its blocks see all keys of their rows"));
    }
    None
}

/// Why another family is faster.
fn better_elsewhere(
    request: &Request<'_>,
    sequences: Sequences,
    tile: &HopperConfig,
    heads_per_tile: usize,
) -> Option<String> {
    let rows = sequences.rows * heads_per_tile;
    if rows < FEWEST_ROWS {
        return Some(format!("{rows} rows a tile"));
    }
    let num_tiles = num_tiles(request, sequences, tile, heads_per_tile);
    if 2 * num_tiles < request.facts.multiprocessors && request.shape.seqlen_k >= FEWEST_SPLIT_KEYS {
        return Some(format!(
            "{num_tiles} tiles for {} multiprocessors and keys to split",
            request.facts.multiprocessors
        ));
    }
    None
}

/// From so many keys on, tiles in halves make good what their first one costs.
const FEWEST_KEYS_OF_HALVES: usize = 1024;

/// To so many keys, without and with a causal mask, four warpgroups in small tiles are faster at head_dim 64: what is between
/// the products of one runs beside three others.
const MOST_KEYS_OF_FOUR: usize = 1024;
const MOST_CAUSAL_KEYS_OF_FOUR: usize = 4096;

/// From so many keys on, reading keys and values once for two blocks is worth that these wait for each other; above head_dim 192
/// from half as many, where it gains at the power limit and loses nothing below.
const FEWEST_KEYS_OF_PAIRS: usize = 2048;
const FEWEST_KEYS_OF_WIDE_PAIRS: usize = 1024;

/// The tile for these dimensions.
fn default_tile(request: &Request<'_>, sequences: Sequences) -> HopperConfig {
    let shape = request.shape;
    let (head_dim, value_dim) = (shape.head_dim.next_multiple_of(16), shape.value_dim.next_multiple_of(16));
    let tile = |block_m, block_n, query_tiles| HopperConfig {
        dtype: shape.dtype,
        head_dim,
        value_dim,
        block_m,
        block_n,
        query_tiles,
        cluster: 1,
        paged: shape.kv_kind == KvKind::Paged,
    };
    let keys = if shape.ragged_q { sequences.rows } else { shape.seqlen_k };
    // Three warpgroups keep the tensor cores busy while each of them does what is between its products.
    match (head_dim, value_dim) {
        (..=64, ..=64) => {
            let (four, three) = (tile(256, 64, 2), tile(192, 128, 2));
            let most_keys = match (request.mask_type, request.score_mod_type) {
                ("NoMask", "Identity") => MOST_KEYS_OF_FOUR,
                ("Causal", "Identity") => MOST_CAUSAL_KEYS_OF_FOUR,
                // A row sees few of them.
                ("SlidingWindow", "Identity") => usize::MAX,
                // What else is done to scores takes more registers than four warpgroups have.
                _ => 0,
            };
            // Of sequences of many lengths some leave a part of any tile empty.
            let is_filled = shape.ragged_q || is_filled(request, sequences, &four);
            if keys <= most_keys && is_filled && ends_as_early(request, sequences, &four, &three) {
                four
            } else {
                three
            }
        }
        (..=96, ..=96) => tile(192, 96, 2),
        (..=128, ..=128) => {
            let (three, two) = (tile(192, 64, 2), tile(128, 128, 2));
            // Unless packed, a document's status reads the ids of a tile's rows and keys: half as many tiles are half the time.
            // What is done to a score between the products takes longer in smaller tiles, but for a slope (softcap 8 %, a bias
            // 14 %, an additive mask 10 %).
            let is_asked_long =
                request.mask_type.split("PackedDocument").any(|other| other.contains("Document"));
            // Without a mask, two warpgroups take tiles of 128 keys in halves, which begins slowly and then is faster.
            let has_halves = request.mask_type == "NoMask" && request.score_mod_type == "Identity";
            if has_halves && keys >= FEWEST_KEYS_OF_HALVES {
                return two;
            }
            let is_modified = !matches!(request.score_mod_type, "Identity" | "Alibi")
                || request.mask_type.contains("Additive");
            let is_better =
                is_filled(request, sequences, &three) && ends_as_early(request, sequences, &three, &two);
            if !is_asked_long && !is_modified && is_better { three } else { two }
        }
        (..=192, ..=128) => tile(128, 128, 1),
        _ => tile(128, 64, 1),
    }
}

/// Tiles for each multiprocessor from which on it does not matter that the last of them are not evenly shared.
const MANY_ROUNDS: usize = 4;

/// Whether a tile leaves at most a sixth of its rows empty.
fn is_filled(request: &Request<'_>, sequences: Sequences, tile: &HopperConfig) -> bool {
    let rows = sequences.rows;
    let rows = rows * packed_heads(rows, request.shape.group_size(), tile.block_m);
    6 * rows >= 5 * rows.next_multiple_of(tile.block_m)
}

/// Whether a larger tile leaves no more to wait for at the end than a smaller one.
fn ends_as_early(
    request: &Request<'_>,
    sequences: Sequences,
    larger: &HopperConfig,
    smaller: &HopperConfig,
) -> bool {
    let rounds_of = |tile: &HopperConfig| {
        let heads_per_tile = packed_heads(sequences.rows, request.shape.group_size(), tile.block_m);
        num_tiles(request, sequences, tile, heads_per_tile).div_ceil(request.facts.multiprocessors)
    };
    let rounds = rounds_of(larger);
    rounds >= MANY_ROUNDS || rounds * larger.block_m <= rounds_of(smaller) * smaller.block_m
}

/// The tile with what the caller fixed.
fn configured(request: &Request<'_>, default: HopperConfig) -> Result<HopperConfig> {
    let config: &AttentionConfig = request.config;
    let mut tile = default;
    tile.block_m = config.block_m.unwrap_or(default.block_m);
    tile.block_n = config.block_n.unwrap_or(default.block_n);
    let limit = request.facts.shared_memory_bytes;
    if tile != default && tile.shared_memory_bytes() > limit {
        tile.query_tiles = 1;
    }
    tile.check(limit)?;
    let only = |name: &str, asked: Option<usize>, value: usize, why: &str| match asked {
        Some(asked) if asked != value => {
            Err(Error::value(format!("config.{name}"), asked, format!("{value}: {why}")))
        }
        _ => Ok(()),
    };
    only("block_k", config.block_k, tile.head_dim, "a tile holds whole vectors")?;
    only("warp_m", config.warp_m, WARP_ROWS, "a warpgroup has 64 rows")?;
    only("warp_n", config.warp_n, tile.block_n, "a warp sees all keys of a tile")?;
    only("k_group_size", config.k_group_size, 1, "a tile holds whole vectors")?;
    only(
        "num_pipeline_stages",
        config.num_pipeline_stages,
        tile.stages(),
        "so many slots for keys, and for values, has this tile",
    )?;
    match config.swizzle {
        Some(swizzle) if swizzle != Swizzle::B128 => {
            Err(Error::value("config.swizzle", swizzle.bytes(), "128: the pattern of its copies"))
        }
        _ => Ok(tile),
    }
}

/// Packs the heads of a group into one tile where that saves at least a tenth of the tiles.
fn packed_heads(rows: usize, group_size: usize, block_m: usize) -> usize {
    let separate = rows.div_ceil(block_m) * group_size;
    let packed = (rows * group_size).div_ceil(block_m);
    if HopperConfig::can_pack(group_size) && 10 * packed <= 9 * separate { group_size } else { 1 }
}

/// Blocks that copy keys and values for each other: two where no mask tells their rows apart, tiles of a section, whose key head is
/// one, are even in number, and all blocks have work. Padded queries are left out: one block of a pair could have no rows.
fn cluster(request: &Request<'_>, tile: &HopperConfig, num_tiles: usize) -> usize {
    let shape = request.shape;
    let sees_all = (request.mask_type, request.score_mod_type) == ("NoMask", "Identity");
    let has_all_rows = request.hopper.has_all_rows && !shape.ragged_q;
    let sections = shape.batch * shape.num_kv_heads;
    let has_one_stride = shape.kv_kind != KvKind::Paged;
    let is_even = num_tiles.is_multiple_of(2 * sections);
    let is_worth_it = match tile.head_dim.min(tile.value_dim) {
        ..=96 => false,
        97..=192 => shape.seqlen_k >= FEWEST_KEYS_OF_PAIRS,
        193.. => shape.seqlen_k >= FEWEST_KEYS_OF_WIDE_PAIRS,
    };
    if sees_all
        && has_all_rows
        && has_one_stride
        && is_even
        && is_worth_it
        && num_tiles >= request.facts.multiprocessors
    {
        2
    } else {
        1
    }
}

fn num_tiles(
    request: &Request<'_>,
    sequences: Sequences,
    tile: &HopperConfig,
    heads_per_tile: usize,
) -> usize {
    let head_tiles = request.shape.num_heads / heads_per_tile;
    sequences.number * head_tiles * tile.num_row_tiles(sequences.rows, heads_per_tile) as usize
}

/// Pairs of sequence and head tile whose rows are taken in turn, from the last on. Without a causal mask those of one
/// group, which read the same keys; with one as many as the second-level cache holds keys of, at most 32, so that the
/// longest tiles of many heads come first and the end of the launch is even. All sections are as large: a rest of few
/// heads at the end would leave blocks without work (5 heads at a time of 16 cost 7 % on an H200).
fn section(request: &Request<'_>, heads_per_tile: usize) -> usize {
    let shape = request.shape;
    let of_a_group = shape.group_size() / heads_per_tile;
    if !may_be_causal(request.mask_type) {
        return of_a_group;
    }
    let keys = shape.seqlen_k * (shape.head_dim + shape.value_dim) * shape.dtype.size();
    let most = (request.facts.l2_bytes * 2 / 3 / keys.max(1)).clamp(1, 32);
    let groups = shape.batch * shape.num_kv_heads;
    groups.div_ceil(groups.div_ceil(most).max(1)).max(1) * of_a_group
}
