// Tiles of rows in shared memory: where a row's 16-byte chunks lie, and how a tile is filled.
#pragma once

#include "sm80.hpp"

namespace omniflash {

// A tile whose rows have kColumns elements. Chunks of a row are permuted so that the same chunk of eight consecutive
// rows meets all banks, whatever the pitch: a pitch of 8n chunks needs a permutation of 8, one of 8n + 4 has two phases
// of its own, one of an even number four.
template <class Element, int kColumns>
struct SharedTile {
  static constexpr int kElements = kColumns;  // of a row
  static constexpr int kChunkElements = 16 / sizeof(Element);
  static constexpr int kChunks = kColumns / kChunkElements;
  static constexpr int kRowBytes = kChunks * 16;
  static_assert(kColumns % kChunkElements == 0 && kChunks % 2 == 0, "rows are whole pairs of chunks");

  unsigned address;

  static OMNIFLASH_DEVICE constexpr int permuted(int row, int chunk) {
    if constexpr (kChunks % 8 == 0) {
      return chunk ^ (row & 7);
    } else if constexpr (kChunks % 4 == 0) {
      return chunk ^ ((row >> 1) & 3);
    } else {
      return chunk ^ ((row >> 2) & 1);
    }
  }
  OMNIFLASH_DEVICE unsigned chunk(int row, int chunk) const {
    return address + row * kRowBytes + permuted(row, chunk) * 16;
  }
  // The chunk some chunks to the right of a row's first, or an even number to the right of its second. The number is a
  // constant: most of it becomes the instruction's offset. Rows 8 apart are permuted alike.
  static OMNIFLASH_DEVICE unsigned right_of(unsigned chunk, int chunks) {
    constexpr int kPermuted = kChunks % 8 == 0 ? 7 : kChunks % 4 == 0 ? 3 : 1;
    return (chunk ^ (chunks & kPermuted) * 16) + (chunks & ~kPermuted) * 16;
  }
  // The address of one element.
  OMNIFLASH_DEVICE unsigned element(int row, int column) const {
    return chunk(row, column / kChunkElements) + column % kChunkElements * sizeof(Element);
  }
};

// A tile whose rows are as they are in memory, and apart by one chunk more: eight consecutive rows' same chunk meets all
// banks, since a row's chunks are even in number.
template <class Element, int kColumns>
struct PaddedTile {
  static constexpr int kElements = kColumns;
  static constexpr int kChunkElements = 16 / sizeof(Element);
  static constexpr int kChunks = kColumns / kChunkElements;
  static constexpr int kRowBytes = (kChunks + 1) * 16, kPitchBytes = kRowBytes;  // from a row to the next
  static_assert(kColumns % kChunkElements == 0 && kChunks % 2 == 0, "rows are whole pairs of chunks");

  unsigned address;

  OMNIFLASH_DEVICE unsigned row(int row) const { return address + row * kPitchBytes; }
  OMNIFLASH_DEVICE unsigned chunk(int row, int chunk) const { return address + row * kPitchBytes + chunk * 16; }
  // The chunk so many chunks to the right of one.
  static OMNIFLASH_DEVICE constexpr unsigned right_of(unsigned chunk, int chunks) { return chunk + chunks * 16; }
  // The address of one element.
  OMNIFLASH_DEVICE unsigned element(int row, int column) const {
    return address + row * kPitchBytes + column * static_cast<int>(sizeof(Element));
  }
};

// Writes two neighbours, rounded.
template <class Element>
OMNIFLASH_DEVICE void store_pair(unsigned to, float low, float high) {
  if constexpr (sizeof(Element) == 4) {
    store_shared_8(to, __builtin_bit_cast(unsigned, low), __builtin_bit_cast(unsigned, high));
  } else {
    store_shared_4(to, pack<Element>(low, high));
  }
}

// Element i of a chunk.
template <class Element>
OMNIFLASH_DEVICE Element element_of(const unsigned (&words)[4], int i) {
  if constexpr (sizeof(Element) == 4) {
    return __builtin_bit_cast(Element, words[i]);
  } else {
    return Element{static_cast<unsigned short>(words[i / 2] >> i % 2 * 16)};
  }
}

// Fills one chunk: from global memory, or with zeros where there is no row or no column.
template <bool kVector, class Element>
OMNIFLASH_DEVICE void fill_chunk(unsigned to, const Element* row, int column, int columns, bool valid) {
  if constexpr (kVector) {
    copy_async_16(to, row + column, valid && column < columns);
  } else {
    constexpr int kElements = 16 / sizeof(Element);
    union {
      Element elements[kElements];
      unsigned words[4];
    } chunk{};
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (valid && column + i < columns) chunk.elements[i] = row[column + i];
    }
    store_shared_16(to, chunk.words);
  }
}

// Fills kRows rows with kThreads threads. A thread keeps its column of chunks and steps down the rows; threads that do
// not make up a whole row have nothing to do. The walker stands at row 0: advance(rows) moves it, at(valid) is the
// address of its row. Rows from num_valid on are zeros.
template <int kThreads, int kRows, bool kVector, int kUnroll, class Tile, class Walker>
OMNIFLASH_DEVICE void fill_tile(const Tile& tile, int columns, int num_valid, Walker walker) {
  constexpr int kStep = kThreads / Tile::kChunks;
  static_assert(kStep >= 1, "a row has at most as many chunks as there are threads");
  // Opaque, so that products with strides are made here and do not stay in registers.
  const int thread = opaque(thread_index()), step = opaque(kStep), chunk = thread % Tile::kChunks;
  int row = thread / Tile::kChunks;
  if (kThreads % Tile::kChunks != 0 && row >= kStep) return;
  walker.advance(row);
#pragma unroll kUnroll
  for (int pass = 0; pass < (kRows + kStep - 1) / kStep; ++pass) {
    if (kRows % kStep == 0 || row < kRows) {
      const bool valid = row < num_valid;
      fill_chunk<kVector>(tile.chunk(row, chunk), walker.at(valid), chunk * Tile::kChunkElements, columns, valid);
    }
    row += kStep;
    walker.advance(step);
  }
}

// A thread's part in filling tiles of rows of one stride of which none is missing. A row is cut into bands of equally many chunks,
// the largest power of two that divides its own: a row of 12 chunks has 3 bands of 4. Neighbouring threads copy one band of a
// row; each keeps its place in the bands, and steps from band to band, and kStep rows down after the last. Nothing is asked
// for a row, and where the chunks of its passes come from and go differs by constants and by whole steps.
template <int kThreads, int kRows, class Tile>
struct TileFiller {
  static constexpr int kBand = Tile::kChunks & -Tile::kChunks, kBands = Tile::kChunks / kBand;  // chunks of a band, bands of a row
  static constexpr int kStep = kThreads / kBand, kPasses = (kRows + kStep - 1) / kStep * kBands;
  static constexpr int kBandElements = kBand * Tile::kChunkElements;
  static_assert(kStep >= 1, "a band has at most as many chunks as there are threads");
  static_assert(kBandElements >= 16, "rows are padded to a multiple of 16 elements");
  int row, column;   // of the first chunk: a row of the tile, an element of the row
  unsigned offset;   // of the first chunk from the tile's address
  bool is_idle;      // a thread that does not make up a whole band with others, or has no row
  bool has_last;     // whether rows have its column in the last band, which is the padded one; else it becomes zeros there

  OMNIFLASH_DEVICE TileFiller(int thread, int columns) {
    const int chunk = thread % kBand;
    row = thread / kBand;
    has_last = ((kBands - 1) * kBand + chunk) * Tile::kChunkElements < columns;
    column = kBands > 1 || has_last ? chunk * Tile::kChunkElements : 0;
    offset = Tile{0}.chunk(row, chunk);
    is_idle = (kThreads % kBand != 0 && row >= kStep) || (kStep > kRows && row >= kRows);
  }

  // This thread's chunk of the first pass in rows from `first` on, which are `stride` elements apart.
  template <class Element>
  OMNIFLASH_DEVICE const Element* first_chunk(const Element* first, long long stride) const {
    return first + row * stride + column;
  }

  // A pass, one after the other: `from` is the row's chunk in the first band, and moves on after the last.
  template <class Element>
  OMNIFLASH_DEVICE void copy(const Tile& tile, int pass, const Element*& from, long long stride) const {
    copy_to(tile.address + offset, pass, from, stride, true);
  }
  // The same by where the first chunk goes; zeros where there is nothing.
  template <class Element>
  OMNIFLASH_DEVICE void copy_to(unsigned first, int pass, const Element*& from, long long stride, bool is_there) const {
    const int band = pass % kBands, step = pass / kBands;
    if (!is_idle && (kRows % kStep == 0 || row + step * kStep < kRows)) {
      copy_async_16(first + below(step) + band * kBand * 16, from + band * kBandElements,
                    is_there && (band < kBands - 1 || has_last));
    }
    if (band == kBands - 1) from += kStep * stride;
  }

 private:
  // How far below the first chunk that of a step lies. A permutation moves chunks within a band.
  OMNIFLASH_DEVICE unsigned below(int step) const {
    if constexpr (kStep % 8 == 0) {
      return step * kStep * Tile::kRowBytes;
    } else if constexpr (kStep == 4 && Tile::kChunks % 8 == 0 && kThreads % kBand == 0) {
      // Rows 0 to 3 of eight, and the row 4 below: its permutation differs in one bit.
      return (offset ^ step % 2 * 64) - offset + step * kStep * Tile::kRowBytes;
    } else {
      return Tile{0}.chunk(row + step * kStep, static_cast<int>(thread_index() % kBand)) - offset;
    }
  }
};

// Fills a tile of such rows.
template <int kThreads, int kRows, class Element, int kColumns>
OMNIFLASH_DEVICE void fill_whole_tile(const SharedTile<Element, kColumns>& tile, int columns, const Element* first,
                                      long long stride) {
  using Filler = TileFiller<kThreads, kRows, SharedTile<Element, kColumns>>;
  const Filler filler(opaque(thread_index()), columns);
  const Element* from = filler.first_chunk(first, stride);
#pragma unroll
  for (int pass = 0; pass < Filler::kPasses; ++pass) filler.copy(tile, pass, from, stride);
}

}  // namespace omniflash
