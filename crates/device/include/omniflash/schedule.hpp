// Which rows and keys a block of threads works on.
#pragma once

#include "omniflash/functor.hpp"
#include "omniflash/sequence.hpp"

namespace omniflash {

// A sequence, a tile of heads and a tile of rows.
struct Work {
  int batch, first_head, row_tile;
};

// Blocks along x: pairs of sequence and head tile in sections; in a section the last row tiles of all pairs come first,
// because under a causal mask they are the longest.
OMNIFLASH_DEVICE Work work_of_block(const AttentionParameters& parameters, unsigned block) {
  const int first_pair = quotient(block, parameters.by_section_tiles) * parameters.section;
  const int pairs_left = parameters.num_pairs - first_pair, within = block - first_pair * parameters.num_row_tiles;
  const bool is_last = pairs_left <= static_cast<int>(parameters.section);
  const int row_tile = quotient(within, is_last ? parameters.by_last_section : parameters.by_section);
  const int pair = first_pair + within - row_tile * minimum(static_cast<int>(parameters.section), pairs_left);
  const int batch = quotient(pair, parameters.by_head_tiles);
  const int head_tile = pair - batch * static_cast<int>(parameters.head_tiles);
  return Work{batch, head_tile * static_cast<int>(parameters.heads_per_tile),
              static_cast<int>(parameters.num_row_tiles) - 1 - row_tile};
}

// The rows of one tile: queries of a sequence, with the heads of the tile interleaved.
struct RowTile {
  int first_row, num_rows;  // rows of the whole sequence: q_len * heads
  int first_head, heads;
  Divisor by_heads;

  OMNIFLASH_DEVICE RowTile(const AttentionParameters& parameters, const Work& work, const Sequence& sequence, int block_m)
      : first_row(work.row_tile * block_m),
        num_rows(sequence.q_len * static_cast<int>(parameters.heads_per_tile)),
        first_head(work.first_head),
        heads(parameters.heads_per_tile),
        by_heads(parameters.by_heads_per_tile) {}

  OMNIFLASH_DEVICE bool is_empty() const { return first_row >= num_rows; }
  OMNIFLASH_DEVICE int query(int row) const { return quotient(row, by_heads); }
  OMNIFLASH_DEVICE int head(int row) const { return first_head + row - query(row) * heads; }
};

// The keys that a tile of rows may see, in tiles of block_n, and what is known of each.
template <class Mask>
struct KeyTiles {
  const Mask& mask;
  TileRect rect;  // of the tile asked for last; its head is the first
  int heads;      // heads that the mask has to be asked for
  int block_n, kv_len;
  int begin, end;
  KeyRange visible;  // keys that some of the rows may see

  OMNIFLASH_DEVICE KeyTiles(const Mask& mask, const Sequence& sequence, const RowTile& rows, int block_m, int block_n)
      : KeyTiles(mask, sequence, queries_of(sequence, rows, block_m), rows.heads, block_n) {}

  // The same for queries of the heads from queries.head on.
  OMNIFLASH_DEVICE KeyTiles(const Mask& mask, const Sequence& sequence, const RowRange& queries, int num_heads, int block_n)
      : mask(mask), heads(head_invariant<Mask> ? 1 : num_heads), block_n(block_n), kv_len(sequence.kv_len) {
    rect.batch = queries.batch;
    rect.head = queries.head;
    rect.q_begin = queries.q_begin;
    rect.q_end = queries.q_end;
    visible = KeyRange{kv_len, 0};
    for (int i = 0; i < heads; ++i) {
      KeyRange keys{0, kv_len};
      shrink_range(mask, RowRange{rect.batch, rect.head + i, rect.q_begin, rect.q_end}, keys);
      if (keys.begin < keys.end) {
        visible.begin = minimum(visible.begin, keys.begin);
        visible.end = maximum(visible.end, keys.end);
      }
    }
    begin = visible.begin / block_n;
    end = visible.begin < visible.end ? ceil_divide(visible.end, block_n) : begin;
  }

  static OMNIFLASH_DEVICE RowRange queries_of(const Sequence& sequence, const RowTile& rows, int block_m) {
    const int last_row = minimum(rows.first_row + block_m, rows.num_rows) - 1;
    return RowRange{sequence.batch, rows.first_head, sequence.start + rows.query(rows.first_row),
                    sequence.start + rows.query(last_row) + 1};
  }

  // Leaves one of the equal runs that the tiles are cut into.
  OMNIFLASH_DEVICE void take_partition(const AttentionParameters& parameters, int partition) {
    const int num_partitions = parameters.num_partitions, last = end;
    const int run = quotient(end - begin + num_partitions - 1, parameters.by_num_partitions);
    begin = minimum(begin + partition * run, last);
    end = minimum(begin + run, last);
  }

  OMNIFLASH_DEVICE TileStatus status(int tile) {
    rect.k_begin = tile * block_n;
    rect.k_end = minimum(rect.k_begin + block_n, kv_len);
    TileStatus status = status_of(mask, rect);
    for (int i = 1; i < heads; ++i) {
      TileRect of_head = rect;
      of_head.head += i;
      status = across(status, status_of(mask, of_head));
    }
    return status;
  }

  // The first of every `step`-th tile from `tile` on that is not skipped, `end` or more if there is none, and its status.
  OMNIFLASH_DEVICE int next(int tile, TileStatus& status_of_next, int step = 1) {
    for (; tile < end; tile += step) {
      status_of_next = status(tile);
      if (status_of_next != TileStatus::Skip) break;
    }
    return tile;
  }
};

}  // namespace omniflash
