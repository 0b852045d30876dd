// Tiles of keys and values: where they lie in shared memory, and how they get there by way of registers.
//
// A chunk is 16 bytes. Keys lie as rows, one slot a key (slot_of); a pitch of an odd number of chunks keeps eight
// consecutive slots in different banks. Values of 16 bits lie transposed, one slot a column, their chunks permuted, or as
// rows where shared memory can be read as columns; values of 32 bits lie as rows, because their products take one number
// of a lane at a time.
#pragma once

#include "matrix.hpp"

namespace omniflash {

// All of a block's dynamic shared memory.
extern OMNIFLASH_SHARED __attribute__((aligned(16))) unsigned char shared_bytes[];

#define OMNIFLASH_GLOBAL __attribute__((address_space(1)))
#define OMNIFLASH_LOCAL __attribute__((address_space(3)))

// Bytes from the start of shared memory.
template <class T>
OMNIFLASH_DEVICE T load_shared(int at) {
  return *(const OMNIFLASH_LOCAL T*)(shared_bytes + at);
}
template <class T>
OMNIFLASH_DEVICE void store_shared(int at, T value) {
  *(OMNIFLASH_LOCAL T*)(shared_bytes + at) = value;
}
template <class T>
OMNIFLASH_DEVICE T load_global(const void* from) {
  return *(const OMNIFLASH_GLOBAL T*)from;
}
template <class T>
OMNIFLASH_DEVICE void store_global(void* to, T value) {
  *(OMNIFLASH_GLOBAL T*)to = value;
}

// ---- chunks of rows in global memory

// The chunk of a row that begins at `column`; zeros where there is no row or no column.
template <bool kVector, class Element>
OMNIFLASH_DEVICE Chunk load_chunk(const Element* row, int column, int columns, bool valid) {
  Chunk chunk = 0;
  if constexpr (kVector) {
    if (valid && column < columns) chunk = load_global<Chunk>(row + column);
  } else {
    constexpr int kElements = kChunkElements<Element>;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (!valid || column + i >= columns) continue;
      if constexpr (sizeof(Element) == 4) {
        chunk[i] = load_global<unsigned>(row + column + i);
      } else {
        chunk[i / 2] |= static_cast<unsigned>(load_global<unsigned short>(row + column + i)) << i % 2 * 16;
      }
    }
  }
  return chunk;
}

// Element i of a chunk.
template <class Element>
OMNIFLASH_DEVICE float element_of(Chunk chunk, int i) {
  // A copy: of an element where it lies, clang's bit cast is that of the first.
  const unsigned word = chunk[i * sizeof(Element) / 4];
  if constexpr (sizeof(Element) == 4) {
    return __builtin_bit_cast(float, word);
  } else {
    return to_float(Element{static_cast<unsigned short>(word >> i % 2 * 16)});
  }
}

// Puts an element where there was none.
OMNIFLASH_DEVICE void set_element(Chunk& chunk, int i, float value) { chunk[i] = __builtin_bit_cast(unsigned, value); }
template <class Element>
OMNIFLASH_DEVICE void set_element(Chunk& chunk, int i, Element value) {
  chunk[i / 2] |= static_cast<unsigned>(value.bits) << i % 2 * 16;
}

// ---- tiles of rows

// kRows rows of kColumns elements. One thread keeps its column of chunks and steps down the rows; threads that do not make
// up a whole row have nothing to do.
template <class Element, int kRows, int kColumns, int kPitch, bool kInSlots, int kThreads>
struct LinearTile {
  static constexpr int kChunks = kColumns / kChunkElements<Element>;
  static constexpr int kBytes = kRows * kPitch * 16;
  static constexpr int kStep = kThreads / kChunks;
  static constexpr int kPasses = (kRows + kStep - 1) / kStep;
  static_assert(kColumns % kChunkElements<Element> == 0 && kStep >= 1, "a row is a whole number of chunks");

  // Row and chunk each as a part that a lane brings and a part known when compiling.
  static OMNIFLASH_DEVICE int chunk_at(int base, int row, int chunk, int more_rows = 0, int more_chunks = 0) {
    return base + (row * kPitch + chunk) * 16 + (more_rows * kPitch + more_chunks) * 16;
  }

  // On its way from global to shared memory, in registers until it is stored.
  struct Stage {
    Chunk chunks[kPasses];

    template <bool kVector, class Walker>
    OMNIFLASH_DEVICE void load(int thread, int, Walker walker, int columns, int num_valid) {
      const int chunk = thread % kChunks, first = thread / kChunks;
      walker.advance(first);
      if constexpr (kVector && kThreads % kChunks == 0 && kRows % kStep == 0) {
        if (num_valid >= kRows && columns == kColumns) {
          // Nothing to ask about.
#pragma unroll
          for (int pass = 0; pass < kPasses; ++pass) {
            chunks[pass] = load_global<Chunk>(walker.at(true) + chunk * kChunkElements<Element>);
            walker.advance(kStep);
          }
          return;
        }
      }
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        const bool valid = first < kStep && first + pass * kStep < num_valid;
        chunks[pass] = load_chunk<kVector>(walker.at(valid), chunk * kChunkElements<Element>, columns, valid);
        walker.advance(kStep);
      }
    }

    OMNIFLASH_DEVICE void store(int thread, int base) const {
      const int chunk = thread % kChunks, first = thread / kChunks;
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        const int row = first + pass * kStep;
        if (first >= kStep || row >= kRows) continue;
        store_shared(chunk_at(base, kInSlots ? slot_of(row) : row, chunk), chunks[pass]);
      }
    }
  };
};

// ---- tiles of columns

// kKeys vectors of kColumns 16-bit elements, transposed: a slot for each column.
template <class Element, int kKeys, int kColumns, int kThreads>
struct TransposedTile {
  static constexpr int kChunks = kKeys / 8;  // of a slot
  static constexpr int kBytes = kColumns * kChunks * 16;
  // A thread turns four keys by eight columns at a time.
  static constexpr int kKeyUnits = kKeys / 4, kColumnUnits = kColumns / 8;
  static constexpr int kPasses = (kKeyUnits * kColumnUnits + kThreads - 1) / kThreads;
  static_assert(kChunks >= 4 && kColumns % 16 == 0, "tiles of at least 32 keys");

  static OMNIFLASH_DEVICE constexpr int permutation(int slot) {
    return kChunks % 8 == 0 ? chunk_permutation(slot) : short_chunk_permutation(slot);
  }
  static OMNIFLASH_DEVICE constexpr int place(int slot) { return kChunks % 8 == 0 ? slot_place(slot) : slot; }
  // Slot and chunk each as a part that a lane brings and a part known when compiling, without common bits. The permutation
  // is linear over bits, so that the known parts cost an exclusive or at most, and few different ones.
  static OMNIFLASH_DEVICE int chunk_at(int base, int slot, int chunk, int more_slots = 0, int more_chunks = 0) {
    const int mine = (place(slot) * kChunks + (chunk ^ permutation(slot))) * 16;
    return base + (mine ^ (more_chunks ^ permutation(more_slots)) * 16) + place(more_slots) * kChunks * 16;
  }

  // A unit of a thread: eight lanes cover 128 bytes of a row, sixteen of them all banks of two neighbouring keys' units.
  struct Unit {
    int key, column;  // the first
    bool is_inside;
    OMNIFLASH_DEVICE Unit(int thread, int pass) {
      const int unit = thread + pass * kThreads;
      if constexpr (kColumnUnits % 8 == 0) {
        column = (unit % 8 + unit / 16 % (kColumnUnits / 8) * 8) * 8;
        key = (unit / 8 % 2 + unit / 16 / (kColumnUnits / 8) * 2) * 4;
      } else {
        column = unit % kColumnUnits * 8;
        key = unit / kColumnUnits * 4;
      }
      is_inside = key < kKeys;
    }
  };

  struct Stage {
    Chunk chunks[kPasses][4];

    template <bool kVector, class Walker>
    OMNIFLASH_DEVICE void load(int thread, int, Walker walker, int columns, int num_valid) {
      if constexpr (kVector) {
        if (num_valid >= kKeys && columns == kColumns) {
          // Nothing to ask about but whether there is a unit left.
#pragma unroll
          for (int pass = 0; pass < kPasses; ++pass) {
            const Unit unit(thread, pass);
            if (!unit.is_inside) continue;
            Walker at = walker;
            at.advance(unit.key);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              chunks[pass][i] = load_global<Chunk>(at.at(true) + unit.column);
              at.advance(1);
            }
          }
          return;
        }
      }
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        const Unit unit(thread, pass);
        Walker at = walker;
        at.advance(unit.key);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const bool valid = unit.is_inside && unit.key + i < num_valid;
          chunks[pass][i] = load_chunk<kVector>(at.at(valid), unit.column, columns, valid);
          at.advance(1);
        }
      }
    }

    OMNIFLASH_DEVICE void store(int thread, int base) const {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        const Unit unit(thread, pass);
        if (!unit.is_inside) continue;
#pragma unroll
        for (int column = 0; column < 8; ++column) {
          // The low or the high halves of two words.
          const unsigned halves = column % 2 == 0 ? 0x05040100 : 0x07060302;
          using Pair = unsigned __attribute__((ext_vector_type(2)));
          const Pair pair = {
              __builtin_amdgcn_perm(chunks[pass][1][column / 2], chunks[pass][0][column / 2], halves),
              __builtin_amdgcn_perm(chunks[pass][3][column / 2], chunks[pass][2][column / 2], halves)};
          store_shared(chunk_at(base, slot_of(unit.column), unit.key / 8, slot_of(column), 0) + unit.key % 8 * 2, pair);
        }
      }
    }
  };
};

// ---- rows that are read as columns: what 16-bit values lie in

#if defined(__gfx950__)

// The lane's part in what sixteen read together, four rows of sixteen columns: four neighbouring columns of one key.
OMNIFLASH_DEVICE int transposing_key() { return 8 * lane_group() + lane_column() % 16 / 4; }
OMNIFLASH_DEVICE int transposing_column() { return (lane_column() & 16) + slot_of(lane_column() % 4 * 4); }

// Eight keys of a column, of which four lie at either address.
OMNIFLASH_DEVICE Chunk read_columns(int low_at, int high_at) {
  using Half = unsigned __attribute__((ext_vector_type(2)));
  const auto read = [](int at) {
    return __builtin_bit_cast(Half,
                              __builtin_amdgcn_ds_read_tr16_b64_v4i16((OMNIFLASH_LOCAL Short4*)(shared_bytes + at)));
  };
  const Half low = read(low_at), high = read(high_at);
  return Chunk{low[0], low[1], high[0], high[1]};
}

// 16-bit values as rows, of which a lane reads the eight keys of its group in its own column. A pitch of an odd number of
// 64 bytes keeps four rows in different banks.
template <class Element, int kKeys, int kColumns, int kThreads>
struct TransposingTile : LinearTile<Element, kKeys, kColumns, (kColumns / 32 | 1) * 4, false, kThreads> {
  static constexpr int kPitchBytes = (kColumns / 32 | 1) * 64;

  // Keys 16 step + 8 group .. of the column whose slot is the lane's in tile n.
  static OMNIFLASH_DEVICE Chunk column(int base, int n, int step) {
    const int lane = base + transposing_key() * kPitchBytes + transposing_column() * 2;
    const int at = lane + 16 * step * kPitchBytes + n * kTile * 2;
    return read_columns(at, at + 4 * kPitchBytes);
  }
};

template <class Element, int kKeys, int kColumns, int kThreads>
using HalfValueTile = TransposingTile<Element, kKeys, kColumns, kThreads>;
constexpr bool kReadsTransposed = true;

#else

template <class Element, int kKeys, int kColumns, int kThreads>
using HalfValueTile = TransposedTile<Element, kKeys, kColumns, kThreads>;
constexpr bool kReadsTransposed = false;

#endif

}  // namespace omniflash
